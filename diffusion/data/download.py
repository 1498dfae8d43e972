"""Files that data sets come in: fetched from where, and proved to be the right ones."""

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 30  # seconds without any answer from the server


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its address, and the SHA-256 and number of bytes that it must have."""

    url: str
    sha256: str
    num_bytes: int

    @property
    def name(self) -> str:
        """Returns the file's name, the last part of its address."""
        return self.url.rsplit("/", 1)[-1]


def locate(files: Sequence[RemoteFile], archive: str | None, folder: Path) -> dict[str, Path]:
    """Returns the checked path of each of `files`, by file name.

    Args:
        files: what is needed.
        archive: a folder that holds the files, or the file itself where there is one; None takes them from
            `folder` and downloads those that are not there.
        folder: where downloads are kept.

    Raises:
        FileNotFoundError: a file is not in `archive`, or cannot be downloaded; the message says what to put
            where.
        ValueError: a file is not the published one, or `archive` is one file where several are needed.
    """
    paths = _in_archive(files, Path(archive).expanduser()) if archive else _downloaded(files, folder)
    for file in files:
        verify(paths[file.name], file)
    return paths


def fetch(file: RemoteFile, target: Path) -> None:
    """Returns None once `file` lies at `target`, downloaded with a progress bar and checked.

    The bytes go to a temporary file beside the target that is renamed at the end, so whatever
    stands under the final name is complete.

    Raises:
        OSError, http.client.HTTPException: the address cannot be reached.
        ValueError: what came is not the published file.
    """
    from tqdm import tqdm

    target.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=target.parent, prefix=f"{file.name}.", suffix=".part")
    try:
        with (
            os.fdopen(handle, "wb") as out,
            urllib.request.urlopen(file.url, timeout=TIMEOUT) as answer,
            tqdm(total=file.num_bytes, desc=f"downloading {file.name}", unit="B", unit_scale=True) as bar,
        ):
            while chunk := answer.read(2**20):
                out.write(chunk)
                bar.update(len(chunk))
        verify(Path(part), file)
        os.replace(part, target)
    finally:
        Path(part).unlink(missing_ok=True)


def verify(path: Path, file: RemoteFile) -> None:
    """Returns None if `path` holds exactly the bytes of the published `file`.

    Raises:
        ValueError: size or SHA-256 differ; the message names both.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if (sha256, num_bytes) != (file.sha256, file.num_bytes):
        raise ValueError(
            f"{path} is not the published {file.name}:\n"
            f"  got      sha256 {sha256}, {num_bytes} bytes\n"
            f"  expected sha256 {file.sha256}, {file.num_bytes} bytes\n"
            f"Delete it and fetch {file.url} again."
        )


def _downloaded(files: Sequence[RemoteFile], folder: Path) -> dict[str, Path]:
    """Returns where each of `files` lies in `folder`, after fetching those that were not there."""
    paths = {file.name: folder / file.name for file in files}
    for file in files:
        if paths[file.name].exists():
            continue
        try:
            fetch(file, paths[file.name])
        except (OSError, http.client.HTTPException) as error:
            place = "FILE" if len(files) == 1 else "FOLDER"
            missing = [file for file in files if not paths[file.name].exists()]
            raise FileNotFoundError(
                f"{file.url} could not be downloaded: {error}.\n"
                f"On a machine with a network, fetch\n{_listing(missing)}then put it into "
                f"{folder}, or pass --config.data.archive={place}."
            ) from error
    return paths


def _in_archive(files: Sequence[RemoteFile], archive: Path) -> dict[str, Path]:
    """Returns where each of `files` lies in `archive`, a folder or a single file."""
    if archive.is_file() and len(files) > 1:
        raise ValueError(
            f"archive={archive} is one file, but this data set comes as {len(files)}: pass the "
            f"folder that holds {', '.join(file.name for file in files)}."
        )
    one_file = len(files) == 1 and not archive.is_dir()
    paths = {file.name: archive if one_file else archive / file.name for file in files}
    missing = [file for file in files if not paths[file.name].is_file()]
    if missing:
        raise FileNotFoundError(
            f"archive={archive} lacks {', '.join(str(paths[file.name]) for file in missing)}. "
            f"Fetch\n{_listing(missing)}and put it there, or leave archive away to download."
        )
    return paths


def _listing(files: Sequence[RemoteFile]) -> str:
    return "".join(f"  {file.url}\n" for file in files)
