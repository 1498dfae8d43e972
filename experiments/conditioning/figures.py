"""The pictures of docs/conditioning.md, from trained runs.

python experiments/conditioning/figures.py --runs=runs
"""

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion import build, devices, guidance, images, sampling
from experiments.conditioning.measure import DDIM, PROMPTS, WAYS

IMAGES = Path(__file__).resolve().parents[2] / "docs/images"
OPTIONS = {
    "scale 4": {"scale": 4.0},
    "interval (-4, 2)": {"scale": 4.0, "interval": (-4.0, 2.0)},
    "rescale 0.7": {"scale": 4.0, "rescale": 0.7},
    "CFG++, 0.6": {"scale": 0.6, "plus_plus": True},
}
"""Ways to keep a strong guidance from overdoing it."""
FIGURES = {"classes": WAYS[0], "classifier": WAYS[1], "text": WAYS[3], "clip": WAYS[4]}


def draw(run, prompts=None, count=20):
    """Each digit twice, from the same noise in every row; a run that cannot be asked draws what it likes."""
    return sampling.generate(run, num_samples=count, seed=3, cond=run.cond(count, prompts=prompts))


def symmetric(x_0, level):
    """How far an image is from its mirror image, over how unsure the estimate is; no network was trained for it."""
    unsure = 0.05 + level.sigma**2 / (level.alpha**2 + level.sigma**2)
    return jnp.square(x_0 - x_0[:, :, ::-1]).sum((1, 2, 3)) / (4 * unsure)


def asymmetry(drawn):
    """The mean squared difference between an image and its mirror image."""
    return np.mean(np.square(drawn - drawn[:, :, ::-1]))


def save(name, rows):
    """One line of pictures a row, with its label on the left."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 0.55 * len(rows)), layout="constrained", squeeze=False)
    for axis, (label, drawn) in zip(axes[:, 0], rows.items(), strict=True):
        axis.imshow(images.picture(drawn, len(drawn)), cmap="gray", interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
    figure.savefig(IMAGES / f"conditioning_{name}.png", dpi=100)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs", help="the folder of the trained runs, named as their configs")
    parser.add_argument("--only", nargs="*", default=[*FIGURES, "options", "energy"])
    args = parser.parse_args()
    devices.one_per_core()
    root = Path(args.runs)
    for name, way in ((name, way) for name, way in FIGURES.items() if name in args.only):
        prompts = PROMPTS if way.prompts else None
        save(name, {f"{way.option} {scale:g}": draw(way.load(root, scale), prompts) for scale in way.scales})
    if "options" in args.only:
        models = {label: build.load(root / "cfg_digits", guidance=given) for label, given in OPTIONS.items()}
        save("options", {label: draw(model) for label, model in models.items()})
    if "energy" not in args.only:
        return
    run = build.load(root / "digits", grid=DDIM["grid"], sampler=DDIM["sampler"] | {"threshold": "none"})
    plain = draw(run.transformed(guidance.clip()))
    pushed = draw(run.transformed(guidance.energy(symmetric, of="x_0"), guidance.clip()))
    save("energy", {"no energy": plain, "symmetric": pushed})
    print(
        f"squared difference from the mirror image: {asymmetry(plain):.3f} without the energy, {asymmetry(pushed):.4f}"
    )


if __name__ == "__main__":
    main()
