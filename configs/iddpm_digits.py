"""Improved DDPM on scikit-learn's digits (Nichol & Dhariwal 2021, arXiv:2102.09672).

    python main.py --config=configs/iddpm_digits.py --workdir=runs/iddpm_digits
    python main.py --workdir=runs/iddpm_digits --mode=likelihood

As `ddpm_digits`, but with the cosine schedule, and with a variance that the network learns as a place between DDPM's
two: L_hybrid = L_simple + 0.001 L_vlb, 1000 ancestral steps with that variance.
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        **DIGITS,
        schedule={"name": "cosine_alpha_bar"},
        parameterization={"name": "eps", "variance": "range"},
        loss={"vlb_weight": 0.001},
        logging={"sample_steps": 100},
    )
