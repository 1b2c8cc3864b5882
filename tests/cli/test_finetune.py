"""train finetune: runs, their files, flags and settings files, stops, several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from tests.cli.helpers import Result, picture
from tests.cli.test_processes import environment

from paliglass import load
from paliglass.data.examples import Example
from paliglass.training.finetune import score_answers
from paliglass.training.finetuner import Finetuner

Cli = Callable[..., Result]
COLOURS = ("red", "lime", "blue", "yellow", "black", "white", "cyan", "orange")


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def arguments(model_folder: Path) -> list[str]:
    """A command that teaches the tiny model the names of eight colours."""
    lines = []
    for colour in COLOURS:
        picture(f"data/{colour}.png", colour)
        line = {"image": f"{colour}.png", "prefix": "answer en what colour?", "suffix": colour}
        lines.append(json.dumps(line))
    Path("data/train.jsonl").write_text("\n".join(lines))
    Path("data/held_out.jsonl").write_text("\n".join(lines[:3]))
    given = f"--model {model_folder} --data data/train.jsonl --steps 8 --batch-size 4"
    given += " --precision fp32 --workers 0 --log-every 1 --learning-rate 1e-3"
    given += " --checkpoint-seconds 0"
    return ["train", "finetune", *given.split()]


def losses(folder: str) -> list[tuple[int, float]]:
    lines = map(json.loads, (Path(folder) / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_a_run_leaves_a_model_its_log_and_its_settings(cli: Cli, arguments: list[str]) -> None:
    Path("data/lime.png").write_bytes(b"")
    result = cli(*arguments, "--out", "run")
    assert result.code == 0, result.err
    assert result.out.startswith("run/model: 8 steps")
    assert "skipped: data/train.jsonl, line 2: data/lime.png: is empty" in result.err
    found = losses("run")
    assert [step for step, _ in found] == list(range(1, 9))
    assert found[-1][1] < found[0][1]
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (settings["steps"], settings["precision"]) == (8, "fp32")
    assert load("run/model").ask("data/red.png", "what colour?") is not None
    again = cli(*arguments, "--out", "run")
    assert (again.code, "exists already" in again.err) == (1, True)


@pytest.mark.parametrize("part", ["all", "decoder", "attention", "projector"])
def test_only_the_chosen_part_learns(
    cli: Cli, arguments: list[str], model_folder: Path, part: str
) -> None:
    assert cli(*arguments, "--out", "run", "--train", part, "--checkpointing").code == 0
    before = load_file(model_folder / "model.safetensors")
    after = load_file("run/model/model.safetensors")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    expected = {
        "all": lambda name: True,
        "decoder": lambda name: "vision_tower" not in name,
        "attention": lambda name: "language_model" in name and ".self_attn." in name,
        "projector": lambda name: "projector" in name,
    }[part]
    assert changed == {name for name in before if expected(name)}


def test_lora_leaves_an_adapter_that_loads_and_merges(
    cli: Cli, arguments: list[str], model_folder: Path
) -> None:
    result = cli(*arguments, "--out", "run", "--lora", "4", "--train", "decoder")
    assert (result.code, result.out.startswith("run/adapter: 8 steps")) == (0, True), result.err
    plain = load(model_folder)
    adapted = load(model_folder, adapter="run/adapter")
    names = [n for n, p in plain.model.named_parameters() if "q_proj.weight" in n]
    own, other = dict(plain.model.named_parameters()), dict(adapted.model.named_parameters())
    assert {n for n in names if not torch.equal(own[n], other[n])} == {
        n for n in names if n.startswith("language_model")
    }
    merged = cli("convert", model_folder, "merged", "--adapter", "run/adapter")
    assert merged.code == 0, merged.err
    weights = dict(load("merged").model.named_parameters())
    assert all(torch.equal(weights[name], other[name]) for name in names)
    answers = [
        cli("ask", "data/red.png", "what colour?", *more).out
        for more in (("--model", "merged"), ("-m", model_folder, "--adapter", "run/adapter"))
    ]
    assert answers[0] == answers[1]


def test_settings_come_from_a_file_and_flags_win(cli: Cli, arguments: list[str]) -> None:
    Path("settings.yaml").write_text(
        "batch-size: 2\nlearning_rate: 5e-4\nsteps: 3\nlora: 2\ntrain: decoder\n"
    )
    for name in ("--batch-size", "--learning-rate"):
        at = arguments.index(name)
        del arguments[at : at + 2]
    result = cli(*arguments, "--out", "run", "--config", "settings.yaml")
    assert result.out.startswith("run/adapter: 8 steps"), result.err
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (settings["batch_size"], settings["learning_rate"]) == (2, 5e-4)
    assert (settings["train"], settings["lora_alpha"]) == ("decoder", 4)
    Path("again.yaml").write_text(Path("run/config.yaml").read_text())  # a run's own settings
    assert cli("train", "finetune", "--out", "again", "--config", "again.yaml").code == 0
    assert losses("again") == losses("run")
    Path("settings.yaml").write_text("speed: 2\n")
    wrong = cli(*arguments, "--out", "other", "--config", "settings.yaml")
    assert (wrong.code, "speed is no setting" in wrong.err) == (2, True)
    recipe = cli(*arguments, "--out", "other", "--recipe", "vqav2-448", "--batch-size", "4")
    assert recipe.code == 0, recipe.err
    settings = yaml.safe_load(Path("other/config.yaml").read_text())
    assert (settings["learning_rate"], settings["weight_decay"]) == (1e-5, 0.0)
    assert "vqav2-448 is for pictures of 448 × 448 pixels" in recipe.err
    assert "choose ai2d" in cli(*arguments, "--out", "x", "--recipe", "nothing").err


def test_the_best_weights_are_kept_and_patience_ends_the_run(
    cli: Cli, arguments: list[str]
) -> None:
    more = ["--validation", "data/held_out.jsonl", "--every", "1", "--patience", "2"]
    more += ["--learning-rate", "1e-15"]  # too small to change anything
    result = cli(*arguments, "--out", "run", *more)
    assert result.code == 0, result.err
    assert "no better for 2 looks" in result.err
    looks = [
        line
        for line in map(json.loads, Path("run/log.jsonl").read_text().splitlines())
        if "score" in line
    ]
    assert len(looks) == 3
    kept = load_file("run/best.safetensors")
    final = dict(load("run/model").model.named_parameters())
    assert all(torch.equal(tensor, final[name]) for name, tensor in kept.items())
    assert len(list(Path("run/samples").glob("*.png"))) == 3
    samples = Path("run/samples.jsonl").read_text().splitlines()
    assert json.loads(samples[0]).keys() >= {"step", "image", "prefix", "suffix", "said"}


def test_a_stopped_run_goes_on_to_the_losses_of_an_unbroken_one(
    cli: Cli, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments += ["--lora", "2", "--lora-dropout", "0.2", "--accumulate", "2"]
    assert cli(*arguments, "--out", "whole").code == 0
    step = Finetuner.train_step

    def stop_in_the_third(self: Finetuner, group: object) -> float:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, group)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Finetuner, "train_step", stop_in_the_third)
        stopped = cli(*arguments, "--out", "run")
    assert (stopped.code, "run/checkpoint holds step 3" in stopped.err) == (130, True)
    assert "holds a run" in cli(*arguments, "--out", "run").err
    other = ["--data", "data/held_out.jsonl", "--batch-size", "2"]
    assert "started with" in cli(*arguments, "--out", "run", "--resume", *other).err
    Path("data/train.jsonl").rename("data/kept.jsonl")
    Path("data/train.jsonl").write_text(Path("data/kept.jsonl").read_text().replace("red", "lime"))
    changed = cli(*arguments, "--out", "run", "--resume")
    assert "started with data 8 examples" in changed.err
    Path("data/kept.jsonl").rename("data/train.jsonl")
    assert "seed 0, not 1" in cli(*arguments, "--out", "run", "--resume", "--seed", "1").err
    resumed = cli(*arguments, "--out", "run", "--resume")
    assert resumed.code == 0, resumed.err
    assert losses("run") == losses("whole")


def test_the_score_is_the_tasks_own() -> None:
    def example(prefix: str, *right: str) -> Example:
        return Example(Path("a.png"), prefix, right[0], "", right)

    asked = [example("answer en what?", *["dog"] * 3), example("ocr", "STOP")]
    assert score_answers(asked, ["The dog.", "SHOP"]) == 0.5
    captions = [
        example("caption en", "a dog runs fast", "a dog"),
        example("cap en", "two cats sit"),
    ]
    box = "<loc0000><loc0000><loc0512><loc0512> dog"
    found = score_answers([*captions, example("detect dog", box)], ["a dog runs", "a cow", box])
    assert 0.5 < found < 0.75


def test_broken_pictures_are_not_asked_about(cli: Cli, arguments: list[str]) -> None:
    Path("data/lime.png").write_bytes(b"")
    more = ["--validation", "data/held_out.jsonl", "--every", "8"]
    assert cli(*arguments, "--out", "run", *more).code == 0
    assert len(Path("run/samples.jsonl").read_text().splitlines()) == 2


def together(arguments: list[str], *more: str) -> None:
    """The command in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "-m", "paliglass", *arguments, *more]
    environs = environment() | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environs, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("how", [[], ["--shard"], ["--shard", "--lora", "2"]], ids=" ".join)
