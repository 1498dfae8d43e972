"""Schedules that are learned together with the network (Kingma et al. 2021, "VDM", arXiv:2107.00630).

    log_snr(t) = log_snr_max - (log_snr_max - log_snr_min) u(t),    u rising from 0 at t = 0 to 1 at t = 1

The two ends are trained on the bound, of which they are a part. The shape u is not: between the same ends every shape
has the same bound (section 5.1). It decides how often each level is drawn and so how much the loss varies, and is
trained to lower that: on the mean of the squared losses, since the mean of the losses does not depend on it (section
5.3), in units of the loss, so that a global norm is not all the shape's. Both gradients come from one backward pass
(`for_less_variance`).

A learned schedule is a pure function of its parameters, a tree {"ends": {"log_snr_max", "log_snr_min"}, "shape": ...}:
of a numpy tree `at` makes float64 levels on the host, of a JAX tree float32 ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.paths import Schedule, bisection, path
from diffusion.schedules import variance_preserving
from diffusion.types import NoiseLevel, Params, namespace


@dataclass(frozen=True)
class LearnedSchedule:
    """A variance-preserving path whose levels depend on parameters.

    init() -> the parameters before training, float64; nothing in them is random.
    shape(params["shape"], t) -> u(t) of t in [0, 1], numpy or JAX, rising from exactly 0 to exactly 1.
    embed(level) -> what a network is told of a level; it depends on the log-SNR alone, not on the parameters.
    """

    init: Callable[[], Params]
    shape: Callable[[Any, Any], Any]
    embed: Callable[[NoiseLevel], Any]

    def at(self, params: Params) -> Schedule:
        """The continuous path of these parameters, t in [0, 1].

        It jumps as ve_geometric does: t = 0 is clean data, and log_snr_max the limit from above.
        """

        def log_snr(t: Any) -> Any:
            return _between(params["ends"], self.shape(params["shape"], t))

        def closed_form(t: Any, np_: Any) -> tuple[Any, Any, Any]:
            clean = t == 0
            there = variance_preserving(log_snr(t))
            return tuple(np_.where(clean, value, field) for value, field in zip((1, 0, np_.inf), there, strict=True))

        search = bisection(log_snr, 1.0)
        found = path(
            closed_form, lambda x, np_: np_.where(np_.isposinf(x), 0.0, search(x, np_)), end=1.0, embed=self.embed
        )
        if namespace(*jax.tree.leaves(params)) is np:
            return found
        return Schedule(
            lambda t: found.level(jnp.asarray(t)), lambda x: found.time_at(jnp.asarray(x)), embed=self.embed
        )

    def place(self, shape: Any, t: Any) -> tuple[Any, Any]:
        """(u, du / dt) at the JAX times t."""
        return jax.jvp(lambda t: self.shape(shape, t), (t,), (jnp.ones_like(t),))

    def level(self, ends: Any, t: Any, place: tuple[Any, Any]) -> tuple[NoiseLevel, Any]:
        """(the level, -d log_snr / dt) at the time t in (0, 1] whose place is (u, du / dt)."""
        u, slope = place
        rate = (ends["log_snr_max"] - ends["log_snr_min"]) * slope
        return NoiseLevel(t, *variance_preserving(_between(ends, u))), rate


def learned_log_snr(log_snr_max: float = 13.3, log_snr_min: float = -5.0, hidden: int = 1024) -> LearnedSchedule:
    """A monotone network: u(t) = (g(t) - g(0)) / (g(1) - g(0)), g = l_1 + l_3(sigmoid(l_2(l_1))) (VDM, appendix H).

    The weights of the linear layers l_1 (1 -> 1), l_2 (1 -> hidden) and l_3 (hidden -> 1) are softplus of their
    parameters, so positive; biases that u does not feel are left out. It starts as an almost straight line, half of
    which is made of `hidden` steep sigmoids that are spread evenly over [0, 1].

    log_snr_max, log_snr_min: the ends before training; VDM's, for 8-bit images, by default. A network is told of a
        log-SNR by its place between these, 0 to 1000, wherever the trained ends go.
    """
    if not log_snr_min < log_snr_max or hidden < 1:
        raise ValueError(
            f"got log_snr_max={log_snr_max}, log_snr_min={log_snr_min}, hidden={hidden}; expected log_snr_min < "
            "log_snr_max and hidden >= 1."
        )

    def init() -> Params:
        steepness = 20.0
        centre = (np.arange(hidden) + 0.5) / hidden
        return {
            "ends": {"log_snr_max": np.float64(log_snr_max), "log_snr_min": np.float64(log_snr_min)},
            "shape": {
                "l_1": _inverse_softplus(np.float64(1)),
                "l_2": _inverse_softplus(np.full(hidden, steepness)),
                "l_2_bias": -steepness * centre,
                "l_3": _inverse_softplus(np.full(hidden, 1 / hidden)),
            },
        }

    def shape(params: Any, t: Any) -> Any:
        np_ = namespace(t, *jax.tree.leaves(params))
        l_1, l_2, l_3 = (np_.logaddexp(0, params[name]) for name in ("l_1", "l_2", "l_3"))

        def g(t: Any) -> Any:
            line = l_1 * t
            row = (1,) * np_.ndim(line) + (hidden,)
            unit = l_2.reshape(row) * line[..., None] + params["l_2_bias"].reshape(row)
            return line + (l_3.reshape(row) * np_.exp(-np_.logaddexp(0, -unit))).sum(-1)

        first, last = g(np_.zeros_like(l_1)), g(np_.ones_like(l_1))
        return (g(np_.asarray(t)) - first) / (last - first)

    def embed(level: NoiseLevel) -> Any:
        return 1000 * (log_snr_max - level.log_snr) / (log_snr_max - log_snr_min)

    return LearnedSchedule(init, shape, embed)


def for_less_variance(losses: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """losses(model, place) -> [rows], with its own gradient for `model`, and that of half of their squares for `place`.

    place: a tree of [rows] leaves, row i of which enters the loss of sample i alone. Then d(L_i^2 / 2) = L_i dL_i, so
    that one backward pass serves both (VDM, section 5.3). Divide the place's gradient by the mean of L over the batch,
    as a constant: the direction is the same, and the size that of the loss's own gradients, with which a global norm is
    shared. It is left to the caller, who knows the batch that the rows are of.
    """

    @jax.custom_vjp
    def both(model: Any, place: Any) -> Any:
        return losses(model, place)

    def forward(model: Any, place: Any) -> tuple[Any, Any]:
        found, back = jax.vjp(losses, model, place)
        return found, (found, back)

    def backward(kept: Any, cotangent: Any) -> tuple[Any, Any]:
        found, back = kept
        of_model, of_place = back(cotangent)
        return of_model, jax.tree.map(lambda gradient: found * gradient, of_place)

    both.defvjp(forward, backward)
    return both


def _between(ends: Any, u: Any) -> Any:
    return ends["log_snr_max"] - (ends["log_snr_max"] - ends["log_snr_min"]) * u


def _inverse_softplus(x: Any) -> Any:
    return x + np.log(-np.expm1(-x))
