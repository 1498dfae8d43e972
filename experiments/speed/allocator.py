"""Keep freed memory in the process, so that XLA's workspace is not mapped afresh at every step (Linux, glibc).

XLA allocates a program's whole workspace at each call and frees it after; glibc gives blocks of that size back to
the kernel at once. The next call then touches new pages, hundreds of thousands of them, which the kernel has to
clear one by one. Kept in the heap, the workspace costs nothing from the second or third call on. The price: the
process keeps its peak memory.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # from glibc's malloc.h; see mallopt(3)


def keep_freed_memory() -> bool:
    """True where it could be done. To be called before JAX (or PyTorch) starts its threads."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    # one heap for all threads (only the main one grows without bound), no separate mappings, no shrinking
    return bool(mallopt(M_ARENA_MAX, 1) and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
