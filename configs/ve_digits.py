"""The variance-exploding SDE on scikit-learn's digits (Song et al. 2020).

    python main.py --config=configs/ve_digits.py --workdir=runs/ve_digits

EDM's preconditioning of the network (without it, inputs of size 100 reach it unscaled), sigma geometric from 0.02 to
20 for data in [-1, 1], sampled with reverse diffusion and a Langevin corrector, snr 0.16.
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        **DIGITS,
        schedule={"name": "ve_geometric", "sigma_min": 0.02, "sigma_max": 20.0},
        parameterization={"name": "edm", "sigma_data": 0.75},
        sampler={"name": "predictor_corrector"},
        grid={"name": "strided", "num_steps": 250},
        logging={"sample_steps": 50},
    )
