"""Blocks that are computed again on the way back instead of being remembered: less memory for more arithmetic.

Chen et al. 2016, arXiv:1604.06174. The numbers and the parameters are those of the block as it is.
"""

from typing import Any

import flax.linen as nn

from diffusion.networks.network import one_of

PRODUCTS = ("dot_general", "conv_general_dilated")
KINDS = ("none", "elementwise", "block")
"""What is computed again: nothing; all but products of matrices and convolutions; all that is inside a block."""


def check(kind: str) -> str:
    """The kind; ValueError for another one than `KINDS`."""
    return one_of("remat", kind, KINDS)


def rematted(block: type[nn.Module], kind: str, train_at: int | None = None) -> Any:
    """The class of the block, whose calls remember what the kind says, with the same names of parameters.

    train_at: which argument of its call (self is 0) is not an array, the flag of training; None where there is none.
    """
    if kind == "none":
        return block
    policy = _keeps_products if kind == "elementwise" else None
    made = nn.remat(block, policy=policy, static_argnums=() if train_at is None else (train_at,))
    made.__name__ = block.__name__  # Linen names a layer after its class
    return made


def _keeps_products(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in PRODUCTS
