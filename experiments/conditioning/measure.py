"""Do samples become what they are asked to be, and do they stay different? See README.md beside this file.

python experiments/conditioning/measure.py --runs=runs
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion import build, devices, images, sampling
from diffusion.data.captioned_digits import WORDS
from diffusion.metrics.frechet import frechet_distance, statistics
from experiments.digits_quality.measure import DigitClassifier, real

PROMPTS = [f"a handwritten {word}" for word in WORDS]
DDIM = {"sampler": {"name": "ddim"}, "grid": {"name": "strided", "num_steps": 50}}
CHAIN = {"sampler": {"name": "ancestral"}, "grid": {"name": "strided", "num_steps": 250}}


@dataclass(frozen=True)
class Way:
    """One way to ask for a digit: a run, what guides it, and the scales to try, the first being no guidance."""

    name: str
    run: str
    option: str
    scales: tuple[float, ...]
    guide: str | None = None
    prompts: bool = False
    settings: dict = field(default_factory=lambda: DDIM)

    def load(self, root, scale):
        """The run, guided with this scale."""
        guidance = {self.option: scale}
        if self.guide:
            guidance["guide"] = str(root / self.guide)
        return build.load(root / self.run, guidance=guidance, **self.settings)

    def plain(self, root):
        """The run without any guidance, and without the guide."""
        return build.load(root / self.run, guidance={"scale": 1.0}, **self.settings)


WAYS = [
    Way("classes, classifier-free", "cfg_digits", "scale", (1.0, 1.5, 2.0, 4.0)),
    Way("classifier guidance, ddim", "digits", "guide_scale", (0.0, 1.0, 2.0, 3.0), guide="classifier_digits"),
    Way("classifier guidance, ancestral", "digits", "guide_scale", (2.0, 3.0), "classifier_digits", settings=CHAIN),
    Way("text, classifier-free", "text_digits", "scale", (1.0, 1.5, 2.0), prompts=True),
    Way("CLIP guidance, ddim", "digits", "guide_scale", (1.0, 2.0, 3.0), guide="clip_digits", prompts=True),
]


def spread(features, labels):
    """The mean distance between two samples of one digit."""
    means = []
    for digit in range(10):
        own = features[labels == digit]
        squared = ((own[:, None] - own[None]) ** 2).sum(-1)
        means.append(np.sqrt(squared)[~np.eye(len(own), dtype=bool)].mean())
    return np.mean(means)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs", help="the folder of the trained runs, named as their configs")
    parser.add_argument("--num_samples", type=int, default=500)
    parser.add_argument("--only", default="", help="ways whose name begins so")
    args = parser.parse_args()
    devices.one_per_core()
    root, (train, train_labels), (test, test_labels) = Path(args.runs), real("train"), real("test")
    classifier = DigitClassifier(train, train_labels)
    everything, labels = np.concatenate([train, test]), np.concatenate([train_labels, test_labels])
    reference = statistics(classifier.features(everything))
    real_spread = spread(everything.reshape(len(everything), -1), labels)
    print(
        f"the judge reads {(classifier.classify(test) == test_labels).mean():.1%} of {len(test)} real test digits right"
    )
    print("| asked by | scale | labels right | spread | Frechet distance |")
    print("|---|---|---|---|---|", flush=True)
    wanted = np.arange(args.num_samples) % 10
    for way in (way for way in WAYS if way.name.startswith(args.only)):
        for scale in way.scales:
            run = way.load(root, scale)
            cond = run.cond(args.num_samples, prompts=PROMPTS if way.prompts else None)
            drawn = sampling.generate(run, num_samples=args.num_samples, seed=1, cond=cond)
            row = {
                "way": way.name,
                "scale": scale,
                "right": round(float((classifier.classify(drawn) == wanted).mean()), 4),
                "spread": round(float(spread(drawn.reshape(len(drawn), -1), wanted) / real_spread), 3),
                "frechet": round(float(frechet_distance(statistics(classifier.features(drawn)), reference)), 3),
                "n": args.num_samples,
                "checkpoint": run.step,
            }
            with open(root / "conditioning.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            numbers = f"{row['right']:.1%} | {row['spread']:.2f} | {row['frechet']:.2f}"
            print(f"| {way.name} | {scale:g} | {numbers} |", flush=True)
            name = f"conditioning_{way.name.replace(', ', '_').replace(' ', '_').replace('-', '_')}_{scale:g}.png"
            images.save_png(root / name, drawn[:100], 10)


if __name__ == "__main__":
    main()
