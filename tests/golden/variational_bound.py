"""A toy model's variational bound in float64, without the library: what tests/test_bound_parity.py compares with.

    python tests/golden/variational_bound.py        # writes variational_bound.npz beside this file

It uses numpy and math.erfc alone, and the papers' own formulas: alpha_bar as a cumulative product of 1 - beta (DDPM,
Ho et al. 2020, arXiv:2006.11239, eq. 4), the posterior of eq. 6-7, the model's mean from eps of eq. 11, the
discretized Gaussian of eq. 13, and the learned range of variances (iDDPM, Nichol & Dhariwal 2021, arXiv:2102.09672,
eq. 15). The small log-variance of the first step, which would be -inf, is the second step's, as in iDDPM. The large one
is beta_t, but at t = 1 the second step's small one, as in DDPM's published code.

Two chains of T = 40 steps, "linear" (DDPM's, 1e-4..0.02 at 1000 steps, times 1000 / 40) and "cosine" (iDDPM eq. 17,
betas up to 0.999), each "full" and "respaced" to 8 of its times (iDDPM section 4: new betas from the old alpha_bar).
The model is a formula of x_t and of the old time t: `model`. It sees x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar)
eps, with an eps of each image and time that is kept in the file. n being the number of values (256, 17), c the chain
("full", "respaced"), s the schedule ("linear", "cosine") and v the variance ("large", "small", "learned"), it holds

    values.n       [batch, 4, 4, 1] uint8      images, 0..n-1; x_0 = 2 values / (n - 1) - 1. 3 of 256 values, 1 of 17
    eps.n          [40, batch, 4, 4, 1] float32    row t - 1 belongs to time t
    times.c        [steps]                     the times that are visited, falling; 0 follows the last
    s.n.prior      [batch]                     L_T in bits per dimension
    s.c.n.mse      [steps, batch]              mean of (eps_hat - eps)^2, row i at times.c[i]
    s.c.n.v        [steps, batch]              the terms in bits per dimension, row i from times.c[i]; the last is L_0
    s.c.n.v.total  [batch]                     their sum and L_T
"""

import math
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
T = 40
IMAGES = {256: 3, 17: 1}  # number of values -> images
TIMES = {"full": np.arange(T, 0, -1), "respaced": np.array([40, 34, 29, 23, 18, 12, 7, 1])}


def inputs():
    """{name: array} of values.n, eps.n and times.c, from the bits of PCG64, which no version of numpy changes."""
    bits = np.random.PCG64(2020)
    made = {f"times.{chain}": times for chain, times in TIMES.items()}
    for n, batch in IMAGES.items():
        values = (bits.random_raw((batch, 4, 4, 1)) % n).astype(np.uint8)
        values[:, 0, 0, 0], values[:, 3, 3, 0] = 0, n - 1  # the open bins
        u, v = ((bits.random_raw((2, T, batch, 4, 4, 1)) >> 11) + 0.5) * 2.0**-53
        eps = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)  # Box and Muller
        made |= {f"values.{n}": values, f"eps.{n}": eps.astype(np.float32)}
    return made


def betas(schedule):
    """beta_1..beta_T."""
    if schedule == "linear":
        return np.linspace(1e-4, 0.02, T) * 1000 / T
    f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
    return np.array([min(1 - f[t] / f[t - 1], 0.999) for t in range(1, T + 1)])


def model(x_t, t):
    """(eps_hat, the place between the small and the large log-variance), of the shape of x_t, at the old time t."""
    return np.tanh(0.8 * x_t) * (0.5 + 0.5 * t / T), 0.5 + 0.4 * np.sin(3 * x_t + t / T)


