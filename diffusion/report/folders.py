"""Which folders are runs, and what the JSON files of one hold."""

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from diffusion import lookup, objectives, workdir
from diffusion.objectives import Objective
from diffusion.report.logs import Curve, read_curves

NO_RUNS_IN = {"checkpoints", "tensorboard"}
"""Folders of a run that hold many files, and no run."""


class Note(NamedTuple):
    """A file that could not be read, by its path below the report's folder, and why."""

    file: str
    why: str


class Run(NamedTuple):
    """What a run's folder says of it.

    name:       the folder's path below the report's folder.
    config:     ("block.key", value) of every option that its config.json states.
    curves:     each metric over the steps.
    step:       the last one that the log or a checkpoint knows; None where there is neither.
    num_params: None where no checkpoint says.
    test:       of a guide that has come to its end: test.json.
    updated:    when config, log or a checkpoint was last written.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    curves: Mapping[str, Curve]
    step: int | None
    num_params: int | None
    test: Mapping[str, Any] | None
    updated: datetime

    @property
    def is_guide(self) -> bool:
        """Whether it was trained to guide others."""
        return self.config.get("loss.name") in list(lookup.components(objectives, Objective))


class Reader:
    """Reads files below one folder, and keeps a note of each that it could not."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._above = self.root.parent if (root / "config.json").exists() else self.root
        self.notes: list[Note] = []

    def name(self, path: Path) -> str:
        """The path below the root, beginning with the root's own name where that is a run itself."""
        return path.relative_to(self._above).as_posix()

    def note(self, file: Path, why: object) -> None:
        """Keeps a note of the file."""
        self.notes.append(Note(self.name(file), str(why)))

    def unreadable(self, error: OSError) -> None:
        """Keeps a note of a folder that cannot be listed; one that is not there is no folder to report on."""
        if Path(error.filename) != self.root:
            self.note(Path(error.filename), error.strerror)

    def json(self, file: Path) -> Mapping[str, Any] | None:
        """The file's object; None where there is no file, or, with a note, no object in it."""
        try:
            content = json.loads(file.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, OSError, RecursionError) as error:
            self.note(file, f"damaged: {error}")
            return None
        if not isinstance(content, dict):
            self.note(file, f"damaged: expected an object, got a {type(content).__name__}")
            return None
        return content


def find(reader: Reader) -> Iterator[Run]:
    """The runs below the reader's folder, by name; folders with a config.json of other programs are passed over."""
    for place, folders, files in os.walk(reader.root, onerror=reader.unreadable):
        if "config.json" in files:
            folders[:] = [name for name in folders if name not in NO_RUNS_IN]
            config = reader.json(Path(place) / "config.json")
            if config is not None and {"training", "loss", "network"} <= config.keys():
                yield _read(reader, Path(place), config)
        folders.sort()


def _read(reader: Reader, folder: Path, config: Mapping[str, Any]) -> Run:
    log = folder / "metrics.jsonl"
    curves, why = read_curves(log)
    if why:
        reader.note(log, why)
    steps = workdir.saved_steps(folder)
    reached = [curve.last_step for curve in curves.values()] + steps
    newest = folder / "checkpoints" / str(steps[-1] if steps else "none")
    about = reader.json(newest / "about" / "metadata") or {}
    return Run(
        name=reader.name(folder),
        folder=folder,
        config=dict(workdir.flat(config)),
        curves=curves,
        step=max(reached, default=None),
        num_params=about.get("num_params"),
        test=reader.json(folder / "test.json"),
        updated=max(_written(file) for file in (folder / "config.json", log, newest)),
    )


def _written(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime if file.exists() else 0, UTC)
