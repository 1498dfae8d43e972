"""The rehearsal of a training: its numbers against closed forms, and against what a training really leaves."""

import contextlib
import dataclasses
import importlib
import io
import json
import re

import jax
import numpy as np
import pytest

from diffusion import build, commands, devices, workdir
from diffusion.commands.console import duration, quantity
from diffusion.config import config, to_json
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.logs import NonFiniteLoss
from diffusion.training.state import abstract
from tests.processes import as_processes
from tests.test_commands import Usage

WIDTH, BLOCKS, PIXELS, BATCH = 256, 2, 64, 16
TINY = {
    "network": {"name": "mlp", "channels": WIDTH, "num_blocks": BLOCKS},
    "schedule": {"name": "linear_beta_scaled", "num_steps": 25},
    "logging": {"num_samples": 8, "tensorboard": False},
}
TRAINING = {"num_steps": 40, "batch_size": BATCH, "log_every": 4, "checkpoint_every": 40, "sample_every": 0}


def tiny(**blocks):
    return config(**TINY, training=TRAINING | blocks.pop("training", {}), **blocks)


def num_params():
    """Of `networks.mlp`: matrices with their biases, and the scale and bias of each normalisation."""
    square, norms = WIDTH * (WIDTH + 1), (BLOCKS + 1) * 2 * WIDTH
    return 2 * square + (PIXELS + 1) * WIDTH + BLOCKS * 3 * square + (WIDTH + 1) * PIXELS + norms


def flops():
    """Of a step: a product for each matrix forward, one for its gradient, and one for its input's, if it is needed."""
    weights = 2 * WIDTH**2 + PIXELS * WIDTH + BLOCKS * 3 * WIDTH**2 + WIDTH * PIXELS
    fed_with_data = WIDTH**2 + PIXELS * WIDTH  # the first layer of the level, and that of the image
    return 2 * BATCH * (3 * weights - fed_with_data)


def in_bytes(text):
    value, unit = text.split()
    return float(value) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """A dry run's screen."""
    folder, screen = tmp_path_factory.mktemp("runs") / "deep" / "run", io.StringIO()
    with contextlib.redirect_stdout(screen):
        commands.dry_run(tiny(), folder, num_steps=2)
    assert not folder.parent.exists()
    return screen.getvalue().rstrip()


class TestScreen:
    def test_it_is_one(self, run_once):
        lines = run_once.splitlines()
        assert len(lines) <= 30
        assert max(map(len, lines)) <= 120

    def test_the_batch_is_the_one_that_training_reads(self, run_once):
        image = build.build(tiny()).batches()[0]["image"]
        assert "1,500 samples of 8x8x1, 17 intensities" in run_once
        assert "10 classes: 0, 1, 2" in run_once
        assert f"float32 [16, 8, 8, 1] from -1 to 1, mean {image.mean():.4g}" in run_once

    def test_parameters_are_counted_and_sum_up(self, run_once):
        table = run_once.split("network")[1].split("state")[0].splitlines()
        assert int(re.search(r"([\d,]+) parameters", table[0])[1].replace(",", "")) == num_params()
        modules = {line.split()[0]: int(re.findall(r"[\d,]{2,}", line)[0].replace(",", "")) for line in table[1:]}
        assert sum(modules.values()) == num_params()
        assert modules["LevelEmbedding"] == 2 * WIDTH * (WIDTH + 1)

    def test_arithmetic_is_the_closed_form(self, run_once):
        assert f"step       {flops() / 1e6:.3g} MFLOP, {flops() / BATCH / 1e6:.3g} MFLOP an image" in run_once

    def test_a_checkpoint_takes_what_was_said(self, run_once, tmp_path):
        said = in_bytes(re.search(r"disk +(\S+ \S+) a checkpoint", run_once)[1])
        assert said == pytest.approx(4 * (4 * num_params()), rel=0.01)  # parameters, two moments, one average
        target, rng = abstract(build.build(tiny()).new_state, devices.data_mesh()), np.random.default_rng(0)
        state = jax.tree.map(lambda leaf: np.asarray(rng.normal(size=leaf.shape), leaf.dtype), target)
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state._replace(step=np.int32(40)))
        files = [file for file in (tmp_path / "40/state").rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) == pytest.approx(
            said, rel=0.1
        )  # they are compressed a little

    def test_speed_and_samples(self, run_once):
        step = re.search(r"speed +([\d,]+) images/s, .*: (\S+) ms a step, the median of 2", run_once)
        assert int(step[1].replace(",", "")) == pytest.approx(BATCH / (float(step[2]) / 1e3), rel=0.02)
        assert re.search(r"time +.* for 40 steps", run_once)
        assert "25 evaluations of the network" in run_once
        assert run_once.endswith("it fits.")


