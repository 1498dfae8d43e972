"""Writes with torch what the tests compare with, beside this file.

    pip install -r experiments/inception_parity/requirements.txt
    python tests/torch_files/make.py

zipped.pth, older.pth: the same small state dict in torch.save's two layouts; `expected` says without torch what it is.
inception.npz:         a picture, and the features of it that pytorch-fid's network has with the weights of
                       experiments/inception_parity, which can be drawn again without torch.

torch 2.13.0 and pytorch-fid 0.3.0 made the files that are kept.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.inception_parity.compare import LAYOUTS, SIZES, Reference, pictures

FOLDER = Path(__file__).parent


def expected():
    """{name: array}. The first three are views of one row of numbers, the last three of a module."""
    row = np.arange(24, dtype=np.float32) / 8 - 1
    return {
        "view.whole": row.reshape(2, 3, 4),
        "view.transposed": row.reshape(2, 3, 4).transpose(2, 0, 1),
        "view.from_the_middle": row[5:23:3],
        "half": np.array([0.5, -2], np.float16),
        "double": np.array([[1 / 3]], np.float64),
        "flags": np.array([True, False, True]),
        "bytes": np.array([0, 255], np.uint8),
        "empty": np.zeros((0, 3), np.float32),
        "bn.weight": np.array([3, 1, 2], np.float32),
        "bn.running_var": np.array([0.25, 4, 1], np.float32),
        "bn.num_batches_tracked": np.array(7, np.int64),
    }


def main():
    import torch

    arrays = expected()
    holder = torch.nn.Module()
    holder.bn = torch.nn.BatchNorm2d(3)
    state = holder.state_dict()  # with the "_metadata" that state dicts of modules carry
    for name in [name for name in state if name not in arrays]:
        del state[name]
    state |= {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    whole = state["view.whole"]
    state["view.transposed"] = whole.permute(2, 0, 1)
    state["view.from_the_middle"] = whole.flatten()[5:23:3]
    for name, zipped in LAYOUTS.items():
        torch.save(state, FOLDER / f"{name}.pth", _use_new_zipfile_serialization=zipped)
    images = pictures(SIZES["32x32"], 1)
    np.savez(FOLDER / "inception.npz", images=images, **Reference()(images))


if __name__ == "__main__":
    main()
