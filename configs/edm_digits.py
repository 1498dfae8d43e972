"""EDM on scikit-learn's digits (Karras et al. 2022).

    python main.py --config=configs/edm_digits.py --workdir=runs/edm_digits

Preconditioning with sigma_data = 0.75, the digits' own standard deviation, ln sigma normal with P_mean = -0.6 and
P_std = 1.2, Heun's method over the Karras grid: 18 steps, 35 evaluations.
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        **DIGITS,
        schedule={"name": "edm"},
        parameterization={"name": "edm", "sigma_data": 0.75},
        levels={"name": "log_normal", "mean": -0.6, "std": 1.2},
        sampler={"name": "heun", "threshold": "none"},
        grid={"name": "karras", "num_steps": 18},
    )
