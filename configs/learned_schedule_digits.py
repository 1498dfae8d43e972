"""A learned noise schedule on scikit-learn's digits (VDM, Kingma et al. 2021, arXiv:2107.00630).

    python main.py --config=configs/learned_schedule_digits.py --workdir=runs/learned_schedule_digits

Network and schedule are trained together on the bound of infinitely many steps: its two ends on the bound, its shape on
the variance of the loss. eps, times spread evenly over each batch, 250 ancestral steps through the learned levels. The
loss is in bits/dim. The clean end starts a little above where 17 grey values are told apart (`least_noisy`).
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        **DIGITS,
        schedule={"name": "learned_log_snr", "log_snr_max": 8.0, "log_snr_min": -5.0},
        loss={"name": "vlb"},
        levels={"name": "stratified"},
        grid={"name": "strided", "num_steps": 250},
        logging={"sample_steps": 100},
    )
