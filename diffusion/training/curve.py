"""The loss curve as a picture."""

import json
from pathlib import Path

import numpy as np

from diffusion.training.logs import bin_names


def plot_loss(workdir: Path) -> Path:
    """Draws metrics.jsonl into loss.png: the loss, and the loss by noise level; returns the picture's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    figure, (whole, by_level) = plt.subplots(1, 2, figsize=(10, 4), sharex=True, layout="constrained")
    whole.plot([row["step"] for row in rows], [row["loss"] for row in rows])
    whole.set(xlabel="step", ylabel="loss", yscale="log")
    seen = {name for row in rows for name in row}
    for name in (name for name in bin_names("loss") if name in seen):
        points = np.array([(row["step"], row[name]) for row in rows if name in row])
        by_level.plot(points[:, 0], points[:, 1], label=name.removeprefix("loss/").replace("_", " "))
    by_level.set(xlabel="step", yscale="log", title="by noise level")
    by_level.legend(*by_level.get_legend_handles_labels(), fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    file = workdir / "loss.png"
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file
