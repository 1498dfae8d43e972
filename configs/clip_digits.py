"""A noise-aware CLIP on scikit-learn's digits with captions, which guides a model that knows no text (GLIDE).

    python main.py --config=configs/clip_digits.py --workdir=runs/clip_digits
    python main.py --workdir=runs/digits --mode=sample --guide=runs/clip_digits --prompt="a handwritten seven"

Nichol et al. 2021, arXiv:2112.10741, section 2.3: an encoder of noised images and one of captions, trained on the
images and the levels of `ddpm_digits` to find each other in a batch. With a scale of 3 and 50 DDIM steps, 97.2% of the
samples are read as the digit that was asked for (experiments/conditioning/README.md).
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from diffusion.config import config

TEXT = {"text_channels": 64, "text_blocks": 2, "text_heads": 2, "width": 64}


def get_config() -> ConfigDict:
    """The run."""
    network = {**DIGITS["network"], **TEXT, "name": "clip"}
    return config(**DIGITS | {"data": {"name": "captioned_digits"}, "network": network}, loss={"name": "contrastive"})
