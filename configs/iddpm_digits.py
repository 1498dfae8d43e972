"""Improved DDPM on scikit-learn's digits (Nichol & Dhariwal 2021, arXiv:2102.09672).

    python main.py --config=configs/iddpm_digits.py --workdir=runs/iddpm_digits
    python main.py --workdir=runs/iddpm_digits --mode=likelihood

As `ddpm_digits`, but with a variance that the network learns as a place between DDPM's two, L_hybrid = L_simple + 0.001
L_vlb, and with the cosine schedule in 100 steps. The paper starts its schedule where the noise is a little smaller than
the bin of a pixel's value; 17 values are 16 times coarser than 256, and 100 steps begin where theirs do, in bins.
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        **DIGITS,
        schedule={"name": "cosine_alpha_bar", "num_steps": 100},
        parameterization={"name": "eps", "variance": "range"},
        loss={"vlb_weight": 0.001},
    )
