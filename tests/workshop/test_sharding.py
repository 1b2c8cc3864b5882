"""Two gloo processes, with whole weights and with shards, against one."""

from __future__ import annotations

import json
import os
import socket
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tests.workshop.test_pretrain import GRID, PROCESSOR, RECIPE, WORLD, network
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from workshop.pretrain.__main__ import save_result
from workshop.pretrain.batches import batches
from workshop.pretrain.pretrainer import Pretrainer

from paliglass.errors import PaliglassError
from paliglass.training.loop import total_of
from paliglass.training.optimizers import Muon
from paliglass.training.processes import make_accelerator

Losses = list[dict[str, float]]


def new_trainer(accelerator: Accelerator, shard: bool = False, **changes: Any) -> Pretrainer:
    return Pretrainer(network(**changes), accelerator, shard)


def train(trainer: Pretrainer, steps: int) -> Losses:
    """Mean losses over all processes, of so many steps from the trainer's on."""
    rank, processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
    data = batches(WORLD, PROCESSOR, RECIPE, GRID, trainer.step, 0, rank, processes)
    losses = []
    for batch in islice(data, steps):
        report = trainer.train_step([batch])
        sums = {name: list(pair) for name, pair in report.items()}
        totals = total_of(sums, trainer.accelerator)
        losses.append({name: total / max(count, 1) for name, (total, count) in totals.items()})
    return losses


def sharded_muon_is_muon() -> bool:
    """On a matrix whose rows do not divide evenly."""
    torch.manual_seed(0)
    mesh, start = init_device_mesh("cpu", (2,)), torch.randn(5, 4)
    matrix = nn.Parameter(start.clone())
    shards = nn.Parameter(distribute_tensor(start, mesh, [Shard(0)]))
    optimizers = [Muon([parameter], 0.1, torch.float32) for parameter in (matrix, shards)]
    for gradient in torch.randn(3, 5, 4):
        matrix.grad, shards.grad = gradient, distribute_tensor(gradient, mesh, [Shard(0)])
        for optimizer in optimizers:
            optimizer.step()
    return torch.equal(shards.full_tensor(), matrix)  # type: ignore[attr-defined]


def one_of_two(rank: int, port: int, folder: Path) -> None:
    """All that two processes do in these tests, as starting them takes longest."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    accelerator = make_accelerator()
    found: dict[str, Any] = {"muon": sharded_muon_is_muon()}
    for name, shard in (("whole", False), ("sharded", True)):
        trainer = new_trainer(accelerator, shard)
        first = train(trainer, 3)
        trainer.save(folder / name / "third")
        rest = train(trainer, 5)
        trainer.save(folder / name / "checkpoint")
        save_result(trainer, folder / name / "model", PROCESSOR)
        again = new_trainer(accelerator, shard)
        again.resume(folder / name / "third")
        found[name] = {"losses": first + rest, "resumed": train(again, 5)}
    shards = [weight for weight in trainer.parameters.values() if isinstance(weight, DTensor)]
    found["held"] = sum(weight.to_local().numel() for weight in shards)
    found["half"] = train(new_trainer(accelerator, shard=True, precision="bf16"), 4)
    try:
        new_trainer(accelerator, scenes=3)
    except PaliglassError as error:
        found["uneven"] = str(error)
    if accelerator.is_main_process:
        (folder / "found.json").write_text(json.dumps(found))
    accelerator.end_training()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left in a folder."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (port, folder), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def found(two: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((two / "found.json").read_text())
    return content


@pytest.fixture
def one() -> Pretrainer:
    return new_trainer(make_accelerator())


def same(losses: Losses, expected: Losses, rel: float = 1e-3) -> None:
    for step, (ours, theirs) in enumerate(zip(losses, expected, strict=True), 1):
        assert ours == pytest.approx(theirs, rel=rel, abs=1e-5), step


@pytest.mark.parametrize("how", ["whole", "sharded"])
def test_two_processes_have_the_losses_of_one(
    found: dict[str, Any], one: Pretrainer, how: str
) -> None:
    expected = train(one, 8)
    assert "caption" not in expected[0]
    assert "caption" in expected[-1]
    same(found[how]["losses"], expected)


def test_half_precision_is_sharded_too(found: dict[str, Any]) -> None:
    alone = new_trainer(make_accelerator(), precision="bf16")
    same(found["half"], train(alone, 4), rel=0.03)


@pytest.mark.parametrize("how", ["whole", "sharded"])
def test_a_resumed_run_has_the_losses_of_an_unbroken_one(found: dict[str, Any], how: str) -> None:
    assert found[how]["resumed"] == found[how]["losses"][3:]


@pytest.mark.parametrize("how", ["whole", "sharded"])
def test_one_process_goes_on_with_what_two_began(
    two: Path, found: dict[str, Any], one: Pretrainer, how: str
) -> None:
    one.resume(two / how / "third")
    assert one.step == 3
    same(train(one, 5), found[how]["losses"][3:])


def test_two_processes_leave_the_model_of_one(two: Path, one: Pretrainer, tmp_path: Path) -> None:
    train(one, 8)
    save_result(one, tmp_path / "model", PROCESSOR)
    one.save(tmp_path / "checkpoint")
    for name, tolerance in (("checkpoint/weights", 1e-4), ("model/model", 1e-2)):
        expected = load_file(tmp_path / f"{name}.safetensors")
        for how in ("whole", "sharded"):
            weights = load_file(two / how / f"{name}.safetensors")
            assert weights.keys() == expected.keys()
            for key, weight in expected.items():
                if key.endswith("k_proj.bias"):
                    continue  # no score differs for it: its gradient is rounding, which Adam scales
                torch.testing.assert_close(
                    weights[key], weight, rtol=tolerance, atol=tolerance, msg=f"{how} {key}"
                )


def test_each_process_holds_half(found: dict[str, Any], one: Pretrainer) -> None:
    total = sum(weight.numel() for weight in one.parameters.values())
    assert found["held"] == pytest.approx(total / 2, rel=0.01)


def test_muon_on_shards_has_the_very_numbers_of_muon(found: dict[str, Any]) -> None:
    assert found["muon"]


def test_scenes_that_cannot_be_shared_are_refused(found: dict[str, Any]) -> None:
    assert found["uneven"] == "3 scenes cannot be shared by 2 processes; choose a multiple"


def test_shards_are_for_several_processes() -> None:
    with pytest.raises(PaliglassError, match="--shard is for several processes"):
        new_trainer(make_accelerator(), shard=True)
