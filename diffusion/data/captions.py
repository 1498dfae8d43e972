"""Captions as tokens: the bytes of their UTF-8, so that no vocabulary has to be learned, stored or downloaded."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

VOCABULARY = 257
"""Tokens: 0 stands after the last byte, b + 1 for byte b."""


def encode(captions: Sequence[str], length: int) -> Int32[np.ndarray, "n length"]:
    """Returns each caption's tokens, filled up with 0.

    Raises:
        ValueError: a caption has more than `length` bytes.
    """
    tokens = np.zeros((len(captions), length), np.int32)
    for row, caption in zip(tokens, captions, strict=True):
        data = caption.encode()
        if len(data) > length:
            raise ValueError(f"the caption {caption!r} has {len(data)} bytes, but only {length} fit; shorten it.")
        row[: len(data)] = np.frombuffer(data, np.uint8) + np.int32(1)
    return tokens