def test_two_processes_are_one(cli: Cli, arguments: list[str], how: list[str]) -> None:
    alone = [part for part in how if part != "--shard"]
    assert cli(*arguments, *alone, "--out", "one").code == 0
    held_out = ["--validation", "data/held_out.jsonl", "--every", "4"]
    together(arguments, *how, *held_out, "--out", "two")
    assert len(Path("two/samples.jsonl").read_text().splitlines()) == 6  # sharded models answer too
    for (step, one), (_, two) in zip(losses("one"), losses("two"), strict=True):
        assert two == pytest.approx(one, abs=2e-5), step
    (one,), (two,) = (list(Path(name).glob("*/*model.safetensors")) for name in ("one", "two"))
    weights = load_file(two)
    for name, weight in load_file(one).items():
        torch.testing.assert_close(weights[name], weight, atol=1e-3, rtol=1e-3)


def test_a_sharded_run_goes_on_where_it_stopped(cli: Cli, arguments: list[str]) -> None:
    together(arguments, "--shard", "--out", "run")
    whole = losses("run")
    shutil.rmtree("run/model")
    arguments[arguments.index("--steps") + 1] = "8"
    lines = Path("run/log.jsonl").read_text()
    together(arguments, "--shard", "--out", "run", "--resume")  # at its end already
    assert Path("run/log.jsonl").read_text() == lines
    assert losses("run") == whole
    assert load("run/model")
    shutil.rmtree("run/model")
    alone = cli(*arguments, "--out", "run", "--resume")  # on one process, which has no shards
    assert (alone.code, losses("run")) == (0, whole), alone.err
    assert load("run/model")


