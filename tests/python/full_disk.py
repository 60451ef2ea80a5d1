"""Files that cannot grow, as on a disk that is full."""

import resource
from contextlib import contextmanager


@contextmanager
def small_files(nbytes):
    """No file that this process writes can be larger: a write beyond fails with an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
