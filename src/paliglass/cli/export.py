"""export: a model for others, with its card, on disk or on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paliglass.cli.app import command
from paliglass.cli.messages import waiting
from paliglass.cli.models import companions
from paliglass.cli.options import MODEL_HELP, AdapterOption, DtypeOption, locate_model
from paliglass.errors import CheckpointError

__all__ = ["export"]


@command
def export(
    source: Annotated[str, typer.Argument(help=MODEL_HELP)],
    target: Annotated[Path, typer.Argument(help="The new folder.")],
    *,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    base: Annotated[
        str | None, typer.Option(help="The model that it was made from, for the card.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="For the card, as gemma or apache-2.0.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="What `paliglass eval --json` printed."),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to the hub as this.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: for you alone.")] = False,
) -> None:
    """Write a model for others: transformers' layout, adapters merged, with a model card.

    The card tells the settings of the fine-tuning run that the model, or its adapter, lies in.
    """
    from paliglass.checkpoints.hub import locate

    locate_model(source, adapter)
    from paliglass.checkpoints.adapters import CONFIG
    from paliglass.checkpoints.folder import quantization
    from paliglass.checkpoints.publishing import CARD, model_card, read_settings
    from paliglass.checkpoints.publishing import push as upload
    from paliglass.checkpoints.saving import refuse_existing, save_folder
    from paliglass.files import read_json
    from paliglass.model import load

    refuse_existing(target)
    config = locate(source) / "config.json"
    if config.is_file() and (method := quantization(config.parent)) is not None:
        raise CheckpointError(
            f"{source}: is in {method}, which others do not read; export what it was made from"
        )
    found = None if scores is None else read_json(scores)
    with waiting(f"loading {source}"):
        model = load(source, device="cpu", dtype=dtype, adapter=adapter, fast=False)
    made = locate(source) if adapter is None else locate(adapter, kind="adapter")
    run = made.parent / "config.yaml"
    if base is None and adapter is not None:
        named = read_json(made / CONFIG).get("base_model_name_or_path")
        base = named if isinstance(named, str) and named else source
    card = model_card(
        push or target.name,
        model.model.config,
        base,
        licence,
        read_settings(run) if run.is_file() else None,
        found,
    )
    files = {**companions(source), CARD: card.encode()}
    save_folder(model.model, target, model.processor, files)
    print(target)
    if push is not None:
        with waiting(f"uploading to {push}"):
            place = upload(target, push, private)
        print(place)
