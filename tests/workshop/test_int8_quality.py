"""What quantization costs: how the share of equal tokens and its interval are told."""

from __future__ import annotations

import pytest
import torch
from workshop.int8_quality import share, tell_agreement


def test_a_share_and_its_interval_by_hand() -> None:
    found, half = share([(10, 10), (8, 10)])
    assert found == pytest.approx(0.9)
    assert half == pytest.approx(1.96 * 2**0.5 / 20)
    assert share([(3, 3)] * 5) == (1.0, 0.0)


def test_nineteen_of_twenty_intervals_hold_the_true_share() -> None:
    """Of answers whose tokens all depend on one hidden number, so that tokens are no sample."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(200):
        lengths = torch.randint(1, 30, (300,), generator=generator)
        chance = torch.where(torch.rand(300, generator=generator) < 0.2, 0.5, 1.0)
        same = torch.binomial(lengths.float(), chance, generator=generator).int()
        found, half = share(list(zip(same.tolist(), lengths.tolist(), strict=True)))
        held += abs(found - 0.9) <= half
    assert 180 <= held <= 199


def test_wordings_of_ones_own_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    tell_agreement({"int8": {"caption": [(9, 10)], "what is": [(4, 5)], "Tell": [(5, 5)]}})
    told = capsys.readouterr().out
    assert told.startswith("int8: 0.9000 ± ")
    assert "of 20 greedy tokens" in told
    assert "(caption 0.9000 of 10, others 0.9000 of 10)" in told
