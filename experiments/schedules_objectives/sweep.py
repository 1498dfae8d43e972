"""Linear betas or the cosine schedule, and a network that predicts eps, x_0 or v: six runs of digits for each seed.

python main.py --sweep=experiments/schedules_objectives/sweep.py --list
"""

SEEDS = (0,)
SCHEDULES = ("linear_beta", "cosine_alpha_bar")
TARGETS = ("eps", "x_0", "v")


def sweep(add):
    for seed in SEEDS:  # outermost, so that another seed comes behind the points that are there
        for schedule in SCHEDULES:
            for target in TARGETS:
                add(
                    "configs/ddpm_digits.py",
                    {"schedule.name": schedule, "parameterization.name": target, "seed": seed},
                )
