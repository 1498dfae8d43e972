"""DDPM on CIFAR-10: the published recipe, unchanged (Ho et al. 2020, arXiv:2006.11239, section 4 and appendix B).

    python main.py --config=configs/ddpm_cifar10.py --workdir=runs/cifar10

U-Net of 35,746,307 parameters, T = 1000, linear betas, unweighted error of eps, Adam 2e-4 with 5,000 steps of
warm-up, gradients clipped to norm 1, batch 128, EMA 0.9999, horizontal flips, 800,000 steps; 1000 ancestral
steps with the large variance. Published: FID 3.17 (50,000 samples, training set as reference).
On recent GPUs add --config.network.dtype=bfloat16.
"""

from ml_collections import ConfigDict

from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        data={"name": "cifar10", "flip": True},
        optimizer={"name": "adam", "learning_rate": 2e-4, "warmup_steps": 5000, "clip_norm": 1.0},
        training={
            "num_steps": 800_000,
            "batch_size": 128,
            "log_every": 100,
            "checkpoint_every": 10_000,
            "sample_every": 20_000,
        },
    )
