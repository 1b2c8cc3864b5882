"""lab: mini in the browser, with its inside open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paliglass.cli.app import command
from paliglass.cli.options import Overwrite, refuse_existing_file


@command
def lab(
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", dir_okay=False, help="Write the page here, and open nothing."),
    ] = None,
    overwrite: Overwrite = False,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME", help="mini, or a folder of its size.")
    ] = "mini",
) -> None:
    """Open the lab: a live model in a web page, every part there to be looked at and broken.

    It is one file that needs no network and no server; --out FILE writes it, to be mailed or hosted
    anywhere.
    """
    import os
    import webbrowser

    from paliglass.checkpoints.hub import locate
    from paliglass.formats.export import write_files
    from paliglass.lab.build import build

    refuse_existing_file(out, overwrite)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = out or cache / "paliglass" / "lab.html"
    page = build(locate(model), locate("mini-dual"))
    write_files(path.parent, {path.name: page})
    print(f"{path}: {len(page) / 1e6:.1f} MB")
    if out is None and not webbrowser.open(path.resolve().as_uri()):
        print("no browser could be opened; open the file yourself")
