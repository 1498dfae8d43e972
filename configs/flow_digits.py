"""Flow matching on scikit-learn's digits (Lipman et al. 2022).

    python main.py --config=configs/flow_digits.py --workdir=runs/flow_digits

Straight lines between data and noise, velocities, times logit-normal (Esser et al. 2024), Heun's method with 20 steps.
"""

from ml_collections import ConfigDict

from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        data={"name": "digits"},
        schedule={"name": "flow"},
        parameterization={"name": "flow"},
        levels={"name": "logit_normal"},
        sampler={"name": "heun", "threshold": "none"},
        grid={"name": "strided", "num_steps": 20},
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
