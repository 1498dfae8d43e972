"""The loss curve as a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion.training.logs import bin_names


def plot_loss(workdir: Path) -> Path:
    """Draws metrics.jsonl into loss.png: the loss, and the loss (of a guide, the accuracy) by level; the path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    seen = {name for row in rows for name in row}
    shown = "accuracy" if "accuracy" in seen else "loss"
    figure, (whole, by_level) = plt.subplots(1, 2, figsize=(10, 4), sharex=True, layout="constrained")
    for name in sorted(seen & {"loss", "test/loss"}):
        whole.plot(*_curve(rows, name), label=name)
    whole.set(xlabel="step", ylabel="loss", yscale="log")
    whole.legend()
    for name in (name for name in bin_names(shown) if name in seen):
        by_level.plot(*_curve(rows, name), label=name.removeprefix(f"{shown}/").replace("_", " "))
    by_level.set(xlabel="step", yscale="log" if shown == "loss" else "linear", title=f"{shown} by noise level")
    by_level.legend(*by_level.get_legend_handles_labels(), fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    file = workdir / "loss.png"
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the rows that have the metric."""
    there = [row for row in rows if name in row]
    return [row["step"] for row in there], [row[name] for row in there]
