"""Flow matching on scikit-learn's digits (Lipman et al. 2022).

    python main.py --config=configs/flow_digits.py --workdir=runs/flow_digits

Straight lines between data and noise, velocities, times logit-normal (Esser et al. 2024), Heun's method with 20 steps.
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from diffusion.config import config

FLOW = {
    "schedule": {"name": "flow"},
    "parameterization": {"name": "flow"},
    "levels": {"name": "logit_normal"},
    "sampler": {"name": "heun", "threshold": "none"},
    "grid": {"name": "strided", "num_steps": 20},
}
"""The recipe, whatever the network."""


def get_config() -> ConfigDict:
    """The run."""
    return config(**DIGITS, **FLOW)
