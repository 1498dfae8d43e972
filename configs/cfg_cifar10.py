"""Classifier-free guidance on CIFAR-10 (Ho & Salimans 2022, arXiv:2207.12598).

    python main.py --config=configs/cfg_cifar10.py --workdir=runs/cfg_cifar10

The recipe of `ddpm_cifar10`, but that the network is told the class of nine images in ten, and that samples are guided
with scale 1.5 (their w = 0.5), in DDPM's 1000 steps. The paper has no CIFAR-10: there is no published figure to meet,
and the scale is not tuned. Not trained here.
"""

from ml_collections import ConfigDict

from configs import ddpm_cifar10


def get_config() -> ConfigDict:
    """The run."""
    run = ddpm_cifar10.get_config()
    run.network.class_conditional = True
    run.loss.cond_dropout = 0.1
    run.guidance.scale = 1.5
    return run
