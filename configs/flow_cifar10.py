"""Flow matching on CIFAR-10 (Lipman et al. 2022, arXiv:2210.02747; the recipe of Tong et al. 2023, arXiv:2302.00482).

    python main.py --config=configs/flow_cifar10.py --workdir=runs/flow_cifar10

Straight lines between data and noise, velocities, t uniform; DDPM's U-Net with attention heads of 64 channels, Adam
2e-4 with 5,000 steps of warm-up, clipped to norm 1, batch 128, EMA 0.9999, 400,000 steps ("I-CFM" in their code);
Heun's method with 50 steps. Published: FID 3.5, with pairs of data and noise matched by optimal transport, which is not
done here, the time told as t in [0, 1] (here 1000 t, as DDPM does), and an adaptive solver.
Not trained here.
"""

from ml_collections import ConfigDict

from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        data={"name": "cifar10", "flip": True},
        schedule={"name": "flow"},
        parameterization={"name": "flow"},
        network={"name": "unet", "head_channels": 64},
        optimizer={"name": "adam", "learning_rate": 2e-4, "warmup_steps": 5000, "clip_norm": 1.0},
        training={
            "num_steps": 400_000,
            "batch_size": 128,
            "log_every": 100,
            "checkpoint_every": 10_000,
            "sample_every": 20_000,
        },
        sampler={"name": "heun", "threshold": "none"},
        grid={"name": "strided", "num_steps": 50},
    )
