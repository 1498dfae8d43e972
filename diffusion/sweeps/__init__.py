"""Sweeps: many runs written down in one file, `experiments/<question>/sweep.py`, each a pure function of its index.

    def sweep(add):
        for seed in (0, 1, 2):
            for schedule in ("linear_beta", "cosine_alpha_bar"):
                add("configs/ddpm_digits.py", {"schedule.name": schedule, "seed": seed})

Products are plain loops. What changes last in the indices stands outermost, so that more seeds come behind the points
that are there. Point k is the k-th call of `add`, its folder is named by k, and its command is

    python main.py --sweep=experiments/<question>/sweep.py --index=k

Nobody needs to be told of the others: an array job or a loop over machines is a launcher already. `points` reads the
file, `folders` says how far a point is, `local` and `slurm` start many.
"""

from diffusion.sweeps.points import Point, points

__all__ = ["Point", "points"]
