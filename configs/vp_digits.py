"""The variance-preserving SDE on scikit-learn's digits: `ddpm_digits` in continuous time.

    python main.py --config=configs/vp_digits.py --workdir=runs/vp_digits

eps, beta from 0.1 to 20, t uniform on (0, 1] (Song et al. 2020), sampled with Euler-Maruyama.
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        **DIGITS,
        schedule={"name": "vp_linear"},
        sampler={"name": "euler_maruyama"},
        grid={"name": "strided", "num_steps": 500},
        logging={"sample_steps": 100},
    )
