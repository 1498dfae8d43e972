"""Sweeps: indices that mean the same point for good, folders that say how far it is, launchers with stub commands."""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from diffusion import commands, sweeps, workdir
from diffusion.config import switch, to_json
from diffusion.sweeps import folders, local, slurm
from diffusion.training.logs import NonFiniteLoss

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "configs/ddpm_digits.py")
EDM = str(ROOT / "configs/edm_digits.py")
module = importlib.import_module("diffusion.commands.sweep")


def written(folder, *lines, head=""):
    """A sweep's file in the folder whose function has these lines."""
    folder.mkdir(parents=True, exist_ok=True)
    body = "".join(f"    {line}\n" for line in lines or ["pass"])
    (folder / "sweep.py").write_text(f"{head}\nDIGITS = {DIGITS!r}\nEDM = {EDM!r}\n\ndef sweep(add):\n{body}")
    return folder / "sweep.py"


def seeds(folder, *values):
    return written(folder, *(f"add(DIGITS, {{'seed': {value}}})" for value in values))


def begin(point, base, step, ended="stopped"):
    """The folder as a training of the point leaves it at that step."""
    folder = base / point.name
    (folder / "checkpoints" / str(step)).mkdir(parents=True)
    workdir.write(folder, "config.json", to_json(point.config))
    folders.record(point, base, ended)


def kinds(points, base):
    return [folders.state(point, base, points).kind for point in points]


