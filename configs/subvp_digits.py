"""The sub-VP SDE on scikit-learn's digits (Song et al. 2020).

    python main.py --config=configs/subvp_digits.py --workdir=runs/subvp_digits

eps, beta from 0.1 to 20, t uniform on (0, 1], sampled with Euler-Maruyama.
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        **DIGITS,
        schedule={"name": "sub_vp_linear"},
        sampler={"name": "euler_maruyama"},
        grid={"name": "strided", "num_steps": 500},
        logging={"sample_steps": 100},
    )
