"""A hub id is fetched, and what can go wrong on the way is one line with the mend. No network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from paliglass.checkpoints.hub import SHIPPED, Kind, locate
from paliglass.errors import CheckpointError

ID = "google/paligemma2-3b-mix-224"


def hub_error(kind: type[Exception], text: str) -> Exception:
    """As the hub's client raises it, without a real response."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.__dict__.update(response=SimpleNamespace(headers={}, status_code=403), server_message="")
    return error


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[Any]]:
    """Replaces the download by an answer; returns the list of calls."""
    calls: list[Any] = []

    def answer_with(answer: Any) -> list[Any]:
        def download(repo_id: str, **options: Any) -> str:
            calls.append((repo_id, options))
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return calls

    return answer_with


def test_an_id_is_downloaded_without_pickles(
    hub: Callable[[Any], list[Any]], tmp_path: Path
) -> None:
    calls = hub(tmp_path)
    assert locate(ID) == tmp_path
    [(repo_id, options)] = calls
    assert repo_id == ID
    assert set(options["allow_patterns"]) == {"*.json", "*.safetensors"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (hub_error(GatedRepoError, "403"), f"accept its licence at https://huggingface.co/{ID}"),
        (hub_error(RepositoryNotFoundError, "404"), "nor a repository on the hub"),
        (hub_error(LocalEntryNotFoundError, "Long. Very long."), "cannot be reached; the model"),
        (hub_error(HfHubHTTPError, "500 error. Long"), "cannot be reached (500 error); the model"),
        (ConnectionError("Name not known"), "cannot be reached (Name not known); the model"),
    ],
    ids=["gated", "absent", "offline", "server error", "no network"],
)
def test_what_goes_wrong_is_one_line_with_the_mend(
    hub: Callable[[Any], list[Any]], error: Exception, said: str
) -> None:
    hub(error)
    with pytest.raises(CheckpointError) as refused:
        locate(ID)
    assert said in str(refused.value)
    assert ID in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["nothing", "./nothing/here", "../a/b", "/no/such", "a/b/c"])
def test_a_path_is_never_asked_of_the_hub(
    hub: Callable[[Any], list[Any]], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calls = hub(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        locate(name)
    assert not calls


def test_what_is_wanted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = {}
    for kind in get_args(Kind):
        with pytest.raises(CheckpointError) as refused:
            locate("nope", kind=kind)
        said[kind] = str(refused.value)
    assert "or mini)" in said["model"]
    assert "mini-dual" not in said["model"]
    assert "adapter_config.json" in said["adapter"]
    assert "mini" not in said["adapter"]
    assert "or mini-dual)" in said["dual encoder"]
    assert ".npz" not in said["dual encoder"]


def test_an_empty_name_is_not_the_folder_one_is_in() -> None:
    with pytest.raises(CheckpointError, match="is empty"):
        locate("")


def test_a_folder_goes_before_the_hub(
    hub: Callable[[Any], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = hub(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "google" / "mine").mkdir(parents=True)
    assert locate("google/mine") == Path("google/mine")
    assert not calls


def test_mini_needs_no_network(hub: Callable[[Any], list[Any]]) -> None:
    calls = hub(ConnectionError("no network"))
    assert locate("mini") == SHIPPED["mini"]
    assert (locate("mini-dual") / "model.safetensors").is_file()
    assert not calls
