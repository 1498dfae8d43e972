"""The exact likelihood of the probability flow: how dense x_0 lies, by following it to noise.

The probability-flow ODE (Song et al. 2020, arXiv:2011.13456, section 4.3) carries data to noise without losing any,
so densities change along it by the divergence of its field alone (Chen et al. 2018, arXiv:1806.07366, eq. 8). It is
written here in coordinates that no schedule can make infinite: an angle phi instead of a time,

    y = x / r,   r = hypot(alpha, sigma),   cos(phi) = alpha / r,   sin(phi) = sigma / r,
    dy / dphi = cos(phi) eps_hat - sin(phi) x_0_hat,

for every path x_t = alpha x_0 + sigma eps, a chain or continuous: schedules differ only in the angles at which they
put their levels. In tau = log tan(phi / 2), which spreads the many e-folds of small noise evenly (there it is -log_snr
/ 2 - log 2) and ends at 0 in pure noise, eps_hat drops out,

    dy / dtau = cos(phi) y - x_0_hat,          d log p(y) / dtau = tr(d x_0_hat / dy) - d cos(phi),

with d the number of values of a sample. The first parts are solved exactly, by sin(phi): with y / sin(phi) as unknown,

    d (y / sin(phi)) = x_0_hat d cot(phi),     d log(p sin(phi)^d) = tr(d x_0_hat / dy) dtau,

so that only x_0_hat and its trace are approximated between two levels, by the mean of both ends. Both are bounded and
vary slowly: where the data are a surface of k < d dimensions, the trace is k over many e-folds of noise, while
the divergence of the flow goes as (d - k) / phi.

The prior at the grid's noisiest level is y ~ N(0, I), the one that `sampling.generate` starts from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion import decoder, ode
from diffusion import keys as rng
from diffusion.paths import Schedule
from diffusion.types import BITS, AnyDenoiser, Denoiser, NoiseLevel, Step, expand, float32, memoryless, namespace

Estimate = Callable[[Any, NoiseLevel], tuple[Any, Any]]
"""(y, level) -> (x_0_hat [batch, ...], the trace of d x_0_hat / dy [batch])."""

CHUNK = 16
"""How many of the exact trace's pullbacks are made at a time."""


class FlowLikelihood(NamedTuple):
    """Likelihoods, one a sample.

    bpd:       bits per dimension, -log_prob / (d log 2).
    log_prob:  in nats. Of discrete data a bound of the log-probability from below, in expectation over the
               dequantising noise and the probes; of continuous data the log-density.
    nfe:       how often the denoiser was evaluated for this sample, [] or [batch].
    """

    bpd: Float[Array, " batch"]
    log_prob: Float[Array, " batch"]
    nfe: int | Int[Array, "*batch"]


