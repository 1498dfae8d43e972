"""The sub-VP SDE on CIFAR-10 with DDPM++ (Song et al. 2020, arXiv:2011.13456, appendices G and H).

    python main.py --config=configs/subvp_cifar10.py --workdir=runs/subvp_cifar10

As `vp_cifar10`, on the path whose noise is smaller at every time. Published: 2.99 bits/dim with num_blocks 8 and
950,001 steps. Not trained here.
"""

from ml_collections import ConfigDict

from configs import vp_cifar10


def get_config() -> ConfigDict:
    """The run."""
    run = vp_cifar10.get_config()
    run.schedule.name = "sub_vp_linear"
    return run
