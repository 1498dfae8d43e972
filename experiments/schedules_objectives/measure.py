"""Trains the sweep, measures its points, and makes their table and plot; see README.md.

python experiments/schedules_objectives/measure.py --runs=runs/schedules_objectives

What is trained or measured already is taken as it is, so that a stopped call goes on.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusion import evaluations, sweeps
from experiments import digits

HERE = Path(__file__).resolve().parent
SCHEDULES = {"linear_beta": "linear betas", "cosine_alpha_bar": "cosine"}
WAYS = {("ancestral", 250): "ancestral, 250 steps", ("ddim", 50): "DDIM, 50 steps"}


def measure(sweep, points, runs, jobs, num_samples):
    """Trains what is not trained, and evaluates every point in every way of drawing."""
    digits.main_py(f"--sweep={sweep}", f"--workdir={runs}", "--launch=local", f"--jobs={jobs}")
    digits.make_reference(runs)
    for point in points:
        for way in WAYS:
            digits.evaluate(runs, runs / point.name, way, point.config.seed, num_samples, ["frechet"])


def distances(points, runs, num_samples):
    """{(schedule, target, way): the distance of each seed}; ValueError for several protocols."""
    rows, found = [], {}
    for point in points:
        for way in WAYS:
            rows.append(digits.row(runs, runs / point.name, way, point.config.seed, num_samples, "frechet"))
            key = point.config.schedule.name, point.config.parameterization.name, way
            found.setdefault(key, []).append(next(iter(rows[-1]["values"].values())))
    evaluations.table(rows)
    return found


def table(found):
    """Yields its lines: a row for each schedule and target, a deviation where there are several seeds."""
    yield f"| schedule | predicts | {' | '.join(WAYS.values())} |"
    yield "|---|---|" + "---|" * len(WAYS)
    for schedule, target in dict.fromkeys(key[:2] for key in found):
        each = [found[schedule, target, way] for way in WAYS]
        cells = [f"{np.mean(n):.2f}" + (f" ± {np.std(n, ddof=1):.2f}" if len(n) > 1 else "") for n in each]
        yield f"| {SCHEDULES.get(schedule, schedule)} | {target} | {' | '.join(cells)} |"


def draw(found, file):
    """A panel for each way of drawing: the targets side by side, a mark for each seed."""
    targets = list(dict.fromkeys(target for _, target, _ in found))
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = figure.subplots(1, len(WAYS), sharey=True)
    for panel, (way, words) in zip(panels, WAYS.items(), strict=True):
        for i, schedule in enumerate(dict.fromkeys(schedule for schedule, _, _ in found)):
            marks = [(x, n) for x, target in enumerate(targets) for n in found.get((schedule, target, way), [])]
            shifted = [(x + 0.12 * (2 * i - 1), n) for x, n in marks]
            panel.plot(*zip(*shifted, strict=True), "os"[i % 2], label=SCHEDULES.get(schedule, schedule))
        panel.set(title=words, xlabel="the network predicts", xlim=(-0.5, len(targets) - 0.5))
        panel.set_xticks(range(len(targets)), targets)
        panel.grid(axis="y", alpha=0.3)
    panels[0].set(ylabel="Frechet distance", ylim=(0, 1.1 * max(max(each) for each in found.values())))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(file, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/schedules_objectives"))
    parser.add_argument("--sweep", type=Path, default=HERE / "sweep.py")
    parser.add_argument("--jobs", type=int, default=1, help="points trained at a time")
    parser.add_argument("--num_samples", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=HERE / "frechet.png")
    args = parser.parse_args()
    runs, sweep = args.runs.expanduser().resolve(), args.sweep.expanduser().resolve()
    points = sweeps.points(sweep)
    measure(sweep, points, runs, args.jobs, args.num_samples)
    found = distances(points, runs, args.num_samples)
    draw(found, args.out)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
