"""Which rows a step sees: from its number and the seed alone, so a resumed run needs no state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count as numbers

import numpy as np
from numpy.typing import NDArray

from paliglass.training.recipes import require_batch

__all__ = ["batch_indices", "share_of"]


def batch_indices(
    count: int | None, batch_size: int, seed: int, first: int, last: int | None
) -> Iterator[list[int]]:
    """Which examples batches `first` … `last` − 1 hold; last: None for no end.

    A source of `count` examples is shuffled anew for each pass over it, by (seed, pass); what does
    not fill a batch sits that pass out. An endless source (count None) is read straight on.

    Raises PaliglassError where there are fewer examples than a batch.
    """
    batches = numbers(first) if last is None else range(first, last)
    if count is None:
        for batch in batches:
            yield list(range(batch * batch_size, (batch + 1) * batch_size))
        return
    require_batch(count, batch_size)
    per_pass = count // batch_size
    order: NDArray[np.int64] = np.empty(0, np.int64)
    shuffled = -1
    for batch in batches:
        number, place = divmod(batch, per_pass)
        if number != shuffled:
            order, shuffled = np.random.default_rng((seed, number)).permutation(count), number
        yield order[place * batch_size : (place + 1) * batch_size].tolist()


def share_of(
    batches: Iterable[list[int]], process: int, processes: int, parts: int = 1
) -> Iterator[list[int]]:
    """What one of several processes takes of each batch, one after the other of its `parts`."""
    for batch in batches:
        rows = len(batch) // (parts * processes)
        for part in range(parts):
            first = (part * processes + process) * rows
            yield batch[first : first + rows]
