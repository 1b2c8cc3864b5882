"""What tests of training runs share: a command on eight coloured pictures, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cli.helpers import Result, picture

import paliglass

COLOURS = ("red", "lime", "blue", "yellow", "black", "white", "cyan", "orange")
ROOT = Path(__file__).parents[2]
EVERY_STEP = {"precision": "fp32", "workers": 0, "log_every": 1, "checkpoint_seconds": 0}


class Training:
    """A training command with options, some of which a test may change.

    An option is given by name: True is a flag, None leaves it out, a list gives it several times.

    Args:
        call: runs a command line in this process.
        words: the command, as ("train", "finetune").
        module: what `python -m` runs it with.
    """

    def __init__(
        self,
        call: Callable[..., Result],
        words: Sequence[str],
        options: Mapping[str, Any],
        module: str = "paliglass",
    ) -> None:
        self.call, self.words, self.options, self.module = call, words, dict(options), module

    def arguments(self, out: str, **changes: Any) -> list[str]:
        """The command line."""
        words = [*self.words, "--out", out]
        for name, value in (EVERY_STEP | self.options | changes).items():
            flag = f"--{name.replace('_', '-')}"
            values = value if isinstance(value, list) else [value]
            for one in values:
                if one is True:
                    words.append(flag)
                elif one is not None:
                    words += [flag, str(one)]
        return words

    def __call__(self, out: str = "run", **changes: Any) -> Result:
        """Runs it in this process."""
        return self.call(*self.arguments(out, **changes))

    def start(
        self,
        out: str,
        processes: int = 1,
        environs: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> subprocess.Popen[str]:
        """Starts it as a process of its own, or as several under torchrun."""
        command = [sys.executable, "-m"]
        if processes > 1:
            command += ["torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(processes), "-m"]
        path = os.pathsep.join([str(Path(paliglass.__file__).parents[1]), str(ROOT)])
        return subprocess.Popen(
            [*command, self.module, *self.arguments(out, **changes)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(environs or {})},
        )

    def together(
        self, out: str, environs: Mapping[str, str] | None = None, **changes: Any
    ) -> Result:
        """Runs it in two processes."""
        process = self.start(out, 2, environs, **changes)
        printed, complaints = process.communicate(timeout=300)
        return Result(process.returncode, printed, complaints)


def coloured_pictures() -> None:
    """Eight pictures in data/, a colour each."""
    for colour in COLOURS:
        picture(f"data/{colour}.png", colour)


def log(folder: str) -> list[dict[str, Any]]:
    """The whole lines of a run's log, but for what a clock tells."""
    clock = ("seconds", "rows_per_second")
    text = (Path(folder) / "log.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def losses(folder: str) -> list[tuple[int, float]]:
    """(step, loss) of each line that has one."""
    return [(line["step"], line["loss"]) for line in log(folder) if "loss" in line]


FROZEN = """
import os, signal, sys
from paliglass.cli import main

def freeze(kind):
    step = kind.train_step
    def frozen(self, group):
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        return step(self, group)
    kind.train_step = frozen

from paliglass.contrastive.training import ContrastiveTrainer
from paliglass.training.finetuner import Finetuner
freeze(ContrastiveTrainer)
freeze(Finetuner)
main(sys.argv[1:])
"""


def frozen_after_three(training: Training, out: str) -> subprocess.Popen[str]:
    """A run in a process that stands still (SIGSTOP) when it has taken and saved three steps."""
    Path("frozen.py").write_text(FROZEN)
    module, training.module = training.module, "frozen"
    process = training.start(out)
    training.module = module
    state = Path(out, "checkpoint", "state.json")

    def three() -> bool:
        try:
            return bool(json.loads(state.read_text())["step"] == 3)
        except (FileNotFoundError, NotADirectoryError):  # before the first, or between two
            return False

    wait_for(process, three)
    return process


def wait_for(process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    """Until something is there that a process makes; fails where the process ends before."""
    while not there():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
