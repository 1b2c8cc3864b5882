"""The art of the world's tests."""

from tests.world.conftest import art, font_file

__all__ = ["art", "font_file"]
