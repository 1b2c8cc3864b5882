"""Writes a checkpoint of a published size with random weights, in the transformers layout.

    python workshop/random_checkpoint.py paligemma-3b-224 /path/to/folder

For timing and parity at full size without the gated weights. One tensor is made at a time, so the
model is never held in memory: peak use is that of the largest tensor.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from pathlib import Path

import torch

from paliglass.checkpoints.assembly import expected_shapes, skeleton
from paliglass.checkpoints.config_json import paligemma_to_json
from paliglass.checkpoints.files import write_json
from paliglass.checkpoints.saving import new_folder
from paliglass.config import PRESETS

DTYPES = {"bfloat16": (torch.bfloat16, "BF16"), "float32": (torch.float32, "F32")}


def random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Norm weights near what they are at rest, matrices that keep the size of what they map."""
    if "norm" in name or name.endswith("bias"):
        at_rest = 1.0 if name.endswith("weight") and "layer_norm" in name else 0.0
        return at_rest + 0.02 * torch.randn(shape, generator=generator)
    fan_in = shape[1:].numel() if "embed" not in name else shape[-1]
    return torch.randn(shape, generator=generator) / math.sqrt(fan_in)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = PRESETS[arguments.preset]
    dtype, code = DTYPES[arguments.dtype]
    shapes = expected_shapes(skeleton(config))

    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = shape.numel() * dtype.itemsize
        header[name] = {
            "dtype": code,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data start at a multiple of 8

    generator = torch.Generator().manual_seed(arguments.seed)
    with new_folder(arguments.folder) as folder:
        write_json(folder / "config.json", {**paligemma_to_json(config), "dtype": arguments.dtype})
        with (folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            for name, shape in shapes.items():
                tensor = random_tensor(name, shape, generator).to(dtype)
                file.write(tensor.flatten().view(torch.uint8).numpy().data)
    print(f"{arguments.folder}: {offset / 1e9:.2f} GB of {arguments.preset} in {arguments.dtype}")


if __name__ == "__main__":
    main()
