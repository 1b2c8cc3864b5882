"""The exercises that are code: the answer passes, each usual mistake gets its own hint."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

from paliglass.errors import PaliglassError
from paliglass.inspect.exercises import EXERCISES, HEADER, Exercise, functions_of
from paliglass.inspect.lessons import find, lessons

BY_NAME = {one.name: one for one in EXERCISES}
each = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda one: one.name)


def function_of(text: str, name: str, tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(HEADER.format(title="Mine", file=path) + text, "utf-8")
    return functions_of(path)[name]


@each
def test_the_answer_is_right_as_it_would_stand_in_a_file(
    exercise: Exercise, tmp_path: Path
) -> None:
    written = function_of(exercise.solution, exercise.name, tmp_path)
    assert exercise.check(written) is None
    assert exercise.check(exercise.truth) is None


@each
def test_the_stub_says_what_is_asked_and_is_not_the_answer(
    exercise: Exercise, tmp_path: Path
) -> None:
    written = function_of(exercise.stub, exercise.name, tmp_path)
    assert exercise.check(written) == "is not written yet"
    assert inspect.getdoc(written) == inspect.getdoc(exercise.answer)
    assert len(inspect.getdoc(written) or "") > 60


@pytest.mark.parametrize(
    ("exercise", "hint"),
    [(one, hint) for one in EXERCISES for hint in one.mistakes],
    ids=lambda one: one.name if isinstance(one, Exercise) else "",
)
def test_a_usual_mistake_gets_its_hint(exercise: Exercise, hint: str) -> None:
    assert exercise.check(exercise.mistakes[hint]) == hint
    assert "\n" not in hint
    assert hint not in exercise.solution


def test_every_exercise_knows_two_mistakes_and_has_its_place_in_a_lesson() -> None:
    assert len(BY_NAME) == len(EXERCISES)
    for one in EXERCISES:
        assert len(one.mistakes) >= 2, one.name
        section = find(one.topic).text.partition("\n## Exercises\n")[2]
        assert f"`{one.name}" in section, f"{one.topic} does not mention {one.name}"
        assert f"paliglass learn {one.topic} --exercise" in section


def test_every_lesson_has_one() -> None:
    assert {one.topic for one in lessons()} == {one.topic for one in EXERCISES}


class TestHints:
    """What is told of a function that makes no usual mistake."""

    NORM = BY_NAME["rms_norm"]

    def test_another_shape(self) -> None:
        hint = self.NORM.check(lambda x, weight, eps: x.sum(-1))
        assert hint == "case 1 of 3: gives 5, and should give 5 × 8"

    def test_nothing(self) -> None:
        hint = self.NORM.check(lambda x, weight, eps: None)
        assert hint == "case 1 of 3: gives None: is there a `return`?"

    def test_a_number_for_a_tensor_and_the_other_way_round(self) -> None:
        assert self.NORM.check(lambda x, weight, eps: 1.0) == (
            "case 1 of 3: gives float, and should give a tensor"
        )
        hint = BY_NAME["tokens_computed"].check(lambda prompt, words, cached: "many")
        assert hint == "case 1 of 4: gives str, and should give a number"

    def test_other_numbers_and_how_many(self) -> None:
        hint = self.NORM.check(lambda x, weight, eps: x)
        assert hint is not None
        assert re.fullmatch(
            r"case 1 of 3: \[0, 0\] is \S+, and should be \S+ \(40 of 40 numbers differ\)", hint
        )

    def test_numbers_for_a_mask(self) -> None:
        hint = BY_NAME["prefix_lm_mask"].check(lambda p, s, n: torch.zeros(p + s + n, p + s + n))
        assert hint == "case 1 of 4: gives torch.float32, and should give torch.bool"

    def test_an_exception_with_its_line(self, tmp_path: Path) -> None:
        text = "def rms_norm(x, weight, eps):\n    y = x.nonsense\n    return y\n"
        hint = self.NORM.check(function_of(text, "rms_norm", tmp_path))
        line = HEADER.count("\n") + 2
        told = f"raises AttributeError: 'Tensor' object has no attribute 'nonsense' (line {line})"
        assert hint == f"case 1 of 3: {told}"

    def test_an_argument_that_is_written_into(self) -> None:
        def in_place(x, weight, eps):
            x *= torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
            return x * (1 + weight)

        hint = self.NORM.check(in_place)
        assert hint == "writes into one of its arguments; make a new tensor or list instead"

    def test_random_numbers_of_the_caller_are_left_alone(self) -> None:
        torch.manual_seed(7)
        expected = torch.rand(1)
        torch.manual_seed(7)
        self.NORM.check(self.NORM.answer)
        assert torch.rand(1).equal(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", r"mine\.py, line 1: '\(' was never closed"),
        ("import math\n\n1 / 0\n", r"mine\.py: ZeroDivisionError: division by zero \(line 3\)"),
        ("raise SystemExit('gone')\n", r"mine\.py: SystemExit: gone \(line 1\)"),
        ("import not_there\n", r"mine\.py: ModuleNotFoundError: No module named 'not_there' .*"),
    ],
)
def test_a_file_that_does_not_run_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(PaliglassError, match=message):
        functions_of(tmp_path / "mine.py")


def test_a_file_is_run_as_a_module_and_not_as_a_script(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def f():\n    pass\n\nif __name__ == '__main__':\n    raise SystemExit(3)\n"
    )
    assert list(functions_of(tmp_path / "mine.py")) == ["f"]
