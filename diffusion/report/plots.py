"""Curves as SVG that stands in the page itself and takes its colours of ink, light or dark, from there."""

import io
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from diffusion.report.logs import Curve

COLOURS = ("#4477aa", "#ee6677", "#228833", "#b59a00", "#2a9fc4", "#aa3377", "#888888", "#e07b39")
STROKES = {"solid": "-", "dashed": "--", "dotted": ":"}
"""CSS's words for a line, and matplotlib's; with the colours they tell 24 curves apart."""

INK = "#010203"
"""A colour that no curve has: what is drawn in it takes the colour of the page's text."""


class Key(NamedTuple):
    """What a curve looks like, for the legend, which the page writes itself."""

    words: str
    colour: str
    stroke: str


class Plot(NamedTuple):
    """The picture, and the curves in it."""

    svg: Markup
    legend: list[Key]


def key(index: int, words: str) -> Key:
    """The look of the curve of that number: colours change first, then strokes."""
    return Key(words, COLOURS[index % len(COLOURS)], list(STROKES)[index // len(COLOURS) % len(STROKES)])


def curves(name: str, drawn: Mapping[str, Curve], metric: str, ramp: bool = False) -> Plot:
    """All the curves in one plot; the axis is logarithmic where all values are positive, linear for an accuracy.

    name: another one for each plot of the page. ramp: the curves are in an order, which the colours show.
    """
    legend = [key(i, words) for i, words in enumerate(drawn)]
    if ramp:
        legend = [look._replace(colour=_on_ramp(i, len(legend)), stroke="solid") for i, look in enumerate(legend)]
    log = metric != "accuracy" and all((curve.values > 0).all() for curve in drawn.values())
    return Plot(_svg(name, drawn, legend, metric, "log" if log else "linear"), legend)


def _on_ramp(index: int, count: int) -> str:
    """A colour from violet to orange, each of which can be seen on white and on black."""
    import matplotlib
    from matplotlib.colors import to_hex

    return to_hex(matplotlib.colormaps["plasma"](np.linspace(0.25, 0.8, count)[index]))


def _svg(name: str, drawn: Mapping[str, Curve], legend: list[Key], metric: str, scale: str) -> Markup:
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
        **{"grid.color": INK, "grid.alpha": 0.15, "axes.grid": True, "axes.spines.top": False},
        **{"axes.spines.right": False, "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10},
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        axes: Any = figure.subplots()
        for look, curve in zip(legend, drawn.values(), strict=True):
            dots = "." if len(curve.steps) == 1 else ""
            axes.plot(curve.steps, curve.values, color=look.colour, linestyle=STROKES[look.stroke], lw=1.4, marker=dots)
        axes.set(xlabel="step", ylabel=metric, yscale=scale)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        if scale == "log":
            values = np.concatenate([curve.values for curve in drawn.values()])
            _plain_ticks(axes.yaxis, values.min(), values.max())
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _inline(file.getvalue(), name)


def _plain_ticks(axis: Any, lowest: float, highest: float) -> None:
    """0.05 instead of a power of ten, and ticks enough where the curves span less than a decade."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullLocator

    decades = np.log10(highest / lowest)
    axis.set_major_locator(AutoLocator() if decades < 1 else LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:.3g}")


def _inline(file: str, name: str) -> Markup:
    """The file as an element of a page: no prologue, nothing that refers outside, ids of its own, the page's ink.

    Its own style would hold for the whole page, so it is left out; the page has one for all plots.
    """
    svg = file[file.index("<svg") :]
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return Markup(svg.replace(INK, "currentColor"))  # our own plot: no words from files are in it
