"""A run's folder: what lies where, and whether a config may go on with what is there.

    config.json      the whole config, as it was run          data.json     facts of the data set
    checkpoints/     one folder per saved step                metrics.jsonl, tensorboard/
    samples/         grids drawn during training, and what --mode=sample writes
    edits/           what --mode=edit writes                  loss.png     the loss curve, at the end
    evaluations/     what --mode=evaluate draws and measures  evaluations.jsonl  its table
    likelihood/      what --mode=likelihood writes
    test.json        of a guide, at the end: how well it reads its test set
    report.html      what --mode=report writes, here or in a folder above

The folder's name never changes, so the same command finds its own checkpoints again.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAY_CHANGE = (
    *("training.num_steps", "training.log_every", "training.checkpoint_every", "training.sample_every"),
    *("training.keep_checkpoints", "data.data_dir", "data.archive", "sampler.", "grid.", "guidance.", "logging."),
    *("evaluation.", "mesh.", "training.microbatches"),
)
"""Keys that a continued run may set anew: none of them changes an update that was made.

On other devices, and in other micro-batches, the updates to come differ in rounding; and in which dropout masks micro-
batches draw, as if by another key.
"""


def read(workdir: Path, name: str) -> Any:
    """The content of one of the run's JSON files; FileNotFoundError says what a run folder looks like."""
    file = Path(workdir) / name
    if not file.exists():
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
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except NotADirectoryError as error:
        raise ValueError(f"{folder} is not a folder, or lies below a file; choose another --workdir.") from error
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}); choose another --workdir.") from error


def check_space(workdir: Path, checkpoint_bytes: int, keep: int) -> None:
    """OSError if the disk has no room for the checkpoints that are still to come: `keep` and one being written."""
    needed = checkpoint_bytes * max(keep + 1 - len(saved_steps(workdir)), 1)
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise OSError(
            f"the disk of --workdir={workdir} has {free / 1e9:.3f} GB left, but the checkpoints of this run need "
            f"{needed / 1e9:.3f} GB. Free some space, choose another folder or lower training.keep_checkpoints."
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
    return sorted(int(entry.name) for entry in (workdir / "checkpoints").glob("*") if entry.name.isdigit())


def _check_same(workdir: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    here, default = (dict(flat(json.loads(json.dumps(tree)))) for tree in (config, defaults))
    there = default | dict(flat(read(workdir, "config.json")))
    keys = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    changed = [key for key in keys if not key.startswith(MAY_CHANGE)]
    if changed:
        lines = [f"  {key}: {there.get(key, 'not set')} there, {here.get(key, 'not set')} now" for key in changed]
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
