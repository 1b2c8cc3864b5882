"""Logits to tokens: what may be chosen, how often, and with which log-probability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paliglass.sampling import Sampling, choose, draw, keep_top_k, keep_top_p

PROBABILITIES = torch.tensor([[0.1, 0.5, 0.25, 0.15]])
LOGITS = PROBABILITIES.log() + 7  # unnormalised


def chosen(logits: Tensor, sampling: Sampling, seed: int = 0) -> tuple[Tensor, Tensor]:
    generators = [np.random.default_rng((seed, row)) for row in range(len(logits))]
    return choose(logits, [sampling] * len(logits), generators)


def kept(logits: Tensor) -> list[int]:
    return logits[0].isfinite().nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (2, [1, 2]), (4, [0, 1, 2, 3]), (99, 4)])
def test_top_k_keeps_the_k_likeliest(k: int, expected: list[int] | int) -> None:
    found = kept(keep_top_k(LOGITS, k))
    assert found == (list(range(expected)) if isinstance(expected, int) else expected)


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.001, [1]), (0.49, [1]), (0.51, [1, 2]), (0.74, [1, 2]), (0.76, [1, 2, 3]), (1.0, 4)],
)
def test_top_p_keeps_the_fewest_that_reach_p(p: float, expected: list[int] | int) -> None:
    found = kept(keep_top_p(LOGITS, p))
    assert found == (list(range(expected)) if isinstance(expected, int) else expected)


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20),
    st.floats(0.01, 1),
    st.integers(1, 20),
)
def test_filters_keep_something_and_change_nothing_they_keep(
    values: list[float], p: float, k: int
) -> None:
    logits = torch.tensor([values])
    for filtered in (keep_top_p(logits, p), keep_top_k(logits, k)):
        is_kept = filtered.isfinite()
        assert logits[is_kept].max() == logits.max()
        assert torch.equal(filtered[is_kept], logits[is_kept])
        if not is_kept.all():
            assert logits[is_kept].min() >= logits[~is_kept].max()


def test_rows_are_filtered_apart() -> None:
    logits = torch.stack([LOGITS[0], LOGITS[0].flip(0)])
    assert keep_top_k(logits, 1).isfinite().tolist() == [
        [False, True, False, False],
        [False, False, True, False],
    ]
    assert torch.equal(keep_top_p(logits, 0.6)[1], keep_top_p(logits, 0.6)[0].flip(0))


def test_greedy_takes_the_likeliest_with_its_probability() -> None:
    ids, log_probs = chosen(LOGITS, Sampling())
    assert ids.tolist() == [1]
    assert log_probs.exp().item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_tempered_distribution(temperature: float) -> None:
    sampling = Sampling(temperature=temperature)
    ids, log_probs = chosen(LOGITS.repeat(10_000, 1), sampling)
    expected = PROBABILITIES[0] ** (1 / temperature)
    frequencies = ids.bincount(minlength=4) / len(ids)
    torch.testing.assert_close(frequencies, expected / expected.sum(), atol=0.025, rtol=0)
    torch.testing.assert_close(log_probs.exp(), PROBABILITIES[0][ids], atol=1e-5, rtol=0)


def test_filters_are_obeyed_when_sampling() -> None:
    for options in ({"top_k": 2}, {"top_p": 0.5}):
        sampling = Sampling(temperature=3.0, **options)  # type: ignore[arg-type]
        ids, _ = chosen(LOGITS.repeat(1000, 1), sampling)
        assert set(ids.tolist()) == {1, 2}


def test_a_seed_repeats_and_another_differs() -> None:
    def words(seed: int) -> list[int]:
        ids, _ = chosen(LOGITS.repeat(50, 1), Sampling(temperature=1.0), seed)
        listed: list[int] = ids.tolist()
        return listed

    assert words(3) == words(3)
    assert words(3) != words(4)


def test_a_rows_choice_does_not_depend_on_the_rows_beside_it() -> None:
    samplings = [Sampling(), Sampling(1.0), Sampling(2.0, top_k=3), Sampling(1.5, top_p=0.9)] * 5
    generators = [np.random.default_rng(row) for row in range(20)]
    together, _ = choose(LOGITS.repeat(20, 1), samplings, generators)
    alone = [
        choose(LOGITS, [sampling], [np.random.default_rng(row)])[0].item()
        for row, sampling in enumerate(samplings)
    ]
    assert together.tolist() == alone
    assert together[::4].tolist() == [1] * 5


def test_drawing_inverts_the_cumulative_distribution() -> None:
    """0.1, 0.6, 0.85 and 1 are where one word's share ends and the next one's begins."""
    uniform = torch.tensor([0.0, 0.09, 0.11, 0.59, 0.61, 0.84, 0.86, 1 - 1e-7])
    ids = draw(LOGITS.repeat(len(uniform), 1), uniform)
    assert ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_word_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert draw(logits.repeat(3, 1), uniform).tolist() == [1, 3, 3]


def test_a_number_rounded_to_one_draws_the_last_word_that_has_probability() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    assert draw(logits, torch.tensor([1.0])).tolist() == [1]


def test_huge_logits_do_not_overflow() -> None:
    for temperature in (0.0, 5e-324, 1e-320, 1e-45, 1e-38, 1e-30, 1.0):
        sampling = Sampling(temperature=temperature)
        ids, log_probs = chosen(LOGITS * 1e5, sampling)
        assert ids.tolist() == [1]
        assert log_probs.item() == 0


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.5}],
    ids=str,
)
def test_senseless_settings_are_refused_by_name(options: dict[str, float]) -> None:
    [name] = options
    with pytest.raises(ValueError, match=name):
        Sampling(**options)  # type: ignore[arg-type]
