"""EDM on scikit-learn's digits (Karras et al. 2022).

    python main.py --config=configs/edm_digits.py --workdir=runs/edm_digits

Preconditioning with sigma_data = 0.75, the digits' own standard deviation, ln sigma normal with P_mean = -0.6 and
P_std = 1.2, Heun's method over the Karras grid: 18 steps, 35 evaluations.
"""

from ml_collections import ConfigDict

from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        data={"name": "digits"},
        schedule={"name": "edm"},
        parameterization={"name": "edm", "sigma_data": 0.75},
        levels={"name": "log_normal", "mean": -0.6, "std": 1.2},
        sampler={"name": "heun", "threshold": "none"},
        grid={"name": "karras", "num_steps": 18},
        network={
            "name": "unet",
            "channels": 32,
            "channel_mults": (1, 2),
            "num_blocks": 1,
            "attention_resolutions": (4,),
            "dropout": 0.0,
        },
        optimizer={"name": "adam", "learning_rate": 1e-3, "warmup_steps": 100, "clip_norm": 1.0},
        ema={"decays": (0.995,), "warmup": True},
        training={
            "num_steps": 2000,
            "batch_size": 64,
            "log_every": 50,
            "checkpoint_every": 500,
            "sample_every": 500,
        },
    )
