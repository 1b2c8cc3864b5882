"""train contrastive: runs, stops, kills, and several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from tests.cli.helpers import Result, picture
from tests.cli.test_processes import environment
from tests.tiny import tiny_tokenizer
from tests.tiny_dual import CONFIGS

from paliglass.checkpoints.files import write_json
from paliglass.contrastive.folders import load_contrastive

Cli = Callable[..., Result]
COLOURS = ("red", "lime", "blue", "yellow", "black", "white", "cyan", "orange")


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def arguments() -> list[str]:
    """A command that trains a tiny model on eight coloured pictures."""
    lines = []
    for colour in COLOURS:
        picture(f"data/{colour}.png", colour)
        lines.append(json.dumps({"image": f"{colour}.png", "text": f"a {colour} one"}))
    Path("data/pairs.jsonl").write_text("\n".join(lines))
    write_json(Path("config.json"), CONFIGS["vit-transformer-siglip"].to_dict())
    tiny_tokenizer().save("tokenizer.json")
    given = "--data data/pairs.jsonl --config config.json --tokenizer tokenizer.json --steps 8"
    given += " --batch-size 4 --precision fp32 --workers 0 --log-every 1 --checkpoint-seconds 0"
    return ["train", "contrastive", *given.split()]


def losses(folder: str) -> list[tuple[int, float]]:
    lines = (Path(folder) / "log.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"OMP_NUM_THREADS": "1"},
    )


def test_a_run_leaves_a_model_and_its_log(cli: Cli, arguments: list[str]) -> None:
    Path("data/lime.png").write_bytes(b"")
    result = cli(*arguments, "--out", "run")
    assert result.code == 0
    assert result.out.startswith("run/model: 8 steps")
    assert "skipped: data/lime.png: is empty" in result.err
    assert "1 broken pictures were skipped" in result.err
    assert [step for step, _ in losses("run")] == list(range(1, 9))
    model, processor = load_contrastive("run/model")
    assert model.config == CONFIGS["vit-transformer-siglip"]
    assert processor.words(["a red one"])["input_ids"].shape[0] == 1
    again = cli(*arguments, "--out", "run")
    assert again.code == 1
    assert "exists already" in again.err


def test_the_choice_of_parts_makes_the_model(cli: Cli, arguments: list[str]) -> None:
    at = arguments.index("--config")
    del arguments[at : at + 4]  # and the tokenizer, which is then trained
    arguments += ["--image", "resnet", "--text", "cbow", "--loss", "clip", "--image-size", "32"]
    arguments[arguments.index("--steps") : arguments.index("--steps") + 2] = ["--epochs", "1"]
    assert cli(*arguments, "--out", "run").code == 0
    model, _ = load_contrastive("run/model")
    assert model.config.loss == "clip"
    assert model.config.image.image_size == 32
    assert len(losses("run")) == 2


def test_a_killed_run_goes_on_to_the_losses_of_an_unbroken_one(
    cli: Cli, arguments: list[str]
) -> None:
    arguments[arguments.index("--steps") + 1] = "60"
    assert cli(*arguments, "--out", "whole").code == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    process = start("paliglass", *arguments, "--out", "run")
    deadline = time.monotonic() + 60
    while not (Path("run/log.jsonl").exists() and len(losses_so_far("run")) > 2):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert len(losses_so_far("run")) < 60
    refused = cli(*arguments, "--out", "run")
    assert refused.code == 2
    assert "go on with --resume" in refused.err
    assert cli(*arguments, "--out", "run", "--resume").code == 0
    assert losses("run") == losses("whole")
    ours, theirs = (load_file(f"{name}/model/model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def losses_so_far(folder: str) -> list[str]:
    return (Path(folder) / "log.jsonl").read_text().split("\n")[:-1]


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(cli: Cli, arguments: list[str]) -> None:
    arguments[arguments.index("--steps") + 1] = "100000"
    arguments[arguments.index("--checkpoint-seconds") + 1] = "1000"
    process = start("paliglass", *arguments, "--out", "run")
    deadline = time.monotonic() + 60
    while not Path("run/log.jsonl").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    step = losses("run")[-1][0]
    assert f"run/checkpoint holds step {step}" in err
    assert "--resume goes on" in err
    state = json.loads(Path("run/checkpoint/state.json").read_text())
    assert state["step"] == step
    assert not os.path.exists("run/model")


@pytest.mark.parametrize("loss", ["siglip", "clip"])
def test_two_processes_train_what_one_does(cli: Cli, arguments: list[str], loss: str) -> None:
    write_json(Path("config.json"), CONFIGS[f"vit-transformer-{loss}"].to_dict())
    process = start(
        *("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "paliglass"),
        *(*arguments, "--out", "two"),
    )
    assert cli(*arguments, "--out", "one").code == 0
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    one, two = losses("one"), losses("two")
    assert [step for step, _ in one] == [step for step, _ in two]
    assert [x for _, x in two] == pytest.approx([x for _, x in one], rel=1e-3)


@pytest.mark.parametrize(
    ("change", "code", "problem"),
    [
        ({"--steps": None}, 2, "say when to end"),
        ({"--data": "nothing.jsonl"}, 1, "nothing.jsonl: No such file"),
        ({"--data": "world", "--steps": None, "--epochs": "1"}, 2, "the world has no end"),
        ({"--batch-size": "100"}, 1, "8 pairs do not fill a batch of 100"),
        ({"--config": "tokenizer.json"}, 1, "tokenizer.json: model_type is None"),
        ({"--tokenizer": "config.json"}, 1, "config.json: is not a tokenizer"),
    ],
)
def test_bad_usage(
    cli: Cli,
    arguments: list[str],
    change: dict[str, str | None],
    code: int,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import workshop.world

    monkeypatch.setattr(workshop.world, "World", lambda *_: None)
    for name, value in change.items():
        if name in arguments:
            at = arguments.index(name)
            del arguments[at : at + 2]
        if value is not None:
            arguments += [name, value]
    result = cli(*arguments, "--out", "run")
    assert (result.code, problem in result.err) == (code, True), result.err


def test_without_accelerate_the_error_says_what_to_install(
    cli: Cli, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: dict[str, Any] = {"accelerate": None}
    monkeypatch.setitem(sys.modules, *missing.popitem())
    result = cli(*arguments, "--out", "run")
    assert result.code == 1
    assert 'pip install "paliglass[train]"' in result.err
