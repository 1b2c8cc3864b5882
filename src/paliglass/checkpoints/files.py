"""The names of `paliglass.files`, where those who read checkpoints look for them."""

from paliglass.files import read_json, replacing, require_readable, write_json, write_whole

__all__ = ["read_json", "replacing", "require_readable", "write_json", "write_whole"]
