"""The memory plan beside what a real run holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import make_batch, tiny_config, tiny_model

from paliglass.inspect.memory_plan import kept_for_backward, plan
from paliglass.training.finetuner import Finetuner
from paliglass.training.processes import make_accelerator
from paliglass.training.recipes import FinetuneRecipe

CONFIG = tiny_config(hidden_size=64, intermediate_size=256, num_hidden_layers=3)


@pytest.mark.parametrize(
    ("part", "rank"), [("all", 0), ("decoder", 0), ("attention", 0), ("attention", 4), ("all", 4)]
)
def test_the_plan_is_what_a_run_holds(part: Any, rank: int) -> None:
    model = tiny_model(CONFIG).to(torch.bfloat16)
    recipe = FinetuneRecipe(steps=2, batch_size=2, precision="bf16", train=part, lora=rank)
    trainer = Finetuner(model, recipe, make_accelerator("bf16"))
    trainer.train_step([make_batch(CONFIG, [4, 4], [4, 4])])
    expected = plan(CONFIG, part, rank, rows=2, words=8, checkpointing=False)
    parameters = list(trainer.model.parameters())
    assert expected.weights == sum(p.nbytes for p in parameters)
    assert expected.learning == sum(p.numel() for p in trainer.learning.values())
    state = [v for s in trainer.optimizers.all[0].state.values() for v in s.values()]
    moments = sum(v.nbytes for v in state if torch.is_tensor(v) and v.ndim)
    assert expected.optimizer == moments
    assert expected.gradients == sum(p.nbytes for p in trainer.learning.values())


@pytest.mark.parametrize("part", ["all", "decoder"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_counted_without_memory(part: Any, checkpointing: bool) -> None:
    model = tiny_model(CONFIG).to(torch.bfloat16)
    recipe = FinetuneRecipe(
        steps=2, batch_size=4, precision="bf16", train=part, checkpointing=checkpointing
    )
    with pytest.MonkeyPatch.context() as patch:  # a GPU has a fused kernel at every length
        patch.setattr("paliglass.training.finetuner.SHORT", 0)
        trainer = Finetuner(model, recipe, make_accelerator("bf16"))
    batch = make_batch(CONFIG, [8] * 4, [8] * 4)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            loss: torch.Tensor = trainer.loss(batch)
        return loss

    held = kept_for_backward(forward, list(model.parameters()))
    found = plan(CONFIG, part, rows=4, words=16, checkpointing=checkpointing).activations
    assert found == pytest.approx(held, rel=0.1)


HELD = """
import json, sys
import torch
from tests.tiny import make_batch, tiny_model
from tests.training.test_memory import CONFIG
from paliglass.training.finetuner import Finetuner
from paliglass.training.processes import make_accelerator
from paliglass.training.recipes import FinetuneRecipe

recipe = FinetuneRecipe(steps=2, batch_size=2, precision="bf16")
model = tiny_model(CONFIG).to(torch.bfloat16)
trainer = Finetuner(model, recipe, make_accelerator("bf16"), shard=True)
trainer.train_step([make_batch(CONFIG, [4], [4])])
local = lambda tensors: sum(t.to_local().nbytes for t in tensors)
state = trainer.optimizers.all[0].state
moments = [m[k] for m in state.values() for k in ("exp_avg", "exp_avg_sq")]
found = {"weights": local(trainer.model.parameters()), "optimizer": local(moments)}
if trainer.accelerator.is_main_process:
    open(sys.argv[1], "w").write(json.dumps(found))
trainer.accelerator.end_training()
"""


def test_a_shard_is_what_the_plan_says(tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(HELD)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(tmp_path / "held.py"), str(tmp_path / "held.json")]
    path = os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])])
    environs = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environs, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    held = json.loads((tmp_path / "held.json").read_text())
    expected = plan(CONFIG, gpus=2)
    assert held["weights"] == pytest.approx(expected.weights, rel=0.01)  # rows do not halve evenly
    assert held["optimizer"] == pytest.approx(expected.optimizer, rel=0.01)


def test_more_gpus_hold_less_each_and_lora_learns_little() -> None:
    one, four = (plan(CONFIG, gpus=count) for count in (1, 4))
    assert (four.gradients, four.optimizer) == (one.gradients // 4, one.optimizer // 4)
    assert four.weights == one.weights // 4
    assert plan(CONFIG, "attention", lora_rank=4).learning < one.learning / 20
    assert (
        plan(CONFIG, checkpointing=True).activations < plan(CONFIG, checkpointing=False).activations
    )
