"""What does the target of the network, or the schedule, change? Trains and measures digits over seeds; see README.md.

python experiments/objectives/measure.py --runs=runs/objectives

What is trained or measured already is taken as it is, so that a stopped call goes on.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion import evaluations
from experiments import digits

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
WAYS = [("ancestral", 250), ("ddim", 50)]


def place(runs, variant, seed):
    return runs / f"{variant}_seed{seed}"


def measure(runs, seeds, num_samples):
    """Trains and evaluates every variant with every seed."""
    digits.make_reference(runs)
    for seed in range(seeds):
        for variant, flags in VARIANTS.items():
            folder = place(runs, variant, seed)
            fixed = [f"--config.seed={seed}", "--config.training.sample_every=0"]
            digits.main_py(digits.CONFIG, f"--workdir={folder}", *fixed, *flags)
            for way in WAYS:
                digits.evaluate(runs, folder, way, seed, num_samples, METRICS)


def table(runs, seeds, num_samples):
    """Yields lines: mean and standard deviation over seeds of each number, for each variant and way of drawing."""
    head = None
    for way in WAYS:
        for variant, name in NAMES.items():
            numbers = {}
            for metric in METRICS:
                rows = [digits.row(runs, place(runs, variant, s), way, s, num_samples, metric) for s in range(seeds)]
                evaluations.table(rows)  # refuses rows of several protocols
                numbers |= {label: [row["values"][label] for row in rows] for label in rows[0]["values"]}
            if head is None:
                head = [label for label in numbers if "error" not in label]
                yield f"| model | drawn by | {' | '.join(head)} |"
                yield "|---|---|" + "---|" * len(head)
            cells = [f"{np.mean(numbers[label]):.3g} ± {np.std(numbers[label], ddof=1):.2g}" for label in head]
            yield f"| {name} | {way[0]} {way[1]} steps | {' | '.join(cells)} |"


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
