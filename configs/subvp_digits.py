"""The sub-VP SDE on scikit-learn's digits (Song et al. 2020).

    python main.py --config=configs/subvp_digits.py --workdir=runs/subvp_digits

eps, beta from 0.1 to 20, t uniform on (0, 1], sampled with Euler-Maruyama.
"""

from ml_collections import ConfigDict

from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        data={"name": "digits"},
        schedule={"name": "sub_vp_linear"},
        sampler={"name": "euler_maruyama"},
        grid={"name": "strided", "num_steps": 500},
        logging={"sample_steps": 100},
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
