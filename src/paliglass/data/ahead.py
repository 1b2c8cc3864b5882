"""Pictures read in threads while the model runs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

__all__ = ["reading_threads", "work_ahead"]

T = TypeVar("T")
R = TypeVar("R")

MAX_THREADS = 8  # that read pictures; more would seldom be faster, and each holds a whole picture


def reading_threads() -> int:
    """As many as this machine has cores, within reason."""
    return min(os.cpu_count() or 1, MAX_THREADS)


def work_ahead(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], count: int
) -> Iterator[tuple[T, Future[R]]]:
    """Each item with function(item), in order; `count` more are under way in the pool, or done.

    No more than that, so that memory stays flat however many items there are.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
