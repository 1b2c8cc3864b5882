"""train finetune: runs, their files, flags and settings files, stops, several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.cli.helpers import Result
from tests.conftest import forget_accelerator
from tests.training.runs import Training, frozen_after_three, log, losses

from paliglass import load
from paliglass.training.finetuner import Finetuner

Cli = Callable[..., Result]


def settings(folder: str) -> dict[str, Any]:
    """A run's config.yaml."""
    found: dict[str, Any] = yaml.safe_load(Path(folder, "config.yaml").read_text())
    return found


def test_a_run_leaves_a_model_its_log_and_its_settings(finetuning: Training) -> None:
    Path("data/lime.png").write_bytes(b"")
    result = finetuning()
    assert result.code == 0, result.err
    assert result.out.startswith("run/model: 8 steps")
    assert "skipped: data/train.jsonl, line 2: data/lime.png: is empty" in result.err
    found = losses("run")
    assert [step for step, _ in found] == list(range(1, 9))
    assert found[-1][1] < found[0][1]
    assert (settings("run")["steps"], settings("run")["precision"]) == (8, "fp32")
    assert load("run/model").ask("data/red.png", "what colour?") is not None
    again = finetuning()
    assert (again.code, "exists already" in again.err) == (1, True)


@pytest.mark.parametrize("part", ["all", "decoder", "attention", "projector"])
def test_only_the_chosen_part_learns(finetuning: Training, model_folder: Path, part: str) -> None:
    assert finetuning(train=part, checkpointing=True).code == 0
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
    cli: Cli, finetuning: Training, model_folder: Path
) -> None:
    result = finetuning(lora=4, train="decoder")
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


@pytest.mark.parametrize("option", ["adapter", "model"])  # an adapter stands for its base too
def test_a_run_goes_on_from_an_adapter(finetuning: Training, option: str) -> None:
    first = finetuning(lora=4, train="decoder", lora_alpha=6)
    assert first.code == 0, first.err
    more = finetuning("more", **{option: "run/adapter"}, learning_rate=1e-15)  # changes nothing
    assert (more.code, more.out.startswith("more/adapter: 8 steps")) == (0, True), more.err
    before, after = (
        load_file(f"{run}/adapter/adapter_model.safetensors") for run in ("run", "more")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor)
    configs = [
        json.loads(Path(f"{r}/adapter/adapter_config.json").read_text()) for r in ("run", "more")
    ]
    assert configs[0] == configs[1]  # peft and transformers find the layers by the same names
    assert losses("more")[0][1] < losses("run")[0][1]
    assert (settings("more")["lora"], settings("more")["lora_alpha"]) == (4, 6)
    other = finetuning("other", adapter="run/adapter", lora=2)
    assert "its adapters have rank 4 and alpha 6; leave out --lora" in other.err
    Path("empty").mkdir()
    assert "there is no adapter_config.json" in finetuning("other", adapter="empty").err


def test_settings_come_from_a_file_and_flags_win(finetuning: Training) -> None:
    Path("settings.yaml").write_text(
        "batch-size: 2\nlearning_rate: 5e-4\nsteps: 3\nlora: 2\ntrain: decoder\n"
    )
    result = finetuning(batch_size=None, learning_rate=None, config="settings.yaml")
    assert result.out.startswith("run/adapter: 8 steps"), result.err
    found = settings("run")
    assert (found["batch_size"], found["learning_rate"]) == (2, 5e-4)
    assert (found["train"], found["lora_alpha"]) == ("decoder", 4)
    own = dict.fromkeys(finetuning.options) | {"precision": None}  # a run's own settings
    assert finetuning("again", config="run/config.yaml", **own).code == 0
    assert losses("again") == losses("run")
    Path("settings.yaml").write_text("speed: 2\n")
    wrong = finetuning("other", config="settings.yaml")
    assert (wrong.code, "speed is no setting" in wrong.err) == (2, True)


