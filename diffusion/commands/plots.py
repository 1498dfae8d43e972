"""Plots that commands write."""

from pathlib import Path

import numpy as np

from diffusion.commands.passes import Found
from diffusion.types import Step


def bound_terms(file: Path, steps: Step, found: Found) -> None:
    """Draws the terms of the bound against t, in bits per dimension, and the squared error of eps beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    t, means, L_0 = np.asarray(steps.now.t), found.means(), found.rows["bound/L_0"].mean()
    L_t, mse = means["bound/L_t"], means["bound/mse"]
    figure, (terms, errors) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    terms.plot(t, [*L_t, L_0])
    title = f"L_t: {L_t.sum():.4g} in all, and L_0: {L_0:.4g} at t = {t[-1]:g}"
    terms.set(xlabel="t", ylabel="bits/dim", yscale="log", title=title)
    errors.plot(t, mse)
    errors.set(xlabel="t", ylabel="mean squared error of eps", yscale="log", title="error of eps")
    figure.savefig(file, dpi=120)
    plt.close(figure)
