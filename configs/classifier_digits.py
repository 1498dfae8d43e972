"""A classifier of noised digits, which guides a model that knows no classes (Dhariwal & Nichol 2021, arXiv:2105.05233).

    python main.py --config=configs/classifier_digits.py --workdir=runs/classifier_digits
    python main.py --workdir=runs/digits --mode=sample --label=3 --guide=runs/classifier_digits --guide_scale=2

The encoder half of the U-Net, trained on the images and the levels of `ddpm_digits`, with cross-entropy.
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    network = {**DIGITS["network"], "name": "classifier"}
    return config(**DIGITS | {"network": network}, loss={"name": "classification"})
