"""The training loop: fetch a batch, step, let the hooks look."""

import collections
import contextlib
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any

import jax
from jax.sharding import Mesh

from diffusion import devices
from diffusion.training.state import TrainState

Hook = Callable[[TrainState, int, dict[str, Any], bool], None]
"""hook(state, step, metrics, last): called after every update; the metrics are still on the devices, and
`last` says that no further update follows."""

IN_FLIGHT = 8
"""Updates dispatched ahead of the devices; some tens deadlock virtual CPU devices, and few already hide the host."""


def fit(
    step: Callable[..., tuple[TrainState, dict[str, Any]]],
    state: TrainState,
    dataset: Any,
    *,
    key: jax.Array,
    num_steps: int,
    mesh: Mesh,
    hooks: Sequence[Hook] = (),
) -> TrainState:
    """The state after num_steps updates in all, or earlier if SIGTERM or Ctrl-C asks to stop.

    step: the compiled train step. dataset[i]: this process's rows of batch i, a pure function of i.
    Starts from state.step, so a restored state continues where it was. A second Ctrl-C stops at once.
    """
    waiting: collections.deque[Any] = collections.deque()
    steps = range(int(state.step), num_steps)
    with stop_signals() as stop, contextlib.closing(read_ahead(dataset, steps)) as batches:
        for i, rows in zip(steps, batches, strict=True):
            batch = devices.from_local_rows(rows, mesh)
            state, metrics = step(state, batch, key)
            waiting.append(metrics)
            if len(waiting) > IN_FLIGHT:
                jax.block_until_ready(waiting.popleft())
            last = i + 1 == num_steps or stop.wanted(i)
            for hook in hooks:
                hook(state, i + 1, metrics, last)
            if last:
                break
    return state


def read_ahead(dataset: Any, steps: Iterable[int], ahead: int = 2) -> Generator[Any]:
    """dataset[i] for each step in order, fetched in a thread while the steps before are computed."""
    pending: collections.deque[Future[Any]] = collections.deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as reader:
        try:
            for i in steps:
                pending.append(reader.submit(dataset.__getitem__, i))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            reader.shutdown(cancel_futures=True)


class Stop:
    """Whether a signal has asked to stop."""

    received = False

    def wanted(self, step: int) -> bool:
        """True when the run is to stop after this step; several processes agree on it every IN_FLIGHT steps."""
        if jax.process_count() == 1:
            return self.received
        return step % IN_FLIGHT == 0 and devices.any_process(self.received)


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turns SIGTERM and the first Ctrl-C into a request to finish the current step.

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
