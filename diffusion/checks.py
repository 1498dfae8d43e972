"""Numbers of a config that no run can have, told before anything is built or a sweep begins."""

from typing import Any

SEEDS = 2**32
"""JAX makes a random key of 32 bits of the seed."""


def check_numbers(config: Any) -> None:
    """ValueError for a seed that is none, and for numbers of steps, images or samples that are none.

    config: of the blocks of `config.DEFAULTS`.
    """
    training, evaluation, logging = config.training, config.evaluation, config.logging
    if isinstance(config.seed, bool) or not 0 <= config.seed < SEEDS:
        raise ValueError(f"seed is {config.seed}; expected a whole number of 0 or more, at most {SEEDS - 1}.")
    for name in ("num_steps", "batch_size", "microbatches", "log_every", "checkpoint_every", "keep_checkpoints"):
        if training[name] is None or isinstance(training[name], bool) or training[name] < 1:
            raise ValueError(f"training.{name} is {training[name]}, expected a whole number of at least 1.")
    if training.sample_every < 0:
        raise ValueError(f"training.sample_every is {training.sample_every}, expected 0 (no grids) or more.")
    _check_dispatch(training, evaluation.every)
    if evaluation.every < 0 or evaluation.num_samples < 2 or evaluation.num_steps < 1:
        raise ValueError(
            f"got evaluation.every={evaluation.every}, num_samples={evaluation.num_samples}, "
            f"num_steps={evaluation.num_steps}; expected 0 (never) or more, at least 2, at least 1."
        )
    for name, value in {"num_samples": logging.num_samples, "sample_steps": logging.sample_steps}.items():
        if value is not None and value < 1:
            raise ValueError(f"logging.{name} is {value}, expected a whole number of at least 1.")


def _check_dispatch(training: Any, evaluated_every: int) -> None:
    """ValueError where something is to happen in the middle of a dispatch, between whose updates nothing can."""
    updates = training.steps_per_dispatch
    if updates < 1:
        raise ValueError(f"training.steps_per_dispatch is {updates}, expected 1 or more updates in one program.")
    named = {f"training.{name}": training[name] for name in ("num_steps", "log_every", "checkpoint_every")}
    named |= {"training.sample_every": training.sample_every, "evaluation.every": evaluated_every}
    apart = [f"{name}={value}" for name, value in named.items() if value % updates]
    if apart:
        raise ValueError(
            f"training.steps_per_dispatch is {updates}, and nothing happens between the steps of a dispatch, but it "
            f"does not divide {', '.join(apart)}. Use multiples of {updates}, or steps_per_dispatch=1."
        )
