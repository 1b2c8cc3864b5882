"""trace, and learn with its exercises."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.cli.helpers import picture

from paliglass.cli.learn import _code
from paliglass.inspect import lessons as lesson
from paliglass.inspect.lessons import find, lessons


class TestTrace:
    def test_writes_a_page_and_says_the_answer(self, cli, model_folder):
        picture("red.png")
        done = cli("trace", "red.png", "--out", "new/page.html", "--max-new-tokens", 4)
        answer, _, summary = done.out.rstrip("\n").rpartition("\n")
        assert (done.code, done.err) == (0, "")
        assert summary.startswith("new/page.html: 4 words, ")
        [same] = cli("caption", "red.png", "--json", "--max-new-tokens", 4).records()
        assert answer == same["answer"]
        page = Path("new/page.html").read_text("utf-8")
        assert page.startswith("<!doctype html>")
        assert page.rstrip().endswith("</html>")
        assert [path.name for path in Path("new").iterdir()] == ["page.html"]

    def test_json(self, cli):
        picture("red.png")
        arguments = ("--max-new-tokens", 3, "--candidates", 2, "--json", "--prompt", "ocr")
        [record] = cli("trace", "red.png", *arguments).records()
        assert record["page"] == "trace.html"
        assert len(record["steps"]) == 3
        for step in record["steps"]:
            assert step["candidates"][0][0] == step["word"]
            assert len(step["candidates"]) == 2

    def test_a_picture_that_is_none(self, cli):
        Path("a.png").write_text("no picture")
        done = cli("trace", "a.png")
        assert (done.code, done.out) == (1, "")
        assert done.err == "error: a.png: is not a picture\n"
        assert not Path("trace.html").exists()


class TestLearn:
    def test_lists_every_lesson(self, cli):
        done = cli("learn")
        for one in lessons():
            assert f"{one.number:02}" in done.out
            assert one.topic in done.out
            assert one.title in done.out

    def test_runs_a_lesson_and_says_that_it_held(self, cli):
        done = cli("learn", "rope")
        assert (done.code, done.err) == (0, "")
        assert "RoPE: positions as rotations" in done.out
        assert "positions 7 and 6: dot product 0.0" in done.out
        assert f"and all {find('rope').num_asserts} assertions held." in done.out
        assert "[[[cog" not in done.out
        assert "<details>" not in done.out

    def test_only_shows(self, cli):
        done = cli("learn", "13", "--no-run")
        assert "positions 7 and 6: dot product 0.0" in done.out  # as the page has it
        assert "held" not in done.out

    def test_long_lines_of_code_are_not_cut(self):
        console = Console(width=40, file=io.StringIO())
        console.print(_code("x = " + " + ".join(["word"] * 20)))
        assert console.file.getvalue().count("word") == 20

    def test_keeps_the_answers_until_asked(self, cli):
        kept, told = cli("learn", "cost", "--no-run"), cli("learn", "cost", "--no-run", "--answers")
        assert "`--answers` shows the answers." in kept.out
        assert "def describe(" in kept.out  # folded on the page
        assert len(told.out) > len(kept.out) + 200
        assert "shows the answers" not in told.out

    def test_an_unknown_topic(self, cli):
        done = cli("learn", "cooking")
        assert done.code == 2
        assert done.err.startswith("error: there is no lesson on 'cooking'; choose architecture, ")

    def test_an_assertion_that_does_not_hold(self, cli, monkeypatch, tmp_path):
        page = "# 01 · Sums\n\n> Is it?\n\n```python\nassert 1 + 1 == 3, 'two'\n```\n"
        (tmp_path / "01_sums.md").write_text(page)
        (tmp_path / "README.md").write_text("")
        monkeypatch.setattr(lesson, "FOLDERS", (tmp_path,))
        done = cli("learn", "sums")
        assert done.code == 1
        assert done.err == "error: lesson sums: an assertion does not hold on this machine: two\n"

    def test_an_installation_without_lessons(self, cli, monkeypatch, tmp_path):
        monkeypatch.setattr(lesson, "FOLDERS", (tmp_path,))
        done = cli("learn")
        assert done.code == 1
        assert "the lessons are not part of this installation" in done.err

    @pytest.mark.parametrize("topic", ["norms", "rope"])  # both draw
    def test_running_a_lesson_leaves_random_numbers_alone(self, topic):
        torch.manual_seed(7)
        expected = torch.rand(1)
        torch.manual_seed(7)
        list(find(topic).run())
        assert torch.rand(1).equal(expected)


class TestExercises:
    RIGHT = "x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1 + weight)"

    def test_from_the_stub_to_the_answer(self, cli):
        done = cli("learn", "norms", "--exercise")
        told = (
            "exercise_norms.py: write rms_norm and layer_norm; then paliglass learn --check "
            "exercise_norms.py\n"
        )
        assert (done.code, done.out, done.err) == (0, told, "")
        done = cli("learn", "--check", "exercise_norms.py")
        unwritten = "rms_norm: is not written yet\nlayer_norm: is not written yet\n"
        assert (done.code, done.out) == (1, unwritten)
        path = Path("exercise_norms.py")
        stub = path.read_text("utf-8")
        for right in (self.RIGHT, "F.layer_norm(x, weight.shape, weight, bias, eps)"):
            stub = stub.replace("raise NotImplementedError", f"return {right}", 1)
        path.write_text(stub, "utf-8")
        done = cli("learn", "--check", "exercise_norms.py")
        assert (done.code, done.out, done.err) == (0, "rms_norm: right\nlayer_norm: right\n", "")

    def test_what_is_written_already_stays(self, cli):
        Path("exercise_rope.py").write_text("mine")
        done = cli("learn", "rope", "--exercise")
        assert (done.code, done.out) == (1, "")
        told = (
            "exercise_rope.py is there already, and stays as it is; try it: paliglass learn "
            "--check exercise_rope.py"
        )
        assert done.err == f"error: {told}\n"
        assert Path("exercise_rope.py").read_text() == "mine"

    def test_answers_are_printed_and_nothing_is_written(self, cli):
        done = cli("learn", "norms", "--exercise", "--answers")
        assert self.RIGHT in done.out
        assert done.out == "".join(f"{line.rstrip()}\n" for line in done.out.splitlines())
        assert not Path("exercise_norms.py").exists()

    def test_only_what_is_there_and_asked_for_is_tried(self, cli):
        Path("some.py").write_text(
            f"import torch\ndef rms_norm(x, weight, eps):\n    return {self.RIGHT}\n"
        )
        assert cli("learn", "--check", "some.py").out == "rms_norm: right\n"
        done = cli("learn", "rope", "--check", "some.py")
        assert (done.code, done.out) == (1, "")
        assert (
            done.err
            == "error: some.py: has none of the exercises' functions: rotate, relative_score\n"
        )

    def test_a_function_that_ends_the_program_is_wrong_in_one_line(self, cli):
        words = "a message that is longer than a line of a hundred characters, " * 2
        Path("some.py").write_text(
            f"def rms_norm(x, weight, eps):\n    raise SystemExit('{words}')\n"
        )
        done = cli("learn", "--check", "some.py")
        told = f"rms_norm: case 1 of 3: raises SystemExit: {words.strip()} (line 2)\n"
        assert (done.code, done.out, done.err) == (1, told, "")

    def test_nothing_of_a_learner_runs_unasked(self, cli):
        Path("exercise_norms.py").write_text("raise SystemExit('ran')")
        assert cli("learn", "norms", "--no-run").code == 0
        assert cli("learn").code == 0

    def test_a_topic_is_needed(self, cli):
        done = cli("learn", "--exercise")
        said = "error: --exercise is of a lesson: paliglass learn rope --exercise (see "
        assert done.err.startswith(said)
