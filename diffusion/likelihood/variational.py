"""The variational bound of a trained chain in bits per dimension: its full sum, and a cheap estimate of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion import bound, gaussian
from diffusion.keys import each_at_step, each_stream, normal
from diffusion.types import BITS, AnyDenoiser, Prediction, Step, float32, mean_per_sample, memoryless


class Bound(NamedTuple):
    """The bound of each sample, [batch], and its parts, in bits per dimension: total = L_T + sum(L_t) + L_0.

    L_t [n - 1, batch]: each step's, noisiest first, without the last one's, L_0. mse [n, batch]: the mean squared error
    of eps at each step's level, L_0's last.
    """

    total: Any
    L_T: Any
    L_t: Any
    L_0: Any
    mse: Any


class Estimate(NamedTuple):
    """An unbiased estimate of the bound of each sample, [batch], in bits per dimension: total = L_T + sum + L_0.

    L_T and L_0 are as in the full sum; sum estimates the terms between from some of them.
    """

    total: Any
    L_T: Any
    sum: Any
    L_0: Any


def vlb_bpd(
    denoise: AnyDenoiser,
    x_0: Float[Array, "batch *shape"],
    steps: Step,
    keys: Key[Array, " batch"],
    *,
    num_values: int,
    variance: str | None = None,
) -> Bound:
    """The variational bound on -log2 p(x_0) per dimension, every term from one draw of x_t (Ho et al. 2020, eq. 5).

    The mean over a data set is what papers print as "NLL <=". One evaluation of the denoiser for each step.

    x_0:        [batch, ...] in [-1, 1]. keys: one per sample id; a sample's noise depends on its own key alone.
    steps:      any grid, as float64 or float32: `all_steps(schedule)` is the training chain, `strided(schedule, n)` the
                respaced one of n steps.
    num_values: of the data set (`Dataset.num_values`): its bins are what the bound is a probability of; 0 for
                continuous data, where the "bits" are those of a density and may be negative.
    variance:   of p, one of `gaussian.VARIANCES`; None is "learned" where the model learned one, else "large".

    A self-conditioned denoiser is given no estimate: a chain whose steps depend on x_t alone.
    ValueError for variance="learned" where the model learned none.
    """
    chain = _Chain(denoise, x_0, steps, num_values, variance)
    last = chain.length - 1

    def one(_: None, i: Any) -> tuple[None, tuple[Any, Any]]:
        return None, chain.divergence(i, each_at_step(keys, i))

    _, (L_t, mse) = jax.lax.scan(one, None, jnp.arange(last))
    L_0, mse_0 = chain.surprise(each_at_step(keys, last))
    L_T = chain.prior()
    return Bound(L_T + L_t.sum(0) + L_0, L_T, L_t, L_0, jnp.concatenate([mse, mse_0[None]]))


def vlb_bpd_estimate(
    denoise: AnyDenoiser,
    x_0: Float[Array, "batch *shape"],
    steps: Step,
    keys: Key[Array, " batch"],
    *,
    num_values: int,
    num_terms: int = 8,
    variance: str | None = None,
) -> Estimate:
    """`vlb_bpd` from num_terms of its steps for each sample: unbiased, at num_terms + 1 evaluations.

    The steps but the last are cut into num_terms stretches of equal length, and each sample draws one place in each.
    The last one's term, L_0, is large, and is always there. The mean over a data set has the standard error that
    `mean_and_error` gives; it counts the sampled steps' share too.
    """
    chain = _Chain(denoise, x_0, steps, num_values, variance)
    others = chain.length - 1
    if not 1 <= num_terms <= max(others, 1):
        raise ValueError(f"got num_terms={num_terms}, expected 1..{others}: the grid has {others + 1} steps.")
    offset = jax.vmap(lambda key: jax.random.uniform(key, (num_terms,)))(each_stream(keys, "steps"))
    places = jnp.minimum(jnp.floor((jnp.arange(num_terms)[:, None] + offset.T) * others / num_terms), others - 1)

    def one(total: Any, numbered: tuple[Any, Int[Array, " batch"]]) -> tuple[Any, None]:
        i, place = numbered
        return total + others / num_terms * chain.divergence(place, each_at_step(keys, i))[0], None

    total = jnp.zeros(len(x_0))
    if others:
        total, _ = jax.lax.scan(one, total, (jnp.arange(num_terms), places.astype(int)))
    L_T, (L_0, _) = chain.prior(), chain.surprise(each_stream(keys, "last"))
    return Estimate(L_T + total + L_0, L_T, total, L_0)


def mean_and_error(values: Any) -> tuple[float, float]:
    """(mean, its standard error) over a data set's samples, [n] -> float64; the error of one sample is NaN."""
    values = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


class _Chain:
    """One grid's terms for one batch, in bits per dimension: each of a fresh draw of x_t, by fresh keys [batch]."""

    def __init__(self, denoise: AnyDenoiser, x_0: Any, steps: Step, num_values: int, variance: str | None) -> None:
        if not np.asarray(steps.to.sigma)[-1] == 0:
            raise ValueError(
                "the grid does not end in clean data, so that it has no L_0: make it with sampling.strided."
            )
        self._columns = float32((steps, bound.log_small(steps)))
        self.length = len(steps.h)
        self._denoise, self._x_0 = memoryless(denoise, x_0), x_0
        self._num_values, self._variance = num_values, variance

    def prior(self) -> Any:
        """L_T, [batch]."""
        return BITS * bound.prior(self._x_0, _row(self._columns, 0)[0].now)

    def divergence(self, i: Any, fresh: Any) -> tuple[Any, Any]:
        """(the term of step i, any but the last, the squared error of eps there), [batch] each; i [] or [batch]."""
        prediction, mse, step, small = self._at(i, fresh)
        which = self._variance or gaussian.learned_or_large(prediction)
        return BITS * bound.divergence(prediction, self._x_0, step, small, variance=which), mse

    def surprise(self, fresh: Any) -> tuple[Any, Any]:
        """The same of the last step, L_0."""
        prediction, mse, step, small = self._at(self.length - 1, fresh)
        which = self._variance or gaussian.learned_or_large(prediction)
        nats = bound.surprise(prediction, self._x_0, step, small, variance=which, num_values=self._num_values)
        return BITS * nats, mse

    def _at(self, i: Any, fresh: Any) -> tuple[Prediction, Any, Step, Any]:
        step, small = _row(self._columns, i)
        eps = normal(each_stream(fresh, "bound"), self._x_0.shape[1:])
        prediction = self._denoise(gaussian.diffuse(self._x_0, eps, step.now), step.now)
        return prediction, mean_per_sample((prediction.eps - eps) ** 2), step, small


def _row(tree: Any, i: Any) -> Any:
    return jax.tree.map(lambda column: column[i], tree)
