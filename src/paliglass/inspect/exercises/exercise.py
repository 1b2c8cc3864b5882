"""What an exercise is, and how a learner's function is tried.

An exercise is a function of this package. Its signature and docstring are what the learner is
given, its body is the answer. It is held to the real code, where the model or a library has what is
asked for, and else to the answer. What learners often write instead stands beside it, each with a
hint: a function, or in short what to put in the place of what in the answer's source. Who gives
what one of those gives on every case has made that mistake.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import math
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paliglass.errors import PaliglassError

__all__ = ["HEADER", "Exercise", "exercise", "functions_of", "gradients"]

Function = Callable[..., Any]
Edit = tuple[str, ...]  # of the answer's source: old, new, old, new …
# A learner's file as a module while it runs: dataclasses look it up in `sys.modules` by its name.
MODULE = "paliglass_exercise_of_a_learner"
HEADER = '''"""{title}: write the functions below.

    paliglass learn --check {file}
"""

from __future__ import annotations

import json
import math
import struct
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F
'''


@dataclass(frozen=True)
class Exercise:
    """A function that a learner writes.

    topic: of the lesson. answer: how one may write it. truth: the real code, of the same arguments;
    None where there is none. cases: makes the arguments that it is tried on. mistakes: hint → what
    one wrote to deserve it.
    """

    topic: str
    answer: Function
    truth: Function | None
    cases: Callable[[], Iterable[tuple[Any, ...]]]
    mistakes: Mapping[str, Function] = field(repr=False)

    @property
    def name(self) -> str:
        return self.answer.__name__

    @property
    def solution(self) -> str:
        """The source of the answer."""
        return _source(self.answer)

    @property
    def stub(self) -> str:
        """Signature and docstring, and a body that is not written yet."""
        return _source(self.answer, with_body=False) + "    raise NotImplementedError\n"

    def check(self, function: Function) -> str | None:
        """None where `function` does what the truth, or else the answer, does; otherwise one line
        that helps.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            cases = list(self.cases())
            expected = [_call(self.truth or self.answer, copy.deepcopy(case)) for case in cases]
            found = []
            for case in cases:
                arguments = copy.deepcopy(case)
                found.append(_call(function, arguments))
                if any(map(_difference, arguments, case)):
                    return "writes into one of its arguments; make a new tensor or list instead"
            if any(isinstance(one, _Raised) and one.kind is NotImplementedError for one in found):
                return "is not written yet"
            wrong = [_difference(*both) for both in zip(found, expected, strict=True)]
            if not any(wrong):
                return None
            for hint, mistaken in self.mistakes.items():
                theirs = [_call(mistaken, copy.deepcopy(case)) for case in cases]
                if not any(map(_difference, found, theirs)):
                    return hint
        number = next(i for i, one in enumerate(wrong) if one)
        return f"case {number + 1} of {len(cases)}: {wrong[number]}"


def exercise(
    topic: str,
    cases: Callable[[], Iterable[tuple[Any, ...]]],
    mistakes: Mapping[str, Function | Edit],
    truth: Function | None = None,
) -> Callable[[Function], Exercise]:
    """Makes an exercise of its answer."""

    def make(answer: Function) -> Exercise:
        made = {
            hint: _edited(answer, one) if isinstance(one, tuple) else one
            for hint, one in mistakes.items()
        }
        return Exercise(topic, answer, truth, cases, made)

    return make


def _source(answer: Function, with_body: bool = True) -> str:
    """The function, without decorators; or its signature and docstring."""
    source = textwrap.dedent(inspect.getsource(answer))
    [node] = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    end = node.end_lineno if with_body else node.body[0].end_lineno
    return "\n".join(source.splitlines()[node.lineno - 1 : end]) + "\n"


def _edited(answer: Function, edit: Edit) -> Function:
    """The answer with its source changed so, compiled when it is first called."""

    @functools.cache
    def compiled() -> Function:
        source = _source(answer)
        for old, new in zip(edit[::2], edit[1::2], strict=True):
            assert old in source, f"{answer.__name__} does not have {old!r}"
            source = source.replace(old, new)
        names = dict(answer.__globals__)
        exec(compile(source, "<a mistake>", "exec"), names)
        return names[answer.__name__]

    return lambda *arguments: compiled()(*arguments)


def gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """What backpropagation gives for each input: the truth of gradients made by hand."""
    with torch.enable_grad():
        leaves = [one.detach().clone().requires_grad_() for one in inputs]
        return torch.autograd.grad(loss(*leaves), leaves)