class TestPoints:
    def test_a_point_is_what_its_flags_are(self, tmp_path, monkeypatch):
        """The same config as main.py's own flags make, options of a replaced component emptied too."""
        overrides = {
            "schedule.name": "cosine_alpha_bar",
            "schedule.s": 0.01,
            "sampler.name": "ddim",
            "network.channel_mults": (1, 2, 2),
            "training.num_steps": 7,
            "ema.warmup": False,
            "seed": 3,
        }
        (point,) = sweeps.points(written(tmp_path, f"add(EDM, {overrides})"))
        parsed = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=parsed)
        words = ["main", f"--config={EDM}", *(f"--config.{key}={value}" for key, value in overrides.items())]
        monkeypatch.setattr(sys, "argv", words)  # where config_flags looks for overrides
        parsed(words)
        switch(parsed["config"].value, config_flags.get_override_values(parsed["config"]))
        assert to_json(point.config) == to_json(parsed["config"].value)
        assert to_json(point.config)["sampler"]["name"] == "ddim"

    def test_an_index_is_the_same_point_whatever_comes_behind_it(self, tmp_path):
        few, more = seeds(tmp_path / "few", 5, 6), seeds(tmp_path / "more", 5, 6, 7, 8)
        first, second = sweeps.points(few), sweeps.points(more)
        assert [point.config.seed for point in second] == [5, 6, 7, 8]
        assert [point.name for point in second] == ["000", "001", "002", "003"]
        assert second[0]._replace(number=1000).name == "1000"
        for one, other in zip(first, second, strict=False):
            assert to_json(one.config) == to_json(other.config)
            assert (one.number, one.overrides) == (other.number, other.overrides)

    def test_points_do_not_share_a_config(self, tmp_path):
        one, other = sweeps.points(seeds(tmp_path, 0, 1))
        one.config.training.num_steps = 1
        assert other.config.training.num_steps == 2000

    def test_numpy_values_are_plain(self, tmp_path):
        lines = "for rate in np.logspace(-4, -3, 2): add(DIGITS, {'optimizer.learning_rate': rate})"
        found = sweeps.points(written(tmp_path, lines, head="import numpy as np"))
        assert [type(point.overrides["optimizer.learning_rate"]) for point in found] == [float, float]
        assert [point.config.optimizer.learning_rate for point in found] == pytest.approx([1e-4, 1e-3])

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("add(DIGITS, {'training.num_stps': 4})", r"point 0 \(training.num_stps=4\).*Did you mean 'num_steps'"),
            ("add(DIGITS, {'trainin.num_steps': 4})", "Did you mean 'training'"),
            ("add(DIGITS, {'num_steps': 4})", "no key 'num_steps'. Expected block.key"),
            ("add(DIGITS, {'schedule': 'cosine_alpha_bar'})", "no key 'schedule'"),
            ("add(DIGITS, {'schedule.name': 'cosine'})", "Did you mean 'cosine_alpha_bar'"),
            ("add(DIGITS, {'training.num_steps': 'many'})", "training.num_steps is 'many'.*type"),
            ("add(DIGITS, {'seed': 1.5})", "seed is 1.5.*type"),
            ("add(DIGITS, {'training.num_steps': None})", "training.num_steps is None"),
            ("add(DIGITS, {'training.num_steps': True})", "training.num_steps is True, expected a whole number"),
            ("add(DIGITS, {'seed': 2**32})", "seed is 4294967296; expected .* at most 4294967295"),
            ("add('configs/nothing.py')", "point 0: there is no file configs/nothing.py"),
            ("add(DIGITS); add(EDM); add(DIGITS, {'seed': 0})", r"point 2 \(seed=0\) is the same run as point 0"),
            ("add(DIGITS, {'seed': random.randrange(10**9)})", "adds other points at each call"),
            ("pass", "adds no point"),
            ("add(DIGITS, {'seed': nothing})", r"sweep.py, line \d: NameError: name 'nothing' is not defined"),
            ("add(__file__)", "point 0: .*has no function `get_config`"),
        ],
    )  # fmt: skip
    def test_what_cannot_run_is_refused_with_the_nearest_name(self, tmp_path, line, expected):
        with pytest.raises(ValueError, match=f"(?s){expected}"):
            sweeps.points(written(tmp_path, line, head="import random"))

    def test_a_number_that_is_none_is_the_same_at_each_call(self, tmp_path):
        (point,) = sweeps.points(written(tmp_path, "add(DIGITS, {'optimizer.learning_rate': float('nan')})"))
        assert math.isnan(point.config.optimizer.learning_rate)

    def test_files_that_are_no_sweep(self, tmp_path):
        with pytest.raises(ValueError, match="there is no file"):
            sweeps.points(tmp_path / "sweep.py")
        (tmp_path / "sweep.py").write_text("points = []\n")
        with pytest.raises(ValueError, match="has no function `sweep`"):
            sweeps.points(tmp_path / "sweep.py")
        for text, words in {
            "def sweep(add:\n": "sweep.py, line 1: SyntaxError: '\\(' was never closed",
            "\nimport nowhere\n": "sweep.py, line 2: ModuleNotFoundError",
            "def sweep(): pass\n": r"sweep.py: TypeError: sweep\(\) takes 0",
        }.items():
            (tmp_path / "sweep.py").write_text(text)
            with pytest.raises(ValueError, match=words):
                sweeps.points(tmp_path / "sweep.py")

    def test_the_worked_example_is_every_combination(self):
        found = sweeps.points(ROOT / "experiments/schedules_objectives/sweep.py")
        pairs = {(point.config.schedule.name, point.config.parameterization.name) for point in found}
        assert pairs == {(s, t) for s in ("linear_beta", "cosine_alpha_bar") for t in ("eps", "x_0", "v")}
        assert len(found) == 6


