"""What the digits cost under each objective and schedule, in bits per dimension, and how good its samples are.

python experiments/likelihood/measure.py --runs=runs/likelihood
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion import build, commands, devices, sampling
from diffusion.metrics.frechet import frechet_distance, statistics
from experiments.digits_quality.measure import DigitClassifier, real
from experiments.sampler_nfe.results import Results

RUNS = [f"{objective}_{schedule}" for schedule in ("linear", "cosine") for objective in ("simple", "hybrid", "vlb")]
RUNS += ["learned", "ddpm_digits"]
STEPS = {"learned": 100, "ddpm_digits": 250}
"""Ancestral steps for the samples, where they are not all of the chain's."""


def bits(folder, **protocol):
    """{"bound": (mean, error), "ode": (mean, error)} of the test set."""
    numbers = json.loads(commands.likelihood(folder, **protocol).read_text())["bits_per_dimension"]
    return {part: tuple(numbers[f"{part}/total"].values()) for part in ("bound", "ode")}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs/likelihood", help="the folder of the trained runs")
    parser.add_argument("--num_samples", type=int, default=1024)
    args = parser.parse_args()
    devices.one_per_core()
    root, (train, labels), (test, _) = Path(args.runs), real("train"), real("test")
    classifier = DigitClassifier(train, labels)
    reference = statistics(classifier.features(np.concatenate([train, test])))
    results = Results(root / "likelihood.jsonl")
    for name in (name for name in RUNS if (root / name).exists() and not results.has(run=name)):
        run = build.load(root / name)
        one = bits(root / name, **({"num_terms": 256} if run.schedule.num_steps is None else {}))
        drawn = sampling.generate(run, num_samples=args.num_samples, seed=1, num_steps=STEPS.get(name))
        distance = float(frechet_distance(statistics(classifier.features(drawn)), reference))
        results.add(
            run=name,
            bound=one["bound"],
            ode=one["ode"],
            frechet=round(distance, 3),
            checkpoint=run.step,
        )
    print("| run | bound | ODE | Frechet distance |")
    print("|---|---|---|---|")
    for row in results.rows:
        cells = [f"{row[k][0]:.3f} +- {row[k][1]:.3f}" for k in ("bound", "ode")]
        print(f"| {row['run']} | " + " | ".join(cells) + f" | {row['frechet']:.2f} |")


if __name__ == "__main__":
    main()
