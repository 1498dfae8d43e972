"""Sliced Wasserstein distance to a mixture whose denoiser is known exactly; see README.md beside this file.

python experiments/sampler_nfe/mixture.py
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion import sampling, schedules
from diffusion.metrics.sliced_wasserstein import sliced_wasserstein
from experiments.sampler_nfe.results import Results
from experiments.sampler_nfe.solvers import measure
from tests.laws import mixture_denoiser, mixture_samples

NUM_SAMPLES = 20_000
ANGLES = 2 * np.pi * np.arange(8) / 8
MEANS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
STDS, WEIGHTS = np.full(8, 0.1), np.arange(1, 9) / 36


def main():
    schedule, denoise = schedules.linear_beta(), mixture_denoiser(MEANS, STDS, WEIGHTS)
    truth = mixture_samples(np.random.default_rng(0), MEANS, STDS, WEIGHTS, NUM_SAMPLES)
    again = mixture_samples(np.random.default_rng(1), MEANS, STDS, WEIGHTS, NUM_SAMPLES)
    results = Results(Path("runs/mixture_nfe.jsonl"))
    results.path.parent.mkdir(exist_ok=True)
    if not results.has(solver="exact draws"):
        results.add(solver="exact draws", n=NUM_SAMPLES, distance=round(sliced_wasserstein(again, truth), 4))

    def distance(sampler, steps):
        options = {"num_samples": NUM_SAMPLES, "batch_size": NUM_SAMPLES, "seed": 1, "shape": (2,)}
        drawn = sampling.generate(denoise, sampler=sampler, steps=steps, **options)
        return round(sliced_wasserstein(np.asarray(drawn), truth), 4)

    measure(results, schedule, distance, n=NUM_SAMPLES)


if __name__ == "__main__":
    main()
