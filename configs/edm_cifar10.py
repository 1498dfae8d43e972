"""EDM on CIFAR-10, unconditional (Karras et al. 2022, arXiv:2206.00364, table 7 and appendix F).

    python main.py --config=configs/edm_cifar10.py --workdir=runs/edm_cifar10

Their DDPM++ of 55,733,891 parameters, preconditioned with sigma_data = 0.5; ln sigma normal (-1.2, 1.2); augmentation
with probability 0.12, whose label the network sees (it flips, so data.flip stays off); Adam 1e-3 over a ramp of 10
million images, batch 512, 200 million images; EMA with a half-life of 500,000 images, warmed up; Heun's method, 18
steps, 35 evaluations. Their loss is the sum over an image's 3072 values, ours the mean: Adam's eps is less by as much.
Published: FID 1.97. Not trained here.
"""

from ml_collections import ConfigDict

from configs.vp_cifar10 import DDPM_PLUS_PLUS
from diffusion.config import config

BATCH = 512


def get_config() -> ConfigDict:
    """The run."""
    return config(
        data={"name": "cifar10", "augment": 0.12},
        schedule={"name": "edm", "sigma_max": 80.0},
        parameterization={"name": "edm", "sigma_data": 0.5},
        levels={"name": "log_normal", "mean": -1.2, "std": 1.2},
        network={**DDPM_PLUS_PLUS, "channel_mults": (2, 2, 2), "dropout": 0.13},
        optimizer={"name": "adam", "learning_rate": 1e-3, "eps": 1e-8 / 3072, "warmup_steps": 10_000_000 // BATCH},
        ema={"decays": (0.5 ** (BATCH / 500_000),), "warmup": True},
        training={
            "num_steps": 200_000_000 // BATCH,
            "batch_size": BATCH,
            "log_every": 100,
            "checkpoint_every": 5000,
            "sample_every": 10_000,
        },
        sampler={"name": "heun", "threshold": "none"},
        grid={"name": "karras", "num_steps": 18, "sigma_min": 0.002},
    )
