"""Digests of a checkpoint's files, so that damage is noticed before anything is read from it.

<checkpoint>/SHA256SUMS has a line for each file below the folder, as the command sha256sum writes it, and is read by it
too: `cd checkpoints/2000 && sha256sum -c SHA256SUMS`. It is written before the checkpoint gets its name, so that there
is no moment in which a complete checkpoint lacks it.
"""

import errno
import hashlib
from pathlib import Path

from diffusion import workdir

NAME = "SHA256SUMS"
LATER = {NAME, f"{NAME}.new", "_CHECKPOINT_METADATA", "commit_success.txt"}
"""Files of the folder itself without a digest: the list, and what Orbax notes as it gives the checkpoint its name,
after the list is written. Nothing that is restored is read from them."""


class Damaged(ValueError):
    """A checkpoint's files are not those that were written; the message says which."""


def write(folder: Path) -> None:
    """Writes the digests of every file below the folder, atomically."""
    lines = [f"{_digest(folder / name)}  {name}\n" for name in _files(folder)]
    workdir.write_text(folder, NAME, "".join(lines))


def check(folder: Path, within: str = "") -> None:
    """Damaged if a file has changed, is missing, or was added since the digests were written.

    within: checks only files whose path below the folder begins so, such as "metrics/". FileNotFoundError where the
    folder has no digests at all.
    """
    listed = {name: digest for name, digest in _listed(folder).items() if name.startswith(within)}
    there = {name for name in _files(folder) if name.startswith(within)}
    wrong = [f"{name} is missing" for name in sorted(listed.keys() - there)]
    wrong += [f"{name} was added" for name in sorted(there - listed.keys())]
    wrong += [f"{name} has changed" for name in sorted(there & listed.keys()) if _read(folder / name) != listed[name]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Damaged(", ".join(wrong[:3]) + more)


def _listed(folder: Path) -> dict[str, str]:
    """The digest of each file, by its path."""
    try:
        lines = (folder / NAME).read_bytes().decode().split("\n")
    except UnicodeDecodeError as error:
        raise Damaged(f"{NAME} has changed") from error
    split = [line.partition("  ") for line in lines if line]
    return {name: digest for digest, _, name in split}


def _files(folder: Path) -> list[str]:
    """The paths of all files below the folder that have digests, in order."""
    names = [entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if not entry.is_dir()]
    return sorted(name for name in names if name not in LATER)


def _read(file: Path) -> str:
    """The digest of what the disk gives back; of a file that it cannot read, one that no file has."""
    try:
        return _digest(file)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return "unreadable"


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
