"""What does the target of the network, or the schedule, change? Trains and measures digits over seeds; see README.md.

python experiments/objectives/measure.py --runs=runs/objectives

What is trained or measured already is taken as it is, so that a stopped call goes on.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion import evaluations, measuring, references

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {
    "default": [],
    "cosine": ["--config.schedule.name=cosine_alpha_bar"],
    "x_0": ["--config.parameterization.name=x_0"],
    "v": ["--config.parameterization.name=v"],
}
NAMES = {
    "default": "`ddpm_digits`: linear betas, eps",
    "cosine": "cosine schedule",
    "x_0": "predicts x_0",
    "v": "predicts v",
}
METRICS = ["frechet", "kernel_distance:num_subsets=0", "precision_recall"]
WAYS = [["--sampler=ancestral", "--num_steps=250"], ["--sampler=ddim", "--num_steps=50"]]


def main_py(*flags):
    subprocess.run([sys.executable, ROOT / "main.py", *map(str, flags)], check=True, cwd=ROOT)


def measure(runs, seeds, num_samples):
    """Trains and evaluates every variant with every seed."""
    config, guide, reference = "--config=configs/ddpm_digits.py", runs / "features_digits", runs / "reference"
    main_py("--config=configs/features_digits.py", f"--workdir={guide}")
    main_py("--mode=ref_stats", config, f"--workdir={reference}", "--features=guide", f"--weights={guide}")
    for seed in range(seeds):
        for variant, flags in VARIANTS.items():
            folder = f"--workdir={place(runs, variant, seed)}"
            main_py(config, folder, f"--config.seed={seed}", "--config.training.sample_every=0", *flags)
            for way in WAYS:
                asked = [f"--metric={metric}" for metric in METRICS] + [f"--num_samples={num_samples}"]
                main_py("--mode=evaluate", folder, f"--reference={reference}", f"--seed={seed}", *asked, *way)


def place(runs, variant, seed):
    return runs / f"{variant}_seed{seed}"


def row_of(runs, variant, seed, num_samples, way, options, reference):
    """The one row of this model, way of drawing and metric, against this reference."""
    sampler, num_steps = (flag.partition("=")[2] for flag in way)
    asked = (sampler, num_steps, seed, num_samples, dict(options), reference)
    found = []
    for row in evaluations.read(place(runs, variant, seed)):
        protocol = row["protocol"]
        drawn = (row["sampler"]["name"], str(row["num_steps"]), row["seed"], protocol["num_samples"])
        if (*drawn, protocol["metric"], (protocol["reference"] or {}).get("sha256")) == asked:
            found.append(row)
    if len(found) != 1:
        raise ValueError(f"{variant}, seed {seed}: {len(found)} rows for {asked}, expected 1. Delete what is too much.")
    return found[0]


def table(runs, seeds, num_samples):
    """Yields lines: mean and standard deviation over seeds of each number, for each variant and way of drawing."""
    reference, head = references.read(runs / "reference").hash, None
    for way in WAYS:
        for variant, name in NAMES.items():
            numbers = {}
            for options in (measuring.choose(metric).options for metric in METRICS):
                rows = [row_of(runs, variant, s, num_samples, way, options, reference) for s in range(seeds)]
                evaluations.table(rows)  # refuses rows of several protocols
                numbers |= {label: [row["values"][label] for row in rows] for label in rows[0]["values"]}
            if head is None:
                head = [label for label in numbers if "error" not in label]
                yield f"| model | drawn by | {' | '.join(head)} |"
                yield "|---|---|" + "---|" * len(head)
            cells = [f"{np.mean(numbers[label]):.3g} ± {np.std(numbers[label], ddof=1):.2g}" for label in head]
            yield f"| {name} | {' '.join(flag.partition('=')[2] for flag in way)} steps | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num_samples", type=int, default=1024)
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("a deviation needs --seeds=2 or more")
    runs = args.runs.expanduser().resolve()
    measure(runs, args.seeds, args.num_samples)
    print("\n".join(table(runs, args.seeds, args.num_samples)))


if __name__ == "__main__":
    main()
