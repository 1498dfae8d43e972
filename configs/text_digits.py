"""Text-conditional DDPM on scikit-learn's digits with captions, classifier-free guidance.

python main.py --config=configs/text_digits.py --workdir=runs/text_digits
python main.py --workdir=runs/text_digits --mode=sample --prompt="a handwritten seven"
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from diffusion.config import config

TEXT = {"text_conditional": True, "text_channels": 64, "text_blocks": 2, "text_heads": 2}


def get_config() -> ConfigDict:
    """The run."""
    return config(
        **DIGITS | {"data": {"name": "captioned_digits"}, "network": {**DIGITS["network"], **TEXT}},
        loss={"cond_dropout": 0.1},
        guidance={"scale": 1.5},
        sampler={"name": "ddim"},
        grid={"name": "strided", "num_steps": 50},
    )