def test_a_published_recipe_gives_the_rest(finetuning: Training) -> None:
    recipe = finetuning(recipe="vqav2-448", learning_rate=None)
    assert recipe.code == 0, recipe.err
    found = settings("run")
    assert (found["learning_rate"], found["weight_decay"], found["steps"]) == (1e-5, 0.0, 8)
    assert "vqav2-448 is for pictures of 448 × 448 pixels" in recipe.err
    assert "choose ai2d" in finetuning("other", recipe="nothing").err


def test_the_best_weights_are_kept_and_patience_ends_the_run(finetuning: Training) -> None:
    held_out = {"validation": "data/held_out.jsonl", "every": 1, "patience": 2}
    result = finetuning(learning_rate=1e-15, **held_out)  # too small to change anything
    assert result.code == 0, result.err
    assert "no better for 2 looks" in result.err
    assert len([line for line in log("run") if "score" in line]) == 3
    kept = load_file("run/best.safetensors")
    final = dict(load("run/model").model.named_parameters())
    assert all(torch.equal(tensor, final[name]) for name, tensor in kept.items())
    assert len(list(Path("run/samples").glob("*.png"))) == 3
    samples = Path("run/samples.jsonl").read_text().splitlines()
    assert json.loads(samples[0]).keys() >= {"step", "image", "prefix", "suffix", "prediction"}


def test_a_stopped_run_goes_on_to_the_losses_of_an_unbroken_one(
    finetuning: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetuning.options |= {"lora": 2, "lora_dropout": 0.2, "accumulate": 2}
    assert finetuning("whole").code == 0
    step = Finetuner.train_step

    def stop_in_the_third(self: Finetuner, group: Any) -> Any:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, group)

    with monkeypatch.context() as patch:
        patch.setattr(Finetuner, "train_step", stop_in_the_third)
        stopped = finetuning()
    assert (stopped.code, "run/checkpoint holds step 3" in stopped.err) == (130, True)
    assert "holds a run" in finetuning().err
    other = finetuning(resume=True, data="data/held_out.jsonl", batch_size=2)
    assert "started with" in other.err
    Path("data/train.jsonl").rename("data/kept.jsonl")
    Path("data/train.jsonl").write_text(Path("data/kept.jsonl").read_text().replace("red", "lime"))
    changed = finetuning(resume=True)
    assert "started with data 8 examples" in changed.err
    Path("data/kept.jsonl").rename("data/train.jsonl")
    assert "seed 0, not 1" in finetuning(resume=True, seed=1).err
    resumed = finetuning(resume=True)
    assert resumed.code == 0, resumed.err
    assert losses("run") == losses("whole")


def test_a_run_at_its_end_may_have_more_epochs(finetuning: Training) -> None:
    assert finetuning(steps=None, epochs=2).code == 0
    over = finetuning(steps=None, epochs=2, resume=True)
    assert (over.code, "run: the run is at its end, and model/ in it is whole" in over.err) == (
        1,
        True,
    )
    more = finetuning(steps=None, epochs=3, resume=True)
    assert (more.code, more.out.startswith("run/model: 6 steps")) == (0, True), more.err
    assert [step for step, _ in losses("run")] == list(range(1, 7))
    short, long = (load(f"run/{name}").model.state_dict() for name in ("model-4", "model"))
    assert any(not torch.equal(short[name], long[name]) for name in short)


def test_broken_pictures_are_not_asked_about(finetuning: Training) -> None:
    Path("data/lime.png").write_bytes(b"")
    assert finetuning(validation="data/held_out.jsonl", every=8).code == 0
    assert len(Path("run/samples.jsonl").read_text().splitlines()) == 2


