"""Many commands as one Slurm array, through submitit, an optional dependency that is imported only here."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

REQUEUES = 100
"""How often a job whose time is over is queued again; submitit's own number, 3, is for jobs that might never end."""


class Stoppable:
    """What a job runs: a command. When the job's time is over it is stopped, saves, and goes on in the job's next turn.

    submitit's process gets SIGUSR2 some 90 s before the end and calls `checkpoint`, while __call__ is still waiting;
    so both only look, without Popen's lock, and the command itself never sees that signal.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.pid: int | None = None

    def __call__(self) -> int:
        """Runs the command to its end, 0; RuntimeError for any other exit status."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # which the command inherits
        process = subprocess.Popen(self.command)
        self.pid = process.pid
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # one that came meanwhile arrives now
        self._wait()
        if status := process.wait():
            raise RuntimeError(f"exit status {status} of {' '.join(self.command)}")
        return 0

    def checkpoint(self) -> Any:
        """Stops the command, waits until it has saved, and says what is to be queued: the same again."""
        import submitit

        if self.pid is not None:
            os.kill(self.pid, signal.SIGTERM)
            self._wait()
        return submitit.helpers.DelayedSubmission(Stoppable(self.command))

    def _wait(self) -> None:
        assert self.pid is not None
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.2)


def submit(
    commands: Sequence[Sequence[str]],
    folder: Path,
    options: Mapping[str, int | float | str],
    *,
    name: str,
    at_once: int | None = None,
    cluster: str = "slurm",
) -> list[Any]:
    """submitit's jobs, one for each command, sent as one array and not waited for.

    folder: for submitit's files and the jobs' logs, on a disk that the nodes share.
    options: submitit's, by its names without "slurm_": partition, gpus_per_node, timeout_min, ... at_once: how many run
    beside each other. cluster: another executor of submitit's, such as "local".
    ValueError: submitit or Slurm is not installed, or an option that submitit does not know.
    """
    try:
        import submitit
    except ImportError as error:
        raise ValueError(f"--launch=slurm needs submitit ({error}): pip install submitit") from error
    try:
        python = {f"{cluster}_python": _python()}
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=REQUEUES, **python)
        shared = executor._valid_parameters()
        given = {key if key in shared else f"slurm_{key}": value for key, value in options.items()}
        limit = {} if at_once is None else {"slurm_array_parallelism": at_once}
        executor.update_parameters(**{"name": name, "timeout_min": 240, **limit, **given})
        with executor.batch():
            jobs = [executor.submit(Stoppable(command)) for command in commands]
    except (RuntimeError, NameError, AssertionError) as error:
        raise ValueError(f"--launch=slurm: {error}") from error
    return jobs


def _python() -> str:
    """This Python, finding this package from any folder, as words of a shell."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return shlex.join(["env", f"PYTHONPATH={os.pathsep.join(filter(None, paths))}", sys.executable])


def options(given: Iterable[str]) -> dict[str, int | float | str]:
    """{"partition": "gpu", "gpus_per_node": 1} from NAME=VALUE each; ValueError for anything else."""
    found: dict[str, int | float | str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(f"--slurm={text} is no NAME=VALUE, such as --slurm=partition=gpu.")
        found[name] = int(value) if value.isdigit() else float(value) if re.fullmatch(r"\d+\.\d+", value) else value
    return found
