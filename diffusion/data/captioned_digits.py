"""scikit-learn's handwritten digits with captions that say in words which digit an image shows."""

import dataclasses

import numpy as np

from diffusion.data.captions import encode
from diffusion.data.dataset import Dataset, MemorySource
from diffusion.data.digits import digits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a handwritten {word}",
    "the digit {word}",
    "a picture of a {figure}",
    "{word}, written by hand",
    "a small grey {figure}",
    "a scan of the number {word}",
)
CAPTION_LENGTH = 32


def captioned_digits(split: str = "train") -> Dataset:
    """Returns the digits of `digits`, in the same order and with their labels, and a caption for each.

    A caption is one of TEMPLATES, filled with the digit as a word or as a figure: "a handwritten three". The images
    of each digit take the templates in turn, in the order of the set, so that nothing is random and every digit is
    described in every way equally often.

    Raises:
        ValueError: `split` is neither "train" nor "test".
    """
    dataset = digits(split)
    records = [dataset.source[i] for i in range(len(dataset))]
    images, labels = (np.stack([record[key] for record in records]) for key in ("image", "label"))
    captions = [""] * len(labels)
    for digit in range(len(WORDS)):
        for turn, i in enumerate(np.flatnonzero(labels == digit)):
            captions[i] = _caption(turn % len(TEMPLATES), digit)
    return dataclasses.replace(
        dataset,
        source=MemorySource(images, labels, encode(captions, CAPTION_LENGTH)),
        caption_length=CAPTION_LENGTH,
        captions=tuple(_caption(template, digit) for template in range(len(TEMPLATES)) for digit in range(len(WORDS))),
    )


def _caption(template: int, digit: int) -> str:
    return TEMPLATES[template].format(word=WORDS[digit], figure=digit)