class TestVerdict:
    @pytest.mark.slow
    def test_too_little_memory_is_refused_with_a_batch_that_fits(self, tmp_path, monkeypatch, capsys):
        def peak(batch_size):
            commands.dry_run(tiny(training={"batch_size": batch_size}), tmp_path / "run", num_steps=0)
            return in_bytes(re.search(r"memory +(\S+ \S+) of", capsys.readouterr().out)[1])

        limit = int(0.75 * peak(4096))
        monkeypatch.setattr(devices, "memory_limit", lambda device: limit)
        with pytest.raises(commands.Refused, match="more memory than a device has") as refusal:
            commands.dry_run(tiny(training={"batch_size": 4096}), tmp_path / "run")
        assert "speed" not in capsys.readouterr().out
        advised = int(re.search(r"--config.training.batch_size=(\d+)", str(refusal.value))[1])
        assert "dtype" not in str(refusal.value)  # which `mlp` has no option for
        assert 64 <= advised < 4096
        assert peak(advised) <= limit
        assert not (tmp_path / "run").exists()

    def test_a_state_that_no_device_holds_wants_a_smaller_network(self, tmp_path, monkeypatch):
        monkeypatch.setattr(devices, "memory_limit", lambda device: 1000)
        with pytest.raises(commands.Refused) as refusal:
            commands.dry_run(tiny(), tmp_path / "run")
        assert "a smaller network: state, gradients and updates alone" in str(refusal.value)
        assert "batch_size" not in str(refusal.value)

    def test_an_exhausted_device_is_no_traceback(self, tmp_path, monkeypatch):
        def exhausted(*_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

        monkeypatch.setattr(importlib.import_module("diffusion.commands.dry_run"), "_timed", exhausted)
        with pytest.raises(commands.Refused, match=r"--config.training.batch_size=8 +half; then try again"):
            commands.dry_run(tiny(), tmp_path / "run")

    @pytest.mark.parametrize(
        ("free", "advice"), [(2.5, "--config.training.keep_checkpoints=1"), (1.5, "--workdir= on")]
    )
    def test_a_full_disk_is_refused_with_what_it_holds(self, tmp_path, monkeypatch, free, advice):
        state = 4 * 4 * num_params()
        monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(int(free * state)))
        with pytest.raises(commands.Refused) as refusal:
            commands.dry_run(tiny(), tmp_path / "run", num_steps=0)
        assert advice in str(refusal.value)
        assert ("keep_checkpoints" in str(refusal.value)) == (free > 2)

    def test_checkpoints_of_which_none_is_sound_are_refused_as_training_does(self, tmp_path):
        (tmp_path / "run/checkpoints/40").mkdir(parents=True)
        (tmp_path / "run/config.json").write_text(json.dumps(to_json(tiny())))
        (tmp_path / "run/data.json").write_text("{}")
        for command in (commands.dry_run, commands.train):
            with pytest.raises(commands.Refused, match="step 40: state is missing. None is left to go on from"):
                command(tiny(), tmp_path / "run")
        assert sorted(entry.name for entry in (tmp_path / "run").iterdir()) == [
            "checkpoints",
            "config.json",
            "data.json",
        ]

    def test_a_loss_that_is_no_number_is_told(self, tmp_path, monkeypatch):
        original = build.build

        def without_numbers(*given):
            run = original(*given)

            def per_sample(*given):
                cost, values = run.loss.per_sample(*given)
                return cost * np.nan, values

            return dataclasses.replace(run, loss=dataclasses.replace(run.loss, per_sample=per_sample))

        monkeypatch.setattr(build, "build", without_numbers)
        with pytest.raises(NonFiniteLoss, match="step 1: loss nan"):
            commands.dry_run(tiny(), tmp_path / "run", num_steps=1)
        assert not (tmp_path / "run").exists()

    def test_what_training_refuses_is_refused(self, tmp_path):
        with pytest.raises(commands.Refused, match="12, which 8 devices cannot share"):
            commands.dry_run(tiny(training={"batch_size": 12}), tmp_path)
        with pytest.raises(commands.Refused, match="got num_steps=-1"):
            commands.dry_run(tiny(), tmp_path, num_steps=-1)


