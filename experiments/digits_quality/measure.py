"""How good are the digits? Prints a table of Frechet distances; see README.md beside this file.

python experiments/digits_quality/measure.py --workdir=runs/digits
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion import build, devices, sampling
from diffusion.data.digits import digits
from diffusion.data.scaling import to_unit_range
from diffusion.metrics.frechet import frechet_distance, statistics


class DigitClassifier:
    """A small classifier of real digits; its last hidden layer is the feature space of the distance."""

    def __init__(self, images, labels):
        from sklearn.neural_network import MLPClassifier

        self._net = MLPClassifier((128, 64), max_iter=60, random_state=0)
        self._net.fit(images.reshape(len(images), -1), labels)

    def features(self, images):
        hidden = images.reshape(len(images), -1)
        for weights, bias in list(zip(self._net.coefs_, self._net.intercepts_, strict=True))[:-1]:
            hidden = np.maximum(hidden @ weights + bias, 0)
        return hidden

    def classify(self, images):
        return self._net.predict(images.reshape(len(images), -1))


def real(split):
    dataset = digits(split)
    records = [dataset.source[i] for i in range(len(dataset))]
    images = np.stack([to_unit_range(r["image"], dataset.num_values) for r in records])
    return images, np.array([r["label"] for r in records])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/digits")
    parser.add_argument("--num_samples", type=int, default=1024)
    parser.add_argument("--ddim_steps", type=int, nargs="*", default=[20, 50])
    args = parser.parse_args()
    devices.one_per_core()
    (train, train_labels), (test, test_labels) = real("train"), real("test")
    classifier = DigitClassifier(train, train_labels)
    accuracy = (classifier.classify(test) == test_labels).mean()
    everything = np.concatenate([train, test])
    reference = statistics(classifier.features(everything))

    run = build.load(args.workdir)
    print(f"classifier: {accuracy:.1%} of {len(test)} test digits right; checkpoint: step {run.step}")
    print("| images | n | against | Frechet distance | seconds |")
    print("|---|---|---|---|---|")
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(everything))
        halves = [statistics(classifier.features(everything[part])) for part in (order[::2], order[1::2])]
        counts = f"{halves[0].num_rows} | the other {halves[1].num_rows}"
        print(f"| half of the real digits, split {seed} | {counts} | {frechet_distance(*halves):.2f} | |")
    ways = [({"sampler": {"name": "ddim"}}, steps) for steps in args.ddim_steps] + [({}, None)]  # {}: the run's own
    for settings, num_steps in ways:
        start = time.perf_counter()
        model = build.load(args.workdir, **settings)
        cond = model.cond(args.num_samples)
        drawn = sampling.generate(model, num_samples=args.num_samples, seed=1, num_steps=num_steps, cond=cond)
        seconds = time.perf_counter() - start
        distance = frechet_distance(statistics(classifier.features(drawn)), reference)
        way = f"{model.config.sampler.name}, {len(model.grid(num_steps).h)} steps"
        counts = f"{len(drawn)} | all {reference.num_rows}"
        print(f"| {way} | {counts} | {distance:.2f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
