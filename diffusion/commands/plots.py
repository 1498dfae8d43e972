"""Plots that commands write."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from diffusion.commands.passes import Found


def bound_terms(file: Path, t: Float[np.ndarray, " n"] | Int[np.ndarray, " n"], found: Found) -> None:
    """Draws the terms of the bound at the times t, in bits per dimension, and the squared error of eps beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    means, L_0 = found.means(), found.rows["bound/L_0"].mean()
    L_t, mse = means["bound/L_t"], means["bound/mse"]
    figure, (terms, errors) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    terms.plot(t, [*L_t, L_0], marker=".")
    title = f"L_t: {L_t.sum():.4g} in all, and L_0: {L_0:.4g} at t = {t[-1]:g}"
    terms.set(xlabel="t", ylabel="bits/dim", yscale="log", title=title)
    errors.plot(t, mse, marker=".")
    errors.set(xlabel="t", ylabel="mean squared error of eps", yscale="log", title="error of eps")
    figure.savefig(file, dpi=120)
    plt.close(figure)
