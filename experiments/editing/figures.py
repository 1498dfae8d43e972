"""Pictures and numbers of docs/editing.md; see README.md beside this file.

python experiments/editing/figures.py --workdir=runs/digits --colour_workdir=runs/tinted
"""

import colorsys
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion.data.digits import digits


def write_tinted(folder):
    """Every training digit in a hue of its own, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset, rng = digits("train"), np.random.default_rng(0)
    for i in range(len(dataset)):
        colour = np.array(colorsys.hsv_to_rgb(rng.uniform(), 0.85, 1.0))
        pixels = np.rint(dataset.source[i]["image"] / 16 * 255 * colour).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04d}.png")