def ode_bpd(
    denoise: AnyDenoiser,
    x_0: Float[Array | np.ndarray, "batch *shape"],
    steps: Step,
    keys: Key[Array, " batch"],
    *,
    num_values: int,
    dequantise: str = "uniform",
    trace: str = "hutchinson",
    num_probes: int = 1,
    solver: str = "heun",
    schedule: Schedule | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 1000,
) -> FlowLikelihood:
    """Likelihoods of x_0 under the probability flow (Song et al. 2020, arXiv:2011.13456, appendix D.2), row by row.

    denoise:     any denoiser. A self-conditioned one is told "no estimate yet" (zeros) everywhere, which half of its
                 training did: an ODE needs a field of x alone, without memory of the way.
    x_0:         [batch, ...] in [-1, 1].
    steps:       a grid, walked backwards from its cleanest noisy level, steps.now[-1], to its noisiest, steps.now[0].
                 No denoiser exists at clean data, so x_0 is scored by the model's density at the cleanest level, as in
                 Song et al. (whose level is t = 1e-5): the density of data that carry noise of sigma / alpha.
    keys:        one a sample. Row i depends on keys[i] alone.
    num_values:  how many values a pixel can take, evenly spread over [-1, 1]: 256 for 8-bit images, 17 for
                 scikit-learn's digits; 0 for continuous data.
    dequantise:  how discrete data become dense, which makes the result a bound of log P(x_0) from below.
        "uniform":      u fills the bin of width delta = 2 / (num_values - 1) (Theis et al. 2015, arXiv:1511.01844,
                        section 3.1): log P(x_0) >= E[log p(x_0 + u)] + d log(delta), with P the bins' own mass.
        "variational":  the process's noise at the cleanest level fills the bin, x = alpha x_0 + sigma eps, and the
                        decoder P(x_0 | x), which is proportional to N(x; alpha x_0, sigma^2) over each pixel's values
                        (Kingma et al. 2021, arXiv:2107.00630, eq. 8), takes it off again:
                        log P(x_0) >= E[log p(x) + log P(x_0 | x) - log q(x | x_0)]. The network sees what it was
                        trained on. A bound for every sigma, tight where sigma is small next to the bins and the
                        network knows them. Nothing is trained for it (Flow++'s q, arXiv:1902.00275, is).
        "none":         for num_values=0: the density itself. Bits may be negative.
    trace:       "hutchinson", unbiased: the mean of e^T (d x_0_hat / dy) e over num_probes Rademacher vectors, drawn
                 once a sample and kept along the way (Grathwohl et al. 2018, arXiv:1810.01367, section 3.1), one
                 pullback through the denoiser each, as in a training step. "exact": d pullbacks, for small data.
    solver:      "heun": the trapezoid in tau on the grid's own levels, of order 2: n levels are n evaluations. Take a
                 grid that is even in log-SNR. One too coarse errs in either direction, and no bound holds: refine it.
                 "tsit5", "dopri5", "dopri8", "bosh3": adaptive (diffrax), on continuous paths, whose schedule= is
                 given; of the grid both ends are used. rtol, atol: bounds of a step's error, in root mean square over
                 y and in log-density per dimension. A sample that needs more than max_steps is NaN, with a printed
                 line. Under "hutchinson" the steps, and the error within these bounds, depend on the probes.

    Wrap it in `jax.jit`: it is one scan, or one solution. Grid and x_0 may be traced, else they are checked.
    Leave thresholds of x_0 out: they are part of the flow, and their result is the density of what is clipped.

    ValueError for options that do not exist or do not fit together, a grid that does not rise, x_0 off its values.
    """
    _check(x_0, steps, num_values, dequantise, trace, num_probes)
    adaptive = None
    if solver != "heun":
        adaptive = _adaptive(solver, schedule, steps, rtol=rtol, atol=atol, max_steps=max_steps)
    x_0 = jnp.asarray(x_0, jnp.float32)
    denoise = memoryless(denoise, x_0)
    up = jax.tree.map(lambda column: column[::-1], steps.now)
    y, log_ratio = _dequantised(x_0, jax.tree.map(lambda column: column[0], float32(up)), keys, num_values, dequantise)
    estimate = _estimate(denoise, _trace(trace, x_0.shape, keys, num_probes))
    y, log_volume, nfe = (adaptive or _heun)(estimate, y, up)
    d = x_0[0].size
    log_prior = -0.5 * (_total(y**2) + d * np.log(2 * np.pi))
    log_prob = log_prior + log_volume + log_ratio
    return FlowLikelihood(-BITS / d * log_prob, log_prob, nfe)


def _total(x: Any) -> Any:
    """The sum over each sample, [batch]."""
    return x.reshape(len(x), -1).sum(1)


def _dequantised(x_0: Any, level: NoiseLevel, keys: Any, num_values: int, dequantise: str) -> tuple[Any, Any]:
    """(y at the cleanest level, what is added to log p(y) to make it the log-probability of x_0)."""
    shape, d = x_0.shape[1:], x_0[0].size
    r, noise = jnp.hypot(level.alpha, level.sigma), rng.each_stream(keys, "dequantise")
    if dequantise == "variational":
        eps = rng.normal(noise, shape)
        y = (level.alpha * x_0 + level.sigma * eps) / r
        log_q = -0.5 * eps**2 - jnp.log(level.sigma) - 0.5 * np.log(2 * np.pi)
        return y, _total(decoder.log_posterior(x_0, eps, level.log_snr, num_values) - log_q) - d * jnp.log(r)
    log_ratio = d * jnp.log(level.alpha / r)
    if dequantise == "uniform":
        bin_width = 2 / (num_values - 1)
        u = jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-0.5, maxval=0.5))(noise)
        x_0, log_ratio = x_0 + bin_width * u, log_ratio + d * np.log(bin_width)
    return level.alpha / r * x_0, log_ratio


