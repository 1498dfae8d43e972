"""A sweep: its points listed, one of them trained, or many of them started."""

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from diffusion import sweeps
from diffusion.commands.console import Failed, Refused, refused_together, refusing
from diffusion.commands.train import train
from diffusion.sweeps import Point, folders, local, slurm

MAIN = Path(__file__).parents[2] / "main.py"


def sweep(
    file: str | Path,
    folder: str | Path | None = None,
    *,
    index: int | None = None,
    listed: bool = False,
    launch: str | None = None,
    jobs: int | None = None,
    slurm_options: Sequence[str] = (),
) -> bool:
    """Does one of three things with the points of a sweep's file; whether what it trained has come to its end.

    index: trains this point in <folder>/<index>, or goes on with it. listed: prints every point and how far it is.
    launch: "local" trains those that are not done on this machine, `jobs` at a time (1), and waits; "slurm" submits
    them as an array with submitit's options (NAME=VALUE) and returns.

    folder: runs/<name of the file's folder> where it is None. Nothing that is done is done again.
    Refused: before anything begins, with what is wrong. Failed: points that a local launch could not finish.
    NonFiniteLoss: of one point.
    """
    base = Path("runs", Path(file).resolve().parent.name) if folder is None else Path(folder).expanduser()
    with refusing():
        if sum((index is not None, listed, launch is not None)) != 1:
            raise ValueError("--sweep needs one of --list, --index=K, --launch=local and --launch=slurm.")
        if launch is None and jobs is not None:
            raise ValueError("--jobs is for --launch=local or --launch=slurm.")
        if launch != "slurm" and slurm_options:
            raise ValueError("--slurm is for --launch=slurm.")
        options = slurm.options(slurm_options)
        points = sweeps.points(file)
        if index is not None and index >= len(points):
            raise ValueError(f"--index={index}, but {file} has the points 0 to {len(points) - 1}.")
        states = [folders.state(point, base, points) for point in points]
    if listed:
        print(f"{base}: {len(points)} points of {file}", *map(_line, points, states), sep="\n", flush=True)
        return True
    asked = points if index is None else [points[index]]
    if clashes := [states[point.number].why for point in asked if states[point.number].kind == "another point"]:
        hint = "Points keep their indices: add new ones behind the others, or give the sweep a new --workdir."
        raise Refused("\n".join([*clashes, hint]))
    if index is not None:
        return _train(points[index], base)
    todo = [point for point in points if states[point.number].kind not in ("done", "running")]
    kinds = [each.kind for each in states]
    print(f"{len(todo)} of {len(points)} points to train, {kinds.count('done')} done, {kinds.count('running')} running")
    if launch == "local":
        return _locally(todo, file, base, jobs or 1)
    return _submitted(todo, file, base, jobs, options)


def _line(point: Point, state: folders.State) -> str:
    """A line of the list: index, how far, what it is."""
    step = f"step {state.saved} of {point.config.training.num_steps}"
    how = {"running": f"running, {step}", "begun": step}.get(state.kind, state.kind)
    return f"  {point.name}  {how:<24}  {point.words}" + (f"\n       {state.why}" if state.why else "")


def _train(point: Point, base: Path) -> bool:
    """Trains the point, and writes down how that ended."""
    folder = base / point.name
    with contextlib.ExitStack() as stack:
        with refused_together(), refusing():
            if jax.process_index() == 0:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(folders.held(folder))
                folders.record(point, base, None)
        if jax.process_index() > 0:
            return train(point.config, folder)
        try:
            done = train(point.config, folder)
        except Exception as error:
            with contextlib.suppress(OSError):  # a full disk has no room for this either, and its own words matter
                folders.record(point, base, "failed", f"{type(error).__name__}: {error}")
            raise
        folders.record(point, base, "done" if done else "stopped")
    return done


def _locally(todo: Sequence[Point], file: str | Path, base: Path, at_once: int) -> bool:
    """Trains the points in processes of their own; Failed says which ones failed, and with what words."""
    try:
        for point in todo:
            (base / point.name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{base} cannot be written to ({error.strerror}); choose another --workdir.") from error
    logs = {point.name: base / point.name / folders.LOG for point in todo}
    ended = local.run([local.Job(p.name, _command(p, file, base), logs[p.name]) for p in todo], at_once)
    wrong = [point for point in todo if ended.get(point.name, 0) not in (0, local.STOPPED)]
    kinds = {point.name: folders.state(point, base, [point]).kind for point in wrong}
    failed = [point for point in wrong if kinds[point.name] not in ("done", "running")]  # there by another launcher
    for point in failed:
        if kinds[point.name] in ("begun", "not begun"):  # it died without a word
            folders.record(point, base, "failed", f"exit status {ended[point.name]}")
    if failed:
        lines = [f"{len(failed)} of {len(todo)} points failed; the same command trains them again, or each alone:"]
        for point in failed:
            log = logs[point.name]
            lines += [f"  {shlex.join(_command(point, file, base))}", f"  {log} ends", *local.last_lines(log)]
        raise Failed("\n".join(lines))
    return all(ended.get(point.name) == 0 or kinds.get(point.name) == "done" for point in todo)


def _submitted(
    todo: Sequence[Point], file: str | Path, base: Path, at_once: int | None, options: dict[str, int | float | str]
) -> bool:
    """Hands the points to Slurm."""
    if not todo:
        return True
    commands = [_command(point, file, base) for point in todo]
    with refusing():
        jobs = slurm.submit(commands, base / "slurm", options, name=base.name, at_once=at_once)
    for point, job in zip(todo, jobs, strict=True):
        print(f"  {point.name}  job {job.job_id}: {job.paths.stdout}")
    return True


def _command(point: Point, file: str | Path, base: Path) -> list[str]:
    return [sys.executable, str(MAIN), f"--sweep={file}", f"--index={point.number}", f"--workdir={base}"]
