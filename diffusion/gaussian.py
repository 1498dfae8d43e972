"""The Gaussian diffusion process, as pure functions of noise levels.

Read this first: it is the whole of the mathematics that DDPM rests on.

**Forward.** Data x_0 is destroyed by adding noise. DDPM (Ho et al. 2020, arXiv:2006.11239, eq. 2) writes it
as a chain of small steps,

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I).

A sum of Gaussians is Gaussian, so any number of steps collapses into one (eq. 4): with
alpha_bar_t = prod_{s <= t} (1 - beta_s),

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,   eps ~ N(0, I).

Only two numbers of the chain survive in this. Throughout this codebase they are called alpha and sigma,

    x_t = alpha x_0 + sigma eps,                               (`diffuse`)

and their ratio is what really counts: the signal-to-noise ratio SNR = alpha^2 / sigma^2, kept as
log_snr = 2 log(alpha / sigma). It falls from +inf (clean) to -inf (pure noise) as t grows.

**Between two levels.** Let `to` be less noisy than `now`, and h = to.log_snr - now.log_snr >= 0. Requiring
that going to `to` and then on to `now` equals going to `now` at once gives the forward kernel

    q(x_now | x_to) = N(r x_to, sigma_now^2 k I),   r = alpha_now / alpha_to,   k = 1 - exp(-h),   (`forward_kernel`)

because sigma_now^2 - r^2 sigma_to^2 = sigma_now^2 (1 - SNR_now / SNR_to). For neighbours in a DDPM chain
the variance is beta_t. k is computed as -expm1(-h), exact however close the two levels are.

**Backward, if x_0 were known.** Bayes' rule multiplies two Gaussians in x_to: the prior N(alpha_to x_0,
sigma_to^2 I) and the likelihood above. Precisions add, and the result (eq. 6-7 of DDPM) is

    q(x_to | x_now, x_0) = N(alpha_to k x_0 + r (sigma_to / sigma_now)^2 x_now,  sigma_to^2 k I).  (`posterior`)

**The model.** Generation runs backwards with the network's estimate of x_0 in place of the unknown one. The
variance is a choice, and DDPM names two: the posterior's own, sigma_to^2 k ("small"), right if the data
were a single point; and the forward kernel's, sigma_now^2 k = beta_t ("large"), right if the data were
N(0, I). Real data lies between them, and a network can learn where ("learned"): as the place between both on a
logarithmic scale (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15), or as Var[x_0 | x_t], from which the variance
of any step follows by the law of total variance (per pixel in Bao et al. 2022, arXiv:2206.07309),

    Var[x_to | x_now] = sigma_to^2 k + (alpha_to k)^2 Var[x_0 | x_now].            (`reverse_log_variance`)

**Training.** The variational bound is a sum of KL divergences between Gaussians of the same variance, so
each is a squared distance of means, and each mean is linear in x_0: up to a weight that depends on the
level alone, every term is |x_0 - x_0_hat|^2. Whether a network is asked for x_0, for eps, for
v = alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv:2202.00512) or for the score -eps / sigma changes
only that weight: given x_t, each is a linear function of the others.
"""

from typing import Any

from jaxtyping import Float

from diffusion.types import Array, NoiseLevel, Prediction, Step, expand, namespace

VARIANCES = ("small", "large", "learned")
"""The variances that a step backwards may have."""


def diffuse(x_0: Float[Array, "*shape"], eps: Float[Array, "*shape"], level: NoiseLevel) -> Float[Array, "*shape"]:
    """x_t = alpha x_0 + sigma eps: a draw of q(x_t | x_0) if eps ~ N(0, I) (DDPM eq. 4).

    x_0, eps [batch, ...]; the fields of level [] or [batch].
    """
    return expand(level.alpha, x_0) * x_0 + expand(level.sigma, x_0) * eps


def forward_kernel(step: Step) -> tuple[Any, Any]:
    """(scale, variance) of q(x_now | x_to) = N(scale x_to, variance I), the way from less noise to more.

    For neighbours in a DDPM chain: (sqrt(1 - beta_t), beta_t) (DDPM eq. 2). Both have the shape of step.h.
    """
    return step.now.alpha / step.to.alpha, step.now.sigma**2 * _kept(step.h)


def posterior(
    x_0: Float[Array, "*shape"], x_t: Float[Array, "*shape"], step: Step
) -> tuple[Float[Array, "*shape"], Any, Any]:
    """(mean, var_small, var_large) of the step backwards, q(x_to | x_now = x_t, x_0) (DDPM eq. 6-7).

    x_0, x_t [batch, ...]; fields of step [] or [batch]. var_small is the posterior's variance (beta tilde),
    var_large the forward kernel's (beta), DDPM's two choices for sampling (section 3.2); shape of step.h.
    Both ends are exact: at a clean `to` the mean is x_0 and var_small 0.
    """
    now, to, k = step.now, step.to, _kept(step.h)
    from_x_0 = expand(to.alpha * k, x_0)
    from_x_t = expand(now.alpha / to.alpha * (to.sigma / now.sigma) ** 2, x_t)
    return from_x_0 * x_0 + from_x_t * x_t, to.sigma**2 * k, now.sigma**2 * k


