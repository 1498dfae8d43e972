"""Pictures of points in the plane: where they are, and where the score field pulls them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from diffusion import gaussian
from diffusion.types import Array, Denoiser, NoiseLevel

_AXIS = np.linspace(-1.2, 1.2, 21, dtype=np.float32)
PLACES = np.stack(np.meshgrid(_AXIS, _AXIS), axis=-1).reshape(-1, 2)
"""Where `score_field` asks the denoiser, [441, 2]."""


def scatter(points: Float[Array, "n 2"]) -> UInt8[np.ndarray, "height width 3"]:
    """The points in [-1.2, 1.2]^2 as a picture."""
    figure, (panel,) = _panels(1)
    panel.scatter(*np.asarray(points).T, s=2, alpha=0.5, linewidths=0)
    return _pixels(figure)


def score_field(
    denoise: Denoiser, points: Float[Array, "n 2"], levels: NoiseLevel
) -> UInt8[np.ndarray, "height width 3"]:
    """One panel for each level, [k] in every field: the points, and arrows along the score at PLACES.

    The arrow at y is the score at x_t = alpha y; arrows of one panel share their scale.
    """
    count = len(levels.log_snr)
    figure, panels = _panels(count)
    for i, panel in enumerate(panels):
        level = jax.tree.map(lambda column, i=i: jnp.asarray(column)[i], levels)
        arrows = gaussian.score(denoise(level.alpha * jnp.asarray(PLACES), level).eps, level)
        panel.scatter(*np.asarray(points).T, s=1, alpha=0.5, linewidths=0)
        panel.quiver(*PLACES.T, *np.asarray(arrows).T, width=0.003)
        panel.set_title(f"log-SNR {float(level.log_snr):.1f}")
    return _pixels(figure)


def _panels(count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * count, 4), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    for panel in panels:
        panel.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    return figure, panels


def _pixels(figure: Any) -> UInt8[np.ndarray, "height width 3"]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
