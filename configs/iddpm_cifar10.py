"""Improved DDPM on CIFAR-10: the published recipe (Nichol & Dhariwal 2021, arXiv:2102.09672, section 4 and appendix A).

    python main.py --config=configs/iddpm_cifar10.py --workdir=runs/iddpm_cifar10
    python main.py --workdir=runs/iddpm_cifar10 --mode=likelihood

T = 4000 on the cosine schedule, L_hybrid with a learned range of variances, a U-Net of three blocks a level, four heads
at 16x16 and 8x8, scale-shift norm and dropout 0.3; no flips; AdamW 1e-4 without weight decay or clipping, batch 128,
EMA 0.9999, 500,000 steps. Published: FID 3.19, 3.17 bits/dim. Not trained here.
On recent GPUs add --config.network.dtype=bfloat16.
"""

from ml_collections import ConfigDict

from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        data={"name": "cifar10"},
        schedule={"name": "cosine_alpha_bar", "num_steps": 4000},
        parameterization={"name": "eps", "variance": "range"},
        loss={"vlb_weight": 0.001},
        network={
            "name": "unet",
            "num_blocks": 3,
            "attention_resolutions": (16, 8),
            "num_heads": 4,
            "scale_shift": True,
            "dropout": 0.3,
        },
        optimizer={"name": "adamw", "learning_rate": 1e-4},
        training={
            "num_steps": 500_000,
            "batch_size": 128,
            "log_every": 100,
            "checkpoint_every": 10_000,
            "sample_every": 20_000,
        },
    )
