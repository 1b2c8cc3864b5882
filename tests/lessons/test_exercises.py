"""The exercises that are code: the answer passes, each usual mistake gets its own hint."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from paliglass.errors import PaliglassError
from paliglass.inspect.exercises import EXERCISES, HEADER, Exercise, functions_of
from paliglass.inspect.lessons import find, lessons
from paliglass.training.optimizers import Muon

OWN = {
    "accepted",
    "best_pair",
    "calibration_error",
    "character_errors",
    "dot_bytes",
    "fewer_key_heads",
    "generate",
    "head_attribution",
    "importance_weights",
    "kept_tokens",
    "local_mask",
    "muon_step",
    "resize_positions",
    "ridge_batch",
    "rollout",
    "sinusoidal",
    "speculative_token",
    "step_seconds",
    "tokens_computed",
    "unpack_group",
    "weighted_error",
}
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


def test_the_real_code_judges_wherever_there_is_some() -> None:
    """These alone are held to their answers: nothing that a plain install has does the same."""
    assert {one.name for one in EXERCISES if one.truth is None} == OWN


@pytest.mark.parametrize("exercise", [one for one in EXERCISES if one.truth], ids=lambda e: e.name)
def test_an_answer_that_differs_from_the_real_code_is_wrong(exercise: Exercise) -> None:
    for mistake in exercise.mistakes.values():
        assert replace(exercise, truth=mistake).check(exercise.answer) is not None


def test_characters_are_counted_as_scores_count_them() -> None:
    texts = pytest.importorskip("paliglass.evaluation.texts", exc_type=ImportError)
    exercise = BY_NAME["character_errors"]
    real = replace(exercise, truth=lambda said, truth: texts.character_errors(said, [truth])[0])
    assert real.check(exercise.answer) is None


def test_muon_goes_where_the_exercise_goes() -> None:
    """The package's own iteration leaves singular values of 0.7 … 1.2 in the place of 1."""
    torch.manual_seed(0)
    matrix = torch.nn.Parameter(torch.randn(4, 6))
    matrix.grad = torch.randn(4, 6)
    before = matrix.detach().clone()
    optimizer = Muon([matrix], weight_decay=0.0, dtype=torch.float32)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    step = BY_NAME["muon_step"].answer(before, matrix.grad, 0.1) - before
    unit = 0.1 * 0.2 * 6**0.5
    off = torch.linalg.svdvals((matrix.detach() - before - step) / unit)
    assert off.max() < 0.35


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

    def test_a_dictionary_that_is_written_into(self) -> None:
        def counting(words):
            pair = BY_NAME["best_pair"].answer(words)
            words[pair] = 0
            return pair

        hint = BY_NAME["best_pair"].check(counting)
        assert hint == "writes into one of its arguments; make a new tensor or list instead"

    def test_a_function_that_ends_the_program(self) -> None:
        hint = self.NORM.check(lambda x, weight, eps: sys.exit("done"))
        assert re.fullmatch(r"case 1 of 3: raises SystemExit: done \(line \d+\)", hint or "")
        hint = self.NORM.check(lambda x, weight, eps: sys.exit())
        assert re.fullmatch(r"case 1 of 3: raises SystemExit \(line \d+\)", hint or "")

    def test_lines_of_libraries_are_not_the_learners(self, tmp_path: Path) -> None:
        text = "def rms_norm(x, weight, eps):\n    return json.loads('{')\n"
        hint = self.NORM.check(function_of(text, "rms_norm", tmp_path))
        assert hint is not None
        assert hint.endswith(f" (line {HEADER.count(chr(10)) + 2})")

    def test_whole_numbers_are_exact(self) -> None:
        exercise = BY_NAME["layer_parameters"]
        right = exercise.answer(64, 2, 2, 32, 128)
        assert exercise.check(lambda *sizes: exercise.answer(*sizes) + 1) == (
            f"case 1 of 3: gives {right + 1}, and should give {right}"
        )
        assert exercise.check(lambda *sizes: float(exercise.answer(*sizes))) is None
        assert exercise.check(lambda *sizes: 10**400) == (
            f"case 1 of 3: gives a number of 1329 bits, and should give {right}"
        )
        codes = BY_NAME["nearest_codes"]
        assert codes.check(lambda v, e: codes.answer(v, e) + 1e-5) is not None

    def test_a_number_beyond_all_floats(self) -> None:
        hint = BY_NAME["object_score"].check(lambda shape, label: 10**400)
        assert hint is not None
        assert hint.startswith("case 1 of 2: gives a number of 1329 bits, and should give 0.")

    def test_complex_numbers(self) -> None:
        hint = self.NORM.check(lambda *given: self.NORM.answer(*given) + 1j)
        assert hint == "case 1 of 3: gives torch.complex64, and should give torch.float32"

    def test_a_tensor_for_a_list(self) -> None:
        exercise = BY_NAME["accepted"]
        assert exercise.check(lambda *given: torch.tensor(exercise.answer(*given))) is None
        hint = BY_NAME["quantize_rows"].check(lambda weight: weight)
        assert hint == "case 1 of 2: gives a tensor of 2 × 4, and should give tuple"

    def test_numpy_s_numbers_and_lists(self) -> None:
        sums = BY_NAME["dot_bytes"]
        assert sums.check(lambda total, *both: total + np.dot(*both)) is None
        weights = BY_NAME["importance_weights"]
        assert weights.check(lambda *given: np.array(weights.answer(*given))) is None
        numbers = BY_NAME["read_tensor"]
        assert numbers.check(lambda *given: [*np.float32(numbers.answer(*given))]) is None

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


def test_a_file_may_have_dataclasses(tmp_path: Path) -> None:
    text = """@dataclass
class Pair:
    a: int

def f():
    return Pair(3).a
"""
    written = function_of("from dataclasses import dataclass\n\n" + text, "f", tmp_path)
    assert written() == 3
    assert written.__module__ not in sys.modules