INTERRUPTED = """
import os, signal, sys, time
import torch
from paliglass.cli import main
from paliglass.training.finetuner import Finetuner

step, save = Finetuner.train_step, torch.save

def interrupted(self, group):
    if self.step == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return step(self, group)

def slow(*arguments):
    time.sleep(6)
    save(*arguments)

Finetuner.train_step, torch.save = interrupted, slow
main(sys.argv[1:])
"""


def test_no_process_ends_before_the_checkpoint_is_written(cli: Cli, arguments: list[str]) -> None:
    assert cli(*arguments, "--out", "one").code == 0
    Path("interrupted.py").write_text(INTERRUPTED)  # with a disk that takes its time
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "interrupted.py", *arguments, "--out", "two"]
    run = subprocess.run(
        [*command, "--checkpoint-seconds", "1000"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode != 0
    assert json.loads(Path("two/checkpoint/state.json").read_text())["step"] == 3, run.stderr
    assert cli(*arguments, "--out", "two", "--resume").code == 0
    assert [loss for _, loss in losses("two")] == pytest.approx(
        [loss for _, loss in losses("one")], abs=2e-5
    )


def test_a_full_disk_leaves_the_last_checkpoint(
    cli: Cli, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*arguments, "--out", "whole").code == 0
    save = torch.save
    saved: list[object] = []

    def full_at_the_third(what: object, path: Path) -> None:
        saved.append(what)
        if len(saved) == 3:
            raise RuntimeError("unexpected pos 247616 vs 247508")
        save(what, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_at_the_third)
        full = cli(*arguments, "--out", "run")
    assert (full.code, "is the disk full?" in full.err) == (1, True)
    assert "the one before it is whole" in full.err
    assert not Path("run/checkpoint.new").exists()
    assert cli(*arguments, "--out", "run", "--resume").code == 0
    assert losses("run") == losses("whole")


def test_a_killed_run_goes_on(cli: Cli, arguments: list[str]) -> None:
    arguments[arguments.index("--steps") + 1] = "40"
    assert cli(*arguments, "--out", "whole").code == 0
    command = [sys.executable, "-m", "paliglass", *arguments, "--out", "killed"]
    environs = environment() | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environs, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not Path("killed/checkpoint").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    resumed = cli(*arguments, "--out", "killed", "--resume")
    assert resumed.code == 0, resumed.err
    assert losses("killed") == losses("whole")


def test_wrong_use_is_said_in_a_line(cli: Cli, arguments: list[str]) -> None:
    Path("data/bad.jsonl").write_text('{"image": "red.png"}')
    cases = [
        (["--data", "data/bad.jsonl"], 1, 'line 1: lacks "prefix"'),
        (["--data", "missing"], 2, "does not exist"),
        (["--batch-size", "3", "--accumulate", "2"], 1, "choose a multiple"),
        (["--batch-size", "64"], 1, "do not fill a batch"),
        (["--patience", "1"], 2, "--patience needs --validation"),
        (["--lora", "2", "--train", "projector"], 2, "all, decoder or attention"),
        (["--shard"], 1, "--shard is for several processes"),
        (["--learning-rate", "1e30"], 1, "the gradient is not finite"),
    ]
    for more, code, complaint in cases:
        result = cli(*arguments, "--out", "run", *more)
        assert (result.code, complaint in result.err) == (code, True), result.err
        AcceleratorState._reset_state(reset_partial_state=True)
    at = arguments.index("--steps")
    del arguments[at : at + 2]
    assert "--steps or --epochs" in cli(*arguments, "--out", "run").err
