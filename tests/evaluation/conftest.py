"""The art of the world's tests."""

from tests.world.conftest import art, face

__all__ = ["art", "face"]
