"""Threads for compiled functions: all run the same one, and sleep in between.

torch's own threads spin for a while after each product, on cores that these need; these sleep on a
lock, and while they wait for each other in a function they soon offer their core to others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

Entry = Callable[[int, int, int, int], None]  # a compiled function; it runs without the GIL


LINE = 64  # bytes of a cache line
COUNTERS = 4096
WORTH_A_THREAD = 1 << 21  # bytes of weights, which one thread reads in 0.1 ms


class Team:
    """`threads` threads, the caller among them. One function runs at a time; other callers wait."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._busy = threading.Lock()
        self._starts = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._job: tuple[Entry, int, int] | None = None
        memory = np.zeros(LINE * (COUNTERS + 2), dtype=np.uint8)
        skipped = -memory.ctypes.data % LINE
        self._counters = memory[skipped : skipped + LINE * (COUNTERS + 1)].view(np.int64)
        self._sync = self._counters.ctypes.data
        for i, start in enumerate(self._starts):
            threading.Thread(target=self._work, args=(i + 1, start), daemon=True).start()

    def run(self, function: Entry, counters: int, job: NDArray[np.int64], nbytes: int) -> None:
        """Calls function(thread, threads, sync, address of job) on some threads.

        counters: how many the function takes tasks from; they start at 0. It must end with all
        threads waiting for each other. nbytes: of weights that it reads: few are not worth waking
        others for.
        """
        threads = max(1, min(self.threads, nbytes // WORTH_A_THREAD))
        with self._busy:
            self._counters[1] = self._counters[0]  # where counting begins
            self._counters[LINE // 8 : LINE // 8 * (counters + 1)] = 0
            self._job = function, threads, job.ctypes.data
            for start in self._starts[: threads - 1]:
                start.release()
            function(0, threads, self._sync, job.ctypes.data)

    def _work(self, thread: int, start: threading.Semaphore) -> None:
        while True:
            start.acquire()
            assert self._job is not None
            function, threads, job = self._job
            function(thread, threads, self._sync, job)


_teams: dict[tuple[int, int], Team] = {}


def team() -> Team:
    """The process's threads, as many as torch has; made anew after a fork, which copies none."""
    key = os.getpid(), torch.get_num_threads()
    if key not in _teams:
        _teams[key] = Team(key[1])
    return _teams[key]
