"""Files are written whole or not at all, read with their true error, and hold numbers."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save_file as save
from tests.tiny import tiny_model, tiny_processor, worded_config

from paliglass.checkpoints import save_folder
from paliglass.checkpoints.saving import new_folder
from paliglass.errors import CheckpointError, PaliglassError
from paliglass.files import read_json, replacing, require_readable, write_json
from paliglass.tensors import is_finite, open_tensors, read_tensor, save_file


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Writing


def test_the_new_takes_the_place_of_the_old_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
        assert unfinished.parent == tmp_path
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(there: Path) -> None:
        with replacing(there) as unfinished:
            unfinished.write_text("half")
            raise KeyboardInterrupt

    for there in (path, tmp_path / "other"):
        with pytest.raises(KeyboardInterrupt):
            fail(there)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_the_mode_that_the_umask_allows(tmp_path: Path, umask: int) -> None:
    expected = 0o666 & ~umask
    write_json(tmp_path / "a.json", {})
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    for name in ("a.json", "a.safetensors"):
        assert mode(tmp_path / name) == expected, name


def test_a_written_model_is_readable_for_whom_the_umask_allows(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "model"
    save_folder(tiny_model(worded_config()), folder, tiny_processor(), {"card": b"text"})
    assert mode(folder) == 0o777 & ~umask
    for path in folder.iterdir():
        assert mode(path) == 0o666 & ~umask, path.name


def test_a_link_in_the_place_of_the_unfinished_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    names = iter(["guessed", "guessed", "free"])
    monkeypatch.setattr("secrets.token_hex", lambda _n: next(names))
    (tmp_path / ".file.guessed.tmp").symlink_to(victim)
    with replacing(tmp_path / "file") as unfinished:
        unfinished.write_text("text")
    assert victim.read_text() == "mine"
    assert (tmp_path / "file").read_text() == "text"


def test_names_of_unfinished_files_cannot_be_foreseen(tmp_path: Path) -> None:
    names = set()
    for _ in range(20):
        with replacing(tmp_path / "file") as unfinished:
            names.add(unfinished.name)
            unfinished.write_text("text")
    assert len(names) == 20


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "far").write_text("far")
    (tmp_path / "link").symlink_to(tmp_path / "far")
    with replacing(tmp_path / "link") as unfinished:
        unfinished.write_text("near")
    assert (tmp_path / "far").read_text() == "far"
    assert (tmp_path / "link").read_text() == "near"


def test_devices_and_folders_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path, tmp_path / "pipe"):
        with pytest.raises(PaliglassError, match="is no regular file"), replacing(path):
            pytest.fail("the block runs")


def test_where_nothing_can_be_written_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as error, replacing(tmp_path / "no" / "file"):
        pytest.fail("the block runs")
    assert error.value.filename == str(tmp_path / "no" / "file")


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "名" * 85])
def test_the_longest_names_can_be_written(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / name, {"a": 1})
    assert read_json(tmp_path / name) == {"a": 1}


AT_WORK = """
import sys
from pathlib import Path
from paliglass.checkpoints.saving import new_folder