def functions_of(path: Path) -> dict[str, Function]:
    """Runs a learner's file, and hands out its functions.

    Raises PaliglassError, with the line, for a file that does not run.
    """
    try:
        code = compile(path.read_text("utf-8"), str(path), "exec")
    except OSError as error:
        raise PaliglassError(f"{path}: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:  # ValueError: no UTF-8, or a NUL
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise PaliglassError(f"{path}{where}: {getattr(error, 'msg', error)}") from None
    module = ModuleType(MODULE)
    module.__file__ = str(path)
    sys.modules[MODULE] = module
    try:
        exec(code, vars(module))
    except (Exception, SystemExit) as error:
        raise PaliglassError(f"{path}: {_told(error, str(path))}") from None
    finally:
        sys.modules.pop(MODULE, None)
    return {name: one for name, one in vars(module).items() if inspect.isfunction(one)}


@dataclass(frozen=True)
class _Raised:
    """What a function gave that gave no value: an exception, told in one line."""

    kind: type[BaseException]
    told: str


def _call(function: Function, arguments: tuple[Any, ...]) -> Any:
    """What it gives, or `_Raised`."""
    try:
        with torch.no_grad():
            return function(*arguments)
    except (Exception, SystemExit) as error:
        code = getattr(inspect.unwrap(function), "__code__", None)
        return _Raised(type(error), _told(error, code.co_filename if code else ""))


def _told(error: BaseException, file: str) -> str:
    """An exception in one line, with the innermost line of code that is in the learner's file."""
    own = [one for one in traceback.extract_tb(error.__traceback__) if one.filename == file]
    message = " ".join(str(error).split())[:200]
    told = f"{type(error).__name__}: {message}".removesuffix(": ")
    return told + (f" (line {own[-1].lineno})" if own else "")


def _difference(found: Any, expected: Any) -> str | None:
    """How the one differs from the other; None where it does not."""
    if isinstance(found, _Raised):
        is_same = isinstance(expected, _Raised) and found.kind is expected.kind
        return None if is_same else f"raises {found.told}"
    if isinstance(expected, _Raised):
        return "gives a value"
    if found is None and expected is not None:
        return "gives None: is there a `return`?"
    if isinstance(expected, Tensor):
        return _difference_of_tensors(found, expected)
    if isinstance(found, np.ndarray | np.generic):
        found = found.tolist()
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            return f"gives {_kind(found)}, and should give {_kind(expected)}"
        if found.keys() != expected.keys():
            return f"gives the keys {list(found)}, and should give {list(expected)}"
        pairs = ((key, _difference(found[key], expected[key])) for key in expected)
        return next((f"{key!r}: {one}" for key, one in pairs if one), None)
    if isinstance(expected, list | tuple):
        if isinstance(found, Tensor) and found.dim() and not _holds_tensors(expected):
            found = found.tolist()
        if not isinstance(found, Sequence) or isinstance(found, str):
            return f"gives {_kind(found)}, and should give {_kind(expected)}"
        if len(found) != len(expected):
            return f"gives {len(found)} things, and should give {len(expected)}"
        parts = map(_difference, found, expected)
        return next((f"number {i}: {one}" for i, one in enumerate(parts) if one), None)
    if isinstance(expected, bool | int | float):
        if isinstance(found, Tensor) and found.numel() == 1:
            found = found.item()
        if not isinstance(found, bool | int | float):
            return f"gives {_kind(found)}, and should give a number"
        if _is_close(found, expected):
            return None
        exact = isinstance(expected, int)
        return f"gives {_number(found, exact)}, and should give {_number(expected, exact)}"
    if isinstance(expected, str | bytes):
        return None if found == expected else f"gives {found!r}, and should give {expected!r}"
    return None  # None, or a function among the arguments


def _holds_tensors(things: Sequence[Any]) -> bool:
    return any(isinstance(one, Tensor) for one in things)


def _is_close(found: float, expected: float) -> bool:
    """Whole numbers count something, and are right or wrong; others may be rounded."""
    if isinstance(expected, int):
        return found == expected
    try:
        return math.isclose(found, expected, rel_tol=1e-4, abs_tol=1e-6)
    except OverflowError:  # an int beyond all floats
        return False


def _number(value: float, exact: bool) -> str:
    if isinstance(value, float):
        return repr(value) if exact else f"{value:.6g}"
    return str(value) if value.bit_length() < 100 else f"a number of {value.bit_length()} bits"


def _difference_of_tensors(found: Any, expected: Tensor) -> str | None:
    if not isinstance(found, Tensor):
        return f"gives {_kind(found)}, and should give a tensor"
    if found.shape != expected.shape:
        return f"gives {_size(found)}, and should give {_size(expected)}"
    is_bool = found.dtype == torch.bool, expected.dtype == torch.bool
    if is_bool[0] != is_bool[1] or found.is_complex() != expected.is_complex():
        return f"gives {found.dtype}, and should give {expected.dtype}"
    kind = torch.complex128 if expected.is_complex() else torch.float64
    a, b = found.to(kind), expected.to(kind)
    is_whole = not (expected.is_floating_point() or expected.is_complex())
    rtol, atol = (0.0, 0.0) if is_whole else (1e-4, 1e-5)
    wrong = ~torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    if not wrong.any():
        return None
    place = [int(i) for i in wrong.nonzero()[0]]
    at = f"[{', '.join(map(str, place))}]" if place else "it"
    return (
        f"{at} is {a[tuple(place)].item():.5g}, and should be {b[tuple(place)].item():.5g} "
        f"({int(wrong.sum())} of {wrong.numel()} numbers differ)"
    )


def _kind(value: Any) -> str:
    return f"a tensor of {_size(value)}" if isinstance(value, Tensor) else type(value).__name__


def _size(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a single number"
