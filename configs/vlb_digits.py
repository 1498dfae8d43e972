"""The variational bound itself as the loss, on scikit-learn's digits (Nichol & Dhariwal 2021, section 3.3).

    python main.py --config=configs/vlb_digits.py --workdir=runs/vlb_digits
    python main.py --workdir=runs/vlb_digits --mode=likelihood

As `iddpm_digits`, but trained on L_vlb alone, mean and variance, with the steps drawn as often as their losses are
large (loss-second-moment sampling, their eq. 18), and with linear betas: the last steps of the cosine schedule are so
near to pure noise that their terms drown the others in so short a training (experiments/likelihood/README.md).
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        **DIGITS,
        schedule={"name": "linear_beta_scaled", "num_steps": 100},
        parameterization={"name": "eps", "variance": "range"},
        levels={"name": "loss_second_moment"},
        loss={"name": "vlb"},
    )
