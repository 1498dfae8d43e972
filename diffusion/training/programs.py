"""A training's programs, compiled ahead.

One dispatch is one program, but for single updates on CPUs, where it is two: the gradient, and the move that the state
makes along it. XLA's compiler for CPUs has one thread for most of its work, and some of that grows faster than the
program does, so two are compiled side by side in less time than one. What the gradient and the move could share is
little. Elsewhere a program of its own would hold the gradient in memory beside all activations.
"""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh

from diffusion import devices
from diffusion.training.costs import Memory, memory
from diffusion.training.recall import Recall
from diffusion.training.state import TrainState, num_bytes_each, num_elements, shardings
from diffusion.training.step import TrainStep, compile_step

LARGE = 10_000_000
"""Parameters from which on a step is two programs. Below, the hand-over between them is felt and little is compiled."""

Arguments = tuple[TrainState, Any, Any, Any]
"""(state, rows, key, held): arrays, or their shapes and dtypes, for the state with shardings."""


def compiled(
    step: TrainStep, mesh: Mesh, given: Arguments, *, read: Callable[[Any, Any], Any], updates: int = 1, name: str = ""
) -> "One | Two":
    """program(state, rows, key, held) -> (state, metrics), as `compile_step` has it, ready to run.

    name: under which it is kept for the next time (`recall.Recall`).
    """
    large = num_elements(given[0].params) >= LARGE
    if large and updates == 1 and jax.default_backend() == "cpu":
        return _two(step, mesh, given, read, name)
    last = Recall(name, mesh)
    return One(last.compiled(compile_step(step, mesh, given[0], read=read, updates=updates).trace(*given).lower()))


@dataclasses.dataclass(frozen=True)
class One:
    """A dispatch that is one program."""

    program: Any

    def __call__(self, *given: Any) -> tuple[TrainState, Any]:
        return self.program(*given)

    def memory(self, ahead: int) -> Memory | None:
        """What it takes on one device; ahead: of `costs.memory`."""
        return memory(self.program, ahead)


@dataclasses.dataclass(frozen=True)
class Two:
    """A dispatch that is two programs, one update.

    idle: the bytes of the state on one device that the gradient does not ask for.
    """

    gradient: Any
    move: Any
    idle: int

    def __call__(self, state: TrainState, rows: Any, key: jax.Array, held: Any) -> tuple[TrainState, Any]:
        return self.move(state, *self.gradient(_asked(state), rows, key, held))

    def memory(self, ahead: int) -> Memory | None:
        """What both take on one device, all arguments and the gradient being there from begin to end."""
        first, second = memory(self.gradient), memory(self.move)
        if first is None or second is None:
            return None
        temporary = max(first.temporary, second.results + second.temporary)
        return Memory(first.arguments + self.idle, first.results, temporary, ahead)


def _asked(state: TrainState) -> TrainState:
    """What the gradient asks of a state."""
    return state._replace(opt_state=None, ema={})


def _two(step: TrainStep, mesh: Mesh, given: Arguments, read: Callable[[Any, Any], Any], name: str) -> Two:
    def gradient(state: TrainState, rows: Any, key: jax.Array, held: Any) -> Any:
        return step.of_batch(state, read(held, rows), key)

    def move(state: TrainState, grads: Any, metrics: Any) -> Any:
        state, metrics = step.move(state, grads, metrics)
        return state, jax.tree.map(lambda value: value[None], metrics)

    last_gradient, last_move = (Recall(f"{part} of {name}", mesh) for part in ("gradient", "move"))
    state, everywhere = shardings(given[0], mesh), devices.replicated(mesh)
    asked = (_asked(state), devices.split(mesh), everywhere, everywhere)
    first = jax.jit(gradient, keep_unused=True, in_shardings=asked, out_shardings=(state.params, everywhere))
    traced = first.trace(_asked(given[0]), *given[1:])
    with ThreadPoolExecutor(1) as beside:
        compiling = beside.submit(last_gradient.compiled, traced.lower())
        second = jax.jit(
            move,
            donate_argnums=0,
            keep_unused=True,
            in_shardings=(state, state.params, everywhere),
            out_shardings=(state, everywhere),
        )
        moving = last_move.compiled(second.trace(given[0], *traced.out_info).lower())
        return Two(compiling.result(), moving, num_bytes_each((given[0].opt_state, given[0].ema)))