def posterior_tilt(step: Step) -> Any:
    """How far the posterior's mean moves for each unit that is added to the score: alpha_to (1 - exp(-h)) tilt(now)."""
    return step.to.alpha * _kept(step.h) * tilt(step.now)


def log_variances(step: Step) -> tuple[Any, Any]:
    """(log var_small, log var_large) of the step backwards, each of step.h's shape; small is -inf at a clean `to`."""
    np = namespace(step.h)
    log_kept = np.log(_kept(step.h))
    return 2 * np.log(step.to.sigma) + log_kept, 2 * np.log(step.now.sigma) + log_kept


def reverse_log_variance(prediction: Prediction, step: Step, variance: str, log_small: Any = None) -> Any:
    """The logarithm of the variance of p(x_to | x_now): [], [batch] or, where it is learned, of x_0's shape.

    variance:  one of VARIANCES; "learned" is what the prediction says of it, ValueError where it says nothing.
    log_small: in the place of the small log-variance, [] or [batch], for a step to clean data, where that is -inf; None
               puts the large one there.
    Learned as a place between both, the variance is relative to those of the grid's own steps; learned as
    Var[x_0 | x_now] it follows on any grid.
    """
    np = namespace(step.h)
    own_small, large = log_variances(step)
    small = np.where(np.isneginf(own_small), large, own_small) if log_small is None else log_small
    if variance != "learned":
        return small if variance == "small" else large
    if prediction.var_frac is not None:
        return expand(small, prediction.var_frac) + prediction.var_frac * expand(large - small, prediction.var_frac)
    log_var_x_0 = prediction.log_var_x_0
    if log_var_x_0 is None:
        raise ValueError(
            "variance='learned' needs a model that learns one: train with parameterization.variance=range (or direct), "
            "or take variance='large'."
        )
    of_x_0 = 2 * (np.log(step.to.alpha) + np.log(_kept(step.h)))
    return namespace(log_var_x_0).logaddexp(expand(own_small, log_var_x_0), expand(of_x_0, log_var_x_0) + log_var_x_0)


def learned_or_large(prediction: Prediction) -> str:
    """The variance that is meant where none is named: "learned" where the model learned one, else DDPM's "large"."""
    return "large" if prediction.var_frac is None and prediction.log_var_x_0 is None else "learned"


def _kept(h: Any) -> Any:
    """1 - exp(-h), the share of the noise at `now` that is new since `to`."""
    return -namespace(h).expm1(-h)


def x_0_from_eps(x_t: Float[Array, "*shape"], eps: Float[Array, "*shape"], level: NoiseLevel) -> Float[Array, "*shape"]:
    """x_0 = (x_t - sigma eps) / alpha."""
    return (x_t - expand(level.sigma, x_t) * eps) / expand(level.alpha, x_t)


def eps_from_x_0(x_t: Float[Array, "*shape"], x_0: Float[Array, "*shape"], level: NoiseLevel) -> Float[Array, "*shape"]:
    """eps = (x_t - alpha x_0) / sigma."""
    return (x_t - expand(level.alpha, x_t) * x_0) / expand(level.sigma, x_t)


def tilt(level: NoiseLevel) -> Any:
    """sigma^2 / alpha: how far x_0_hat moves for each unit that is added to the score at this level.

    From x_0_hat = (x_t + sigma^2 score) / alpha (Tweedie's formula). 0 at pure noise, where x_t says nothing of x_0 and
    no score can move it.
    """
    np = namespace(level.alpha, level.sigma)
    return np.where(level.alpha > 0, level.sigma**2 / np.where(level.alpha > 0, level.alpha, 1), 0)


def score(eps: Float[Array, "*shape"], level: NoiseLevel) -> Float[Array, "*shape"]:
    """The score, grad log q(x_t | x_0) = -eps / sigma; with eps = E[eps | x_t] it is grad log q(x_t)."""
    return -eps / expand(level.sigma, eps)


def velocity(x_0: Float[Array, "*shape"], eps: Float[Array, "*shape"], level: NoiseLevel) -> Float[Array, "*shape"]:
    """v = alpha eps - sigma x_0 (Salimans & Ho 2022, section 4)."""
    return expand(level.alpha, x_0) * eps - expand(level.sigma, x_0) * x_0


def kl(mean_1: Any, log_var_1: Any, mean_2: Any, log_var_2: Any) -> Any:
    """KL(N(mean_1, exp log_var_1) || N(mean_2, exp log_var_2)) in nats, element by element.

    The arguments broadcast against each other as numpy does. Exactly 0 for equal arguments.
    """
    np = namespace(mean_1, log_var_1, mean_2, log_var_2)
    difference = log_var_1 - log_var_2
    return 0.5 * (np.expm1(difference) - difference + (mean_1 - mean_2) ** 2 * np.exp(-log_var_2))
