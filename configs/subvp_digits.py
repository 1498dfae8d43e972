"""The sub-VP SDE on scikit-learn's digits (Song et al. 2020).

    python main.py --config=configs/subvp_digits.py --workdir=runs/subvp_digits

eps, beta from 0.1 to 20, t uniform on (0, 1], sampled with Euler-Maruyama.
"""

from ml_collections import ConfigDict

from configs import vp_digits


def get_config() -> ConfigDict:
    """The run."""
    run = vp_digits.get_config()
    run.schedule.name = "sub_vp_linear"
    return run
