"""Captions as rows of integers: the bytes of their UTF-8, so that no vocabulary has to be made, shipped or kept.

    token = byte + 1, in 1..256; 0 = padding behind the end

A row of padding alone is "no caption", which is also what the empty caption encodes to.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Integer

VOCABULARY = 257
"""The number of different tokens: 256 bytes and the padding."""
NUM_EXAMPLES = 64
"""How many different captions a data set shows of its own (`Dataset.captions`)."""


def encode(captions: Sequence[str], length: int) -> Int32[np.ndarray, "n length"]:
    """Returns each caption's UTF-8 bytes + 1, padded with 0 to `length`.

    Args:
        captions: any text; "" gives a row of zeros.
        length: tokens of a row, at least 1. A character takes one byte in ASCII and up to four elsewhere.

    Raises:
        ValueError: a caption has more bytes than `length`, or is no text that UTF-8 knows.
    """
    if length < 1:
        raise ValueError(f"length is {length}; expected 1 token or more.")
    tokens = np.zeros((len(captions), length), np.int32)
    for row, caption in zip(tokens, captions, strict=True):
        stored = _bytes(caption)
        if len(stored) > length:
            raise ValueError(
                f"the caption {caption!r} has {len(stored)} bytes of UTF-8, but captions here have at most {length}; "
                "shorten it."
            )
        row[: len(stored)] = np.frombuffer(stored, np.uint8).astype(np.int32) + 1
    return tokens


def decode(tokens: Integer[np.ndarray, "n length"]) -> list[str]:
    """Returns the captions that `encode` made `tokens` of.

    Raises:
        ValueError: a token is outside of 0..256, stands behind padding, or the bytes are no UTF-8.
    """
    captions = []
    for i, row in enumerate(tokens):
        end = np.count_nonzero(row)
        if row.size and (row.min() < 0 or row.max() >= VOCABULARY or row[end:].any()):
            raise ValueError(
                f"row {i} is {row.tolist()}; expected tokens of 1..{VOCABULARY - 1}, and behind the last one zeros."
            )
        captions.append((row[:end] - 1).astype(np.uint8).tobytes().decode())
    return captions


def num_bytes(caption: str) -> int:
    """Returns the number of tokens that `caption` takes."""
    return len(_bytes(caption))


def examples(captions: Sequence[str]) -> tuple[str, ...]:
    """Returns the first NUM_EXAMPLES different ones of `captions`, in their order."""
    return tuple(dict.fromkeys(captions))[:NUM_EXAMPLES]


def _bytes(caption: str) -> bytes:
    try:
        return caption.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the caption {caption!r} is no text that UTF-8 knows: {error}.") from error
