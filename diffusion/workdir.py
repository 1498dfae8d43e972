"""A run's folder: what lies where, and whether a config may go on with what is there.

    config.json      the whole config, as it was run          data.json     facts of the data set
    checkpoints/     one folder per saved step                metrics.jsonl, tensorboard/
                     (damaged_<step>: one that was damaged, moved aside)
    samples/         grids drawn during training, and what --mode=sample writes
    edits/           what --mode=edit writes                  loss.png     the loss curve, at the end
    evaluations/     what --mode=evaluate draws and measures  evaluations.jsonl  its table
    likelihood/      what --mode=likelihood writes
    test.json        of a guide, at the end: how well it reads its test set
    report.html      what --mode=report writes, here or in a folder above
    run.lock         locked while a process trains the run
    point.json       of a sweep's point: which one it is, and how it ended; log.txt, what it said

The folder's name never changes, so the same command finds its own checkpoints again.
"""

import errno
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

MAY_CHANGE = (
    *("training.num_steps", "training.log_every", "training.checkpoint_every", "training.sample_every"),
    *("training.keep_checkpoints", "data.data_dir", "data.archive", "sampler.", "grid.", "guidance.", "logging."),
    *("evaluation.", "network.remat", "mesh.", "training.microbatches", "training.steps_per_dispatch"),
    *("data.on_devices", "data.num_workers"),
)
"""Keys that a continued run may set anew: none of them changes an update that was made.

On other devices, and in other micro-batches, the updates to come differ in rounding, and may where several are one
program; and in which dropout masks micro-batches draw, as if by another key.
"""


DAMAGED_ARRAYS = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)
"""What NumPy raises for an .npz that is cut short, damaged or lacks an array."""


class DiskFull(OSError):
    """The disk has no room for what a run writes; the message says which disk, and what is whole."""


def read(workdir: Path, name: str) -> Any:
    """The content of one of the run's JSON files; FileNotFoundError says what a run folder looks like."""
    file = Path(workdir) / name
    if not file.exists():
        if steps := saved_steps(Path(workdir)):
            raise FileNotFoundError(
                f"{file} is missing, though {workdir} holds checkpoints up to step {steps[-1]}. Restore it from a "
                f"copy; the config is also kept in {workdir}/checkpoints/{steps[-1]}/about."
            )
        raise FileNotFoundError(
            f"{workdir} holds no run: {file} is missing. Expected a folder that training wrote, such as the one that "
            "`python main.py --config=configs/ddpm_digits.py --workdir=runs/digits` makes."
        )
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file} is damaged ({error}). Restore it from a copy, or train into another folder."
        ) from error


def write(workdir: Path, name: str, content: Any) -> None:
    """Writes one of the run's JSON files, atomically."""
    write_text(workdir, name, json.dumps(content, indent=2) + "\n")


def write_text(workdir: Path, name: str, text: str) -> None:
    """Writes a file of UTF-8, atomically; what UTF-8 cannot say (part of a file's name, say) as its escape."""
    new = Path(workdir) / f"{name}.new"
    new.write_bytes(text.encode("utf-8", "backslashreplace"))
    os.replace(new, Path(workdir) / name)


def write_arrays(file: str | Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as an .npz, atomically; several processes may write at once, the last one counts."""
    new = Path(f"{file}.{os.getpid()}.new.npz")
    np.savez(new, **arrays)
    os.replace(new, file)


def check(workdir: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises before anything is spent if a run of this config cannot live in the folder; leaves nothing there.

    defaults: the default config. The keys that an older config in the folder does not have yet stand for these.

    ValueError: it holds checkpoints of another config (the differing keys are listed), or a file is in the way.
    OSError:    it cannot be written to.
    """
    if saved_steps(workdir):
        _check_same(workdir, config, defaults)
    check_writable(workdir)


def check_writable(folder: Path) -> None:
    """Tries to write where the folder is or would be made, and leaves nothing; ValueError or OSError say what is wrong.

    It makes no folder, not even for a moment, so that several processes may ask at once.
    """
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            pass
    except NotADirectoryError as error:
        raise ValueError(f"{folder} is not a folder, or lies below a file; choose another --workdir.") from error
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}); choose another --workdir.") from error


