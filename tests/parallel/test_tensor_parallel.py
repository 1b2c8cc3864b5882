"""Gloo processes that hold a model together, against one that holds the whole."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import (
    GEMMA2,
    make_batch,
    noise_picture,
    tiny_config,
    tiny_model,
    tiny_processor,
    worded_config,
)
from torch import multiprocessing

from paliglass import PRESETS, PaliglassError
from paliglass.checkpoints import save_folder
from paliglass.checkpoints.memory import gigabytes
from paliglass.model import PaliGemma, load
from paliglass.parallel.processes import agree, is_first_to_fail, join, leave, rank
from paliglass.parallel.tensor_parallel import refuse_division

pytestmark = pytest.mark.slow  # six processes import torch

BROKEN = "language_model.model.layers.0.mlp.up_proj.weight"
KINDS: dict[str, dict[str, Any]] = {
    "gemma": {},  # one key/value head, which each process has
    "gemma2": GEMMA2,  # two: one for each of two processes, and for two of four each
}
SAMPLED = {"temperature": 1.0, "max_new_tokens": 8}


def batch_of(kind: str) -> dict[str, torch.Tensor]:
    batch = make_batch(worded_config(**KINDS[kind]), [5, 9])
    del batch["token_type_ids"]
    return batch


def answers(model: PaliGemma) -> dict[str, Any]:
    """What must be the same however many processes compute it."""
    pictures = [noise_picture(seed=seed) for seed in range(3)]
    return {
        "free": model.generate(pictures, "caption en", max_new_tokens=12),
        "streamed": [*model.generate(pictures[0], "ocr", stream=True, max_new_tokens=6)],
        "boxes": [found.to_dict() for found in model.detect(pictures, "cap", max_new_tokens=30)],
        "seeded": model.generate(pictures, "caption en", seed=3, **SAMPLED),
    }


def refusal(folder: Path, free: int | None = None) -> str:
    """How loading and asking fails. free: bytes that the machine is to have."""
    with pytest.MonkeyPatch.context() as patch:
        if free is not None:
            patch.setattr("paliglass.checkpoints.memory.available_memory", lambda device: free)
        try:
            load(folder, device="cpu", tensor_parallel=True).generate(noise_picture(), "caption en")
        except PaliglassError as error:
            return str(error)
    return "no error"


def one_of_several(rank: int, processes: int, port: int, folder: Path) -> None:
    """All that a process does in these tests, as starting it takes longest."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for kind in KINDS:
        model = load(folder / kind, device="cpu", tensor_parallel=True)
        with torch.inference_mode():
            logits = model.model(**batch_of(kind)).logits
        save_file({"logits": logits.contiguous()}, folder / f"{kind}-{rank}.safetensors")
        picture = noise_picture()
        found = {
            **answers(model),
            "unseeded": [model.generate(picture, "caption en", **SAMPLED) for _ in range(3)],
            "numbers": sum(parameter.numel() for parameter in model.model.parameters()),
            "cache": model.model.new_cache(2, 7).num_bytes,
            "trains": any(parameter.requires_grad for parameter in model.model.parameters()),
            "agreed": agree({"from": rank}),
        }
        (folder / f"{kind}-{rank}.json").write_text(json.dumps(found))
    (folder / f"broken-{rank}.json").write_text(json.dumps(refusal(folder / "broken")))
    (folder / f"large-{rank}.json").write_text(json.dumps(refusal(folder / "gemma", free=1000)))
    failed = is_first_to_fail()
    (folder / f"failed-{rank}.json").write_text(json.dumps(failed))
    leave()


