"""Tables and a plot of what digits.py and mixture.py measured; see README.md beside this file.

python experiments/sampler_nfe/plot.py --digits=runs/digits/sampler_nfe.jsonl --mixture=runs/mixture_nfe.jsonl
"""

import argparse
import sys
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.sampler_nfe.results import Results
from experiments.sampler_nfe.solvers import EVALUATIONS, SOLVERS

HERE = Path(__file__).parent
MEASURES = {"digits": ("Frechet distance", 2), "mixture": ("sliced Wasserstein distance", 3)}
STOCHASTIC = ("ancestral", "euler_maruyama", "heun, churn", "dpmpp_sde", "predictor_corrector", "annealed_langevin")


def curves(rows):
    """(solver, grid) -> {evaluations: distance}, in the order of SOLVERS."""
    found = {}
    for solver in SOLVERS:
        for row in rows:
            if row["solver"] == solver.name:
                found.setdefault((solver.name, row["grid"]), {})[row["evaluations"]] = row["distance"]
    return found


def print_table(rows, digits):
    print("| solver | grid | " + " | ".join(map(str, EVALUATIONS)) + " |")
    print("|---|---|" + "---|" * len(EVALUATIONS))
    for (solver, grid), curve in curves(rows).items():
        cells = [f"{curve[n]:.{digits}f}" if n in curve else "" for n in EVALUATIONS]
        print(f"| {solver} | {grid} | " + " | ".join(cells) + " |")
    print()


def draw(panel, rows, label):
    """The better grid of each solver."""
    best = {}
    for (solver, _), curve in curves(rows).items():
        for n, distance in curve.items():
            best.setdefault(solver, {})[n] = min(distance, best.get(solver, {}).get(n, distance))
    for i, (solver, curve) in enumerate(best.items()):
        numbers = sorted(curve)
        style = "--" if solver.startswith(STOCHASTIC) else "-"
        color = colormaps["tab20"](i)
        panel.plot(numbers, [curve[n] for n in numbers], style, color=color, marker="o", markersize=3, label=solver)
    panel.set(xscale="log", yscale="log", xlabel="evaluations of the denoiser", ylabel=label)
    panel.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
    panel.grid(alpha=0.3)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in MEASURES:
        parser.add_argument(f"--{name}", default=HERE / f"{name}.jsonl", type=Path)
    parser.add_argument("--out", default=HERE / "nfe.png", type=Path)
    args = parser.parse_args()
    figure = Figure(figsize=(13, 5), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, (name, (label, digits)) in zip(panels, MEASURES.items(), strict=True):
        rows = Results(getattr(args, name)).rows
        print(f"{name}: {label}")
        print_table(rows, digits)
        draw(panel, rows, label)
        panel.set_title(name)
    panels[0].set_ylim(0.4, 30)
    panels[1].set_ylim(0.01, 3)
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
