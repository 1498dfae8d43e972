"""Points in the plane: watch a score field form, in under a minute on a CPU.

    python main.py --config=configs/toy_2d.py --workdir=runs/toy
    python main.py --config=configs/toy_2d.py --config.data.kind=swiss_roll --workdir=runs/roll

Flow matching on two moons (or "mixture", "swiss_roll"), sampled with Heun's method. Besides samples.png and loss.png
the run draws score.png: the samples and the learned score field at three noise levels.
"""

from ml_collections import ConfigDict

from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    return config(
        data={"name": "toy_2d", "kind": "two_moons"},
        schedule={"name": "flow"},
        parameterization={"name": "flow"},
        network={"name": "mlp", "channels": 128, "num_blocks": 3},
        optimizer={"name": "adam", "learning_rate": 2e-3, "clip_norm": 1.0},
        ema={"decays": (0.995,), "warmup": True},
        training={
            "num_steps": 3000,
            "batch_size": 256,
            "steps_per_dispatch": 20,
            "log_every": 100,
            "checkpoint_every": 1000,
            "sample_every": 1000,
        },
        sampler={"name": "heun", "threshold": "none"},
        grid={"name": "strided", "num_steps": 40},
        logging={"num_samples": 2000},
    )
