"""What is measured of a model, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny import tiny_model

from paliglass.checkpoints.saving import save_folder
from paliglass.errors import PaliglassError
from paliglass.fast import available_methods
from paliglass.inspect.bench import (
    Measured,
    bench,
    between,
    limit_shares,
    machine_limits,
    open_engine,
    rate_of,
    stored_as,
)


def measured(first: float, each: float) -> Measured:
    found = Measured(load=1.0, memory=3_000_000_000)
    for noise in (1.0, 5.0, 1.0):  # the median leaves the odd round out
        found.add([noise * (first + each * place) for place in range(5)])
    return found


def test_medians_by_hand() -> None:
    found = measured(1.0, 0.1)
    assert found.to_dict() == {
        "load_s": 1.0,
        "first_token_s": 1.0,
        "tokens_per_s": 10.0,
        "answer_s": 1.4,
        "memory_gb": 3.0,
    }
    found.batch_each_token.append(0.2)
    assert found.to_dict()["batch_tokens_per_s"] == 40.0
    assert between([1.0, 2.0, 4.0, 4.5]) == 1.0


def test_a_model_is_measured_as_stored_and_quantized(tmp_path: Path) -> None:
    save_folder(tiny_model().bfloat16(), tmp_path / "model")
    found = bench(tmp_path / "model", rounds=2, tokens=3, threads=1)
    assert list(found) == ["bfloat16", *available_methods()]
    for engine in found.values():
        assert len(engine.answer) == len(engine.batch_each_token) == 2
        assert all(value > 0 for value in engine.to_dict().values())


def test_a_process_that_ends_says_why(tmp_path: Path) -> None:
    with pytest.raises(PaliglassError, match=r"it ended: .*config\.json"):
        open_engine("it", tmp_path, 1)


def test_shares_of_the_machines_limits_by_hand(tmp_path: Path) -> None:
    model = tiny_model()
    decoder = sum(p.numel() for p in model.language_model.parameters())
    others = sum(p.numel() for p in model.parameters()) - decoder
    table = model.language_model.lm_head.weight.numel()
    patches = model.config.num_image_tokens
    save_folder(model.bfloat16(), tmp_path / "model")
    assert stored_as(tmp_path / "model") == "bfloat16"
    first = 2 * (table + (decoder - table) * (patches + 8) + others * patches) / 1e9 / 7
    limits = {
        "read_gb_per_s": decoder * 2 / 1e9 / 0.05,
        "bf16_gop_per_s": 7.0,
        "fp32_gop_per_s": 3.5,
    }
    found = measured(4 * first, 0.1)
    shares = limit_shares(found, tmp_path / "model", limits, 2, "bf16")
    assert shares["token_share"] == pytest.approx(0.5)
    assert shares["first_token_share"] == pytest.approx(0.25, abs=0.01)
    assert limit_shares(found, tmp_path / "model", limits, 1, "int8") == {
        "token_share": pytest.approx(0.25)
    }


def test_sixteen_bits_meet_the_faster_limit() -> None:
    limits = {"bf16_gop_per_s": 7.0, "fp32_gop_per_s": 3.5}
    assert rate_of("bfloat16", limits) == "bf16"
    assert rate_of("bfloat16", limits | {"fp32_gop_per_s": 14.0}) == "fp32"
    assert (rate_of("float32", limits), rate_of("int8", limits)) == ("fp32", "int8")


def test_the_machine_is_measured() -> None:
    found = machine_limits(1)
    products = {f"{kind}_gop_per_s" for kind in ("fp32", "bf16", "int8")}
    assert found.keys() == {"read_gb_per_s", *products}
    assert all(value > 0 for value in found.values())
