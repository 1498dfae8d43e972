"""The training loop: fetch a batch, step, let the hooks look."""

import collections
import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import jax
from jax.sharding import Mesh

from diffusion import devices
from diffusion.training.feed import Feed
from diffusion.training.state import TrainState

Hook = Callable[[TrainState, int, dict[str, Any], bool], None]
"""hook(state, step, metrics, last): called after every dispatch, when `step` updates are done in all. The metrics,
[updates of the dispatch, ...], are still on the devices; `last` says that no further update follows."""

IN_FLIGHT = 8
"""Updates dispatched ahead of the devices; some tens deadlock virtual CPU devices, and few already hide the host."""


def in_flight(updates: int) -> int:
    """Dispatches of so many updates that may wait for the devices: few, so that a signal is soon answered."""
    return max(2, IN_FLIGHT // updates)


def fit(
    step: Callable[..., tuple[TrainState, dict[str, Any]]],
    state: TrainState,
    feed: Feed,
    *,
    key: jax.Array,
    num_steps: int,
    mesh: Mesh,
    updates: int = 1,
    hooks: Sequence[Hook] = (),
    stop: "Stop | None" = None,
) -> TrainState:
    """The state after num_steps updates in all, or earlier if `stop` (of `stop_signals`) is asked for.

    step: the compiled program of so many updates, of which state.step and num_steps are multiples.
    Starts from state.step, so a restored state continues where it was; at least one dispatch is done.
    """
    waiting: collections.deque[Any] = collections.deque()
    held = devices.put(feed.held, devices.replicated(mesh))
    starts = range(int(state.step), num_steps, updates)
    batches = feed.ahead(starts.start, num_steps, mesh, stacked=updates)
    stop = stop or Stop()
    with contextlib.closing(batches):
        for i, rows in zip(starts, batches, strict=True):
            state, metrics = step(state, rows, key, held)
            waiting.append(metrics)
            if len(waiting) > in_flight(updates):
                jax.block_until_ready(waiting.popleft())
            done = i + updates
            last = done == num_steps or stop.wanted(i // updates, every=in_flight(updates))
            for hook in hooks:
                hook(state, done, metrics, last)
            if last:
                break
    return state


class Stop:
    """Whether a signal has asked to stop."""

    received = False

    def wanted(self, dispatch: int, every: int) -> bool:
        """True when the run is to stop after this one; several processes agree on it in every so many."""
        if jax.process_count() == 1:
            return self.received
        return dispatch % every == 0 and devices.any_process(self.received)


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turns SIGTERM and the first Ctrl-C into a request to finish the current step; a second Ctrl-C stops at once.

    Outside the main thread, where Python takes no signal handlers, it asks for nothing.
    """
    stop = Stop()

    def request(number: int, frame: FrameType | None) -> None:
        stop.received = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
