"""How the C library hands memory out on a CPU."""

import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next ones, where this process uses glibc.

    By default blocks of megabytes go back to the system as soon as they are free and come back as untouched pages,
    which slows the next forward pass: the 1M-parameter model decoded 1.5 times slower on two cores. Glibc raises its
    threshold when a large block is freed, so that speed also depended on what the process had computed before.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # not glibc
    mallopt(M_MMAP_THRESHOLD, 2**25)  # its largest value
    mallopt(M_TRIM_THRESHOLD, 2**30)
