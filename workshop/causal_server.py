"""Serves a model wrongly on purpose: only the picture's tokens see ahead, the prompt is causal.

    python -m workshop.causal_server --port 8001
    paliglass compare-server http://127.0.0.1:8001 --dtype float32

So do servers whose attention knows ranges of picture tokens but no prefix. `paliglass
compare-server` beside it tells how wrong that is for a model.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from paliglass.cli.options import MODEL_HELP, Dtype
from paliglass.model import PaliGemma, load
from paliglass.serving import Engine, Settings, create_app
from paliglass.serving.server import serve
from workshop.commands import run


def make_causal(model: PaliGemma) -> PaliGemma:
    """The model with a prompt in which each word sees the picture and what stands before it."""
    network = model.model
    prefill, image = network.prefill, network.config.image_token_index

    def causal(input_ids: Tensor, *arguments: Any, **more: Any) -> Tensor:
        more["token_type_ids"] = (input_ids != image).long()
        return prefill(input_ids, *arguments, **more)

    network.prefill = causal  # type: ignore[method-assign]
    return model


def causal_server(
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "mini",
    dtype: Annotated[Dtype, typer.Option()] = "float32",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8001,
) -> None:
    """Serve a model whose prompt attends causally, which is wrong."""
    torch.set_num_threads(1)
    engine = Engine(lambda: make_causal(load(model, dtype=dtype)))
    print(f"{model}, with a causal prompt, on http://127.0.0.1:{port}", flush=True)
    serve(create_app(engine, Settings(name="causal"), None), engine, "127.0.0.1", port)


if __name__ == "__main__":
    run(causal_server)
