"""What a process holds of a model that several share, and what each token costs it.

    python -m workshop.tensor_parallel .cache/checkpoint-3b
    python -m workshop.tensor_parallel --dispatch

The same prompt runs in one process that holds the whole, then in several that hold a part each.
Memory is the process's peak (`VmHWM`): weights, activations, torch itself, pages of the file that
were touched. With `--dispatch`, one MLP at one token as torch's `ColwiseParallel` and
`RowwiseParallel` make it, and as ours do, in a single process: what is left is their own cost.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes

from paliglass.checkpoints.assembly import parse_dtype
from paliglass.checkpoints.folder import load_model, read_config
from paliglass.errors import PaliglassError
from paliglass.fast import accelerate
from paliglass.parallel.processes import join, leave
from paliglass.parallel.tensor_parallel import TensorParallel
from workshop.commands import run


def peak_memory() -> int:
    """Bytes of this process that were in memory at once, at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise PaliglassError("this system does not tell a process's peak memory")


def measure(
    rank: int, processes: int, port: int, folder: Path, dtype: str, tokens: int, out: Path
) -> None:
    """One process's load, prompt and answer; what it took goes into a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    config = read_config(folder)
    shard = TensorParallel(config, "cpu") if processes > 1 else None
    start = time.perf_counter()
    model = load_model(folder, "cpu", parse_dtype(dtype), accelerate=accelerate, shard=shard)
    found: dict[str, Any] = {"load": time.perf_counter() - start, "loaded": peak_memory()}
    found["numbers"] = sum(parameter.numel() for parameter in model.parameters())
    generator = torch.Generator().manual_seed(0)
    edge, count = config.vision_config.image_size, config.num_image_tokens
    pixels = torch.rand(1, 3, edge, edge, generator=generator) * 2 - 1
    ids = torch.tensor([[config.image_token_index] * count + [2, 100, 200, 300]])
    said: list[int] = []
    with torch.inference_mode():
        start = time.perf_counter()
        cache = model.new_cache(1, ids.shape[1] + tokens)
        hidden = model.prefill(ids, pixels, kv_cache=cache, last_only=True)
        logits = model.language_model.logits(hidden)[0]
        found["first token"] = time.perf_counter() - start
        found["logits"] = logits.float().tolist()
        for number in range(tokens):
            if number == 1:  # the first one packs matrices
                start = time.perf_counter()
            said.append(int(logits.argmax()))
            logits = model.language_model.logits(model.extend(torch.tensor([said[-1:]]), cache))[
                0, -1
            ]
        found["token"] = (time.perf_counter() - start) / (tokens - 1)
    found |= {"said": said, "peak": peak_memory()}
    (out / f"{processes}-{rank}.json").write_text(json.dumps(found))
    if shard is not None:
        leave()


def measured(processes: int, folder: Path, dtype: str, tokens: int) -> list[dict[str, Any]]:
    """What `measure` found in each of so many processes."""
    with tempfile.TemporaryDirectory() as name:
        arguments = (processes, _free_port(), folder, dtype, tokens, Path(name))
        start_processes(measure, arguments, processes, start_method="spawn")  # type: ignore[no-untyped-call]
        files = [Path(name, f"{processes}-{i}.json") for i in range(processes)]
        return [json.loads(file.read_text()) for file in files]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 128, bias=False), nn.Linear(128, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


def _dispatch() -> None:
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    from paliglass.parallel.tensor_parallel import Added, Columns, Rows

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    torch.set_num_threads(1)
    join()
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    theirs = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    ours = {"up": Columns({}), "down": Rows({}), "": Added()}
    modules = {
        "torch's styles, DTensors": parallelize_module(_MLP(), mesh, theirs),
        "ours, plain tensors": parallelize_module(_MLP(), mesh, ours),
        "no parts at all": _MLP(),
    }
    x, best = torch.randn(1, 1, 64), dict.fromkeys(modules, float("inf"))
    with torch.no_grad():
        for _ in range(20):  # in turns, so that what else the machine does meets all alike
            for name, module in modules.items():
                start = time.perf_counter()
                for _ in range(50):
                    module(x)
                best[name] = min(best[name], (time.perf_counter() - start) / 50)
    for name, seconds in best.items():
        print(f"{name:28} {seconds * 1e6:6.0f} µs for an MLP of 64 × 128 at one token")
    leave()


def tensor_parallel(
    folder: Annotated[Path | None, typer.Argument(help="A checkpoint's folder.")] = None,
    processes: Annotated[int, typer.Option(min=2, help="That share it.")] = 2,
    dtype: Annotated[str, typer.Option()] = "auto",
    tokens: Annotated[int, typer.Option(min=2, help="Of the answer.")] = 8,
    dispatch: Annotated[bool, typer.Option("--dispatch", help="One MLP only.")] = False,
) -> None:
    """Measure a model held whole and in parts."""
    if dispatch:
        return _dispatch()
    if folder is None:
        raise typer.BadParameter("name a checkpoint's folder")
    [whole], parts = (measured(n, folder, dtype, tokens) for n in (1, processes))
    print(f"{'':12} {'numbers':>15} {'loaded':>9} {'peak':>9} {'first token':>12} {'a token':>9}")
    for name, row in [("whole", whole), *((f"part {i}", row) for i, row in enumerate(parts))]:
        print(
            f"{name:12} {row['numbers']:15,} {row['loaded'] / 1e9:6.2f} GB {row['peak'] / 1e9:6.2f}"
            f" GB {row['first token']:10.2f} s {row['token'] * 1e3:6.0f} ms"
        )
    most = max(row["peak"] for row in parts)
    print(f"a part's peak is {most / whole['peak']:.3f} of the whole's")
    logits = [torch.tensor(row["logits"]) for row in (whole, *parts)]
    gap = float((logits[0] - logits[1]).abs().max())
    print(f"logits up to {float(logits[0].abs().max()):.3g} differ by {gap:.2g} at most")
    print(f"the parts' logits are the same: {all(torch.equal(logits[1], o) for o in logits[2:])}")
    print(f"greedy tokens are the same: {all(row['said'] == whole['said'] for row in parts)}")


if __name__ == "__main__":
    run(tensor_parallel)
