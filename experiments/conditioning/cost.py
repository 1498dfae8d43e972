"""What does a guided step cost? Sampling with every kind of guidance, side by side in one process; see README.md.

python experiments/conditioning/cost.py --runs=runs
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion import devices, sampling
from experiments.conditioning.measure import PROMPTS, WAYS

PAIRS = {0: 1.5, 1: 2.0, 3: 1.5, 4: 2.0}
"""Which of WAYS, and the scale that is compared with none."""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs", help="the folder of the trained runs, named as their configs")
    parser.add_argument("--num_samples", type=int, default=256)
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    devices.one_per_core()
    print("| asked by | ms per step, unguided | guided | ratio, median of turns |")
    print("|---|---|---|---|")
    for way, scale in ((WAYS[i], scale) for i, scale in PAIRS.items()):
        run = way.load(Path(args.runs), scale)
        # without a guide, the same run is loaded without one, as a guide of scale 0 would still be evaluated
        plain = way.plain(Path(args.runs))
        times = {"plain": [], "guided": []}
        for turn in range(args.turns + 1):  # the first compiles
            for name, model in (("plain", plain), ("guided", run)):
                prompts = PROMPTS if way.prompts and model.conditions.names else None
                cond, start = model.cond(args.num_samples, prompts=prompts), time.perf_counter()
                sampling.generate(model, num_samples=args.num_samples, seed=turn, cond=cond)
                if turn:
                    times[name].append((time.perf_counter() - start) / len(model.grid().h) * 1e3)
        unguided, guided = (statistics.median(times[name]) for name in ("plain", "guided"))
        ratio = statistics.median(g / p for g, p in zip(times["guided"], times["plain"], strict=True))
        print(f"| {way.name} | {unguided:.0f} | {guided:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
