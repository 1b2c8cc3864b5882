"""lab: a model in the browser, with its inside open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from paliglass.cli.app import command
from paliglass.cli.messages import waiting
from paliglass.cli.options import (
    DeviceOption,
    Dtype,
    DtypeOption,
    Overwrite,
    refuse_existing_file,
)

__all__ = ["lab"]


@command
def lab(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write the page here, and open nothing: FILE.html, or FOLDER for a web server.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    model: Annotated[
        str,
        typer.Option("--model", "-m", metavar="NAME", help="mini, a folder, or an id on the hub."),
    ] = "mini",
    torch: Annotated[
        bool,
        typer.Option("--torch", help="Have torch compute, also for a model that fits in a page."),
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the server for torch; 0: a free one.")
    ] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantize: Annotated[
        Literal["int8"] | None,
        typer.Option(help="Have torch compute with weights that were rounded to int8."),
    ] = None,
) -> None:
    """Open the lab: a live model in a web page, every part there to be looked at and broken.

    Of mini it is one file that needs no network and no server; --out FILE.html writes it, to be
    mailed or opened anywhere. --out FOLDER writes the page in pieces for a web server, of which a
    reader waits for the first 6.5 MB alone. A larger model is computed by torch, which the page
    asks on 127.0.0.1 until Ctrl-C.

    --quantize int8 shows a model in half the memory, by torch: its weights are those that int8
    leaves, and what is computed with them is not rounded.
    """
    import os
    import webbrowser

    from paliglass.checkpoints.hub import locate
    from paliglass.formats.export import write_files
    from paliglass.lab.build import build, build_pieces, fits_in_a_page

    in_pieces = out is not None and (out.is_dir() or not out.suffix)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = out or cache / "paliglass" / "lab.html"
    if in_pieces:
        path /= "index.html"
    refuse_existing_file(path if out else None, overwrite)
    folder = locate(model)
    if not (folder / "config.json").is_file():
        from paliglass.checkpoints.folder import read_config

        read_config(folder)  # its complaint
    if torch or quantize or (out is None and not fits_in_a_page(folder)):
        if out is not None:
            name = "--torch" if torch else "--quantize"
            raise typer.BadParameter(f"{name} needs the server: leave out --out")
        _serve(model, port, device, dtype, quantize)
        return
    parts = folder, locate("mini-dual"), Path(model).name
    page, pieces = build_pieces(*parts) if in_pieces else (build(*parts), [])
    # The page last: it names the pieces that it was made with.
    files = {piece.file: piece.packed for piece in pieces} | {path.name: page.encode()}
    for name in files if out else ():
        refuse_existing_file(path.with_name(name), overwrite)
    write_files(path.parent, files)
    for name, data in files.items():
        print(f"{path.with_name(name)}: {len(data) / 1e6:.1f} MB")
    if out is None and not webbrowser.open(path.resolve().as_uri()):
        print("no browser could be opened; open the file yourself")


def _serve(
    model: str, port: int, device: str, dtype: Dtype, quantize: Literal["int8"] | None
) -> None:
    import webbrowser

    from paliglass.checkpoints.hub import locate
    from paliglass.lab.build import build
    from paliglass.lab.server import make_server
    from paliglass.lab.torch_engine import TorchLab
    from paliglass.model import load

    name = Path(model).name + (f" in {quantize}" if quantize else "")
    page = build(None, locate("mini-dual"), name)
    with waiting(f"loading {model}"):
        network = load(model, device=device, dtype=dtype, quantize=quantize, fast=False)
        engine = TorchLab(network)
    with make_server(page, engine.ask, port) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        print(f"{url}: {name}, until Ctrl-C", flush=True)
        webbrowser.open(url)
        server.serve_forever()