class TestFolders:
    def test_the_list_says_how_far_each_point_is(self, tmp_path, capsys):
        file, base = seeds(tmp_path / "x", *range(6)), tmp_path / "runs"
        points = sweeps.points(file)
        begin(points[1], base, 500)
        begin(points[2], base, 2000, "done")
        (base / "003").mkdir()
        folders.record(points[3], base, "failed", "NonFiniteLoss: step 3")
        begin(points[4], base, 1000, None)
        with folders.held(base / "004"):
            assert kinds(points, base) == ["not begun", "begun", "done", "failed", "running", "not begun"]
            assert commands.sweep(file, base, listed=True)
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines[1] == ["000", "not", "begun", "seed=0"]
        assert lines[2] == ["001", "step", "500", "of", "2000", "seed=1"]
        assert lines[3] == ["002", "done", "seed=2"]
        assert lines[4] == ["003", "failed", "seed=3"]
        assert lines[5] == ["NonFiniteLoss:", "step", "3"]
        assert lines[6] == ["004", "running,", "step", "1000", "of", "2000", "seed=4"]
        assert kinds(points, base)[4] == "begun"

    def test_a_point_that_is_to_go_further_is_not_done(self, tmp_path):
        (point,) = sweeps.points(seeds(tmp_path, 0))
        begin(point, tmp_path, 2000, "done")
        point.config.training.num_steps = 3000
        assert kinds([point], tmp_path) == ["begun"]

    def test_one_process_at_a_time(self, tmp_path):
        with folders.held(tmp_path), pytest.raises(ValueError, match="by another process"), folders.held(tmp_path):
            pass
        with folders.held(tmp_path):
            pass

    def test_another_config_in_the_folder_is_refused(self, tmp_path):
        before, base = sweeps.points(seeds(tmp_path / "a", 0, 1)), tmp_path / "runs"
        begin(before[1], base, 500)
        now = seeds(tmp_path / "b", 0, 7)
        with pytest.raises(commands.Refused, match=r"begun as point 1 \(seed=1\). seed: 1 there, 7 now"):
            commands.sweep(now, base, index=1)
        assert kinds(sweeps.points(now), base) == ["not begun", "another point"]

    def test_points_that_have_moved_are_refused_before_anything_starts(self, tmp_path, monkeypatch):
        """Also where they differ in nothing that a continued run may not change, as here in the number of steps."""
        line = "for steps in {}: add(DIGITS, {{'training.num_steps': steps}})"
        before, base = sweeps.points(written(tmp_path / "a", line.format((100, 200)))), tmp_path / "runs"
        for point in before:
            begin(point, base, point.config.training.num_steps, "done")
        now = written(tmp_path / "b", line.format((50, 100, 200)))
        assert kinds(sweeps.points(now), base) == ["another point", "another point", "not begun"]
        monkeypatch.setattr(local, "run", None)
        with pytest.raises(commands.Refused, match=r"000 holds what is point 1 now \(training.num_steps=100\)"):
            commands.sweep(now, base, launch="local")
        assert not (base / "002").exists()

    def test_a_failed_point_that_kept_nothing_may_be_corrected(self, tmp_path):
        (wrong,), (right,) = (sweeps.points(seeds(tmp_path / name, seed)) for name, seed in (("a", 1), ("b", 2)))
        (tmp_path / "000").mkdir()
        folders.record(wrong, tmp_path, "failed", "no")
        assert kinds([wrong], tmp_path) == ["failed"]
        assert kinds([right], tmp_path) == ["not begun"]


class TestOnePoint:
    @pytest.mark.parametrize(
        ("outcome", "ended"),
        [(True, "done"), (False, "stopped"), (NonFiniteLoss("step 3"), "failed"), (commands.Refused("no"), "failed")],
    )
    def test_how_it_ended_is_written_down(self, tmp_path, monkeypatch, outcome, ended):
        def train(config, folder):
            assert (config.seed, folder) == (8, tmp_path / "runs/001")
            assert json.loads((folder / "point.json").read_text())["ended"] is None
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(module, "train", train)
        file = seeds(tmp_path / "x", 7, 8)
        if isinstance(outcome, Exception):
            with pytest.raises(type(outcome), match=str(outcome)):
                commands.sweep(file, tmp_path / "runs", index=1)
        else:
            assert commands.sweep(file, tmp_path / "runs", index=1) is outcome
        there = json.loads((tmp_path / "runs/001/point.json").read_text())
        assert (there["index"], there["overrides"], there["ended"]) == (1, {"seed": 8}, ended)
        assert not (tmp_path / "runs/000").exists()

    def test_the_folder_is_named_after_the_experiment(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "train", lambda config, folder: folder == Path("runs/question/000"))
        monkeypatch.chdir(tmp_path)
        assert commands.sweep(seeds(tmp_path / "question", 7), index=0)

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            ({}, "needs one of --list"),
            ({"index": 0, "listed": True}, "needs one of --list"),
            ({"index": 2}, "has the points 0 to 1"),
            ({"index": 0, "jobs": 2}, "--jobs is for"),
            ({"launch": "local", "slurm_options": ["partition=gpu"]}, "--slurm is for"),
            ({"launch": "slurm", "slurm_options": ["partition"]}, "is no NAME=VALUE"),
        ],
    )
    def test_wrong_words_are_refused(self, tmp_path, asked, expected):
        with pytest.raises(commands.Refused, match=expected):
            commands.sweep(seeds(tmp_path, 0, 1), tmp_path / "runs", **asked)
        assert not (tmp_path / "runs").exists()


