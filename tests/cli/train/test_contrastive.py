"""train contrastive: runs, stops, kills, and several processes."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.tiny_dual import CONFIGS
from tests.training.runs import Training, frozen_after_three, log, losses, wait_for

from paliglass.contrastive.folders import load_contrastive
from paliglass.files import write_json


def test_a_run_leaves_a_model_its_log_and_its_settings(dual: Training) -> None:
    Path("data/lime.png").write_bytes(b"")
    result = dual()
    assert result.code == 0, result.err
    assert result.out.startswith("run/model: 8 steps")
    assert "skipped: data/lime.png: is empty" in result.err
    assert "1 broken pictures were skipped" in result.err
    assert [step for step, _ in losses("run")] == list(range(1, 9))
    assert {"accuracy", "scale", "learning_rate"} <= log("run")[0].keys()
    model, processor = load_contrastive("run/model")
    assert model.config == CONFIGS["vit-transformer-siglip"]
    assert processor.words(["a red one"])["input_ids"].shape[0] == 1
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"] == "data/pairs.jsonl"
    again = dual()
    assert (again.code, "exists already" in again.err) == (1, True)


def test_the_choice_of_parts_makes_the_model(dual: Training) -> None:
    parts = {"image": "resnet", "text": "cbow", "loss": "clip", "image_size": 32}
    result = dual(shape=None, tokenizer=None, steps=None, epochs=1, **parts)  # it trains its own
    assert result.code == 0, result.err
    model, _ = load_contrastive("run/model")
    assert model.config.loss == "clip"
    assert model.config.image.image_size == 32
    assert len(losses("run")) == 2


def test_a_killed_run_goes_on_to_the_losses_of_an_unbroken_one(dual: Training) -> None:
    assert dual("whole").code == 0
    process = frozen_after_three(dual, "run")
    second = dual(resume=True)
    assert (second.code, "another run is writing there" in second.err) == (1, True)
    process.kill()
    process.communicate()
    refused = dual()
    assert (refused.code, "go on with --resume" in refused.err) == (1, True)
    assert dual(resume=True).code == 0
    assert log("run") == log("whole")
    ours, theirs = (load_file(f"{name}/model/model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(dual: Training) -> None:
    # What a shell starts in the background ignores the signal, and so would its children.
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = dual.start("run", steps=100_000, checkpoint_seconds=1000)
    signal.signal(signal.SIGINT, heeded)
    wait_for(process, Path("run/log.jsonl").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    step = losses("run")[-1][0]
    assert f"run/checkpoint holds step {step}" in err
    assert "--resume goes on" in err
    assert json.loads(Path("run/checkpoint/state.json").read_text())["step"] == step
    assert not Path("run/model").exists()


@pytest.mark.parametrize("loss", ["siglip", "clip"])
def test_two_processes_train_what_one_does(dual: Training, loss: str) -> None:
    write_json(Path("shape.json"), CONFIGS[f"vit-transformer-{loss}"].to_dict())
    assert dual("one").code == 0
    result = dual.together("two")
    assert result.code == 0, result.err
    one, two = losses("one"), losses("two")
    assert [step for step, _ in one] == [step for step, _ in two]
    assert [x for _, x in two] == pytest.approx([x for _, x in one], rel=1e-3)
    alone = dual("two", resume=True, steps=12)  # a checkpoint is whole, whoever wrote it
    assert (alone.code, len(losses("two"))) == (0, 12), alone.err


@pytest.mark.parametrize(
    ("change", "code", "problem"),
    [
        ({"steps": None}, 2, "say when to end"),
        ({"data": None}, 2, "missing option '--data'"),
        ({"data": "nothing.jsonl"}, 2, "'nothing.jsonl' does not exist"),
        ({"batch_size": 100}, 1, "8 examples do not fill a batch of 100"),
        ({"shape": "tokenizer.json"}, 1, "tokenizer.json: model_type is None"),
        ({"tokenizer": "shape.json"}, 1, "shape.json: is not a tokenizer"),
    ],
)
def test_bad_usage(dual: Training, change: dict[str, Any], code: int, problem: str) -> None:
    result = dual(**change)
    assert (result.code, problem in result.err) == (code, True), result.err


def test_tensorboard_gets_the_log_too(dual: Training) -> None:
    pytest.importorskip("tensorboard")
    assert dual(logs="tensorboard").code == 0
    assert list(Path("run").rglob("events.out.tfevents.*"))


def test_without_accelerate_the_error_says_what_to_install(
    dual: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: dict[str, Any] = {"accelerate": None}
    monkeypatch.setitem(sys.modules, *missing.popitem())
    result = dual()
    assert (result.code, "pip install 'paliglass[train]'" in result.err) == (1, True)