def test_validation_and_eval_agree(cli: Cli, finetuning: Training) -> None:
    """One file with several pictures for a prompt, location tokens in prompts, and odd ends."""
    rows = [
        {
            "image": ["red.png", "lime.png"],
            "prefix": "<image>answer en <loc0001>?",
            "suffix": "red",
        },
        {"image": "blue.png", "prefix": "answer en <loc0002>?\n", "suffix": "blue"},
        {"image": "blue.png", "prefix": "caption en", "suffix": None},
        {"image": "gone.png", "prefix": "ocr", "suffix": "A"},
    ]
    path = Path("data/odd.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    result = finetuning(data=path, validation=path, every=30, steps=30, learning_rate=3e-3)
    assert result.code == 0, result.err
    assert "4 left out, the first: data/odd.jsonl, line 3: suffix is null" in result.err
    judged = cli("eval", "--data", path, "--model", "run/model", "--json")
    found = json.loads(judged.out)["odd.jsonl"]
    assert found["answer: exact"]["n"] == 2
    (score,) = (line["score"] for line in log("run") if "score" in line)
    assert score == pytest.approx(found["answer: VQA accuracy"]["score"], abs=1e-4)
    assert score == 1  # learned by heart


def test_crowds_alone_teach_nothing(finetuning: Training) -> None:
    thing = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "iscrowd": 1}
    data = {
        "images": [{"id": 1, "file_name": "red.png", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [thing],
    }
    Path("data/coco.json").write_text(json.dumps(data))
    result = finetuning(data="data/coco.json")
    assert (result.code, "nothing that a model can say" in result.err) == (1, True)


@pytest.mark.parametrize(
    "how", [{}, {"shard": True}, {"shard": True, "lora": 2}], ids=["whole", "shards", "adapters"]
)
def test_two_processes_are_one(finetuning: Training, how: dict[str, Any]) -> None:
    assert finetuning("one", lora=how.get("lora")).code == 0
    two = finetuning.together("two", validation="data/held_out.jsonl", every=4, **how)
    assert two.code == 0, two.err
    assert len(Path("two/samples.jsonl").read_text().splitlines()) == 6  # sharded models answer too
    for (step, one), (_, loss) in zip(losses("one"), losses("two"), strict=True):
        assert loss == pytest.approx(one, abs=2e-5), step
    (alone,), (shared,) = (list(Path(n).glob("*/*model.safetensors")) for n in ("one", "two"))
    weights = load_file(shared)
    for name, weight in load_file(alone).items():
        torch.testing.assert_close(weights[name], weight, atol=1e-3, rtol=1e-3)


def test_a_sharded_run_goes_on_where_it_stopped(finetuning: Training) -> None:
    first = finetuning.together("run", shard=True)
    assert first.code == 0, first.err
    lines = Path("run/log.jsonl").read_text()
    shutil.rmtree("run/model")
    again = finetuning.together("run", shard=True, resume=True)  # at its end already
    assert again.code == 0, again.err
    assert Path("run/log.jsonl").read_text() == lines
    assert load("run/model")
    shutil.rmtree("run/model")
    alone = finetuning(resume=True)  # on one process, which has no shards
    assert (alone.code, Path("run/log.jsonl").read_text()) == (0, lines), alone.err
    assert load("run/model")


INTERRUPTED = """
import os, signal, sys, time
from paliglass.cli import main
from paliglass.training import sharding
from paliglass.training.finetuner import Finetuner

step, save = Finetuner.train_step, sharding.save_file

def interrupted(self, group):
    if self.step == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return step(self, group)

def slow(*arguments):
    time.sleep(3)
    save(*arguments)

Finetuner.train_step, sharding.save_file = interrupted, slow
main(sys.argv[1:])
"""


def test_no_process_ends_before_the_checkpoint_is_written(finetuning: Training) -> None:
    assert finetuning("one").code == 0
    Path("interrupted.py").write_text(INTERRUPTED)  # with a disk that takes its time
    finetuning.module = "interrupted"
    run = finetuning.together("two", checkpoint_seconds=1000)
    assert run.code != 0
    assert json.loads(Path("two/checkpoint/state.json").read_text())["step"] == 3, run.err
    assert finetuning("two", resume=True).code == 0
    assert [loss for _, loss in losses("two")] == pytest.approx(
        [loss for _, loss in losses("one")], abs=2e-5
    )


def test_a_killed_run_goes_on_and_meanwhile_has_its_folder_alone(finetuning: Training) -> None:
    assert finetuning("whole").code == 0
    process = frozen_after_three(finetuning, "killed")
    second = finetuning("killed", resume=True)
    assert (second.code, "another run is writing there" in second.err) == (1, True)
    process.kill()
    process.communicate()
    resumed = finetuning("killed", resume=True)
    assert resumed.code == 0, resumed.err
    assert losses("killed") == losses("whole")


def test_wrong_use_is_said_in_a_line(finetuning: Training) -> None:
    Path("data/bad.jsonl").write_text('{"image": "red.png"}')
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"data": "data/bad.jsonl"}, 1, 'line 1: lacks "prefix"'),
        ({"data": "missing"}, 2, "does not exist"),
        ({"batch_size": 3, "accumulate": 2}, 1, "choose a multiple"),
        ({"batch_size": 64}, 1, "do not fill a batch of 64; give --batch-size "),
        ({"patience": 1}, 2, "--patience needs --validation"),
        ({"lora": 2, "train": "projector"}, 2, "all, decoder or attention"),
        ({"shard": True}, 1, "--shard is for several processes"),
        ({"learning_rate": 1e30}, 1, "the gradient is not finite"),
        ({"steps": None}, 2, "--steps or --epochs"),
        ({"precision": "fp8"}, 2, "'fp32', 'bf16'"),
    ]
    for changes, code, complaint in cases:
        result = finetuning(**changes)
        assert (result.code, complaint in result.err) == (code, True), result.err
        # What cannot be done leaves nothing; what went wrong on the way leaves its log.
        assert Path("run").exists() == ("learning_rate" in changes)
        shutil.rmtree("run", ignore_errors=True)
        forget_accelerator()


