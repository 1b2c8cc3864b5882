"""The lessons' exercises that are code: what a learner is given, and how it is tried."""

from __future__ import annotations

from paliglass.inspect.exercises import decoder, layers, learning, pairs, running, tokens, vectors
from paliglass.inspect.exercises.exercise import HEADER, Exercise, functions_of

__all__ = ["EXERCISES", "HEADER", "Exercise", "functions_of"]

EXERCISES = tuple(
    one
    for module in (vectors, layers, pairs, tokens, decoder, learning, running)
    for one in vars(module).values()  # as they stand there
    if isinstance(one, Exercise)
)
