"""Flow matching with a Diffusion Transformer on scikit-learn's digits (Peebles & Xie 2022; Lipman et al. 2022).

    python main.py --config=configs/dit_digits.py --workdir=runs/dit_digits

As `flow_digits`, but for the network: 16 patches of 2x2 pixels, 4 blocks of width 96 with adaLN-zero.
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from configs.flow_digits import FLOW
from diffusion.config import config

DIT = {"name": "dit", "patch_size": 2, "channels": 96, "num_blocks": 4, "num_heads": 4}


def get_config() -> ConfigDict:
    """The run."""
    return config(**DIGITS | {"network": DIT}, **FLOW)
