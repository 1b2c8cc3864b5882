"""serve: the model over HTTP."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Annotated

import typer

from paliglass.cli.app import command
from paliglass.cli.options import LoadOptions, Quantize, locate_model

__all__ = ["serve"]


@command
def serve(
    *,
    run: LoadOptions,
    quantize: Annotated[
        Quantize | None, typer.Option(help="Make the weights smaller, and on most CPUs faster.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What clients call the model; by default the last part of --model."),
    ] = None,
    host: Annotated[str, typer.Option(help="127.0.0.1 is reached from this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Keys, one a line; clients send one."),
    ] = None,
    max_queue: Annotated[int, typer.Option(min=0, help="Requests that wait; others get 429.")] = 64,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers that run together.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that an answer may take.")] = 120,
    mask_codec: Annotated[
        Path | None, typer.Option(help="What turns codes into masks, if the model has none.")
    ] = None,
    cache: Annotated[
        int, typer.Option(min=0, help="MiB of features, and as much of prompts.")
    ] = 256,
    embedding_model: Annotated[
        str | None,
        typer.Option(help="A dual encoder for /v1/embeddings; with mini it is mini-dual."),
    ] = None,
    allow_media_domain: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="A host that pictures are fetched from; repeatable."),
    ] = None,
    media_path: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A folder that file: addresses may name."),
    ] = None,
    ignore_system: Annotated[
        bool, typer.Option("--ignore-system", help="Do without system messages, not refuse them.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Replicas on a Ray cluster, or local: Ray on this machine."
        ),
    ] = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="Of --ray, at most; as many as the waiting requests need.")
    ] = 2,
) -> None:
    """Serve the model: OpenAI's interface and Moondream's, many requests in one batch.

    SIGTERM or Ctrl-C ends it once the requests under way are answered; a second one at once.
    """
    from paliglass.checkpoints.hub import locate

    # What is not there is said before anything is started.
    locate_model(run.model, run.adapter)
    if embedding_model is not None:
        locate(embedding_model, kind="dual encoder")
    from paliglass.serving import create_app
    from paliglass.serving.options import ServerOptions
    from paliglass.serving.server import serve as serve_app

    options = ServerOptions(
        model=run.model,
        adapter=run.adapter,
        device=run.device,
        dtype=run.dtype,
        quantize=quantize,
        mask_codec=None if mask_codec is None else str(mask_codec),
        name=name,
        api_key_file=None if api_key_file is None else str(api_key_file),
        max_queue=max_queue,
        max_batch=max_batch,
        timeout=timeout,
        cache=cache,
        embedding_model=embedding_model,
        allow_media_domain=tuple(allow_media_domain or ()),
        media_path=None if media_path is None else str(media_path),
        ignore_system=ignore_system,
        is_local=_is_local(host),
    )
    if not options.is_local and not options.keys:
        print(f"{host} can be reached by others, and there is no --api-key-file", file=sys.stderr)
    settings = options.settings

    def tell(port: int) -> None:
        print(f"{settings.name} on http://{host}:{port} (docs: /docs, Ctrl-C ends it)", flush=True)

    if ray is not None:
        from paliglass.serving.ray import serve_replicas

        serve_replicas(ray, options, host, port, replicas, lambda: tell(port))
        return
    engine, settings, dual = options.create()
    serve_app(create_app(engine, settings, dual), engine, host, port, tell)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
