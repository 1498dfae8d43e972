"""Many commands on this machine, some at a time."""

import collections
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion.training.loop import stop_signals

STOPPED = 3
"""The exit status of a run that was asked to stop and has saved."""
POLL_SECONDS = 0.2


class Job(NamedTuple):
    """A command; what it says is appended to the file `log`, whose folder is there."""

    name: str
    command: Sequence[str]
    log: Path


def run(jobs: Sequence[Job], at_once: int) -> dict[str, int]:
    """Runs the jobs in their order, no more than `at_once` beside each other; name -> exit status of each that began.

    A job that fails keeps no other from its turn. Ctrl-C or SIGTERM sends each running one SIGTERM, waits until it
    has saved, and begins no more; a second Ctrl-C kills them. One that such a stop ended has the status STOPPED.
    Where CUDA_VISIBLE_DEVICES lists several devices, jobs beside each other get different ones.
    """
    waiting, ended = collections.deque(jobs), {}
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    with stop_signals() as stop:
        asked = False
        try:
            while running or (waiting and not stop.received):
                for slot in range(at_once):
                    if waiting and slot not in running and not stop.received:
                        job = waiting.popleft()
                        running[slot] = job, _start(job, slot, at_once)
                        print(f"{job.name} begins: {job.log}", flush=True)
                if stop.received and not asked:
                    asked = True
                    print(f"stopping {len(running)} runs, which save first; Ctrl-C again kills them.", flush=True)
                    for _, process in running.values():
                        process.terminate()
                time.sleep(POLL_SECONDS)
                for slot, (job, process) in list(running.items()):
                    if (status := process.poll()) is not None:
                        del running[slot]
                        ended[job.name] = STOPPED if asked and status < 0 else status
                        print(f"{job.name} {_word(ended[job.name])}, {len(waiting)} wait", flush=True)
        finally:
            for _, process in running.values():
                process.kill()
                process.wait()
    return ended


def _start(job: Job, slot: int, slots: int) -> "subprocess.Popen[bytes]":
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    own = devices[slot::slots] or [devices[slot % len(devices)]]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(own)} if len(devices) > 1 else {})
    with open(job.log, "ab") as log:  # a process group of its own: Ctrl-C in the terminal reaches the launcher alone
        return subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, process_group=0
        )


def _word(status: int) -> str:
    return {0: "done", STOPPED: "stopped"}.get(status, f"failed with exit status {status}")


def last_lines(log: Path, count: int = 5) -> list[str]:
    """The end of a log, indented."""
    if not log.exists():
        return []
    lines = log.read_text(errors="replace").replace("\r", "\n").splitlines()
    return [f"    {line[:200]}" for line in lines if line.strip()][-count:]
