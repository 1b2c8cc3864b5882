"""python -m workshop.pretrain: a run, what it leaves, how it stops and goes on."""

from __future__ import annotations

import functools
import json
import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.training.runs import Training, log
from tests.workshop.conftest import Command
from tests.workshop.squares import signal_at, use_squares
from tests.workshop.test_pretrain import SMALL, TOKENIZER
from workshop.pretrain import __main__ as module
from workshop.pretrain.__main__ import pretrain

from paliglass import load
from paliglass.contrastive.config import CbowConfig, ContrastiveConfig
from paliglass.contrastive.folders import save_contrastive
from paliglass.contrastive.modeling_contrastive import ContrastiveModel
from paliglass.modeling_siglip import interpolate_positions


@pytest.fixture
def pretraining(command: Command, monkeypatch: pytest.MonkeyPatch) -> Training:
    """Trains a tiny model on squares."""
    use_squares(monkeypatch)
    options = {"steps": 6, "scenes": 4, "prompts": 4}
    call = functools.partial(command, pretrain)
    return Training(call, (), options, "tests.workshop.squares")


def tiny_dual() -> ContrastiveModel:
    """A dual encoder whose vision tower has the tiny model's shape."""
    text = CbowConfig(TOKENIZER.get_vocab_size(), 16, max_position_embeddings=8)
    return ContrastiveModel(ContrastiveConfig(SMALL.vision_config, text, 16))


def test_a_run_leaves_a_model_its_log_and_its_settings(pretraining: Training) -> None:
    result = pretraining()
    assert result.out.startswith("run/model: 6 steps"), result.err
    assert [line["step"] for line in log("run")] == list(range(1, 7))
    assert "caption" not in log("run")[0]  # the vision tower is alone at first
    assert "caption" in log("run")[-1]
    assert load("run/model").model.config.text_config == SMALL.text_config
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (settings["scenes"], settings["vision_warmup"]) == (4, 0.15)
    again = pretraining()
    assert (again.code, "exists already" in again.err) == (1, True)


def test_a_run_starts_from_a_model_or_a_vision_tower(
    pretraining: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pretraining().code == 0
    given: list[object] = []

    def words(*asked: object) -> object:
        given.append(asked[-1])
        return TOKENIZER

    monkeypatch.setattr(module, "run_tokenizer", words)
    on = pretraining("on", weights="run/model")
    assert (on.code, len(log("on"))) == (0, 6), on.err
    assert given == [Path("run/model")]  # other words would undo all that it knows
    assert log("on")[-1]["patch_label"] != log("run")[-1]["patch_label"]
    save_contrastive(tiny_dual(), Path("dual"), TOKENIZER)
    sees = pretraining("sees", vision="dual")
    assert (sees.code, log("sees")[-1] == log("run")[-1]) == (0, False), sees.err


def test_a_run_goes_on_at_another_resolution(pretraining: Training) -> None:
    assert pretraining().code == 0
    larger = pretraining("larger", weights="run/model", image_size=96, vision_warmup=0.0)
    assert larger.code == 0, larger.err
    assert load("larger/model").model.config.num_image_tokens == 36
    assert log("larger")[0]["caption"] < log("run")[-1]["caption"] + 1  # it knows what it knew
    odd = pretraining("odd", image_size=100)
    assert (odd.code, "--image-size 100: give a multiple of 16" in odd.err) == (1, True)


def test_positions_are_a_picture_that_is_enlarged() -> None:
    across = torch.arange(4.0).repeat(4)
    table = torch.stack((across, across.reshape(4, 4).T.flatten(), torch.full((16,), 7.0)), 1)
    assert torch.allclose(interpolate_positions(table, 4), table, atol=1e-5)
    columns, rows, constant = interpolate_positions(table, 8).T.unflatten(1, (8, 8))
    assert torch.allclose(columns, columns[:1].expand(8, 8), atol=1e-5)
    assert torch.allclose(rows, columns.T, atol=1e-5)
    assert (columns[0].diff() > 0).all()
    assert torch.allclose(columns[0, 2:6], torch.tensor([0.75, 1.25, 1.75, 2.25]), atol=0.1)
    assert torch.allclose(constant, torch.full((8, 8), 7.0), atol=1e-5)


def test_a_stopped_run_goes_on_to_the_losses_of_an_unbroken_one(
    pretraining: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pretraining("whole").code == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 2, signal.SIGINT)
        stopped = pretraining()
    assert stopped.code == 130
    assert "run/checkpoint holds step 3: the same command with --resume goes on" in stopped.err
    other = pretraining(resume=True, seed=1)
    assert (other.code, "started with seed 0, not 1" in other.err) == (1, True)
    monkeypatch.setattr("paliglass.fast.multiplies_bfloat16", lambda: True)
    assert pretraining(resume=True, precision=None).code == 0  # it is the run's own
    assert log("run") == log("whole")


def test_a_killed_sharded_run_goes_on_to_the_losses_of_an_unbroken_one(
    pretraining: Training,
) -> None:
    assert pretraining("one").code == 0
    killed = pretraining.together("two", {"DIE_AT": "3"}, shard=True)
    assert killed.code != 0
    assert json.loads(Path("two/checkpoint/state.json").read_text())["step"] == 3
    assert not Path("two/model").exists()
    resumed = pretraining.together("two", shard=True, resume=True)
    assert resumed.code == 0, resumed.err
    assert resumed.out.startswith("two/model: 6 steps")
    for two, one in zip(log("two"), log("one"), strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=2e-4)
    weights = load_file("two/model/model.safetensors")
    for name, weight in load_file("one/model/model.safetensors").items():
        assert weights[name].shape == weight.shape
        assert (weights[name] - weight).norm() <= 0.01 * weight.norm() + 1e-2, name


def test_wrong_use_is_said_before_anything_is_loaded(command: Command) -> None:
    endless = command(pretrain, "--out", "run")
    assert (endless.code, "--steps or --minutes" in endless.err) == (2, True)
    Path("model").mkdir()
    given = ("--out", "run", "--steps", "1", "--weights", "model", "--vision", "mini-dual")
    both = command(pretrain, *given)
    assert (both.code, "leave out --vision" in both.err) == (2, True)
    for more in ("walk=2", "segment", "segment=0", "segment=two"):
        result = command(pretrain, "--out", "run", "--steps", "1", "--more", more)
        assert (result.code, "write TASK=WEIGHT" in result.err) == (2, True), more
    assert not Path("run").exists()
