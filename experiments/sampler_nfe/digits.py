"""Frechet distance of digits drawn with every solver at every number of evaluations; see README.md beside this file.

python experiments/sampler_nfe/digits.py --workdir=runs/digits
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion import build, devices, sampling
from diffusion.metrics.frechet import frechet_distance, statistics
from experiments.digits_quality.measure import DigitClassifier, real
from experiments.sampler_nfe.results import Results
from experiments.sampler_nfe.solvers import EVALUATIONS, measure


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/digits")
    parser.add_argument("--num_samples", type=int, default=1024)
    parser.add_argument("--evaluations", type=int, nargs="*", default=EVALUATIONS)
    args = parser.parse_args()
    devices.one_per_core()
    (train, labels), (test, _) = real("train"), real("test")
    classifier = DigitClassifier(train, labels)
    reference = statistics(classifier.features(np.concatenate([train, test])))
    run, results = build.load(args.workdir), Results(Path(args.workdir) / "sampler_nfe.jsonl")

    def distance(sampler, steps):
        drawn = sampling.generate(run, num_samples=args.num_samples, seed=1, sampler=sampler, steps=steps)
        return round(frechet_distance(statistics(classifier.features(drawn)), reference), 3)

    measure(results, run.schedule, distance, args.evaluations, n=args.num_samples, checkpoint=run.step)


if __name__ == "__main__":
    main()
