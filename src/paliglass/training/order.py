"""Which rows a step sees: from its number and the seed alone, so a resumed run needs no state."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from paliglass.errors import PaliglassError


def batch_indices(
    count: int | None, batch_size: int, seed: int, first: int, last: int
) -> Iterator[list[int]]:
    """Which pairs batches `first` … `last` − 1 hold.

    A source of `count` pairs is shuffled anew for each pass over it, by (seed, pass); what does not
    fill a batch sits that pass out. An endless source is read straight on.

    Raises PaliglassError where there are fewer pairs than a batch.
    """
    if count is None:
        for batch in range(first, last):
            yield list(range(batch * batch_size, (batch + 1) * batch_size))
        return
    per_pass = count // batch_size
    if not per_pass:
        raise PaliglassError(
            f"{count} pairs do not fill a batch of {batch_size}; choose a smaller --batch-size"
        )
    order: NDArray[np.int64] = np.empty(0, np.int64)
    shuffled = -1
    for batch in range(first, last):
        number, place = divmod(batch, per_pass)
        if number != shuffled:
            order, shuffled = np.random.default_rng((seed, number)).permutation(count), number
        yield order[place * batch_size : (place + 1) * batch_size].tolist()
