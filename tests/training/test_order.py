"""The order of examples follows from seed and step alone, and is shared without a remainder."""

from __future__ import annotations

from itertools import chain, islice

import pytest

from paliglass.errors import PaliglassError
from paliglass.training.order import batch_indices, share_of


def test_each_pass_shuffles_anew_and_repeats_nothing() -> None:
    order = list(batch_indices(7, 2, 0, 0, 6))
    first, second = (list(chain.from_iterable(order[i : i + 3])) for i in (0, 3))
    assert len(set(first)) == len(set(second)) == 6
    assert first != second
    assert list(batch_indices(7, 2, 1, 0, 3)) != order[:3]


def test_the_order_follows_from_the_step_alone() -> None:
    order = list(batch_indices(7, 2, 5, 0, 9))
    for first in range(9):
        assert list(batch_indices(7, 2, 5, first, 9)) == order[first:]
    assert list(batch_indices(None, 3, 5, 2, 4)) == [[6, 7, 8], [9, 10, 11]]


def test_too_few_examples_for_a_batch_are_an_error() -> None:
    with pytest.raises(PaliglassError, match="3 examples do not fill a batch of 4"):
        next(batch_indices(3, 4, 0, 0, 1))


def test_there_may_be_no_end() -> None:
    endless = batch_indices(7, 2, 5, 3, None)
    assert list(islice(endless, 4)) == list(batch_indices(7, 2, 5, 3, 7))


def test_processes_and_parts_share_each_batch_without_a_remainder() -> None:
    steps = [list(range(12)), list(range(12, 24))]
    shares = [list(share_of(steps, process, 2, parts=3)) for process in range(2)]
    assert shares[0] == [[0, 1], [4, 5], [8, 9], [12, 13], [16, 17], [20, 21]]
    assert sorted(chain(*chain(*shares))) == list(range(24))
    assert list(share_of(steps, 0, 1)) == steps
