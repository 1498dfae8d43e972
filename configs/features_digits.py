"""A small classifier of digits, trained in seconds, whose last hidden layer is what digits are measured in.

    python main.py --config=configs/features_digits.py --workdir=runs/features_digits

`features.guide` reads 64 features and 10 logits from the run's folder. It is a guide like `classifier_digits`, with a
training of 300 steps on slightly noised images (sigma / alpha around 0.1) and without attention. 99.5% of the
297 test digits are right below sigma / alpha = 0.05 (test.json, log_snr_above_6). On 2 busy CPU cores it took 52 s, of
which the 300 steps 18 s and compilation most of the rest.
"""

from ml_collections import ConfigDict

from configs.ddpm_digits import DIGITS
from diffusion.config import config


def get_config() -> ConfigDict:
    """The run."""
    network = {**DIGITS["network"], "name": "classifier", "attention_resolutions": (), "scale_shift": False}
    return config(
        data=DIGITS["data"],
        network=network,
        loss={"name": "classification"},
        levels={"name": "log_normal", "mean": -2.5, "std": 1.0},
        optimizer={"name": "adam", "learning_rate": 2e-3, "warmup_steps": 20},
        ema={"decays": (0.98,), "warmup": True},
        training={
            "num_steps": 300,
            "batch_size": 64,
            "log_every": 50,
            "checkpoint_every": 300,
            "sample_every": 0,
        },
    )
