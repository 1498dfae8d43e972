"""The program as a user runs it: flags, signals, several processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import forks
from tests.test_commands import rows

ROOT = Path(__file__).parents[1]


def program(*words, **options):
    command = [sys.executable, str(ROOT / "main.py"), *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


TINY_FLAGS = [
    "--config=configs/ddpm_digits.py",
    "--config.network.channels=8",
    "--config.network.num_blocks=1",
    "--config.network.attention_resolutions=()",
    "--config.training.batch_size=16",
    "--config.schedule.name=linear_beta_scaled",
    "--config.schedule.num_steps=25",
    "--config.logging.sample_steps=5",
    "--config.logging.num_samples=8",
]


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_continues(tmp_path):
    flags = [*TINY_FLAGS, f"--workdir={tmp_path}", "--config.training.sample_every=0", "--config.training.log_every=5"]
    first = program(*flags, "--config.training.num_steps=100000")
    deadline = time.time() + 120
    while not (tmp_path / "metrics.jsonl").exists() or not rows(tmp_path):
        assert first.poll() is None, first.communicate()
        assert time.time() < deadline
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 3
    step = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert f"stopped at step {step} and saved it" in out
    second = program(*flags, f"--config.training.num_steps={step + 3}")
    out, error = second.communicate(timeout=120)
    assert second.returncode == 0, error
    assert f"restored step {step}" in out
    assert f"done: {step + 3} steps" in out
    assert [row["step"] for row in rows(tmp_path)] == sorted({row["step"] for row in rows(tmp_path)})


FROM_DISK = """
import sys
sys.path.insert(0, {root!r})
from diffusion.data import dataset
dataset.decode_into_memory.__kwdefaults__["limit"] = 0  # no set fits into memory
import main
from absl import app
if __name__ == "__main__":
    app.run(main.main, flags_parser=main._parse)
