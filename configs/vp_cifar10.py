"""The variance-preserving SDE on CIFAR-10 with DDPM++ (Song et al. 2020, arXiv:2011.13456, appendices G and H).

    python main.py --config=configs/vp_cifar10.py --workdir=runs/vp_cifar10

DDPM++ "continuous", 61,804,419 parameters: four residual blocks a level, others that resample, skips rescaled, one
attention a level on the way up. eps, t uniform on (0, 1], Adam 2e-4 with 5,000 steps of warm-up, clipped to norm 1,
batch 128, EMA 0.9999, 1,300,000 steps; Euler-Maruyama with 1000 steps. Published: FID 2.55 (2.41 with num_blocks 8).
Attention starts at DDPM's scale, theirs at a tenth of it. Not trained here.
"""

from ml_collections import ConfigDict

from diffusion.config import config

CIFAR10 = {
    "data": {"name": "cifar10", "flip": True},
    "optimizer": {"name": "adam", "learning_rate": 2e-4, "warmup_steps": 5000, "clip_norm": 1.0},
    "training": {
        "num_steps": 1_300_000,
        "batch_size": 128,
        "log_every": 100,
        "checkpoint_every": 10_000,
        "sample_every": 50_000,
    },
    "logging": {"sample_steps": 100},
}
"""What the recipes of Song et al. 2020 share on CIFAR-10: data, training and, but for the loss's scale, optimizer."""

DDPM_PLUS_PLUS = {
    "name": "unet",
    "num_blocks": 4,
    "resample": "projected_block",
    "skip_rescale": True,
    "up_attention": "last",
}


def get_config() -> ConfigDict:
    """The run."""
    return config(
        **CIFAR10,
        schedule={"name": "vp_linear"},
        network=DDPM_PLUS_PLUS,
        sampler={"name": "euler_maruyama", "threshold": "none"},
        grid={"name": "strided", "num_steps": 1000},
    )