@pytest.fixture(scope="module", params=[2, 4])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both models, and what so many processes made of them."""
    folder = tmp_path_factory.mktemp("shared")
    for kind, text in KINDS.items():
        save_folder(tiny_model(worded_config(**text)), folder / kind, tiny_processor())
    save_folder(tiny_model(worded_config()), folder / "broken", tiny_processor())
    weights = load_file(folder / "broken" / "model.safetensors")
    weights[BROKEN][0, 0] = torch.nan  # in the first process's part
    save_file(weights, folder / "broken" / "model.safetensors", {"format": "pt"})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (request.param, port, folder)
    multiprocessing.start_processes(one_of_several, arguments, request.param, start_method="spawn")
    return folder


def found_by_each(folder: Path, name: str) -> list[Any]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob(f"{name}-*.json"))]


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_one_process(shared: Path, kind: str) -> None:
    whole = load(shared / kind, device="cpu")
    with torch.inference_mode():
        expected = whole.model(**batch_of(kind)).logits
    files = sorted(shared.glob(f"{kind}-*.safetensors"))
    found = [load_file(file)["logits"] for file in files]
    assert len(found) in (2, 4)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_are_those_of_one_process(shared: Path, kind: str) -> None:
    expected = json.loads(json.dumps(answers(load(shared / kind, device="cpu"))))
    for found in found_by_each(shared, kind):
        assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_seed_all_processes_draw_alike_and_each_time_anew(
    shared: Path, kind: str
) -> None:
    first, *others = (found["unseeded"] for found in found_by_each(shared, kind))
    assert all(other == first for other in others)
    assert len(set(first)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_each_process_holds_its_part(shared: Path, kind: str) -> None:
    """What each has whole is small: norms, positions, patches, the projector, single heads."""
    whole = load(shared / kind, device="cpu").model
    total = sum(parameter.numel() for parameter in whole.parameters())
    by_all = ("norm", "embeddings.", "projector", "k_proj", "v_proj")
    common = sum(
        parameter.numel()
        for name, parameter in whole.named_parameters()
        if any(part in name for part in by_all)
    )
    each = found_by_each(shared, kind)
    heads = whole.config.text_config.num_key_value_heads
    for found in each:
        # Biases of what is added up, and the table's last rows, are beyond an even share.
        assert found["numbers"] < common + (total - common) / len(each) * 1.05
        assert found["cache"] * min(heads, len(each)) == whole.new_cache(2, 7).num_bytes
        assert not found["trains"]


def test_processes_agree_on_the_firsts_value_and_one_alone_complains(shared: Path) -> None:
    for kind in KINDS:
        assert all(found["agreed"] == {"from": 0} for found in found_by_each(shared, kind))
    assert sorted(found_by_each(shared, "failed"))[-2:] == [False, True]


def test_a_weight_that_is_broken_in_one_process_ends_all_alike(shared: Path) -> None:
    found = found_by_each(shared, "broken")
    assert len(set(found)) == 1
    assert "mlp.up_proj.weight holds NaN" in found[0]


def test_processes_of_one_machine_need_its_memory_together(shared: Path) -> None:
    whole = sum(p.numel() for p in load(shared / "gemma", device="cpu").model.parameters())
    for found in found_by_each(shared, "large"):
        assert f"the weights need {gigabytes(4 * whole)}" in found


@pytest.mark.parametrize(
    ("name", "able"),
    [
        ("paligemma-3b-224", "1, 2, 4, 8"),
        ("paligemma2-3b-448", "1, 2, 4, 8"),
        ("paligemma2-10b-224", "1, 2, 4, 8, 16"),
        ("paligemma2-28b-224", "1, 2, 4, 8, 16"),  # the vision tower has 16 heads
    ],
)
def test_numbers_of_processes_that_do_not_divide_are_refused(name: str, able: str) -> None:
    for number in map(int, able.split(", ")):
        refuse_division(PRESETS[name], number)
    for number in (3, 5, 32):
        with pytest.raises(PaliglassError, match=f"--nproc-per-node can be {able}$"):
            refuse_division(PRESETS[name], number)


def test_key_heads_that_processes_cannot_share_evenly_are_refused() -> None:
    config = tiny_config(num_attention_heads=12, num_key_value_heads=4, intermediate_size=96)
    with pytest.raises(PaliglassError, match="6 processes cannot share"):
        refuse_division(config, 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_folder(tiny_model(worded_config()), tmp_path / "model", tiny_processor())
    return tmp_path / "model"


def test_one_process_alone_is_told_of_torchrun(folder: Path) -> None:
    with pytest.raises(PaliglassError, match="torchrun --nproc-per-node 2"):
        load(folder, device="cpu", tensor_parallel=True)


def test_what_cannot_be_shared_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PaliglassError, match="cannot share a quantized model"):
        load(folder, tensor_parallel=True, quantize="int8")
    npz = tmp_path / "model.npz"
    npz.touch()
    with pytest.raises(PaliglassError, match=r"cannot share an \.npz"):
        load(npz, tensor_parallel=True)
    with pytest.raises(PaliglassError, match=r"choose auto, cpu or cuda|sees no such GPU"):
        load(folder, device="cuda:0", tensor_parallel=True)


def test_a_number_of_processes_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert rank() == 0  # another program's: torchrun sets all four
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(PaliglassError, match="WORLD_SIZE is 'two'"):
        is_first_to_fail()


def test_processes_that_do_not_come_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(PaliglassError, match="has ended, or has not answered in time"):
        join(timeout=1)
