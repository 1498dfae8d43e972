"""The page: everything that was found, through page.html."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diffusion.report import compare, evaluations, likelihoods, pictures, plots
from diffusion.report.folders import Reader, Run, find
from diffusion.report.logs import MOST_POINTS, by_level, level_words, watched
from diffusion.report.pictures import Grids
from diffusion.report.plots import Plot
from diffusion.report.words import breakable, number
from diffusion.training.logs import bin_names

IN_ALL, AT_LEAST, AT_MOST = 80, 3, 8
"""Steps that grids of samples are shown of: so many over all runs, within limits for each."""

MANY = 5
"""With more runs than these, they are the rows of the table of settings, and the keys its columns."""


class Section(NamedTuple):
    """What the page says of one run; levels is None where its log has no metric by level of noise.

    watched: its evaluations during the training, a plot for each number.
    """

    run: Run
    anchor: str
    level_metric: str
    levels: Plot | None
    watched: list[Plot]
    grids: Grids


class Losses(NamedTuple):
    """The loss of one kind of run."""

    heading: str
    plot: Plot


def make(folder: Path) -> str:
    """The page over all runs in the folder and below, as HTML; ValueError where there are none."""
    reader = Reader(folder)
    runs = list(find(reader))
    if not runs:
        unread = "".join(f"\n  {note.file}: {note.why}" for note in reader.notes)
        raise ValueError(
            f"{folder} holds no run, nor does any folder below it. Looked for folders with a config.json that training "
            "wrote, such as the one that `python main.py --config=configs/ddpm_digits.py --workdir=runs/digits` makes."
            + (f" These could not be read:{unread}" if unread else "")
        )
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["breakable"] = breakable
    return templates.get_template("page.html").render(_content(reader, runs))


def _content(reader: Reader, runs: Sequence[Run]) -> dict[str, Any]:
    """What the template names; the notes last, when everything has been read."""
    guides = [run for run in runs if run.is_guide]
    losses = (
        _losses("Runs that draw samples", "loss", [run for run in runs if not run.is_guide]),
        _losses("Guides", "guides", guides),
    )
    sections = [_section(reader, run, i, len(runs)) for i, run in enumerate(runs)]
    content = {
        "title": reader.root.name,
        "made": datetime.now(UTC),
        "runs": runs,
        "anchors": {run.name: f"run{i}" for i, run in enumerate(runs)},
        "counted": any(run.num_params is not None for run in runs),
        "guides": guides,
        "tests": _columns(guides),
        "settings": compare.settings([run.config for run in runs]),
        "runs_are_rows": len(runs) > MANY,
        "losses": [one for one in losses if one],
        "most_points": MOST_POINTS,
        "groups": evaluations.groups(reader, runs),
        "likelihoods": likelihoods.tables(reader, runs),
        "bound_plots": [plot for run in runs for plot in pictures.beside(reader, run, "likelihood")],
        "sections": sections,
        "lasts": [(section.run, last) for section in sections if (last := section.grids.last())],
        "number": number,
    }
    return content | {"notes": reader.notes}


def _columns(guides: Sequence[Run]) -> dict[str, dict[str, str]]:
    """metric -> level in words -> its key, of the numbers that any guide's test.json has, from noisy to clean."""
    there = {name for guide in guides for name in guide.test or {}} - {"split"}
    metrics = sorted({name.partition("/")[0] for name in there})
    return {
        metric: {level_words(name): name for name in (metric, *bin_names(metric)) if name in there}
        for metric in metrics
    }


def _losses(heading: str, name: str, runs: Sequence[Run]) -> Losses | None:
    drawn = {run.name: run.curves["loss"] for run in runs if "loss" in run.curves}
    return Losses(heading, plots.curves(name, drawn, "loss", closer=True)) if drawn else None


def _section(reader: Reader, run: Run, index: int, count: int) -> Section:
    metric, drawn = by_level(run.curves)
    levels = plots.curves(f"levels{index}", drawn, metric, ramp=True) if drawn else None
    most = min(AT_MOST, max(AT_LEAST, IN_ALL // count))
    grids = pictures.grids(reader, run, most)
    numbers = watched(run.curves).items()
    seen = [plots.curves(f"watched{index}-{i}", {name: curve}, "value") for i, (name, curve) in enumerate(numbers)]
    return Section(run, f"run{index}", metric, levels, seen, grids)
