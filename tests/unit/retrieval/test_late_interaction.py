"""MaxSim is what it is in a plain loop, and what follows from that."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from paliglass.retrieval.modeling_colpali import late_interaction

SIZES = st.tuples(*(st.integers(1, high) for high in (6, 5, 9, 8)))  # Q, N, T, D


def vectors(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


@given(SIZES, st.integers(0, 2**31))
def test_a_plain_loop_gives_the_same(sizes: tuple[int, int, int, int], seed: int) -> None:
    q, n, t, d = sizes
    query, pages = vectors(seed, q, d), vectors(seed + 1, n, t, d)
    scores = late_interaction(query, pages)
    assert scores.shape == (n,)
    for score, page in zip(scores.tolist(), pages.tolist(), strict=True):
        expected = 0.0
        for word in query.tolist():
            expected += max(sum(a * b for a, b in zip(word, token, strict=True)) for token in page)
        assert abs(score - expected) < 1e-5


@given(SIZES, st.integers(0, 2**31))
def test_neither_order_of_tokens_nor_a_repeated_one_matters(
    sizes: tuple[int, int, int, int], seed: int
) -> None:
    q, n, t, d = sizes
    query, pages = vectors(seed, q, d), vectors(seed + 1, n, t, d)
    generator = torch.Generator().manual_seed(seed)
    again = torch.cat((pages[:, torch.randperm(t, generator=generator)], pages[:, :1]), dim=1)
    other = query[torch.randperm(q, generator=generator)]
    torch.testing.assert_close(late_interaction(other, again), late_interaction(query, pages))


def test_a_page_that_holds_the_query_has_all_of_it() -> None:
    query = vectors(0, 7, 16)
    pages = torch.stack((torch.cat((query, vectors(1, 3, 16))), vectors(2, 10, 16)))
    whole, part = late_interaction(query, pages).tolist()
    assert abs(whole - 7) < 1e-5
    assert part < 7