with new_folder(Path(sys.argv[1])) as unfinished:
    (unfinished / "weights").write_text("half")
    print(unfinished, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_makes_is_not(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", AT_WORK, str(tmp_path / "model")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with new_folder(tmp_path / "other"), new_folder(tmp_path / "model") as mine:
            assert (left / "weights").exists()  # somebody is at work there
            (mine / "weights").write_text("whole")
        process.kill()
    assert left.exists()
    (tmp_path / ".model.backup.unfinished-notes").mkdir()
    (tmp_path / "model" / "weights").unlink()
    with new_folder(tmp_path / "model") as mine:
        (mine / "weights").write_text("again")
    assert not left.exists()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model", "other", ".model.backup.unfinished-notes"}


# Reading


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[None]:
    """Who may read what they may read: root, as whom a test may run, may read all."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.mark.parametrize("name", ["model", "mein Modell ü", "m" * 100])
def test_a_folder_that_cannot_be_made_is_named_as_it_was_given(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    request.getfixturevalue("as_nobody")
    folder = tmp_path / "locked" / name
    with pytest.raises(PermissionError) as error, new_folder(folder):
        pytest.fail("the block runs")
    assert error.value.filename == str(folder)


READERS: dict[str, Callable[[Path], object]] = {
    "json": read_json,
    "tensors": open_tensors,
    "anything": require_readable,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_file_without_the_right_to_read_is_not_called_broken(
    tmp_path: Path, reader: str, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "file"
    save({"a": torch.zeros(2)}, path)
    path.chmod(0)
    request.getfixturevalue("as_nobody")
    with pytest.raises(CheckpointError) as error:
        READERS[reader](path)
    assert str(error.value) == f"{path}: cannot be read (Permission denied)"


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_is_not_waited_for(tmp_path: Path, reader: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match=r"pipe: is no regular file"):
        READERS[reader](tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is no regular file"):
        READERS[reader](tmp_path)
    with pytest.raises(CheckpointError, match="there is no gone"):
        READERS[reader](tmp_path / "gone")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e400}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b"null",
        b"3",
    ],
)
def test_what_is_no_json_of_settings_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.json: is not (JSON|a JSON object)") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_a_byte_order_mark_is_no_part_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_json(tmp_path / "a.json") == {"a": 1}


# Numbers

SPECIAL = [float("nan"), -float("nan"), float("inf"), -float("inf")]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
def test_all_that_is_finite_is(dtype: torch.dtype) -> None:
    about = torch.finfo(dtype)
    extremes = [about.max, about.min, about.tiny, -about.tiny, about.smallest_normal / 2, 0.0, -0.0]
    assert is_finite(torch.tensor(extremes, dtype=dtype))
    assert is_finite(torch.tensor([], dtype=dtype))
    assert is_finite(torch.tensor(1.0, dtype=dtype))
    assert is_finite(torch.randn(7, 5).to(dtype).T[::2])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("place", [0, 1, 262_143, 262_144, 299_999])
def test_one_number_that_is_none_is_found_wherever_it_is(
    dtype: torch.dtype, value: float, place: int
) -> None:
    tensor = torch.ones(300_000, dtype=dtype)
    tensor[place] = value
    assert not is_finite(tensor)
    assert not is_finite(tensor.reshape(3, -1).T)


def test_every_16_bit_pattern_is_judged_as_torch_judges_it() -> None:
    bits = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        for number in bits.view(dtype).split(1)[::7]:
            assert is_finite(number) == bool(number.isfinite())


def test_integers_are_numbers() -> None:
    for dtype in (torch.int8, torch.uint8, torch.int64, torch.bool):
        assert is_finite(torch.ones(3).to(dtype))


@pytest.mark.parametrize("dtype", FLOATS[:3])
@pytest.mark.parametrize("value", SPECIAL)
def test_neither_written_nor_read(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    tensors = {"good": torch.ones(3), "bad": torch.tensor([1, value]).to(dtype)}
    with pytest.raises(CheckpointError, match=r"a: bad would hold numbers that are not finite"):
        save_file(tensors, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    save(tensors, tmp_path / "a")
    with open_tensors(tmp_path / "a") as file:
        assert torch.equal(read_tensor(file, "good", tmp_path / "a"), torch.ones(3))
        with pytest.raises(CheckpointError, match=r"a: bad holds (NaN|an infinity)"):
            read_tensor(file, "bad", tmp_path / "a")


def test_what_is_saved_is_what_safetensors_reads(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64)
    tensors = {str(kind): torch.arange(7, dtype=kind)[::2] for kind in kinds}
    tensors |= {"none": torch.empty(0, 3), "one": torch.tensor(2.5), "no": torch.tensor([False])}
    tensors |= {"lines": torch.arange(128.0).reshape(2, 64), "byte lines": torch.ones(64).byte()}
    save_file(tensors, tmp_path / "ours", {"format": "pt"})
    found = load_file(tmp_path / "ours")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    data = (tmp_path / "ours").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for name in ("lines", "byte lines"):
        assert (8 + size + header[name]["data_offsets"][0]) % 64 == 0


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=rf"a\.png: is no folder with {name}$"):
        require_readable(tmp_path / "a.png" / name)
