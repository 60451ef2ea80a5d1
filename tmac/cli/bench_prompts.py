"""Three short texts to go on with: prose, code, and a file that is to be written once more with a small change."""

from __future__ import annotations

PROSE = """\
The lighthouse keeper had two clocks, and they had never agreed. The one in the kitchen was a present from his \
sister and lost four minutes a day; the one at the top of the stairs belonged to the harbour office, and \
nobody had dared to touch it since the winter of the great storm. When the supply boat came on Tuesdays he \
asked its captain for the time, set neither of them, and wrote all three into his book. Over the years the \
book had become the only record of how slowly the kitchen clock was dying.

One evening in October the lamp went out at a time on which, for once, both clocks agreed. He climbed the \
stairs, counting as he always did, and at the one hundred and twelfth step he heard"""

CODE = '''\
"""A queue of jobs with priorities, for one machine."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(order=True)
class Job:
    """Something to do. Jobs of one priority run in the order in which they came."""

    priority: int
    number: int
    action: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)


class JobQueue:
    """Runs jobs, the most urgent first. Every method may be called from every thread."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False

    def add(self, action: Callable[[], None], priority: int = 0) -> Job:
        """Queues a job and wakes a worker."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the queue is closed")
            job = Job(priority, next(self._numbers), action)
            heapq.heappush(self._jobs, job)
            self._changed.notify()
            return job

    def cancel(self, job: Job) -> bool:
        """Takes a job out, unless it has begun."""
'''

COPY = '''\
Here is the file settings.py:

```python
DEFAULTS = {
    "host": "127.0.0.1",
    "port": 8080,
    "workers": 4,
    "log_level": "info",
    "cache_folder": "/var/cache/app",
    "request_timeout": 30.0,
    "max_body_bytes": 1048576,
    "allowed_origins": [],
}


def load_settings(path):
    """Reads a file of KEY=VALUE lines over the defaults."""
    settings = dict(DEFAULTS)
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            key, found, value = line.partition("=")
            if not found or key not in DEFAULTS:
                raise ValueError(f"{path}:{number}: unknown setting {key!r}")
            settings[key] = type(DEFAULTS[key])(value)
    return settings
```

And here is the whole file settings.py again, with the port changed from 8080 to 9090 and nothing else changed:

```python
'''

PROMPTS = {"prose": PROSE, "code": CODE, "copy": COPY}