def check_space(workdir: Path, checkpoint_bytes: int, keep: int, damaged: int) -> None:
    """OSError if the disk has no room for the checkpoints that are still to come (`space`)."""
    needed, free = space(workdir, checkpoint_bytes, keep, damaged)
    if free < needed:
        raise OSError(
            f"the disk of --workdir={workdir} has {free / 1e6:,.2f} MB left, but the checkpoints of this run need "
            f"{needed / 1e6:,.2f} MB. Free some space, choose another folder or lower training.keep_checkpoints."
        )


def space(workdir: Path, checkpoint_bytes: int, keep: int, damaged: int) -> tuple[int, int]:
    """(bytes of the checkpoints that are still to come, `keep` and one being written; bytes that the disk has left).

    damaged: how many of those in place will be moved aside (`training.soundness.unsound`): they keep their room, and
    others come in their place.
    """
    there = len(saved_steps(workdir)) - damaged
    needed = checkpoint_bytes * max(keep + 1 - there, 1)
    return needed, shutil.disk_usage(_existing(workdir)).free + _size_of_left_over(workdir)


def _size_of_left_over(workdir: Path) -> int:
    """Bytes of checkpoints that a kill has left half-written or half-deleted, which the next training removes."""
    places = [*(workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"), workdir / "checkpoints" / "deleted"]
    return sum(file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk or a quota is full."""
    while error is not None:
        numbered = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if numbered or any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            return True
        error = error.__cause__ or error.__context__
    return False


def full(folder: Path, what: str) -> str:
    """The words for a full disk: which one, and what it has no room for."""
    mount = next(place for place in (folder, *folder.absolute().parents) if os.path.ismount(place))
    return (
        f"the disk at {mount} is full ({shutil.disk_usage(folder).free / 1e6:,.2f} MB left): {what}. "
        "Free some space there; the same command goes on."
    )


def check_facts(workdir: Path, facts: Mapping[str, Any]) -> None:
    """ValueError if the run in the folder was trained on a data set with other facts (classes, sizes, images)."""
    if not saved_steps(workdir):
        return
    there, here = read(workdir, "data.json"), json.loads(json.dumps(facts))
    changed = [f"  {key}: {there[key]} then, {here[key]} now" for key in here if there.get(key, here[key]) != here[key]]
    if changed:
        raise ValueError(
            f"the data set has changed since the run in --workdir={workdir} began:\n" + "\n".join(changed) + "\n"
            "Restore the data, or train the new data set in another --workdir."
        )


def saved_steps(workdir: Path) -> list[int]:
    """The steps of the run's complete checkpoints, in order."""
    return steps_in(workdir / "checkpoints")


def steps_in(folder: Path) -> list[int]:
    """The steps of the complete checkpoints that lie in a folder, in order."""
    return sorted(int(entry.name) for entry in folder.glob("*") if entry.name.isdigit())


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def differing(workdir: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """key -> (value there, value here) of what forbids this config to go on with the run in the folder; none may.

    defaults: see `check`. FileNotFoundError where the folder holds no config.
    """
    here, default = (dict(flat(json.loads(json.dumps(tree)))) for tree in (config, defaults))
    there = default | dict(flat(read(workdir, "config.json")))
    keys = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    return {
        key: (there.get(key, "not set"), here.get(key, "not set")) for key in keys if not key.startswith(MAY_CHANGE)
    }


def _check_same(workdir: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    changed = differing(workdir, config, defaults)
    if changed:
        lines = [f"  {key}: {there} there, {here} now" for key, (there, here) in changed.items()]
        raise ValueError(
            f"--workdir={workdir} holds a run of another config. These keys differ:\n" + "\n".join(lines) + "\n"
            "Choose another --workdir for the new run, or repeat the old settings to continue the old one."
        )


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("block.key", value) for every leaf of nested mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
