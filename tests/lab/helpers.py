"""Node for the lab's engine, and pictures that need no artwork."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import paliglass
from paliglass.checkpoints.folder import read_config

PACKAGE = Path(paliglass.__file__).parent
ENGINE = PACKAGE / "lab" / "engine"
MINI = PACKAGE / "mini"
SCRIPT = Path(__file__).parent / "engine.mjs"
SIZES = read_config(MINI)
PATCHES, PER_ROW = SIZES.num_image_tokens, SIZES.vision_config.patches_per_side
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")

COLORS = ["red", "green", "blue", "gold", "purple", "black", "orange", "teal"]


def run_engine(task: str, **values: Any) -> Any:
    """What the engine answers to a task of engine.mjs."""
    given = json.dumps({"task": task, "engine": str(ENGINE), **values})
    assert NODE is not None
    done = subprocess.run([NODE, str(SCRIPT)], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def shapes(seed: int) -> Image.Image:
    """Some coloured shapes on a ground of one colour."""
    source = random.Random(seed)
    size = source.randint(90, 300), source.randint(90, 300)
    ground = tuple(source.randint(190, 255) for _ in range(3))
    image = Image.new("RGB", size, ground)
    draw = ImageDraw.Draw(image)
    for _ in range(source.randint(1, 4)):
        x, y = source.uniform(0, size[0] * 0.7), source.uniform(0, size[1] * 0.7)
        box = (x, y, x + source.uniform(20, 90), y + source.uniform(20, 90))
        fill = source.choice(COLORS)
        kind = source.randrange(3)
        if kind == 0:
            draw.ellipse(box, fill=fill)
        elif kind == 1:
            draw.rectangle(box, fill=fill)
        else:
            draw.polygon([(box[0], box[3]), (box[2], box[3]), (x + 30, box[1])], fill=fill)
    return image


def store(folder: Path, images: list[Image.Image]) -> list[dict[str, Any]]:
    """Pictures as raw RGB files, which engine.mjs reads."""
    stored = []
    for number, image in enumerate(images):
        path = folder / f"{number}.rgb"
        path.write_bytes(image.tobytes())
        stored.append({"path": str(path), "width": image.width, "height": image.height})
    return stored


def floats(path: Path, *shape: int) -> NDArray[np.float32]:
    """What engine.mjs saved."""
    return np.fromfile(path, dtype=np.float32).reshape(shape)
