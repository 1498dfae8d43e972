"""Pictures and numbers of docs/editing.md; see README.md beside this file.

python experiments/editing/figures.py --tinted=runs/tinted_images
python main.py --config=configs/ddpm_digits.py --workdir=runs/digits
python main.py --config=configs/ddpm_digits.py --config.data.name=image_folder \
    --config.data.path=runs/tinted_images --workdir=runs/tinted
python experiments/editing/figures.py --workdir=runs/digits --colour_workdir=runs/tinted
"""

import argparse
import colorsys
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion import build, devices, images, sampling
from diffusion.data.digits import digits
from diffusion.schedules import linear_beta_scaled
from experiments.digits_quality.measure import DigitClassifier, real
from tests.laws import correlated_denoiser

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 12


def write_tinted(folder, split="train"):
    """Every digit in a hue of its own, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(tinted(split)):
        Image.fromarray(pixels).save(folder / f"{i:04d}.png")


def tinted(split):
    """The digits in random hues, bytes [n, 8, 8, 3]."""
    dataset, rng = digits(split), np.random.default_rng(0)
    grey = np.stack([dataset.source[i]["image"] for i in range(len(dataset))]) / 16 * 255
    hues = np.array([colorsys.hsv_to_rgb(rng.uniform(), 0.85, 1.0) for _ in grey])
    return np.rint(grey * hues[:, None, None]).astype(np.uint8)


def write(name, *rows):
    """docs/images/edit_<name>.png: the rows below each other, each pixel enlarged four times."""
    file = ROOT / "docs/images" / f"edit_{name}.png"
    images.save_png(file, np.concatenate(rows), columns=len(rows[0]))
    print(f"{file.name}: {file.stat().st_size / 1000:.1f} kB", flush=True)


def inpainting(run, x):
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    given = np.where(mask[..., None], x, np.float32(0))
    alone = sampling.inpaint(run, x, mask, num_steps=100)
    again = sampling.inpaint(run, x, mask, num_steps=100, jump_length=5, num_resamples=10)
    write("inpaint", x, given, alone, again)


def completions(run):
    """How often the digit, completed from its upper half, is taken for what it was; with evaluations of the network."""
    (train, train_labels), (test, labels) = real("train"), (part[:150] for part in real("test"))
    classifier = DigitClassifier(train, train_labels)
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    print(f"classifier: {(classifier.classify(test) == labels).mean():.1%} of {len(test)} whole test digits right")
    print("| steps | jump_length | num_resamples | evaluations | labels right | seconds |\n|---|---|---|---|---|---|")
    for steps, jump, resamples in ((100, 10, 1), (1000, 10, 1), (100, 10, 10), (100, 1, 10)):
        start = time.perf_counter()
        grid = sampling.resampled(run.grid(steps), jump, resamples)
        how = {"num_steps": steps, "jump_length": jump, "num_resamples": resamples}
        right = (classifier.classify(sampling.inpaint(run, test, mask, **how)) == labels).mean()
        seconds = time.perf_counter() - start
        print(f"| {steps} | {jump} | {resamples} | {len(grid.h)} | {right:.1%} | {seconds:.0f} |", flush=True)


def gaussian():
    """x_2 given x_1 = 1 for two values with correlation 0.9: exactly N(0.9, 0.436^2)."""
    rho, n = 0.9, 10_000
    denoise = correlated_denoiser([0.0, 0.0], [[1, rho], [rho, 1]])
    given, mask = np.ones((n, 1, 2, 1), np.float32), np.array([[True, False]])
    how = {"sampler": sampling.ancestral(), "steps": sampling.strided(linear_beta_scaled(50)), "batch_size": n}
    print(f"exact: mean {rho}, standard deviation {np.sqrt(1 - rho**2):.3f}; 50 steps, {n} samples")
    print("| jump_length | num_resamples | mean | standard deviation |\n|---|---|---|---|")
    for jump, resamples in ((1, 1), (1, 2), (1, 4), (1, 16), (5, 4), (5, 16), (10, 4), (10, 16)):
        x = sampling.inpaint(denoise, given, mask, num_resamples=resamples, jump_length=jump, **how)[:, 0, 1, 0]
        print(f"| {jump} | {resamples} | {x.mean():.3f} | {x.std():.3f} |", flush=True)


def image_to_image(run, x):
    rows = [sampling.image_to_image(run, x, strength=strength, num_steps=100) for strength in (0.1, 0.2, 0.3, 0.5, 1)]
    write("image_to_image", x, *rows)


def interpolation(run, x):
    pairs = [(x[1], x[3]), (x[0], x[4])]
    rows = []
    for first, second in pairs:
        for strength in (0.1, 0.2):
            middle = sampling.interpolate(run, first, second, strength=strength, num_samples=COLUMNS - 2)
            rows.append(np.concatenate([first[None], middle, second[None]]))
    write("interpolate", *rows)
    how = {"num_samples": COLUMNS, "num_steps": 50}
    write("interpolate_noise", *(sampling.interpolate_noise(run, ids=(i, i + 1), **how) for i in range(0, 6, 2)))


def super_resolution(run, x):
    low = x.reshape(-1, 4, 2, 4, 2, 1).mean((2, 4))
    alone = sampling.super_resolve(run, low, 2, num_steps=100)
    again = sampling.super_resolve(run, low, 2, num_steps=100, jump_length=5, num_resamples=10)
    write("super_resolve", x, low.repeat(2, 1).repeat(2, 2), alone, again)


def colours(run):
    x = tinted("test")[:COLUMNS] / np.float32(127.5) - 1
    grey = x.mean(-1, keepdims=True)
    drawn = [sampling.colourise(run, grey, num_steps=100, seed=seed) for seed in (0, 1)]
    again = sampling.colourise(run, grey, num_steps=100, jump_length=5, num_resamples=10)
    write("colourise", x, grey.repeat(3, -1), *drawn, again)


def inversion(workdir, x):
    """The round trip's error, in root mean square over 32 test digits in [-1, 1]."""
    run, clipped = (build.load(workdir, sampler={"threshold": name}) for name in ("none", "clip"))
    x_T = sampling.invert(clipped, x, num_steps=250)
    write("invert", x, x_T / 3, sampling.generate(clipped, x_T=x_T, sampler=sampling.ddim(), num_steps=250))
    test, _ = real("test")
    test = test[:32]
    print("| steps | iterations | evaluations | round-trip error | std of x_T | error, clipped | std of x_T, clipped |")
    print("|---|---|---|---|---|---|---|")
    for steps, iterations in ((10, 1), (10, 10), (50, 1), (50, 3), (50, 10), (100, 1), (250, 1), (1000, 1)):
        row = [steps, iterations, steps * iterations]
        for model in (run, clipped):
            x_T = sampling.invert(model, test, num_steps=steps, iterations=iterations)
            back = sampling.generate(model, x_T=x_T, sampler=sampling.ddim(), num_steps=steps)
            row += [f"{np.sqrt(np.mean((back - test) ** 2)):.4f}", f"{x_T.std():.3f}"]
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tinted", type=Path, help="only write the training digits in random hues to this folder")
    parser.add_argument("--workdir", default="runs/digits")
    parser.add_argument("--colour_workdir", default="runs/tinted")
    args = parser.parse_args()
    if args.tinted:
        write_tinted(args.tinted)
        return
    devices.one_per_core()
    run, x = build.load(args.workdir), real("test")[0][:COLUMNS]
    print(f"checkpoints: steps {run.step} and {(colour := build.load(args.colour_workdir)).step}")
    inpainting(run, x)
    image_to_image(run, x)
    interpolation(run, x)
    super_resolution(run, x)
    colours(colour)
    inversion(args.workdir, x)
    gaussian()
    completions(run)


if __name__ == "__main__":
    main()
