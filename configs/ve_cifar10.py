"""The variance-exploding SDE on CIFAR-10 with NCSN++ (Song et al. 2020, arXiv:2011.13456, appendices G and H).

    python main.py --config=configs/ve_cifar10.py --workdir=runs/ve_cifar10

NCSN++ "continuous", 62,758,787 parameters: DDPM++ with FIR filters, Fourier features of ln sigma (the network is told
ln(sigma) / 4, so their scale of 16 is 64 here), the halved image joined to each level. sigma from 0.01 to 50 for data
in [0, 1], which is 0.02 to 100 for ours; eps, which is their score times -sigma. EMA 0.999; reverse diffusion with a
Langevin corrector, snr 0.16, 1000 steps (2000 evaluations). Their loss is half the sum over an image's 3072 values,
ours the mean, 1536 times less; so are the norm to which gradients are clipped and Adam's eps, which makes the updates
the same. Published: FID 2.38 (2.20 with num_blocks 8). Attention as in `vp_cifar10`. Not trained here.
"""

from ml_collections import ConfigDict

from configs.vp_cifar10 import CIFAR10, DDPM_PLUS_PLUS
from diffusion.config import config

NCSN_PLUS_PLUS = {
    **DDPM_PLUS_PLUS,
    "resample_filter": (1.0, 3.0, 3.0, 1.0),
    "fourier_scale": 64.0,
    "progressive_input": True,
}
SCALE = 1536
"""The published loss over ours."""


def get_config() -> ConfigDict:
    """The run."""
    optimizer = CIFAR10["optimizer"] | {"clip_norm": 1.0 / SCALE, "eps": 1e-8 / SCALE}
    return config(
        **CIFAR10 | {"optimizer": optimizer},
        schedule={"name": "ve_geometric", "sigma_min": 0.02, "sigma_max": 100.0},
        network=NCSN_PLUS_PLUS,
        ema={"decays": (0.999,)},
        sampler={"name": "predictor_corrector", "snr": 0.16, "threshold": "none"},
        grid={"name": "strided", "num_steps": 1000},
    )
