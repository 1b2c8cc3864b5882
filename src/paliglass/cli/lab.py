"""lab: a model in the browser, with its inside open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
        typer.Option("--out", "-o", dir_okay=False, help="Write the page here, and open nothing."),
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
) -> None:
    """Open the lab: a live model in a web page, every part there to be looked at and broken.

    Of mini it is one file that needs no network and no server; --out FILE writes it, to be mailed
    or hosted anywhere. A larger model is computed by torch, which the page asks on 127.0.0.1 until
    Ctrl-C.
    """
    import os
    import webbrowser

    from paliglass.checkpoints.hub import locate
    from paliglass.formats.export import write_files
    from paliglass.lab.build import build, fits_in_a_page

    refuse_existing_file(out, overwrite)
    folder = locate(model)
    if not (folder / "config.json").is_file():
        from paliglass.checkpoints.folder import read_config

        read_config(folder)  # its complaint
    if torch or (out is None and not fits_in_a_page(folder)):
        if out is not None:
            raise typer.BadParameter("--torch needs the server: leave out --out")
        _serve(model, port, device, dtype)
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = out or cache / "paliglass" / "lab.html"
    page = build(folder, locate("mini-dual"), Path(model).name)
    write_files(path.parent, {path.name: page})
    print(f"{path}: {len(page) / 1e6:.1f} MB")
    if out is None and not webbrowser.open(path.resolve().as_uri()):
        print("no browser could be opened; open the file yourself")


def _serve(model: str, port: int, device: str, dtype: Dtype) -> None:
    import webbrowser

    from paliglass.checkpoints.hub import locate
    from paliglass.lab.build import build
    from paliglass.lab.server import make_server
    from paliglass.lab.torch_engine import TorchLab
    from paliglass.model import load

    page = build(None, locate("mini-dual"), Path(model).name)
    with waiting(f"loading {model}"):
        engine = TorchLab(load(model, device=device, dtype=dtype, fast=False))
    with make_server(page, engine.ask, port) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        print(f"{url}: {model}, until Ctrl-C", flush=True)
        webbrowser.open(url)
        server.serve_forever()
