"""What experiments on digits share: `main.py` as a command, the reference, evaluations and their rows.

Imported after the project's root is on sys.path.
"""

import subprocess
import sys
from pathlib import Path

from diffusion import evaluations, measuring, references

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "--config=configs/ddpm_digits.py"


def main_py(*flags):
    subprocess.run([sys.executable, ROOT / "main.py", *map(str, flags)], check=True, cwd=ROOT)


def make_reference(runs):
    """Trains the features in runs/features_digits, and sums up the training set in runs/reference."""
    guide = runs / "features_digits"
    main_py("--config=configs/features_digits.py", f"--workdir={guide}")
    main_py("--mode=ref_stats", CONFIG, f"--workdir={runs / 'reference'}", "--features=guide", f"--weights={guide}")


def evaluate(runs, folder, way, seed, num_samples, metrics):
    """Measures the run in the folder against runs/reference. way: (sampler, number of steps)."""
    asked = [f"--reference={runs / 'reference'}", f"--num_samples={num_samples}", f"--seed={seed}"]
    drawn = [f"--sampler={way[0]}", f"--num_steps={way[1]}"]
    main_py("--mode=evaluate", f"--workdir={folder}", *asked, *drawn, *(f"--metric={metric}" for metric in metrics))


def row(runs, folder, way, seed, num_samples, metric):
    """The one row of that evaluation, against the reference as it is; ValueError for none or several."""
    reference = references.read(runs / "reference").hash
    wanted = (*way, seed, num_samples, dict(measuring.choose(metric).options), reference)
    found = [row for row in evaluations.read(folder) if _facts(row) == wanted]
    if len(found) != 1:
        raise ValueError(f"{folder}: {len(found)} rows for {wanted}, expected 1. Delete what is too much.")
    return found[0]


def _facts(row):
    protocol = row["protocol"]
    drawn = (row["sampler"]["name"], row["num_steps"], row["seed"], protocol["num_samples"])
    return *drawn, protocol["metric"], (protocol["reference"] or {}).get("sha256")
