"""Several processes of one job as threads, which meet where devices.py has processes speak to each other."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.experimental import multihost_utils


def as_processes(monkeypatch, count, function):
    """function(i) as process i of so many, all at once: what each returned, or the exception that it raised.

    A process that waits for one that does not come gets a BrokenBarrierError, after seconds.
    """
    own, board, barrier = threading.local(), [None] * count, threading.Barrier(count)

    def exchanged(value):
        board[own.index] = np.asarray(value)
        barrier.wait(timeout=20)
        values = list(board)
        barrier.wait(timeout=20)
        assert len({(value.shape, value.dtype) for value in values}) == 1
        return values

    def process(index):
        own.index = index
        try:
            return function(index)
        except Exception as error:
            return error

    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: count if hasattr(own, "index") else 1)
        patch.setattr(jax, "process_index", lambda: getattr(own, "index", 0))
        patch.setattr(multihost_utils, "process_allgather", lambda value: np.stack(exchanged(value)))
        patch.setattr(multihost_utils, "broadcast_one_to_all", lambda value: exchanged(value)[0])
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(process, range(count)))