class TestSeveralProcesses:
    """Three threads; compilation, which they share, stands for one that each would have."""

    def refusals(self, tmp_path, monkeypatch, **options):
        module = importlib.import_module("diffusion.commands.dry_run")
        shared = tiny(training={"batch_size": 24})  # three processes can share it, and eight devices
        job = module.planned(shared, tmp_path / "run")
        step = module.compiled(job.run, job.mesh, job.target, job.feed, jax.random.key(0))
        monkeypatch.setattr(module, "planned", lambda *given: job)
        monkeypatch.setattr(module, "compiled", lambda *given: step)
        monkeypatch.setattr(module, "_flops", lambda *given: 1)
        monkeypatch.setattr(module, "_timed", options.get("timed", lambda *given: pytest.fail("nobody is to compute")))
        count = options.get("num_steps", 0)
        return as_processes(monkeypatch, 3, lambda i: commands.dry_run(shared, tmp_path / "run", num_steps=count))

    def test_a_disk_that_one_has_no_room_on_refuses_all(self, tmp_path, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10 if jax.process_index() == 1 else 10**12))
        ended = self.refusals(tmp_path, monkeypatch)
        assert [type(error) for error in ended] == [commands.Refused] * 3
        assert ["more than the disk has left" in str(error) for error in ended] == [False, True, False]
        assert str(ended[0]) == str(ended[2]) == "another process of this job refuses; what it prints says why."

    def test_memory_that_one_lacks_refuses_all_before_a_step_in_which_the_others_would_wait(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(devices, "memory_limit", lambda device: 1000 if jax.process_index() == 2 else 10**12)
        ended = self.refusals(tmp_path, monkeypatch, num_steps=2)
        assert [type(error) for error in ended] == [commands.Refused] * 3
        assert ["a smaller network" in str(error) for error in ended] == [False, False, True]

    def test_a_folder_that_one_may_not_write_to_refuses_all(self, tmp_path, monkeypatch):
        def check(*given):
            if jax.process_index() == 0:
                raise ValueError("it cannot be written to")

        monkeypatch.setattr(workdir, "check", check)
        ended = as_processes(monkeypatch, 3, lambda i: commands.dry_run(tiny(), tmp_path / "run"))
        assert [type(error) for error in ended] == [commands.Refused] * 3
        assert ["cannot be written to" in str(error) for error in ended] == [True, False, False]

    def test_none_refuses_where_all_fit(self, tmp_path, monkeypatch, capsys):
        assert self.refusals(tmp_path, monkeypatch) == [None] * 3
        assert capsys.readouterr().out.count("it fits.") == 1


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (quantity(999.4, "B"), "999 B"),
        (quantity(999.5, "B"), "1 kB"),
        (quantity(35_746_307 * 4, "B"), "143 MB"),
        (quantity(2.5e18, "FLOP"), "2.5e+03 PFLOP"),
        (duration(0.0253), "25.3 ms"),
        (duration(0.9996), "1 s"),
        (duration(250), "4 min 10 s"),
        (duration(5 * 3600 + 12 * 60), "5 h 12 min"),
        (duration(3.2 * 86400), "3.2 days"),
    ],
)
def test_numbers_are_told_in_three_digits(said, words):
    assert said == words


@pytest.mark.slow
def test_guides_and_learned_schedules_have_their_rows(tmp_path, capsys):
    network = {"name": "classifier", "channels": 8, "channel_mults": (1,), "num_blocks": 1, "attention_resolutions": ()}
    guide = config(**TINY | {"network": network, "logging": {}}, training=TRAINING, loss={"name": "classification"})
    learned = config(
        **TINY | {"schedule": {"name": "learned_log_snr"}},
        training=TRAINING,
        loss={"name": "vlb"},
        grid={"num_steps": 20},
    )
    for given, names in ((guide, ("Block", "out")), (learned, ("Dense", "schedule"))):
        commands.dry_run(given, tmp_path / "run", num_steps=1)
        text = capsys.readouterr().out
        assert all(re.search(rf"^ +{name}.* [\d,]+ +\d+\.\d%$", text, re.MULTILINE) for name in names), text
        assert ("evaluations of the network" in text) == (given is learned)
        assert "it fits." in text
