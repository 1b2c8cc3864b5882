"""The processes that `torchrun` started: who they are, how they find each other, agree and end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from paliglass.errors import PaliglassError

__all__ = ["agree", "answering", "is_first_to_fail", "join", "leave", "num_processes", "rank"]

TIMEOUT = 600.0  # seconds: reading a large model's part from a slow disk takes its time
COMPLAINTS = "paliglass/complaints"
T = TypeVar("T")


NEEDED = frozenset(("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def num_processes() -> int:
    """How many processes `torchrun` started; 1 without it, whatever else sets one of its names."""
    return _number("WORLD_SIZE") if os.environ.keys() >= NEEDED else 1


def rank() -> int:
    """The process's number among them, from 0."""
    return _number("RANK") if num_processes() > 1 else 0


def _number(name: str) -> int:
    value = os.environ[name]
    if not value.isdecimal():
        raise PaliglassError(f"{name} is {value!r}; `torchrun` makes it a number")
    return int(value)


def join(timeout: float = TIMEOUT) -> None:
    """Meets the other processes; where that has been done already, nothing.

    timeout: seconds after which a process that does not answer is given up, then and later.

    Raises PaliglassError where there are no others, or they do not come.
    """
    import torch
    from torch import distributed as dist

    if dist.is_initialized():
        return
    if not os.environ.keys() >= NEEDED:
        raise PaliglassError(
            "tensor_parallel is for several processes: torchrun --nproc-per-node 2 …"
        )
    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if has_nccl else "gloo"
    with answering():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))


def leave() -> None:
    """Waits for the others, so that none ends while another still needs it, and parts from them."""
    from torch import distributed as dist

    if dist.is_initialized():
        with answering():
            dist.barrier()
        dist.destroy_process_group()


@contextmanager
def answering() -> Iterator[None]:
    """Makes the failure of an exchange with other processes in the block one line.

    Raises PaliglassError.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # Gloo raises bare RuntimeErrors
        raise PaliglassError(
            "another of the processes has ended, or has not answered in time; what it said last "
            "tells why"
        ) from error


def agree(value: T) -> T:
    """The first process's value, which is made of what JSON has, for all; each must ask."""
    import torch
    from torch import distributed as dist

    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    size = torch.tensor(len(data))
    with answering():
        dist.broadcast(size, 0)
        if rank():
            data = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, 0)
    found: T = json.loads(data.numpy().tobytes())
    return found


def is_first_to_fail() -> bool:
    """Whether no other process has asked this before: what ends one most often ends them all."""
    if num_processes() == 1:
        return True
    try:
        return bool(_store().add(COMPLAINTS, 1) == 1)
    except (ImportError, RuntimeError, ValueError, KeyError):  # where nobody can be asked
        return True


def _store() -> Any:
    """The numbers that all processes see, kept by `torchrun` itself or by the first process."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, timeout=timedelta(seconds=5), wait_for_workers=False)