def _estimate(denoise: Denoiser, trace: Callable[[Any], Any]) -> Estimate:
    """The denoiser in the coordinates y, with its trace.

    Reverse mode costs what forward mode does (the gradients of parameters are not asked for), needs a training step's
    memory, and goes through every network that can be trained, whose layers may have a rule for it alone.
    """

    def estimate(y: Any, level: NoiseLevel) -> tuple[Any, Any]:
        r = expand(jnp.hypot(level.alpha, level.sigma), y)
        x_0, pull_back = jax.vjp(lambda y: denoise(r * y, level).x_0, y)
        return x_0, trace(lambda of_x_0: pull_back(of_x_0)[0])

    return estimate


def _trace(name: str, shape: tuple[int, ...], keys: Any, num_probes: int) -> Callable[[Any], Any]:
    """pullback -> the trace of the Jacobian, [batch], estimated or exact."""
    d = int(np.prod(shape[1:]))

    def form(pull_back: Any, vectors: Any) -> Any:
        """The sum of v^T J v over vectors v [n, 1 or batch, ...]."""
        vectors = jnp.broadcast_to(vectors, (len(vectors), *shape))
        products = vectors * jax.vmap(pull_back)(vectors)
        return products.reshape(len(vectors), shape[0], d).sum((0, 2))

    if name == "hutchinson":
        fresh = rng.each_stream(keys, "probe")
        draw = jax.vmap(lambda key: jax.random.rademacher(key, (num_probes, *shape[1:]), jnp.float32), out_axes=1)
        probes = draw(fresh)
        return lambda pull_back: form(pull_back, probes) / num_probes

    def exact(pull_back: Any) -> Any:
        def add(total: Any, first: Any) -> tuple[Any, None]:
            basis = jax.nn.one_hot(first + jnp.arange(min(CHUNK, d)), d)  # zeros from d on
            return total + form(pull_back, basis.reshape(-1, 1, *shape[1:])), None

        return jax.lax.scan(add, jnp.zeros(shape[0]), jnp.arange(0, d, CHUNK))[0]

    return exact


def _heun(estimate: Estimate, y: Any, up: NoiseLevel) -> tuple[Any, Any, int]:
    """(y at the last of the levels, the log-volume gained on the way, evaluations).

    Euler's step predicts, the mean of both ends corrects; the evaluation at the predicted point begins the next step
    too. Half as many evaluations as if the corrected point had one of its own, and the same order.
    """
    np_, d, n = namespace(up.log_snr), y[0].size, len(up.log_snr)
    r = np_.hypot(up.alpha, up.sigma)
    cos, sin, tau = up.alpha / r, up.sigma / r, _tau(up.log_snr)
    before = np.maximum(np.arange(n) - 1, 0)  # the first row is no step: it moves nothing, and evaluates where y is
    growth = sin / sin[before]
    table = growth, growth * cos[before] - cos, np_.log(growth), tau - tau[before]

    def step(carry: tuple[Any, Any, Any, Any], row: Any) -> tuple[tuple[Any, Any, Any, Any], None]:
        (y, log_volume, x_0, trace), (to, (growth, pull, log_growth, width)) = carry, row
        guess = growth * y - pull * x_0
        x_0_to, trace_to = estimate(guess, to)
        log_volume += d * log_growth - width * (trace + trace_to) / 2
        return (guess - pull * (x_0_to - x_0) / 2, log_volume, x_0_to, trace_to), None

    nothing = jnp.zeros(len(y))
    (y, log_volume, *_), _ = jax.lax.scan(step, (y, nothing, jnp.zeros_like(y), nothing), float32((up, table)))
    return y, log_volume, n


