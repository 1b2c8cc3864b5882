"""paliglass export: a folder with a card, and the hub it is pushed to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.helpers import Result, picture
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

from paliglass import load
from paliglass.checkpoints.publishing import push
from paliglass.errors import CheckpointError

Cli = Callable[..., Result]


def test_what_is_exported_loads_and_says_what_it_is(cli: Cli, model_folder: Path) -> None:
    Path("run").mkdir()
    Path("run/model").symlink_to(model_folder)
    Path("run/config.yaml").write_text("steps: 8\nlearning_rate: 0.001\ndata: /home/me/x.jsonl\n")
    scores = {"data.jsonl": {"caption: CIDEr": {"score": 1.25, "n": 40}}}
    Path("scores.json").write_text(json.dumps(scores))
    arguments = "export run/model out --license gemma --base google/paligemma-3b-pt-224"
    result = cli(*arguments.split(), "--scores", "scores.json")
    assert (result.code, result.out) == (0, "out\n"), result.err
    card = Path("out/README.md").read_text()
    assert card.startswith("---\nlicense: gemma\nbase_model: google/paligemma-3b-pt-224\n")
    assert "| learning rate | 0.001 |" in card
    assert "/home/me" not in card  # a path of this machine is nobody's business
    assert "| caption: CIDEr | 1.25 | 40 |" in card
    theirs = PaliGemmaForConditionalGeneration.from_pretrained("out", dtype="auto")
    ours = load("out").model
    assert torch.equal(theirs.lm_head.weight, ours.language_model.lm_head.weight)
    assert AutoProcessor.from_pretrained("out").image_seq_length == ours.config.num_image_tokens
    again = cli("export", "run/model", "out")
    assert (again.code, "exists already" in again.err) == (1, True)


def test_an_adapter_is_merged_and_its_base_named(
    cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    picture("a.png")
    row = {"image": "a.png", "prefix": "caption en", "suffix": "a dog"}
    Path("data.jsonl").write_text(json.dumps(row) + "\n")
    tuned = cli(
        *("train", "finetune", "--model", model_folder, "--data", "data.jsonl"),
        *("--out", "run", "--lora", "2"),
        *("--steps", "2", "--batch-size", "1", "--learning-rate", "0.1", "--precision", "fp32"),
    )
    assert tuned.code == 0, tuned.err
    result = cli("export", model_folder, "out", "--adapter", "run/adapter")
    assert result.code == 0, result.err
    card = Path("out/README.md").read_text()
    assert "made from" in card
    assert "| lora | 2 |" in card
    adapted = load(model_folder, adapter="run/adapter").model.state_dict()
    exported = load("out").model.state_dict()
    assert all(torch.equal(exported[key], adapted[key]) for key in adapted)
    plain = load(model_folder).model.state_dict()
    assert any(not torch.equal(exported[key], plain[key]) for key in plain)


def test_pushing_goes_to_the_hub_and_says_what_it_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalTokenNotFoundError

    calls: list[Any] = []

    class Api:
        def create_repo(self, name: str, **options: Any) -> Any:
            if name == "nobody/x":
                raise LocalTokenNotFoundError("Token is required")
            if name == "full/x":
                raise OSError("quota exceeded\nmore")
            calls.append((name, options))
            return type("Url", (str,), {"repo_id": name})(f"https://hub/{name}")

        def upload_folder(self, **options: Any) -> None:
            calls.append(options)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push(tmp_path, "me/mine", private=True) == "https://hub/me/mine"
    assert calls == [
        ("me/mine", {"private": True, "exist_ok": True}),
        {"repo_id": "me/mine", "folder_path": tmp_path},
    ]
    with pytest.raises(CheckpointError, match="not logged in"):
        push(tmp_path, "nobody/x", private=False)
    with pytest.raises(CheckpointError, match=r"did not take it \(quota exceeded\)"):
        push(tmp_path, "full/x", private=False)
