"""A cheap evaluation while a run is trained: few samples in few steps, so that the best checkpoint can be kept."""

import dataclasses
import math
from typing import Any

import numpy as np

from diffusion import build, evaluations, measuring, sampling
from diffusion.commands.console import say
from diffusion.commands.measured import Measured, measured_with
from diffusion.config import switch, to_json
from diffusion.data.scaling import to_uint8
from diffusion.training.logs import Logs
from diffusion.training.state import TrainState


class Watch:
    """Measures a state's averaged parameters by the config's block `evaluation`, always with the same noise."""

    def __init__(self, run: build.Run, how: Measured) -> None:
        self._run, self._how = run, how
        block, chain = run.config.evaluation, run.schedule.num_steps
        self._count = block.num_samples
        self._num_steps = block.num_steps if chain is None else min(block.num_steps, chain)

    @property
    def measured(self) -> str:
        """What two scores must share to compare, in a word."""
        protocol = self._how.protocol(self._how.metrics[0], self._count)
        sampler = to_json(self._run.config)["sampler"]
        return evaluations.protocol_hash({**protocol, "sampler": sampler, "num_steps": self._num_steps})

    def score(self, state: TrainState, step: int, logs: Logs) -> float:
        """The metric's first number, the lower the better, after a row of the log with all of them."""
        run = self._run.with_params(next(iter(state.ema.values())))
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
    run.grid(block.num_steps if run.schedule.num_steps is None else min(block.num_steps, run.schedule.num_steps))
    return Watch(run, how)


def _with_sampler(run: build.Run, name: str) -> build.Run:
    """The run with another sampler, whose options are its own defaults."""
    config = run.config.copy_and_resolve_references()
    config.sampler.update({"name": name})
    switch(config, ["sampler.name"])
    other = build.build(config, run.facts)
    assert isinstance(other, build.Run)
    return dataclasses.replace(other, dataset=run.dataset)
