"""A cheap evaluation while a run is trained: few samples in few steps, so that the best checkpoint can be kept."""

import math
from typing import Any

import numpy as np

from diffusion import build, evaluations, measuring, sampling
from diffusion.commands.console import say
from diffusion.commands.measured import Measured, measured_with
from diffusion.config import switch, to_json
from diffusion.data.scaling import to_uint8
from diffusion.training.logs import Logs
from diffusion.training.state import TrainState, averaged


class Watch:
    """Measures a state's averaged parameters by the config's block `evaluation`, always with the same noise."""

    def __init__(self, run: build.Run, how: Measured) -> None:
        self._run, self._how = run, how
        block = run.config.evaluation
        self._count, self._num_steps = block.num_samples, run.at_most(block.num_steps)
        run.grid(self._num_steps)  # ValueError here, before any work

    @property
    def measured(self) -> str:
        """What two scores must share to compare, in a word."""
        protocol = self._how.protocol(self._how.metrics[0], self._count)
        sampler = to_json(self._run.config)["sampler"]
        return evaluations.protocol_hash({**protocol, "sampler": sampler, "num_steps": self._num_steps})

    def score(self, state: TrainState, step: int, logs: Logs) -> float:
        """The metric's first number, the lower the better, after a row of the log with all of them."""
        run = self._run.with_params(averaged(state))
        given: dict[str, Any] = {"seed": run.config.seed, "cond": run.cond(self._count), "num_steps": self._num_steps}
        drawn = sampling.generate(run, num_samples=self._count, **given)
        if not np.isfinite(drawn).all():
            say(f"step {step}: not evaluated, its samples are not finite")
            return math.inf
        images, chosen = to_uint8(drawn), self._how.metrics[0]
        gathered = measuring.gather([images], self._how.extractor, **measuring.needed([chosen]))
        found = measuring.numbers(chosen, gathered, self._how.against(chosen))
        way = f"{run.config.sampler.name}_{self._num_steps}_steps"
        names = {name: f"{measuring.label(name, self._how.extractor.name, self._count)}_{way}" for name in found}
        logs.scalars(step, {f"evaluation/{names[name]}": value for name, value in found.items()})
        first = next(iter(found))
        say(f"step {step}: {names[first]} = {found[first]:.4g}")
        return -found[first] if chosen.metric.higher_is_better else found[first]


def watch(run: build.Run) -> Watch | None:
    """What the config's block `evaluation` asks for, None for nothing; ValueError or OSError before any work."""
    block = run.config.evaluation
    if not block.every:
        return None
    how = measured_with(block.reference, [block.metric], None, None)
    how.check(run.shape, block.num_samples)
    if block.sampler is not None:
        run = _with_sampler(run, block.sampler)
    return Watch(run, how)


def _with_sampler(run: build.Run, name: str) -> build.Run:
    """The run with another sampler, whose options are its own defaults."""
    config = run.config.copy_and_resolve_references()
    config.sampler.update({"name": name})
    switch(config, ["sampler.name"])
    return build.rebuilt(run, config)
