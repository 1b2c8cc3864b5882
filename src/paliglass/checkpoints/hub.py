"""Where a model's folder is: shipped in the package, on disk, or on the Hugging Face hub."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from paliglass.errors import CheckpointError
from paliglass.files import reason

__all__ = ["SHIPPED", "Kind", "is_hub_id", "locate"]

_PACKAGE = Path(__file__).parents[1]
SHIPPED = {"mini": _PACKAGE / "mini", "mini-dual": _PACKAGE / "mini_dual"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

NEEDED = ("*.json", "*.safetensors")

Kind = Literal["model", "adapter", "dual encoder"]
_WANTED: dict[Kind, str] = {
    "model": "one with config.json and model.safetensors, a big_vision .npz, a hub id like "
    "google/paligemma2-3b-mix-224, or mini",
    "adapter": "one with adapter_config.json and adapter_model.safetensors, or a hub id",
    "dual encoder": "one with config.json and model.safetensors, a hub id like "
    "google/siglip-base-patch16-224, or mini-dual",
}
_OFFLINE: dict[Kind, str] = {
    "model": "; the model mini works offline",
    "adapter": "",
    "dual encoder": "; the model mini-dual works offline",
}


def is_hub_id(name: str) -> bool:
    """Whether a name could be a repository's on the hub, owner/name."""
    return _HUB_ID.fullmatch(name) is not None


def locate(model: str | Path, files: Sequence[str] = NEEDED, kind: Kind = "model") -> Path:
    """The folder (or .npz file) of a model: a shipped one, a path, or a hub id, to be downloaded.

    "mini" is a PaliGemma, "mini-dual" a dual encoder.

    files: patterns of what to download. kind: what is wanted, for an error to say what that is.

    Raises CheckpointError where there is nothing, or the hub will not give it: what to do then.
    """
    if str(model) in SHIPPED:
        return SHIPPED[str(model)]
    if not str(model):
        raise CheckpointError("the name of a model or adapter is empty")
    path = Path(model).expanduser()
    try:
        exists = path.exists()
        parts = _parts(path)
    except (OSError, ValueError) as error:  # no right to look there, or a name none can have
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{str(model)[:200]}: cannot be opened ({why})") from None
    if parts:
        whole = parts[0].with_suffix("")
        if whole != path or not exists:
            raise CheckpointError(
                f"{path}: comes in {len(parts)} parts; join them: "
                f"cat {' '.join(part.name for part in parts)} > {whole.name}"
            )
    if exists:
        return path
    if is_hub_id(str(model)) and path.suffix != ".npz":
        return download(str(model), files, kind)
    raise CheckpointError(f"{model}: no such folder (give {_WANTED[kind]})")


def _parts(path: Path) -> list[Path]:
    """The pieces, in order, of an .npz that is in pieces, named itself or by one of them."""
    match = re.fullmatch(r"(.+\.npz)(\.part\d+)?", path.name)
    if match is None or not path.parent.is_dir():
        return []
    numbers = {}
    for part in path.parent.glob(f"{glob.escape(match[1])}.part*"):
        if number := re.fullmatch(r"\.part(\d+)", part.suffix):
            numbers[int(number[1])] = part
    return [numbers[number] for number in sorted(numbers)]


def download(repo_id: str, files: Sequence[str] = NEEDED, kind: Kind = "model") -> Path:
    """Fetches a repository's JSON and safetensors files into huggingface_hub's cache."""
    # Imported here: it takes a good part of a second, and most runs need no network.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(files)))
    except GatedRepoError:
        raise CheckpointError(
            f"{repo_id}: is gated; accept its licence at https://huggingface.co/{repo_id}, then "
            "log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise CheckpointError(
            f"{repo_id}: neither a folder here nor a repository on the hub (a private one needs "
            "`hf auth login`)"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        is_away = isinstance(error, LocalEntryNotFoundError)  # which says so at length
        why = "" if is_away else f" ({reason(error).partition('. ')[0]})"
        raise CheckpointError(
            f"{repo_id}: is not a folder here, and the hub cannot be reached{why}{_OFFLINE[kind]}"
        ) from None
