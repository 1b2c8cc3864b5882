"""What runs on Ray in the tests, in a process that may be killed.

python -m tests.scale.ray_run SOURCE OUT PAUSE MARK
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from tests.scale.conftest import JOB, PART_SIZE

from paliglass.errors import PaliglassError
from paliglass.scale import pipeline
from paliglass.scale.annotator import Annotator, Job
from paliglass.scale.output import Output
from paliglass.scale.sources import entries


class Mortal(Annotator):
    """A worker that is killed in its first life, by SIGKILL, with its second block in its hands."""

    def __init__(self, job: Job, threads: int) -> None:
        super().__init__(job, threads)
        self.pause, self.mark = float(sys_argument(3)), Path(sys_argument(4))
        self.blocks = 0

    def __call__(self, table: pa.Table) -> pa.Table:
        self.blocks += 1
        if self.blocks == 2 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.pause)
        return super().__call__(table)


def sys_argument(number: int) -> str:
    """The driver's, in all of its processes."""
    return json.loads(os.environ["PALIGLASS_TEST_ARGUMENTS"])[number]


def message(work: Callable[[], object]) -> str:
    try:
        work()
    except PaliglassError as error:
        return str(error)
    return "no error"


def main() -> None:
    source, out, *_ = sys.argv[1:]
    os.environ["PALIGLASS_TEST_ARGUMENTS"] = json.dumps(sys.argv)
    with pipeline.connected("local", 1, 1):
        with Output(out, {}, resume=True) as output:
            output.manifest(entries([source]))
            pipeline.annotate(output, JOB, 1, 1, PART_SIZE, annotator=Mortal)
            parts = output.part_files()
            pipeline.annotate(output, JOB, 1, 1, PART_SIZE, annotator=Mortal)
            told = {"nothing left": "done" if output.part_files() == parts else "done again"}
        with Output(f"{out}-2", {}, resume=True) as output:
            output.manifest(entries([source]))
            job = Job("segment dog", loading={"mask_codec": f"{out}/no.safetensors"})
            told["model"] = message(lambda: pipeline.annotate(output, job, 1, 1, PART_SIZE))
        told["slots"] = message(lambda: pipeline.require_slots(1000, 1))
    Path(f"{out}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
