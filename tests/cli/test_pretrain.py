"""train pretrain: a run, what it leaves, how it stops and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from tests.cli.helpers import Result
from tests.cli.squares import signal_at, use_squares
from tests.cli.test_processes import ROOT, environment
from tests.training.test_pretrain import SMALL, TOKENIZER
from workshop.pretrain import loop as pretrain

from paliglass import load
from paliglass.contrastive.config import CbowConfig, ContrastiveConfig
from paliglass.contrastive.folders import save_contrastive
from paliglass.contrastive.modeling_contrastive import ContrastiveModel
from paliglass.training.runs import choose_precision

Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that trains a tiny model on squares."""
    use_squares(monkeypatch)
    given = "--precision fp32 --steps 6 --scenes 4 --prompts 4 --workers 0"
    given += " --log-every 1 --checkpoint-seconds 0"
    return ["train", "pretrain", *given.split()]


def tiny_dual() -> ContrastiveModel:
    """A dual encoder whose vision tower has the tiny model's shape."""
    text = CbowConfig(TOKENIZER.get_vocab_size(), 16, max_position_embeddings=8)
    return ContrastiveModel(ContrastiveConfig(SMALL.vision_config, text, 16))


def losses(folder: str) -> list[dict[str, float]]:
    lines = (Path(folder) / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_a_run_leaves_a_model_and_its_log(
    cli: Cli, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = cli(*arguments, "--out", "run")
    assert result.out == "run/model: 6 steps, 0.0 minutes\n"
    assert [line["step"] for line in losses("run")] == list(range(1, 7))
    assert "caption" not in losses("run")[0]  # the vision tower looks first
    assert "caption" in losses("run")[-1]
    assert load("run/model").model.config.text_config == SMALL.text_config
    again = cli(*arguments, "--out", "run")
    assert (again.code, "exists already" in again.err) == (1, True)
    given = []
    monkeypatch.setattr(
        pretrain, "common_tokenizer", lambda *asked: given.append(asked[-1]) or TOKENIZER
    )
    on = cli(*arguments, "--out", "on", "--weights", "run/model")
    assert (on.code, len(losses("on"))) == (0, 6)
    assert given == [Path("run/model")]  # other words would undo all that it knows
    assert losses("on")[0]["patch_label"] != losses("run")[0]["patch_label"]
    save_contrastive(tiny_dual(), Path("dual"), TOKENIZER)
    sees = cli(*arguments, "--out", "sees", "--vision", "dual")
    assert (sees.code, losses("sees")[0] == losses("run")[0]) == (0, False), sees.err


def test_a_stopped_run_goes_on_to_the_losses_of_an_unbroken_one(
    cli: Cli, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*arguments, "--out", "whole").code == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 2, signal.SIGINT)
        stopped = cli(*arguments, "--out", "run")
    assert stopped.code == 130
    assert "run/checkpoint holds step 3: the same command with --resume goes on" in stopped.err
    refused = cli(*arguments, "--out", "run")
    assert (refused.code, "holds a run; go on with --resume" in refused.err) == (2, True)
    other = cli(*arguments, "--out", "run", "--resume", "--seed", "1")
    assert (other.code, "started with seed 0, not 1" in other.err) == (1, True)
    half = cli(*arguments, "--out", "run", "--resume", "--precision", "bf16")
    assert (half.code, "started with precision fp32, not bf16" in half.err) == (1, True)
    at = arguments.index("--precision")
    del arguments[at : at + 2]  # then it is the run's own
    monkeypatch.setattr("paliglass.fast.packed.can_pack", lambda: True)
    assert cli(*arguments, "--out", "run", "--resume").code == 0
    assert losses("run") == losses("whole")


def together(arguments: list[str], *more: str, **environs: str) -> subprocess.CompletedProcess[str]:
    """The command in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "-m", "tests.cli.squares", *arguments, *more]
    environs = environment() | environs
    environs["PYTHONPATH"] += os.pathsep + str(ROOT)
    return subprocess.run(command, env=environs, capture_output=True, text=True, timeout=200)


def test_a_killed_sharded_run_goes_on_to_the_losses_of_an_unbroken_one(
    cli: Cli, arguments: list[str]
) -> None:
    assert cli(*arguments, "--out", "one").code == 0
    killed = together(arguments, "--shard", "--out", "two", DIE_AT="3")
    assert killed.returncode != 0
    assert json.loads(Path("two/checkpoint/state.json").read_text())["step"] == 3
    assert not Path("two/model").exists()
    resumed = together(arguments, "--shard", "--out", "two", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.startswith("two/model: 6 steps")
    for two, one in zip(losses("two"), losses("one"), strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=2e-4)
    weights = load_file("two/model/model.safetensors")
    for name, weight in load_file("one/model/model.safetensors").items():
        assert weights[name].shape == weight.shape
        assert (weights[name] - weight).norm() <= 0.01 * weight.norm() + 1e-2, name


def test_the_precision_is_what_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    for has, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("paliglass.fast.packed.can_pack", lambda has=has: has)
        assert choose_precision(None, None) == precision
        assert choose_precision("bf16", None) == "bf16"


def test_wrong_use_is_said_before_anything_is_loaded(cli: Cli) -> None:
    endless = cli("train", "pretrain", "--out", "run")
    assert (endless.code, "--steps or --minutes" in endless.err) == (2, True)
    Path("model").mkdir()
    both = cli(
        *("train", "pretrain", "--out", "run", "--steps", "1"),
        *("--weights", "model", "--vision", "mini-dual"),
    )
    assert (both.code, "leave out --vision" in both.err) == (2, True)
    assert not Path("run").exists()


@pytest.mark.parametrize("more", ["walk=2", "segment", "segment=0", "segment=two"])
def test_a_mixture_names_a_task_and_a_weight(cli: Cli, arguments: list[str], more: str) -> None:
    result = cli(*arguments, "--out", "run", "--more", more)
    assert result.code == 2
    assert "write TASK=WEIGHT" in result.err
