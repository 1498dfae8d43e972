"""Curves as SVG that stands in the page itself and takes its colours of ink, light or dark, from there."""

import io
import re
from collections.abc import Mapping, Sequence
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


def curves(name: str, drawn: Mapping[str, Curve], metric: str, *, ramp: bool = False, closer: bool = False) -> Plot:
    """All the curves in one plot; the axis is logarithmic where all values are positive, linear for an accuracy.

    name: another one for each plot of the page. ramp: the curves are in an order, which the colours show.
    closer: below it once more, only the second half of the steps: a loss falls by most in its first few.
    """
    legend = [key(i, words) for i, words in enumerate(drawn)]
    if ramp:
        legend = [look._replace(colour=_on_ramp(i, len(legend)), stroke="solid") for i, look in enumerate(legend)]
    return Plot(_svg(name, list(zip(legend, drawn.values(), strict=True)), metric, closer), legend)


def _on_ramp(index: int, count: int) -> str:
    """A colour from violet to orange, each of which can be seen on white and on black."""
    import matplotlib
    from matplotlib.colors import to_hex

    return to_hex(matplotlib.colormaps["plasma"](np.linspace(0.25, 0.8, count)[index]))


def _svg(name: str, drawn: Sequence[tuple[Key, Curve]], metric: str, closer: bool) -> Markup:
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
        **{"grid.color": INK, "grid.alpha": 0.15, "axes.grid": True, "axes.spines.top": False},
        **{"axes.spines.right": False, "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10},
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 6.4 if closer else 3.4), layout="constrained")
        panels = figure.subplots(2 if closer else 1, squeeze=False)[:, 0]
        _panel(panels[0], drawn, metric)
        if closer:
            half = max(curve.steps[-1] for _, curve in drawn) / 2
            _panel(
                panels[1], [(look, rest) for look, curve in drawn if len((rest := _from(curve, half)).steps)], metric
            )
            panels[1].set_title("the second half, closer", loc="left", fontsize=10)
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _inline(file.getvalue(), name)


def _panel(axes: Any, drawn: Sequence[tuple[Key, Curve]], metric: str) -> None:
    for look, curve in drawn:
        dots = "." if len(curve.steps) == 1 else ""
        axes.plot(curve.steps, curve.values, color=look.colour, linestyle=STROKES[look.stroke], lw=1.4, marker=dots)
    axes.set(xlabel="step", ylabel=metric)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    values = np.concatenate([curve.values for _, curve in drawn])
    if metric != "accuracy" and (values > 0).all():
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis, values.min(), values.max())


def _from(curve: Curve, step: float) -> Curve:
    late = curve.steps >= step
    return curve._replace(steps=curve.steps[late], values=curve.values[late])


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
