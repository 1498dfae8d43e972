"""The variance-exploding SDE on scikit-learn's digits (Song et al. 2020).

    python main.py --config=configs/ve_digits.py --workdir=runs/ve_digits

EDM's preconditioning of the network (without it, inputs of size 100 reach it unscaled), sigma geometric from 0.02 to
20 for data in [-1, 1], sampled with reverse diffusion and a Langevin corrector, snr 0.16.
"""

from ml_collections import ConfigDict

from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        data={"name": "digits"},
        schedule={"name": "ve_geometric", "sigma_min": 0.02, "sigma_max": 20.0},
        parameterization={"name": "edm", "sigma_data": 0.75},
        sampler={"name": "predictor_corrector"},
        grid={"name": "strided", "num_steps": 250},
        logging={"sample_steps": 50},
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
