"""Pictures as data in the page: grids of samples through the training, plots that lie in a run's folder."""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffusion.report.folders import Reader, Run

AVERAGES = {"ema": "EMA", "raw": "raw"}
"""The kinds of parameters that grids are drawn with, in the order of the rows, and what they are called."""

LARGEST = 1280
"""Pictures with more pixels in height or width are made smaller, so that the page stays one that opens."""

READABLE = 256
"""Pictures with fewer pixels in width are shown enlarged, by a whole factor."""


class Picture(NamedTuple):
    """An image file as a data URI, how wide and high it is shown, and whether as sharp pixels."""

    source: str
    width: int
    height: int
    pixelated: bool
    caption: str


class Grids(NamedTuple):
    """The grids of a run: headings of the columns, row name -> a picture for each (None where there is none).

    left_out: how many of the steps that there are grids of are not among the columns.
    """

    headings: Sequence[str]
    rows: Mapping[str, Sequence[Picture | None]]
    left_out: int

    def last(self) -> Picture | None:
        """The last picture, of averaged parameters where there is one."""
        return next((found for row in self.rows.values() for found in reversed(row) if found), None)


def grids(reader: Reader, run: Run, most: int) -> Grids:
    """The grids of at most `most` steps, evenly spread, the first and the last among them; then the final samples."""
    there: dict[int, dict[str, Path]] = {}
    for file in sorted((run.folder / "samples").glob("step_*.png")):
        if match := re.fullmatch(r"step_(\d+)_(raw|ema)\.png", file.name):
            there.setdefault(int(match[1]), {})[match[2]] = file
    steps = sorted(there)
    shown = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))]
    columns = {f"step {step:,}": there[step] for step in shown}
    if (final := run.folder / "samples.png").exists():
        columns["end"] = {"ema": final}
    rows = {
        words: [
            picture(reader, files[kind], f"{heading}, {words}") if kind in files else None
            for heading, files in columns.items()
        ]
        for kind, words in AVERAGES.items()
    }
    filled = {words: row for words, row in rows.items() if any(row)}
    return Grids(list(columns) if filled else [], filled, len(steps) - len(shown))


def beside(reader: Reader, run: Run, folder: str) -> Iterator[Picture]:
    """The pictures in one of the run's folders, by name."""
    for file in sorted((run.folder / folder).glob("*.png")):
        if found := picture(reader, file, reader.name(file)):
            yield found


def picture(reader: Reader, file: Path, caption: str) -> Picture | None:
    """The picture, decoded once to see that it can be; None, with a note, where it cannot."""
    try:
        content = file.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
            if max(image.size) > LARGEST:
                caption += f" (made smaller from {image.width} x {image.height})"
                image.thumbnail((LARGEST, LARGEST))
                small = io.BytesIO()
                image.save(small, "PNG")
                content = small.getvalue()
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reader.note(file, f"no picture that can be read: {error}")
        return None
    factor = -(-READABLE // width) if width < READABLE else 1
    source = "data:image/png;base64," + base64.b64encode(content).decode()
    return Picture(source, width * factor, height * factor, width <= 2 * READABLE, caption)