def shell(script):
    return ["sh", "-c", script]


class TestLocalLauncher:
    def test_no_more_than_the_limit_run_at_once(self, tmp_path):
        """Also those that fail leave their place to the next."""
        marks = tmp_path / "marks"
        script = f"echo 1 >> {marks}; sleep 0.5; echo -1 >> {marks}; exit "
        jobs = [local.Job(str(i), shell(script + str(4 * (i == 1))), tmp_path / f"{i}.txt") for i in range(5)]
        assert local.run(jobs, 2) == {"0": 0, "1": 4, "2": 0, "3": 0, "4": 0}
        changes = list(map(int, marks.read_text().split()))
        counts = [sum(changes[: i + 1]) for i in range(len(changes))]
        assert len(changes) == 10
        assert max(counts) == 2

    def test_devices_are_dealt_out(self, tmp_path, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
        script = f"echo $CUDA_VISIBLE_DEVICES >> {tmp_path / 'seen'}; sleep 0.5"
        local.run([local.Job(str(i), shell(script), tmp_path / "log.txt") for i in range(2)], 2)
        assert set((tmp_path / "seen").read_text().split()) == {"0,2", "1,3"}

    def test_a_failed_point_alone_is_trained_again(self, tmp_path, monkeypatch, capsys):
        file, base = seeds(tmp_path / "x", 0, 1, 2), tmp_path / "runs"
        points = sweeps.points(file)
        for point in points:
            begin(point, tmp_path / "ready", 2000, "done")

        def command(point, file, base):
            finish = f"cp -r {tmp_path}/ready/{point.name}/. {base / point.name}"
            once = f"test -e {tmp_path}/tried || {{ touch {tmp_path}/tried; echo the disk was full; exit 7; }}; "
            return shell(once * (point.number == 1) + finish)

        def refused(point, file, base):  # as where another launcher trains it, and finishes it meanwhile
            return shell(f"cp -r {tmp_path}/ready/{point.name}/. {base / point.name}; exit 2")

        monkeypatch.setattr(module, "_command", refused)
        assert commands.sweep(file, tmp_path / "others", launch="local")
        assert kinds(points, tmp_path / "others") == ["done"] * 3
        monkeypatch.setattr(module, "_command", command)
        with pytest.raises(commands.Failed, match=r"(?s)1 of 3 points failed.*001/log.txt ends\n    the disk was full"):
            commands.sweep(file, base, launch="local")
        assert kinds(points, base) == ["done", "failed", "done"]
        assert json.loads((base / "001/point.json").read_text())["why"] == "exit status 7"
        capsys.readouterr()
        assert commands.sweep(file, base, launch="local", jobs=2)
        said = capsys.readouterr().out
        assert "1 of 3 points to train, 2 done" in said
        assert [line[:3] for line in said.splitlines() if "begins" in line] == ["001"]
        assert kinds(points, base) == ["done"] * 3

    def test_a_stop_lets_the_running_ones_save(self, tmp_path):
        """Ctrl-C: a run that saves, one that has nothing to save yet, and one that has not begun."""
        log = tmp_path / "log.txt"
        saves = "trap 'sleep 0.3; echo saved; exit 3' TERM; echo up; while :; do sleep 0.1; done"
        scripts = [saves, "echo up; exec sleep 100", "echo never"]
        code = (
            f"from pathlib import Path\nfrom diffusion.sweeps import local\nscripts = {scripts!r}\n"
            f"jobs = [local.Job(str(i), ['sh', '-c', s], Path({str(log)!r})) for i, s in enumerate(scripts)]\n"
            "print(local.run(jobs, 2))"
        )
        launcher = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        deadline = time.time() + 120
        while not log.exists() or log.read_text().count("up") < 2:
            assert launcher.poll() is None
            assert time.time() < deadline
            time.sleep(0.1)
        launcher.send_signal(signal.SIGINT)
        said, _ = launcher.communicate(timeout=60)
        assert said.splitlines()[-1] in ("{'0': 3, '1': 3}", "{'1': 3, '0': 3}")
        assert log.read_text().split() == ["up", "up", "saved"]


class TestSlurm:
    """Through submitit: its executor for this machine runs jobs in processes of their own; a stub of sbatch is sent."""

    def test_jobs_run_fail_and_go_on_when_their_time_is_over(self, tmp_path):
        """The last command sends Slurm's signal to submitit's process and to itself, as Slurm would."""
        done, log = tmp_path / "done", tmp_path / "log"
        first = "kill -USR2 $$; kill -USR2 $PPID; for i in $(seq 300); do sleep 0.1; done; exit 9"
        over = f"trap 'echo saved >> {log}; exit 3' TERM; test -e {log} || {{ {first}; }}; echo finished >> {log}"
        scripts = [shell(f"touch {done}"), shell("exit 4"), shell(over)]
        good, bad, again = slurm.submit(scripts, tmp_path / "logs", {}, name="x", cluster="local")
        assert good.result() == 0
        assert done.exists()
        assert "exit status 4" in str(bad.exception())
        assert again.result() == 0
        assert log.read_text().split() == ["saved", "finished"]

    def test_what_slurm_is_sent(self, tmp_path, monkeypatch):
        (tmp_path / "bin").mkdir()
        for name, text in (("srun", ""), ("sbatch", f"cp $1 {tmp_path}/sent; echo Submitted batch job 7")):
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        file, base = seeds(tmp_path / "x", 0, 1, 2), tmp_path / "runs"
        begin(sweeps.points(file)[1], base, 2000, "done")
        options = ["partition=gpu", "gpus_per_node=1", "timeout_min=60"]
        assert commands.sweep(file, base, launch="slurm", jobs=2, slurm_options=options)
        sent = (tmp_path / "sent").read_text()
        for words in ("array=0-1%2", "partition=gpu", "gpus-per-node=1", "time=60", "job-name=runs", "signal=USR2@90"):
            assert f"#SBATCH --{words}\n" in sent
        pickles = sorted((base / "slurm").glob("*_submitted.pkl"))
        assert [path.name for path in pickles] == ["7_0_submitted.pkl", "7_1_submitted.pkl"]
        indices = [flag for path in pickles for flag in (b"--index=0", b"--index=2") if flag in path.read_bytes()]
        assert indices == [b"--index=0", b"--index=2"]
        (tmp_path / "bin/sbatch").write_text("#!/bin/sh\necho invalid partition specified >&2; exit 1\n")
        with pytest.raises(commands.Refused, match="--launch=slurm: .*invalid partition"):
            commands.sweep(file, base, launch="slurm")

    def test_options_are_numbers_where_they_look_like_it(self):
        given = ["partition=gpu", "gpus_per_node=1", "mem_gb=0.5"]
        assert slurm.options(given) == {"partition": "gpu", "gpus_per_node": 1, "mem_gb": 0.5}
        assert type(slurm.options(given)["gpus_per_node"]) is int

    def test_what_is_missing_or_unknown_is_said(self, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match="Unknown argument 'partitoin'"):
            slurm.submit([["true"]], tmp_path, {"partitoin": "gpu"}, name="x", cluster="local")
        monkeypatch.setenv("PATH", "")
        with pytest.raises(ValueError, match="srun"):
            slurm.submit([["true"]], tmp_path, {}, name="x")
        monkeypatch.setitem(sys.modules, "submitit", None)
        with pytest.raises(ValueError, match="pip install submitit"):
            slurm.submit([["true"]], tmp_path, {}, name="x")
