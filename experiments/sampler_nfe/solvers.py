"""Every solver, with the number of steps that a number of network evaluations buys it.

Euler without churn is DDIM (`tests/sampling`), and so is left out.
"""

from dataclasses import dataclass

from diffusion import sampling
from diffusion.sampling.sampler import Sampler

EVALUATIONS = (5, 10, 20, 50, 100, 250, 1000)


@dataclass(frozen=True)
class Solver:
    name: str
    sampler: Sampler

    def num_steps(self, evaluations):
        """The most steps that cost no more than these evaluations; 0 if not even one does."""
        steps = range(evaluations, 0, -1)
        return next((n for n in steps if self.sampler.nfe(n) <= evaluations), 0)


SOLVERS = [
    Solver("ancestral", sampling.ancestral()),
    Solver("ancestral, small variance", sampling.ancestral("small")),
    Solver("ddim", sampling.ddim()),
    Solver("euler_maruyama", sampling.euler_maruyama()),
    Solver("heun", sampling.heun()),
    Solver("heun, churn 40", sampling.heun(churn=40.0)),
    Solver("dpmpp_2s", sampling.dpmpp_2s()),
    Solver("dpmpp_2m", sampling.dpmpp_2m()),
    Solver("dpmpp_3m", sampling.dpmpp_3m()),
    Solver("dpmpp_sde", sampling.dpmpp_sde()),
    Solver("unipc", sampling.unipc()),
    Solver("predictor_corrector", sampling.predictor_corrector()),
    Solver("annealed_langevin, 2 moves", sampling.annealed_langevin(moves=2)),
]


def grids(schedule, num_steps):
    """The two grids that are compared, by name; with a quarter of a chain's steps or more they are nearly the same."""
    found = {"strided": sampling.strided(schedule, num_steps)}
    if num_steps < schedule.num_steps / 4:
        found["uniform_log_snr"] = sampling.uniform_log_snr(schedule, num_steps, log_snr_max=6.0)
    return found


def measure(results, schedule, distance, evaluations=EVALUATIONS, **facts):
    """Adds a row for each solver and grid that has none yet; distance(sampler, steps) samples and measures."""
    for budget in evaluations:
        for solver in SOLVERS:
            num_steps = solver.num_steps(budget)
            for grid, steps in grids(schedule, num_steps).items() if num_steps > 1 else ():
                key = {"solver": solver.name, "grid": grid, "evaluations": budget, **facts}
                if not results.has(**key):
                    steps = sampling.prepare(schedule, steps, solver.sampler)
                    results.add(**key, steps=num_steps, distance=distance(solver.sampler, steps))