def _tau(log_snr: Any) -> Any:
    """log tan(phi / 2) = -asinh(cot(phi)), exact in pure noise, where it is 0."""
    np_ = namespace(log_snr)
    return -np_.arcsinh(np_.exp(log_snr / 2))


def _adaptive(solver: str, schedule: Schedule | None, steps: Step, **options: Any) -> Callable[..., Any]:
    """What `_heun` is, with steps in tau that the solver chooses. Beside y it integrates log-volume per dimension."""
    if solver not in ode.SOLVERS:
        raise ValueError(f"got solver={solver!r}, expected heun or, adaptive, one of {', '.join(ode.SOLVERS)}.")
    name = f"solver={solver!r}"
    if schedule is None or schedule.num_steps is not None:
        raise ValueError(
            f"{name} follows a continuous path: pass schedule=, the one that the grid was made from. A chain has no "
            "levels in between: use solver=heun."
        )
    solve = ode.adaptive(
        name,
        schedule,
        solver=solver,
        norm=lambda row: jnp.maximum(ode.root_mean_square(row[:-1]), jnp.abs(row[-1])),
        **options,
    )
    if _known(steps):
        ode.check_levels(name, schedule, steps)

    def run(estimate: Estimate, y: Any, up: NoiseLevel) -> tuple[Any, Any, Any]:
        shape, d = y.shape, y[0].size

        def field(rows: Any, tau: Any) -> Any:
            y = rows[:, :-1].reshape(shape)
            level = schedule.level(schedule.time_at(2 * jnp.log(jnp.sinh(jnp.maximum(-tau, 0)))))
            cos = level.alpha / jnp.hypot(level.alpha, level.sigma)
            x_0, trace = estimate(y, level)
            dy = expand(cos, y) * y - x_0
            return jnp.concatenate([dy.reshape(len(y), d), (cos - trace / d)[:, None]], axis=1)

        rows = jnp.concatenate([y.reshape(len(y), d), jnp.zeros((len(y), 1))], axis=1)
        tau = jnp.asarray(_tau(up.log_snr), jnp.float32)
        stops = np.float32(_tau(ode.stops_in_log_snr(-8.0)[::-1]))  # below -8 all that is left is 0.02 in tau
        rows, nfe = solve(field, rows, tau[0], tau[-1], stops)
        return rows[:, :-1].reshape(shape), d * rows[:, -1], nfe

    return run


def _known(tree: Any) -> bool:
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _check(x_0: Any, steps: Step, num_values: int, dequantise: str, trace: str, num_probes: int) -> None:
    decoder.check_num_values(num_values)
    if dequantise not in (("uniform", "variational") if num_values else ("none",)):
        raise ValueError(
            f"got num_values={num_values}, dequantise={dequantise!r}; expected 'uniform' or 'variational' for data "
            "of at least 2 values (256 for 8-bit images), or num_values=0 with 'none' for continuous data."
        )
    if trace not in ("hutchinson", "exact") or num_probes < 1:
        raise ValueError(
            f"got trace={trace!r}, num_probes={num_probes}; expected 'hutchinson' with at least 1 probe, or 'exact'."
        )
    if steps.back is not None:
        raise ValueError("got a resampled grid, expected one that runs to clean data without going back.")
    if _known(steps):
        log_snr = np.asarray(steps.now.log_snr)
        if len(log_snr) < 2 or not (np.diff(log_snr) > 0).all() or not np.isfinite(log_snr[1:]).all():
            raise ValueError(
                f"got levels of log-SNR {log_snr}, expected at least two, noisiest first, none of them clean: "
                "a grid such as sampling.uniform_log_snr(schedule, 100)."
            )
    if num_values and _known(x_0):
        values = (np.asarray(x_0, np.float64) + 1) * (num_values - 1) / 2
        if np.abs(values - np.clip(np.rint(values), 0, num_values - 1)).max() > 1e-2:
            raise ValueError(
                f"x_0 holds values other than the {num_values} evenly spread over [-1, 1]. Give the data's num_values, "
                "or for continuous data num_values=0 with dequantise='none'."
            )
