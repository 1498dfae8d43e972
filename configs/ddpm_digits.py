"""DDPM on scikit-learn's handwritten digits (1,797 real 8x8 scans): minutes on a laptop's CPU.

python main.py --config=configs/ddpm_digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict

from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        data={"name": "digits"},
        network={
            "name": "unet",
            "channels": 32,
            "channel_mults": (1, 2),
            "num_blocks": 2,
            "attention_resolutions": (4,),
            "dropout": 0.0,
        },
        optimizer={"name": "adam", "learning_rate": 1e-3, "warmup_steps": 100, "clip_norm": 1.0},
        ema={"decays": (0.995,), "warmup": True},
        training={
            "num_steps": 3000,
            "batch_size": 128,
            "log_every": 50,
            "checkpoint_every": 1000,
            "sample_every": 1000,
        },
        logging={"sample_steps": 100},
    )