def test_a_folder_that_was_there_stays(finetuning: Training) -> None:
    Path("run").mkdir()
    assert finetuning(batch_size=64).code == 1
    assert Path("run").is_dir()


def test_a_model_in_int8_is_refused_with_the_mend(cli: Cli, finetuning: Training) -> None:
    converted = cli("convert", finetuning.options["model"], "small", "--quantize", "int8")
    assert converted.code == 0, converted.err
    result = finetuning(model="small", lora=2)
    assert result.code == 1
    assert "fine-tune the one that it was made from, with --lora and --quantize int8" in result.err


def test_adapters_learn_beside_int8(finetuning: Training, model_folder: Path) -> None:
    """And are those of the model as it was: they load onto it in float and in int8."""
    result = finetuning(lora=4, quantize="int8", steps=12, learning_rate=0.02)
    assert result.code == 0, result.err
    found = losses("run")
    assert found[-1][1] < found[0][1]
    assert settings("run")["quantize"] == "int8"
    for quantize in (None, "int8"):
        model = load(model_folder, adapter="run/adapter", quantize=quantize)
        assert model.ask("data/red.png", "what colour?", max_new_tokens=4) is not None
    forget_accelerator()
    longer = {"lora": 4, "steps": 14, "learning_rate": 0.02, "resume": True}
    other = finetuning(**longer)  # resumed in float
    assert (other.code, "started with quantize int8" in other.err) == (1, True), other.err
    forget_accelerator()
    assert finetuning(**longer, quantize="int8").code == 0
    assert [step for step, _ in losses("run")] == list(range(1, 15))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, "--quantize needs --lora"),
        ({"lora": 2, "shard": True}, "--quantize and --shard: choose one"),
        ({"lora": 2, "quantize": "int4"}, "'int8'"),
    ],
)
def test_what_int8_cannot_do_is_refused(
    finetuning: Training, changes: dict[str, Any], complaint: str
) -> None:
    result = finetuning(**{"quantize": "int8", **changes})
    assert (result.code, complaint in result.err) == (2, True), result.err
    assert not Path("run").exists()


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, paliglass.cli.train; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
