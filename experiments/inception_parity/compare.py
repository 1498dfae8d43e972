"""Is our Inception-v3 pytorch-fid's? Prints a table of differences; see README.md beside this file.

PYTHONPATH=. python experiments/inception_parity/compare.py
"""

import argparse
import contextlib
import math
import sys
import tempfile
import zlib
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion import features, torch_file

SIZES = {
    "32x32": (32, 32, 3),
    "64x64": (64, 64, 3),
    "299x299": (299, 299, 3),
    "400x300": (400, 300, 3),
    "28x28, grey": (28, 28, 1),
}
LAYOUTS = {"zipped": True, "older": False}


def pytorch_fid():
    """Its module; ImportError where torch, torchvision or it are not installed."""
    import torch

    with contextlib.suppress(RuntimeError):
        import pytorch_fid.inception

        return pytorch_fid.inception
    for name in [name for name in sys.modules if name.split(".")[0] in ("torchvision", "pytorch_fid")]:
        del sys.modules[name]
    # torchvision's wheel was made for another torch, so that the operators it describes are missing; none is used here
    with mock.patch.object(torch.library, "register_fake"):
        import pytorch_fid.inception

    return pytorch_fid.inception


class Reference:
    """pytorch-fid's network with the weights below."""

    def __init__(self):
        import torch

        self.torch, module = torch, pytorch_fid()
        with (
            mock.patch.object(module, "load_state_dict_from_url"),
            mock.patch.object(torch.nn.Module, "load_state_dict"),
        ):
            whole = module.fid_inception_v3()
        self.state = whole.state_dict()
        for name, array in self.state.items():
            if array.is_floating_point():  # all but the counters of batches
                array.copy_(torch.from_numpy(weights(name, array.shape)))
        self.fc = whole.fc.requires_grad_(False)
        with mock.patch.object(module, "load_state_dict_from_url", return_value=self.state):
            self.features = module.InceptionV3().eval()  # pytorch-fid's own way from images to features

    def __call__(self, images):
        """The features of images uint8 [n, h, w, c], by name."""
        torch, seen = self.torch, {}
        spatial = self.features.blocks[2][6].branch1x1  # Mixed_6d: block 2 starts at Mixed_5b
        hook = spatial.register_forward_hook(lambda module, given, out: seen.update(spatial=out[:, :7]))
        with torch.inference_mode():
            x = torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1) / 255
            pool = self.features(x)[0][:, :, 0, 0]
            logits = self.fc(pool) - self.fc.bias
        hook.remove()
        spatial = seen["spatial"].permute(0, 2, 3, 1).flatten(1)  # pixel by pixel, as TensorFlow lays them out
        found = {"pool": pool, "logits": logits, "spatial": spatial}
        return {name: rows.numpy() for name, rows in found.items()}

    def save(self, folder):
        """{layout: path} of the weights as files of both of torch's layouts."""
        paths = {layout: Path(folder) / f"{layout}.pth" for layout in LAYOUTS}
        for layout, path in paths.items():
            self.torch.save(self.state, path, _use_new_zipfile_serialization=LAYOUTS[layout])
        return paths


def weights(name, shape):
    """Random weights of this name in the state dict, float32, from the bits of PCG64, which are the same everywhere.

    Uniform with Kaiming's variance for layers before a ReLU, and batch statistics around 0 and 1: features neither
    vanish nor explode.
    """
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape)) >> 40
    u = bits.astype(np.float32).reshape(shape) / 2**24
    if len(shape) > 1:
        return (2 * u - 1) * np.float32(math.sqrt(6 / math.prod(shape[1:])))
    return u + np.float32(0.5) if name.endswith(("bn.weight", "running_var")) else (2 * u - 1) / 5


def pictures(shape, num_images, seed=0):
    """Random images with edges and with smooth parts, uint8 [n, *shape]."""
    random = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 6, shape[0])[:, None, None], np.linspace(0, 6, shape[1])[:, None]
    a, b, phase = random.uniform(-1, 1, (3, num_images, 1, 1, shape[2])) * np.reshape([3, 3, 6], (3, 1, 1, 1, 1))
    smooth = np.sin(a * rows + b * columns + phase)
    return (127.5 + 80 * smooth + random.uniform(-47, 47, (num_images, *shape))).astype(np.uint8)


def differences(ours, theirs):
    """The difference's norm over theirs, and over that of their deviation between images; its largest over theirs."""
    theirs = np.asarray(theirs, np.float64)
    wrong = ours - theirs
    norms = np.linalg.norm(theirs), np.linalg.norm(theirs - theirs.mean(0))
    return *(np.linalg.norm(wrong) / norm for norm in norms), np.abs(wrong).max() / np.abs(theirs).max()


HEAD = """\
| images | features | of the norm | of the deviation between images | largest, of the largest value |
|---|---|---|---|---|"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_images", type=int, default=8)
    args = parser.parse_args()
    reference = Reference()
    with tempfile.TemporaryDirectory() as folder:
        paths = reference.save(folder)
        for path in paths.values():
            for name, array in torch_file.read(path).items():
                assert np.array_equal(array, reference.state[name].numpy()), name
        count = sum(array.numel() for array in reference.state.values())
        sizes = ", ".join(f"{layout} {path.stat().st_size:,} bytes" for layout, path in paths.items())
        print(f"{len(reference.state)} arrays of {count:,} numbers, read exactly from both layouts: {sizes}\n")
        ours = features.inception(str(paths["older"]), own_weights=True, batch_size=args.num_images)
    print(HEAD)
    for size, shape in SIZES.items():
        images = pictures(shape, args.num_images)
        found, expected = ours.extract(images), reference(images)
        for name, rows in expected.items():
            shares = " | ".join(f"{share:.1e}" for share in differences(found[name], rows))
            print(f"| {size} | {name} [{rows.shape[1]}] | {shares} |", flush=True)


if __name__ == "__main__":
    main()