"""


def from_disk(folder, num_workers, num_steps):
    """The command that trains a small run on pictures which stay on the disk; the folder gets them and the run."""
    pictures, script = folder / "pictures", folder / "from_disk.py"
    if not pictures.exists():
        pictures.mkdir()
        for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)):
            Image.fromarray(pixels).save(pictures / f"{i}.png")
        script.write_text(FROM_DISK.format(root=str(ROOT)))
    flags = [*TINY_FLAGS, "--config.data.name=image_folder", f"--config.data.path={pictures}"]
    flags += [f"--config.data.num_workers={num_workers}", f"--workdir={folder / str(num_workers)}"]
    flags += [f"--config.training.{name}" for name in (f"num_steps={num_steps}", "log_every=1", "sample_every=0")]
    return [sys.executable, str(script), *flags]


@pytest.mark.slow
def test_processes_that_read_from_the_disk_change_no_number(tmp_path):
    outs = []
    for workers in (0, 2):
        command = from_disk(tmp_path, workers, num_steps=8)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        outs.append(done.stdout)
    assert "data: on the disk, read ahead in" in outs[0]
    assert "data: on the disk, read ahead by 2 processes" in outs[1]
    assert rows(tmp_path / "0") == rows(tmp_path / "2")
    assert len(rows(tmp_path / "2")) == 8
    for file in (tmp_path / "pictures").iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    for workers in (0, 2):
        command = from_disk(tmp_path, workers, num_steps=16)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1, done.stderr
        assert re.search(rf"^error: {tmp_path}/pictures/\d+.png: .* Restore that file", done.stderr, re.MULTILINE)
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_processes_that_read_leave_signals_to_the_training_and_end_with_it(tmp_path, number):
    """As a terminal's Ctrl-C and a cluster's SIGTERM reach them all, and a SIGKILL the training alone."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = from_disk(tmp_path, 2, num_steps=100_000)
    run = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    deadline = time.monotonic() + 240
    while not (tmp_path / "2/metrics.jsonl").exists() or len(rows(tmp_path / "2")) < 3:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (os.kill if number == signal.SIGKILL else os.killpg)(run.pid, number)
    out, error = run.communicate(timeout=120)  # comes to its end only when nobody holds the pipes
    if number == signal.SIGKILL:
        assert run.returncode == -signal.SIGKILL
    else:
        assert run.returncode == 3, error
        assert "and saved it" in out
    while time.monotonic() < deadline:
        try:
            os.killpg(run.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    pytest.fail("a process that read is left")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config=configs/ddpm_digits.py", "--config.training.num_stps=4"], "num_stps"),
        (["--config=configs/ddpm_digits.py", "--config.training.num_steps=many"], "many"),
        (["--config=configs/nothing.py"], "nothing.py"),
        (["--config=configs/ddpm_digits.py", "--config.schedule.name=cosine"], "Did you mean 'cosine_alpha_bar'"),
        (["--config=configs/ddpm_digits.py", "stray"], "unexpected words: stray"),
        (["--config=configs/ddpm_digits.py", "--num_steps=50"], "--num_steps is for --mode=sample"),
        (["--config=configs/ddpm_digits.py", "--config.seed=3", "--mode=sample"], "--config.seed cannot change"),
        (["--mode=sample"], "holds no run"),
        (["--mode=dry_run"], "--mode=dry_run needs a config"),
        (["--mode=report"], "holds no run, nor does any folder below it"),
        (["--mode=report", "--num_steps=50"], "--num_steps is for --mode=sample"),
        (["--config=configs/ddpm_digits.py", "--config.seed=3", "--mode=report"], "nothing can"),
        (["--config=configs/ddpm_digits.py", "--distributed"], "--distributed found no cluster"),
        (["--config=configs/ddpm_digits.py", "--distributed", "--coordinator_address=host"], "'host' names no port"),
        (["--config=configs/ddpm_digits.py", "--process_id=0"], "--process_id is for --distributed"),
        ([], "training needs a config"),
        (["--sweep=experiments/schedules_objectives/sweep.py", "--index=6"], "has the points 0 to 5"),
        (["--sweep=experiments/schedules_objectives/sweep.py", "--mode=report"], "--mode does not go with --sweep"),
        (["--index=0"], "--index is for --sweep=FILE"),
    ],
)  # fmt: skip
def test_wrong_flags_are_one_screen(tmp_path, flags, words):
    status, _, error = forks.program(f"--workdir={tmp_path / 'run'}", *flags)
    assert status > 0
    assert words in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 24
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config():\n    return 1 / 0\n", "config.py, line 2: ZeroDivisionError: division by zero"),
        ("def get_config(:\n", "config.py, line 1: SyntaxError: invalid syntax"),
        ("import nowhere\n", "config.py, line 1: ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_an_error_in_a_config_file_is_told_by_its_line(tmp_path, text, words):
    (tmp_path / "config.py").write_text(text)
    status, _, error = forks.program(f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}")
    assert (status, error.splitlines()) == (2, [f"error: {tmp_path}/{words}"])


def job(folder, processes, *words, devices=None):
    """The program in so many processes over the loopback, each with so many devices, or its own number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    machine = os.environ | {"XLA_FLAGS": ""} | ({"JAX_NUM_CPU_DEVICES": str(devices)} if devices else {})
    flags = [f"--workdir={folder}", *words]
    if processes == 1:
        return [program(*flags, env=machine)]
    # one is told by flags, the others by their environment
    told = ["--distributed", f"--coordinator_address={address}", f"--num_processes={processes}", "--process_id=0"]
    machine |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    others = [machine | {"JAX_PROCESS_ID": str(i)} for i in range(1, processes)]
    return [program(*flags, *told, env=machine), *(program(*flags, told[0], env=own) for own in others)]


def finished(runs):
    outputs = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs), outputs
    return outputs


@pytest.mark.slow
def test_a_sweep_is_launched_corrected_and_launched_again(tmp_path):
    """Two trainings at once, one of which diverges; the corrected one alone is trained again."""
    tiny = dict(flag.removeprefix("--config.").split("=") for flag in TINY_FLAGS[1:])
    values = {key: int(value) if value.isdigit() else value for key, value in tiny.items()}
    values |= {"network.attention_resolutions": (), "training.num_steps": 6, "training.sample_every": 0}

    def launched(rate):
        lines = [f"    add('configs/ddpm_digits.py', {values | {'optimizer.learning_rate': r}})" for r in (1e-3, rate)]
        (tmp_path / "sweep.py").write_text("\n".join(["def sweep(add):", *lines]))
        run = program(f"--sweep={tmp_path / 'sweep.py'}", f"--workdir={tmp_path}", "--launch=local", "--jobs=2")
        out, error = run.communicate(timeout=400)
        return run.returncode, out, error

    status, out, error = launched(1e30)
    assert (status, "000 done" in out, "001 failed with exit status 4" in out) == (1, True, True), error
    assert "gradient norm" in error
    status, out, error = launched(1e-4)
    assert (status, "1 of 2 points to train, 1 done" in out, "001 done" in out) == (0, True, True), error
    assert [rows(tmp_path / name)[-1]["step"] for name in ("000", "001")] == [6, 6]


def endless(folder):
    """Two processes that train together, once they have logged something."""
    flags = [*TINY_FLAGS, "--config.training.num_steps=100000", "--config.training.log_every=5"]
    pair = job(folder, 2, *flags, "--config.training.sample_every=0")
    deadline = time.time() + 120
    while not (folder / "metrics.jsonl").exists() or not rows(folder):
        assert time.time() < deadline
        assert not any(run.poll() for run in pair), [run.communicate() for run in pair]
        time.sleep(0.2)
    return pair


@pytest.mark.slow
def test_a_process_whose_peer_was_killed_says_so_and_ends(tmp_path):
    survivor, peer = endless(tmp_path / "run")
    peer.kill()
    _, error = survivor.communicate(timeout=60)
    assert survivor.returncode == 1
    assert "start all again with the same command" in error
    assert "Traceback" not in error
    peer.communicate()


@pytest.mark.slow
def test_two_processes_train_stop_together_and_sample_as_one(tmp_path):
    """A real job of two processes over the loopback, against the same run in one process."""
    training = [*TINY_FLAGS, "--config.training.num_steps=12", "--config.training.log_every=4"]
    training += ["--config.training.sample_every=6", "--config.logging.tensorboard=False"]
    finished(job(tmp_path / "one", 1, *training))
    finished(job(tmp_path / "two", 2, *training))
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    sampling_flags = ["--mode=sample", "--num_samples=6", "--sampler=ddim", "--num_steps=5"]
    for name, processes in (("one", 1), ("two", 2)):
        finished(job(tmp_path / name, processes, *sampling_flags))
    one, two = (np.load(next((tmp_path / n / "samples").glob("*.npz")))["arr_0"].astype(int) for n in ("one", "two"))
    assert np.abs(one - two).max() <= 2

    pair = endless(tmp_path / "stopped")
    pair[1].send_signal(signal.SIGTERM)
    outputs = [run.communicate(timeout=120) for run in pair]
    assert [run.returncode for run in pair] == [3, 3], outputs
    assert list((tmp_path / "stopped/checkpoints").iterdir())
