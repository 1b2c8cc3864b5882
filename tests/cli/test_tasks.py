"""caption, ask, read, detect, generate: what goes in and what comes out."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cli import helpers
from tests.cli.helpers import picture

from paliglass import Box, Detection, load
from paliglass.cli.messages import harmless
from paliglass.processing_paligemma import PaliGemmaProcessor

FOUND = [
    Detection("dog", Box(1.0, 2.0, 21.25, 20.0), 0.875),
    Detection("a cat", Box(0, 0, 5, 5), 1),
]


@pytest.fixture
def finds(monkeypatch):
    """Makes detect find two things in every picture that is not blue."""
    return helpers.finds(monkeypatch, *FOUND, in_blue=False)


def test_every_task_prints_what_the_library_answers(cli, model_folder):
    picture("a.png")
    model = load(model_folder)
    options = {"max_new_tokens": 6}
    expected = {
        ("caption", "a.png"): model.caption("a.png", **options),
        ("caption", "a.png", "--lang", "de"): model.caption("a.png", "de", **options),
        ("ask", "a.png", "what is it?"): model.ask("a.png", "what is it?", **options),
        ("ask", "a.png", "--question", "what?", "--lang", "fr"): model.ask(
            "a.png", "what?", "fr", **options
        ),
        ("read", "a.png"): model.read("a.png", **options),
        ("generate", "a.png", "hello"): model.generate("a.png", "hello", **options),
        ("generate", "a.png", "--prompt", ""): model.generate("a.png", "", **options),
    }
    assert len(set(expected.values())) > 3  # else the comparison would say little
    for arguments, answer in expected.items():
        note = helpers.CUT.format("a.png") if answer.finish_reason == "length" else ""
        assert cli(*arguments) == (0, answer + "\n", note), arguments
        assert cli(*arguments, terminal=True).out == harmless(answer) + "\n", arguments


def test_several_pictures_give_a_line_each(cli, model_folder):
    names = [str(picture(f"{colour}.png", colour)) for colour in ("red", "lime", "blue")]
    answers = load(model_folder).caption(names, max_new_tokens=6)
    result = cli("caption", *names)
    assert result.code == 0
    for line, name, answer in zip(result.out.splitlines(), names, answers, strict=True):
        shown_name, shown = line.split("\t")
        assert shown_name == name
        assert shown == answer.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


def test_batch_size_changes_no_answer(cli):
    for i in range(5):
        picture(f"{i}.png", size=(20 + 7 * i, 30))
    whole = cli("caption", ".", "--batch-size", "8")
    for batch_size in ("1", "2", "5"):
        assert cli("caption", ".", "--batch-size", batch_size) == whole


@pytest.mark.parametrize("task", [("caption",), ("ask", "why?"), ("detect", "dog")])
def test_a_picture_whose_numbers_overflow_is_named_and_the_others_go_on(cli, monkeypatch, task):
    made = PaliGemmaProcessor.prepare

    def prepare(processor, source):
        prepared = made(processor, source)
        is_blue = prepared.pixels[:, 0, 0].tolist() == [-1, -1, 1]
        return replace(prepared, pixels=prepared.pixels * (float("inf") if is_blue else 1))

    monkeypatch.setattr(PaliGemmaProcessor, "prepare", prepare)
    names = [picture(f"{colour}.png", colour) for colour in ("red", "blue", "lime")]
    result = cli(task[0], *names, *task[1:], "--json", "--out", "o")
    assert result.code == 1
    assert [record["file"] for record in result.records()] == ["red.png", "lime.png"]
    first, *_, last = result.err.splitlines()
    assert first.startswith("error: blue.png: the model's numbers overflowed")
    assert last == "error: 1 of 3 pictures could not be answered"
    alone = cli(task[0], "blue.png", *task[1:])
    assert (alone.code, alone.out) == (1, "")


def test_json_is_one_object_a_line(cli, model_folder):
    names = [str(picture("a.png")), str(picture("b.png", "blue"))]
    for name, record in zip(names, cli("ask", *names, "why?", "--json").records(), strict=True):
        expected = {
            "file": name,
            "task": "ask",
            "prompt": "answer en why?",
            "model": str(model_folder),
            "answer": load(model_folder).ask(name, "why?", max_new_tokens=6),
        }
        assert {key: record[key] for key in expected} == expected
        assert record.keys() - expected.keys() == {"score", "finish_reason"}


def test_detect_prints_columns_a_table_or_json(cli, finds):
    picture("a.png")
    picture("none.png", "blue")
    columns = "dog\t0.875\t1.0\t2.0\t21.2\t20.0\na cat\t1.000\t0.0\t0.0\t5.0\t5.0\n"
    assert cli("detect", "a.png", "dog ; a cat").out == columns
    several = cli("detect", "a.png", "none.png", "dog").out
    assert several == "".join(f"a.png\t{line}\n" for line in columns.splitlines())
    table = cli("detect", "a.png", "dog", terminal=True).out
    assert "dog" in table
    assert "0.88" in table
    assert cli("detect", "none.png", "dog", terminal=True).out == "picture: nothing found\n"
    records = cli("detect", "a.png", "none.png", "dog", "--json").records()
    assert [record["detections"] for record in records] == [[f.to_dict() for f in FOUND], []]


def test_detect_runs_the_model_for_its_labels(cli, model_folder):
    picture("a.png")
    prompts = [
        cli("detect", "a.png", *labels, "--json").records()[0]["prompt"]
        for labels in (["dog ; apple"], ["-l", "dog", "--label", "apple"])
    ]
    assert prompts == ["detect dog ; apple"] * 2


def test_labels_of_options_reach_the_model(cli, finds):
    picture("a.png")
    cli("detect", "a.png", "--label", "dog", "--label", "big cat")
    cli("detect", "a.png", "dog ; cat")
    assert finds == [["dog", "big cat"], ["dog", "cat"]]


def test_a_small_model_says_that_it_knows_none_of_the_labels(cli, finds, model_folder):
    picture("a.png")
    shutil.copytree(model_folder, "small")
    Path("small/things.json").write_text('{"dog": ["puppy", "dogs"]}')
    note = 'note: small does not know "wombat" (its 1 things: paliglass info small --things)\n'
    assert cli("detect", "a.png", "wombat", "-m", "small").err == note
    assert cli("detect", "a.png", "wombat ; Puppy", "-m", "small").err == ""
    assert cli("detect", "a.png", "wombat").err == ""  # a model without a list
    assert cli("detect", "a.png", "wombat", "-m", "small", "-q").err == ""
    assert cli("info", "small", "--things").out == "dog: puppy, dogs\n"
    assert json.loads(cli("info", "small", "--json").out)["things"] == {"dog": ["puppy", "dogs"]}
    missing = cli("info", model_folder, "--things")
    assert (missing.code, "has no list" in missing.err) == (1, True)


def test_sampling_is_repeatable_with_a_seed(cli):
    picture("a.png")
    hot = ("caption", "a.png", "--temperature", "5", "--top-k", "50", "--top-p", "0.9")
    same = [cli(*hot, "--seed", "7").out for _ in range(2)]
    others = {cli(*hot, "--seed", str(seed)).out for seed in range(3)}
    assert same[0] == same[1]
    assert len(others) > 1


def test_special_tokens_are_text_unless_let_through(cli, model_folder):
    picture("a.png")
    model = load(model_folder)
    for flags, allowed in (([], False), (["--allow-special-tokens"], True)):
        answer = model.generate(
            "a.png", "<loc0001>", max_new_tokens=6, allow_special_tokens=allowed
        )
        assert cli("generate", "a.png", "<loc0001>", *flags).out == answer + "\n"
    error = cli("generate", "a.png", "see <image>", "--allow-special-tokens")
    assert (error.code, error.out) == (1, "")


class TestPictures:
    """What a user may name."""

    def names(self, result):
        return [record["file"] for record in result.records()]

    def test_a_folder_stands_for_its_own_pictures_sorted(self, cli):
        for name in ("d/b.png", "d/a.JPG", "d/.hidden.png", "d/deep/c.png"):
            picture(name)
        Path("d/notes.txt").write_text("no picture")
        assert self.names(cli("caption", "d", "--json")) == ["d/a.JPG", "d/b.png"]
        deep = self.names(cli("caption", "d", "--json", "--recursive"))
        assert deep == ["d/a.JPG", "d/b.png", "d/deep/c.png"]

    def test_a_pattern_is_what_the_shell_makes_of_it(self, cli):
        for name in ("d/b.png", "d/a.png", "d/e.jpg"):
            picture(name)
        assert self.names(cli("caption", "d/*.png", "--json")) == ["d/a.png", "d/b.png"]
        picture("odd[1].png")  # a name that looks like a pattern is a name
        assert self.names(cli("caption", "odd[1].png", "--json")) == ["odd[1].png"]

    def test_each_picture_once(self, cli):
        picture("d/a.png")
        assert self.names(cli("caption", "d/a.png", "d", "./d/a.png", "--json")) == ["d/a.png"]

    def test_standard_input(self, cli):
        path = picture("a.png")
        piped = cli("caption", "-", stdin=path.read_bytes())
        assert piped[:2] == cli("caption", "a.png")[:2]
        broken = cli("caption", "-", stdin=b"no picture")
        assert broken.code == 1
        assert "standard input: is not a picture" in broken.err

    def test_a_name_that_is_no_text(self, cli):
        name = os.fsdecode(b"caf\xe9.png")
        picture(name)
        picture("b.png")
        [record, _] = cli("caption", name, "b.png", "--json").records()
        assert record["file"] == name

    def test_a_folder_without_pictures_is_an_error(self, cli):
        Path("empty").mkdir()
        result = cli("caption", "empty")
        assert result.code == 1
        assert result.err.startswith("error: empty: holds no pictures")

    def test_broken_ones_are_named_and_the_others_go_on(self, cli):
        picture("a.png")
        picture("z.png", "blue")
        Path("empty.png").touch()
        Path("text.png").write_text("no picture")
        Path("short.png").write_bytes(Path("a.png").read_bytes()[:60])
        names = ["a.png", "empty.png", "text.png", "gone.png", "short.png", "z.png"]
        for batch_size in ("1", "3", "8"):
            result = cli("caption", *names, "--json", "--batch-size", batch_size, "--quiet")
            assert result.code == 1
            assert self.names(result) == ["a.png", "z.png"]
            lines = result.err.splitlines()
            for name, line in zip(names[1:5], lines, strict=False):
                assert line.startswith(f"error: {name}: ")
            assert lines[4:] == ["error: 4 of 6 pictures could not be read"]

    def test_no_model_is_loaded_for_none(self, cli):
        result = cli("caption", "gone.png", "--model", "no/such/model")
        assert result.err.splitlines() == [
            "error: gone.png: no such file",
            "error: 1 of 1 pictures could not be read",
        ]

    def test_progress_stays_off_standard_output(self, cli):
        names = [str(picture(f"{i}.png")) for i in range(2)]
        shown = cli("caption", *names, "--json", terminal=True)
        assert [record["file"] for record in cli("caption", *names, "--json").records()] == names
        assert "2/2" in shown.err
        assert "2/2" not in shown.out
        assert cli("caption", *names, "--quiet", terminal=True).err == ""
        assert "2/2" not in cli("caption", *names).err


def test_the_score_of_a_text_is_the_one_that_python_gives(cli):
    scene = Path(__file__).parents[2] / "assets" / "scene.png"
    said = json.loads(cli("caption", scene, "--json", "--model", "mini").out)
    model, short = load("mini"), {"max_new_tokens": 6}  # as many as `cli` allows
    calibrated = model.caption(scene, **short).score
    assert said["score"] == round(calibrated, 4)
    assert calibrated != model.generate(scene, "caption en", **short).score
