"""A run that was cut short anywhere goes on, and in the end each picture has one row."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.cli.conftest import cli  # noqa: F401
from tests.scale.conftest import TASK, png

from paliglass.errors import PaliglassError
from paliglass.scale import local
from paliglass.scale.output import CHECKPOINT, Output
from paliglass.scale.rows import failed_row
from paliglass.scale.sources import entries


def row(name: str) -> dict[str, object]:
    about = {"id": name, "picture": name, "task": "read", "prompt": "ocr", "model": "mini"}
    return failed_row(about, "why")


def ids(output: Output) -> list[str]:
    return [Path(r["id"]).name for r in output.rows()]


@pytest.fixture
def output(tmp_path: Path, pictures: Path):
    with Output(str(tmp_path / "o"), {}, resume=False) as made:
        made.manifest(entries([str(pictures)]))
        yield made


def test_a_run_that_was_interrupted_goes_on(output, annotator, pictures) -> None:
    def interrupt(row):
        if row["id"].endswith("3.png"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local.annotate(output, annotator, set(), 2, interrupt)
    assert ids(output) == ["0.png", "1.png", "2.png", "3.png"]
    with pytest.raises(PaliglassError, match="2 pictures have no row"):
        output.check()
    told = []
    local.annotate(output, annotator, output.done(), 2, lambda row: told.append(row["id"]))
    assert [Path(name).name for name in told] == ["4.png", "5.png"]
    assert ids(output) == [f"{n}.png" for n in range(6)]
    assert output.check() == (6, 1, f"{pictures / '2.png'}: is not a picture")


def test_a_part_that_was_deleted_is_made_again_beside_the_others(output, annotator) -> None:
    local.annotate(output, annotator, set(), 2)
    output.system.delete_file(output.part_files()[0])
    local.annotate(output, annotator, output.done(), 2)
    assert ids(output) == [f"{n}.png" for n in (2, 3, 4, 5, 0, 1)]
    assert output.check().rows == 6


def test_the_manifest_stays_what_it_was(output, pictures) -> None:
    (pictures / "9.png").write_bytes(png(9))
    assert output.manifest(entries([str(pictures)])) == 6


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_listing_that_breaks_off_leaves_no_manifest(tmp_path, pictures, scheme) -> None:
    """Else a resumed run would take the pictures listed so far for all."""

    def breaking():
        yield from entries([str(pictures)])
        raise KeyboardInterrupt

    (tmp_path / "o").mkdir()
    with Output(f"{scheme}{tmp_path / 'o'}", {}, resume=False) as output:
        with pytest.raises(KeyboardInterrupt):
            output.manifest(breaking())
        assert {path.name for path in (tmp_path / "o").iterdir()} <= {"job.json", ".annotate.lock"}
        assert output.manifest(entries([str(pictures)])) == 6


def test_a_row_that_is_there_twice_is_told(output) -> None:
    names = [entry.id for entry in output.entries(set())]
    output.write_part(0, [row(name) for name in names])
    output.write_part(1, [row(names[0])])
    with pytest.raises(PaliglassError, match="0 pictures have no row and 1 rows are there twice"):
        output.check()


def test_what_a_dead_driver_wrote_late_is_dropped(output) -> None:
    """Its worker put a part in place after the next driver had looked for what is done."""
    names = [entry.id for entry in output.entries(set())]
    for number, some in enumerate((names[:2], names[1:4], names[2:3], names[4:])):
        output.write_part(number, [row(name) for name in some])
    assert output.drop_repeated_rows() == 2
    assert ids(output) == [f"{n}.png" for n in range(6)]
    assert len(output.part_files()) == 3
    assert output.check().rows == 6


@pytest.mark.parametrize("error_first", [True, False])
def test_a_row_that_was_made_again_replaces_its_error(output, error_first) -> None:
    """`forget_errors` was killed between checkpoint and parts, so that the error is still there."""
    names = [entry.id for entry in output.entries(set())]
    old = [row(name) for name in names[:2]]
    first, *others = ({**row(name), "error": None} for name in (names[0], *names[2:]))
    parts = [old, [first]]
    for number, some in enumerate(parts if error_first else parts[::-1]):
        output.write_part(number, some)
    output.write_part(2, others)
    output.write_part(3, old)
    assert output.drop_repeated_rows() == 3
    assert output.check() == (6, 1, old[1]["error"])
    assert [r["id"] for r in output.rows() if r["error"] is not None] == [names[1]]


def test_rows_that_are_errors_are_made_again(output, annotator, pictures) -> None:
    local.annotate(output, annotator, set(), 2)
    names = [f"{pictures}/{n}.png" for n in range(6)]
    output.system.create_dir(output.place(CHECKPOINT))
    for name, some in (("a", names[:4]), ("b", names[2:3])):
        pq.write_table(pa.table({"id": some}), output.place(CHECKPOINT, f"{name}.parquet"))
    (pictures / "2.png").write_bytes(png(2))
    assert output.forget_errors() == 1
    assert output.done() == {*names} - {names[2]}
    assert output.committed() == {names[0], names[1], names[3]}
    local.annotate(output, annotator, output.done(), 2)
    assert output.check() == (6, 0, None)
    assert output.forget_errors() == 0


def test_rows_that_a_checkpoint_has_and_no_part_are_told(output) -> None:
    """Ray passes over them for ever, so that --resume does not help."""
    names = [entry.id for entry in output.entries(set())]
    output.write_part(0, [row(name) for name in names[1:]])
    output.system.create_dir(output.place(CHECKPOINT))
    pq.write_table(pa.table({"id": names}), output.place(CHECKPOINT, "0.parquet"))
    with pytest.raises(PaliglassError, match="1 pictures are done by checkpoint, yet have no row"):
        output.check()


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("job.json", "choose another folder"),
        ("manifest.parquet", "choose another folder"),
        ("parts/part-000000.parquet", "delete it"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, pictures, name: str, mend: str) -> None:
    place = tmp_path / "o"
    with Output(str(place), {}, resume=False) as output:
        output.manifest(entries([str(pictures)]))
        output.write_part(0, [row(entry.id) for entry in output.entries(set())])
    (place / name).write_bytes(b"PAR1 no more")

    def resume() -> None:
        with Output(str(place), {}, resume=True) as output:
            output.manifest(())
            output.done()

    with pytest.raises(PaliglassError, match=rf"{name}: cannot be read.*{mend}"):
        resume()


def test_another_run_is_refused(tmp_path: Path, pictures: Path) -> None:
    place = str(tmp_path / "o")
    with (
        Output(place, {"prompt": "describe en"}, resume=False) as output,
        pytest.raises(PaliglassError, match="no such file"),
    ):
        output.manifest(entries([str(tmp_path / "nowhere")]))
    with Output(place, {"prompt": "ocr"}, resume=False) as output:  # what failed at once is no run
        output.manifest(entries([str(pictures)]))
    with pytest.raises(PaliglassError, match="has a run already; --resume goes on"):
        Output(place, {"prompt": "ocr"}, resume=False)
    with pytest.raises(PaliglassError, match="that run had prompt 'ocr', this one 'caption en'"):
        Output(place, {"prompt": "caption en"}, resume=True)
    with Output(place, {"prompt": "ocr"}, resume=True):
        pass


def test_the_command_makes_rows_and_what_others_read(cli, tmp_path, pictures, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setenv("PALIGLASS_MODEL", "mini")
    out = tmp_path / "o"
    words = ["annotate", pictures, "--task", TASK, "--out", out, "--device", "cpu"]
    done = cli(*words, "--part-size", 4, "--format", "coco")
    assert done.code == 1
    assert "1 of 6 rows are errors, such as " in done.err
    assert len(list((out / "parts").iterdir())) == 2
    coco = json.loads((out / "coco.json").read_text())
    assert [image["width"] for image in coco["images"]] == [160, 161, 163, 164, 165]
    assert [c["name"] for c in coco["categories"]] == ["red circle", "blue square"]
    assert [a["category_id"] for a in coco["annotations"]] == [1, 2, 2, 1, 2]
    assert cli(*words).code == 1  # the folder has a run
    before = (out / "parts").stat().st_mtime_ns
    again = cli(*words, "--resume", "--format", "jsonl")
    assert "6 rows in parts/*.parquet, results.jsonl" in again.err
    assert (out / "parts").stat().st_mtime_ns == before
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [len(line.get("detections", ())) for line in lines] == [1, 1, 0, 1, 1, 1]
    assert lines[2]["error"].endswith("2.png: is not a picture")
    checked = cli("data", "check", out / "results.jsonl")
    assert "line 3: answer is null" in checked.out
    assert "5 examples" in checked.out


def test_workers_are_of_ray(cli, tmp_path, pictures) -> None:  # noqa: F811
    done = cli("annotate", pictures, "--task", "ocr", "--out", tmp_path / "o", "--workers", 2)
    assert done.code == 2
    assert "--ray local" in done.err


def test_a_question_is_told_to_be_one(cli, tmp_path, pictures, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setenv("PALIGLASS_MODEL", "mini")
    done = cli("annotate", pictures / "0.png", "--task", "what is it?", "-o", tmp_path / "o")
    assert done.code == 0
    assert "asked as a question: 'answer en what is it?'" in done.err
