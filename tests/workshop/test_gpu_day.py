"""The kit for a day with a GPU: what it measures, what comes back, what a failure costs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from workshop import gpu_day

from paliglass.checkpoints.folder import load_model
from paliglass.checkpoints.hub import locate
from paliglass.config import PRESETS


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_what_fails_is_a_result_and_the_rest_goes_on(tmp_path: Path) -> None:
    report = gpu_day.ResultLog(tmp_path, "check")
    with report.trying("first"):
        raise ValueError("no such\nkernel")
    with report.trying("second"):
        report("second", value=1)
    first, second = lines(tmp_path)
    assert first["failed"] == "ValueError: no such kernel"
    assert (second["name"], second["value"], second["stage"]) == ("second", 1, "check")


def test_a_stage_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    popen = subprocess.Popen

    def sleeper(command: list[str], **options: object) -> object:
        started.append(command)
        code = "import time; print('begun', flush=True); time.sleep(60)"
        return popen([sys.executable, "-c", code], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", sleeper)
    monkeypatch.setattr(gpu_day, "GRACE", 1.0)
    day = gpu_day.Day(tmp_path, tmp_path, "cpu", 0.01, 4, ["--rate"])
    assert gpu_day.run_stage(day, "train", 1.0) != 0
    assert started[0][-2:] == ["--", "--rate"]
    assert "--stage" in started[0]


def test_an_interrupt_ends_the_stage_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, _: object, **options: Any) -> None:
            super().__init__([sys.executable, "-c", "import time; time.sleep(600)"], **options)
            started.append(self)

        def wait(self, timeout: float | None = None) -> int:
            if timeout == 33 + gpu_day.GRACE:
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    day = gpu_day.Day(tmp_path, tmp_path, "cpu", 0.01, 4, [])
    with pytest.raises(KeyboardInterrupt):
        gpu_day.run_stage(day, "train", 33.0)
    [stage] = started
    try:
        assert stage.wait(60) == -signal.SIGKILL
    finally:
        stage.kill()


def test_greedy_tokens_are_those_of_the_whole_sequence() -> None:
    model = load_model(locate("mini"), "cpu", "float32")
    batch = gpu_day.noise(model.config, 2, "cpu", torch.float32)
    said = torch.tensor(gpu_day.greedy(model, batch, 5))
    ids, types = batch["input_ids"], torch.zeros_like(batch["input_ids"])
    with torch.inference_mode():
        for step in range(5):
            logits = model(ids, batch["pixel_values"], token_type_ids=types).logits
            word = logits[:, -1, : model.config.image_token_index].argmax(-1)
            assert word.tolist() == said[:, step].tolist()
            ids = torch.cat((ids, word[:, None]), 1)
            types = torch.cat((types, torch.ones_like(word)[:, None]), 1)


def test_a_rehearsal_has_a_share_of_the_layers_at_the_same_width() -> None:
    whole = PRESETS["paligemma-3b-224"]
    assert gpu_day.reduced(whole, 1) is whole
    small = gpu_day.reduced(whole, 0.12)
    assert small.text_config.num_hidden_layers == 2
    assert small.text_config.hidden_size == whole.text_config.hidden_size
    assert small.image_token_index < small.text_config.vocab_size


def test_a_second_call_goes_on_with_the_run(tmp_path: Path) -> None:
    assert gpu_day.minutes_of(tmp_path, 300.0) == 5
    (tmp_path / "checkpoint").mkdir()
    state = {"settings": {"minutes": 5.0}, "elapsed": 240.0, "ended": False}
    (tmp_path / "checkpoint" / "state.json").write_text(json.dumps(state))
    assert gpu_day.minutes_of(tmp_path, 300.0) == 5.0  # else its rates would be another run's
    (tmp_path / "checkpoint" / "state.json").write_text(json.dumps(state | {"ended": True}))
    assert gpu_day.minutes_of(tmp_path, 300.0) == 9.0


def test_what_comes_back_is_small_parts_that_join_to_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    (work / "checkpoint").mkdir(parents=True)
    out.mkdir()
    model = load_model(locate("mini"), "cpu", "float32")
    state = {name: t for name, t in model.state_dict().items() if "lm_head" not in name}
    network = {f"model.{name}": tensor.contiguous() for name, tensor in state.items()}
    network["patch_head.weight"] = torch.zeros(3, 3)
    save_file(network, work / "checkpoint" / "weights.safetensors")
    (work / "tokenizer.json").write_bytes((locate("mini") / "tokenizer.json").read_bytes())

    seen = gpu_day.publish(work, out, 0.0)
    assert seen > 0
    assert gpu_day.publish(work, out, seen) == seen
    parts = sorted(out.glob("weights-*.safetensors"))
    assert len(parts) > 1
    assert all(part.stat().st_size < 16 << 20 for part in parts)
    assert sum(len(load_file(part)) for part in parts) == len(state)
    assert len(list(out.iterdir())) <= 6  # two more may come back: results and log

    gpu_day.join(out, tmp_path / "joined")
    joined = load_model(tmp_path / "joined", "cpu", None).state_dict()
    assert all(torch.equal(joined[name], tensor.bfloat16()) for name, tensor in state.items())
