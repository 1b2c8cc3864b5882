"""The names of `paliglass.files`, where those who read checkpoints look for them."""

from paliglass.files import (
    lock_folder,
    read_json,
    replacing,
    require_readable,
    write_json,
    write_whole,
)

__all__ = [
    "lock_folder",
    "read_json",
    "replacing",
    "require_readable",
    "write_json",
    "write_whole",
]
