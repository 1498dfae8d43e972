"""DDPM on scikit-learn's handwritten digits: 1,500 real 8x8 scans, minutes on a laptop's CPU.

    python main.py --config=configs/ddpm_digits.py --workdir=runs/digits

T = 1000, linear betas, eps, the plain loss and 1000 ancestral steps, as in DDPM. Fitted to the size of the set: a U-Net
of 701,345 parameters on two levels, a higher learning rate, and an EMA that is warmed up and short enough for a
short run. README gives the measured time and quality.
"""

from ml_collections import ConfigDict

from diffusion.config import config

DIGITS = {
    "data": {"name": "digits"},
    "network": {
        "name": "unet",
        "channels": 32,
        "channel_mults": (1, 2),
        "num_blocks": 1,
        "attention_resolutions": (4,),
        "dropout": 0.0,
    },
    "optimizer": {"name": "adam", "learning_rate": 1e-3, "warmup_steps": 100, "clip_norm": 1.0},
    "ema": {"decays": (0.995,), "warmup": True},
    "training": {
        "num_steps": 2000,
        "batch_size": 64,
        "log_every": 50,
        "checkpoint_every": 500,
        "sample_every": 500,
    },
}
"""What every recipe on the digits shares: data, network and training."""


def get_config() -> ConfigDict:
    """The run."""
    return config(**DIGITS, logging={"sample_steps": 100})