def bound(given):
    """{name: array} of prior, mse, terms and total, for what `inputs` returns."""
    made = {}
    for schedule in ("linear", "cosine"):
        alpha_bar = np.cumprod(1 - betas(schedule))
        for n in IMAGES:
            values, eps = (given[f"{name}.{n}"].astype(np.float64) for name in ("values", "eps"))
            x_0 = 2 * values / (n - 1) - 1
            mean, variance = math.sqrt(alpha_bar[-1]) * x_0, 1 - alpha_bar[-1]
            prior = bits_per_dimension(0.5 * (variance + mean**2 - 1 - math.log(variance)))
            made[f"{schedule}.{n}.prior"] = prior
            for chain in TIMES:
                name, times = f"{schedule}.{chain}.{n}", given[f"times.{chain}"]
                columns = of_chain(x_0, eps, alpha_bar, times[::-1], n)
                made |= {f"{name}.{column}": rows[::-1] for column, rows in columns.items()}
                for v in ("large", "small", "learned"):
                    made[f"{name}.{v}.total"] = prior + columns[v].sum(0)
    return made


def of_chain(x_0, eps, old_alpha_bar, times, n):
    """{"mse", "large", "small", "learned": [steps, batch]} over these rising times of the old chain."""
    alpha_bar = old_alpha_bar[times - 1]
    before = np.append(1.0, alpha_bar[:-1])
    beta = 1 - alpha_bar / before
    beta_tilde = (1 - before) / (1 - alpha_bar) * beta
    log_small = np.log(np.append(beta_tilde[1], beta_tilde[1:]))
    columns = {"mse": [], "large": [], "small": [], "learned": []}
    for i, t in enumerate(times):
        noise = eps[t - 1]
        x_t = math.sqrt(alpha_bar[i]) * x_0 + math.sqrt(1 - alpha_bar[i]) * noise
        eps_hat, place = model(x_t, t)
        columns["mse"].append(((eps_hat - noise) ** 2).mean((1, 2, 3)))
        mean_hat = (x_t - beta[i] / math.sqrt(1 - alpha_bar[i]) * eps_hat) / math.sqrt(1 - beta[i])  # eq. 11
        of_x_0 = math.sqrt(before[i]) * beta[i] / (1 - alpha_bar[i])
        of_x_t = math.sqrt(1 - beta[i]) * (1 - before[i]) / (1 - alpha_bar[i])
        mean = of_x_0 * x_0 + of_x_t * x_t  # eq. 7
        log_large = math.log(beta[i])
        log_variances = {
            "large": np.full_like(x_t, log_large if i else log_small[0]),
            "small": np.full_like(x_t, log_small[i]),
            "learned": place * log_large + (1 - place) * log_small[i],  # iDDPM eq. 15
        }
        for name, log_variance in log_variances.items():
            if i == 0:
                nats = -decoder(x_0, mean_hat, np.exp(log_variance / 2), n)
            else:
                ratio = beta_tilde[i] / np.exp(log_variance)
                nats = 0.5 * (ratio - 1 - np.log(ratio) + (mean - mean_hat) ** 2 / np.exp(log_variance))
            columns[name].append(bits_per_dimension(nats))
    return {name: np.array(rows) for name, rows in columns.items()}


def decoder(x_0, mean, scale, n):
    """log of the mass of each bin (eq. 13), as a difference of two upper tails: erfc keeps its digits there."""

    def one(x_0, mean, scale):
        low = -math.inf if x_0 < -1 + 1e-9 else (x_0 - 1 / (n - 1) - mean) / scale
        high = math.inf if x_0 > 1 - 1e-9 else (x_0 + 1 / (n - 1) - mean) / scale
        if low + high < 0:  # reflect
            low, high = -high, -low
        return math.log(0.5 * (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))))

    return np.vectorize(one)(x_0, mean, scale)


def bits_per_dimension(nats):
    """[batch, ...] nats -> [batch], the mean over an image in bits."""
    return nats.mean((1, 2, 3)) / math.log(2)


if __name__ == "__main__":
    given = inputs()
    np.savez_compressed(FILE, **given, **bound(given))
    print(f"{FILE}: {FILE.stat().st_size} bytes")
