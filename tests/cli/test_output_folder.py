"""--out and --resume: whatever kills a run, nothing is lost and nothing is done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.helpers import finds, picture, results

from paliglass import Box, Detection
from paliglass.cli.pictures import open_picture
from paliglass.model import PaliGemma
from paliglass.tasks.answering import TextTask
from paliglass.tasks.results import Answer


@pytest.fixture
def pictures():
    """Five pictures in d/."""
    return [str(picture(f"d/{i}.png", size=(20 + 9 * i, 30))) for i in range(5)]


@pytest.fixture
def opened(monkeypatch):
    """The names of the pictures that a run opens."""
    names = []

    def spy(name):
        names.append(name)
        return open_picture(name)

    monkeypatch.setattr("paliglass.cli.runner.open_picture", spy)
    return names


def fails_at_third(answer):
    """`PaliGemma.answer` that is interrupted when two results are out."""

    def fails(self, jobs, options):
        for number, result in enumerate(answer(self, jobs, options)):
            if number == 2:
                raise KeyboardInterrupt
            yield result

    return fails


def files(records):
    return [record["file"] for record in records]


def test_results_are_the_lines_of_json(cli, pictures):
    printed = cli("caption", "d", "--json", "--out", "o")
    assert printed.code == 0
    assert results("o") == printed.records()
    assert files(results("o")) == pictures


def test_existing_results_are_refused_with_the_way_on(cli, pictures):
    cli("caption", "d", "--out", "o")
    before = Path("o/results.jsonl").read_bytes()
    result = cli("caption", "d", "--out", "o")
    assert result.code == 1
    assert "--resume" in result.err
    assert Path("o/results.jsonl").read_bytes() == before


@pytest.mark.parametrize("cut", [0, 1, 30, -1], ids=["boundary", "one byte", "half", "no newline"])
def test_resume_after_a_kill_gives_the_same_results(cli, pictures, opened, cut):
    cli("caption", "d", "--out", "o")
    path = Path("o/results.jsonl")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:cut])
    opened.clear()
    assert cli("caption", "d", "--out", "o", "--resume").code == 0
    assert path.read_bytes() == whole
    assert sorted(opened) == pictures[2:]


def test_resume_tries_broken_pictures_again(cli, pictures, opened):
    good = Path(pictures[1]).read_bytes()
    Path(pictures[1]).write_bytes(b"broken")
    assert cli("caption", "d", "--out", "o").code == 1
    Path(pictures[1]).write_bytes(good)
    opened.clear()
    assert cli("caption", "d", "--out", "o", "--resume").code == 0
    assert opened == [pictures[1]]
    assert sorted(files(results("o"))) == pictures


def test_resume_with_nothing_left_loads_no_model(cli, pictures, monkeypatch):
    cli("caption", "d", "--out", "o")
    cli("caption", pictures[0], "--out", "alone")
    monkeypatch.setattr("paliglass.model.load", None)
    result = cli("caption", "d", "--out", "o", "--resume")
    assert (result.code, result.out) == (0, "")
    assert result.err == "note: all 5 pictures are in o/results.jsonl already\n"
    result = cli("caption", pictures[0], "--out", "alone", "--resume")
    assert result.err == "note: the picture is in alone/results.jsonl already\n"


def test_resume_of_another_job_is_refused(cli, pictures):
    cli("ask", "d", "what is it?", "--out", "o")
    for other in (["ask", "d", "why?"], ["caption", "d"], ["ask", "d", "what is it?", "-m", "x"]):
        result = cli(*other, "--out", "o", "--resume")
        assert result.code == 1
        assert "choose another folder" in result.err


def test_a_damaged_line_is_named(cli, pictures):
    cli("caption", "d", "--out", "o")
    path = Path("o/results.jsonl")
    for damage in ("{}", "[1]", '{"file": 3}', "x"):
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], damage, *lines[2:]]) + "\n")
        result = cli("caption", "d", "--out", "o", "--resume")
        assert result.code == 1
        assert "line 2 is not a result" in result.err


def test_an_error_in_the_middle_keeps_what_was_done(cli, pictures, monkeypatch):
    answer = PaliGemma.answer
    monkeypatch.setattr(PaliGemma, "answer", fails_at_third(answer))
    result = cli("caption", "d", "--out", "o", "--batch-size", "1")
    assert result.code == 130
    monkeypatch.setattr(PaliGemma, "answer", answer)
    hint = "2 of 5 pictures done, results are in o; --resume goes on"
    assert result.err == f"error: interrupted; {hint}\n"
    assert files(results("o")) == pictures[:2]
    assert cli("caption", "d", "--out", "o", "--resume").code == 0
    assert files(results("o")) == pictures


def test_drawings_are_named_after_pictures_and_none_is_overwritten(cli, monkeypatch):
    finds(monkeypatch, Detection("x", Box(2, 2, 20, 20), 0.5))
    picture("a/one.png", "red", (64, 48))
    picture("b/one.png", "blue", (32, 24))
    picture("b/two.jpg", "lime", (32, 24))
    assert cli("detect", "a", "x", "--out", ".").code == 0
    assert cli("detect", "a", "b", "x", "--out", ".", "--resume").code == 0
    drawn = {record["file"]: record["drawing"] for record in results(".")}
    assert drawn == {
        "a/one.png": "drawings/one.detect.png",
        "b/one.png": "drawings/one-2.detect.png",
        "b/two.jpg": "drawings/two.detect.png",
    }
    for file, drawing in drawn.items():
        with Image.open(file) as before, Image.open(drawing) as after:
            assert after.size == before.size
            assert after.convert("RGB").tobytes() != before.convert("RGB").tobytes()
    assert not list(Path().glob(".*.tmp"))


def test_names_that_are_no_text_resume(cli, opened):
    name = str(picture("caf\udce9.png"))
    cli("caption", name, "--out", "o")
    [record] = results("o")
    assert record["file"] == name
    opened.clear()
    cli("caption", name, "--out", "o", "--resume")
    assert opened == []


def test_answers_keep_their_letters(cli, pictures, monkeypatch):
    answer = 'ein Hündchen\n\t"犬" \\n'
    monkeypatch.setattr(TextTask, "result", lambda *_: Answer(answer, 0.5))
    cli("read", pictures[0], "--out", "o")
    text = Path("o/results.jsonl").read_text(encoding="utf-8")
    assert json.loads(text)["answer"] == answer
    assert "Hündchen" in text


def test_a_seed_does_not_depend_on_batches_or_resume(cli, pictures):
    sampling = ("--temperature", "5", "--seed", "7", "--max-new-tokens", "8")
    one, many = (
        [r["answer"] for r in cli("caption", "d", "--json", "--batch-size", n, *sampling).records()]
        for n in ("1", "4")
    )
    assert one == many
    assert len(set(one)) > 1
    cli("caption", *pictures[1:3], "--out", "o", *sampling)
    assert cli("caption", "d", "--out", "o", "--resume", *sampling).code == 0
    resumed = {r["file"]: r["answer"] for r in results("o")}
    assert [resumed[name] for name in pictures[3:]] == one[3:]


def test_standard_input_cannot_be_resumed(cli):
    assert cli("caption", "-", "--out", "o", "--resume").code == 2


def test_drawings_replace_no_picture_and_are_not_taken_for_pictures(cli):
    picture("d/a.png")
    before = picture("d/a.detect.png", "lime").read_bytes()
    assert cli("detect", "d", "x", "--out", "d").code == 0
    assert cli("detect", "d", "x", "--out", "d", "--resume").code == 0
    assert Path("d/a.detect.png").read_bytes() == before
    assert len(results("d")) == 2


def test_a_second_process_is_refused_while_the_first_one_writes(cli, pictures):
    from contextlib import closing

    from paliglass.cli.results import Results
    from paliglass.errors import PaliglassError

    job = {"task": "caption", "prompt": "caption en", "model": "x"}
    with closing(Results(Path("o"), job, False)):
        result = cli("caption", "d", "--out", "o")
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith("error: o: another run is writing there")
    assert cli("caption", "d", "--out", "o").code == 0
    # What fails to open keeps nothing locked.
    with pytest.raises(PaliglassError, match="--resume"):
        Results(Path("o"), job, False)
    assert cli("caption", "d", "--out", "o", "--resume").code == 0


@pytest.mark.parametrize(
    "other",
    [
        ["x", "--temperature", "1", "--seed", "1"],
        ["x", "--min-score", "0.5"],
        ["x", "--format", "coco"],
        ["x", "--free"],
        ["x", "--dtype", "bfloat16"],
        ["x ; y"],
    ],
    ids=" ".join,
)
def test_resume_with_other_settings_is_refused(cli, pictures, other):
    assert cli("detect", "d", "x", "--out", "o").code == 0
    before = Path("o/results.jsonl").read_bytes()
    result = cli("detect", "d", *other, "--out", "o", "--resume")
    assert result.code == 1
    assert result.err.startswith("error: o/results.job.json: that run had ")
    assert Path("o/results.jsonl").read_bytes() == before
    assert cli("detect", "d", "x", "--out", "o", "--resume", "--batch-size", "2").code == 0


def test_a_damaged_job_is_named(cli, pictures):
    cli("caption", "d", "--out", "o")
    for damage in ("", "[1]", "{"):
        Path("o/results.job.json").write_text(damage)
        result = cli("caption", "d", "--out", "o", "--resume")
        assert result.code == 1
        assert result.err == "error: o/results.job.json: is not JSON; mend or remove the file\n"


def test_own_drawings_are_not_taken_for_pictures(cli):
    picture("d/a.png")
    picture("d/drawings/mine.png", "lime")  # a user's folder may have that name
    for _ in range(2):
        assert cli("detect", "d", "x", "--out", "d/o", "--resume", "-r").code == 0
        assert files(results("d/o")) == ["d/a.png", "d/drawings/mine.png"]
    assert cli("detect", "d/o/drawings", "x", "--json").code == 0  # asked for by name


class TestExports:
    """--format with --out: a file beside results.jsonl, of all its pictures."""

    @pytest.fixture(autouse=True)
    def finds(self, monkeypatch):
        finds(monkeypatch, Detection("x", Box(2, 2, 20, 20), 0.5))

    def test_coco_of_two_runs_is_that_of_one(self, cli, pictures):
        assert cli("detect", "d", "x", "--out", "one", "--format", "coco").code == 0
        part = cli("detect", *pictures[:2], "x", "--out", "two", "--format", "coco")
        assert part.code == 0
        assert part.out.count("\n") == 2  # people are told as ever
        assert len(json.loads(Path("two/coco.json").read_text())["images"]) == 2
        assert cli("detect", "d", "x", "--out", "two", "--format", "coco", "--resume").code == 0
        assert Path("two/coco.json").read_text() == Path("one/coco.json").read_text()

    def test_yolo(self, cli, pictures):
        assert cli("detect", "d", "x ; y", "--out", "o", "--format", "yolo").code == 0
        assert Path("o/classes.txt").read_text() == "x\ny\n"
        assert sorted(p.name for p in Path("o/labels").iterdir()) == [f"{i}.txt" for i in range(5)]
        assert Path("o/labels/0.txt").read_text() == "0 0.550000 0.366667 0.900000 0.600000\n"

    def test_what_was_done_before_an_interrupt_is_there(self, cli, pictures, monkeypatch):
        monkeypatch.setattr(PaliGemma, "answer", fails_at_third(PaliGemma.answer))
        run = ("detect", "d", "x", "--out", "o", "--format", "csv", "--batch-size", "1")
        assert cli(*run).code == 130
        assert Path("o/results.csv").read_text().count("\n") == 3

    @pytest.mark.parametrize("format", ["json", "csv", "coco"])
    def test_words_too(self, cli, pictures, format):
        assert cli("caption", "d", "--out", "o", "--format", format).code == 0
        name = "coco.json" if format == "coco" else f"results.{format}"
        assert "d/4.png" in Path("o", name).read_text()

    @pytest.mark.parametrize(
        ("format", "taken"),
        [("yolo", "labels/a.txt"), ("yolo", "data.yaml"), ("coco", "coco.json")],
    )
    def test_no_file_of_a_users_is_replaced(self, cli, pictures, format, taken):
        Path("d", taken).parent.mkdir(exist_ok=True)
        Path("d", taken).write_text("mine")
        run = ("detect", "d", "x", "--out", "d", "--format", format)
        for _ in range(2):  # the refused run leaves nothing that would let the next one through
            result = cli(*run)
            assert result.code == 1
            assert "exists already and is not this run's" in result.err
        assert Path("d", taken).read_text() == "mine"

    def test_a_run_killed_before_its_first_picture_can_go_on(self, cli, pictures, monkeypatch):
        answer = PaliGemma.answer

        def fails(*_, **__):
            raise KeyboardInterrupt

        for format in ("coco", "jsonl"):
            run = ("detect", "d", "x", "--out", format, "--format", format)
            monkeypatch.setattr(PaliGemma, "answer", fails)
            assert cli(*run).code == 130
            monkeypatch.setattr(PaliGemma, "answer", answer)
            assert cli(*run, "--resume").code == 0
            assert len(results(format)) == 5
