"""Annotating with Ray Data: tasks open pictures, workers with a model each answer, tasks write.

    read_parquet(manifest) → repartition → Square (tasks) → Annotator (actors) → write_parquet

Measured with Ray 2.60:

- the filter of what is done stands behind Read operators alone: so the pictures are a manifest that
  is read, never a list that the driver holds (`from_items` would do everything again)
- small files are read as one block, and one block is one file at the end: `repartition` bounds the
  blocks, so that what a crash costs is bounded too
- a job whose workers take every CPU slot waits for ever for one to read with: slots are counted
  before it starts
- where a worker dies, its blocks go to another; where the driver does, a resumed run skips what the
  checkpoint has
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from paliglass.checkpoints.assembly import num_gpus
from paliglass.errors import PaliglassError
from paliglass.files import reason
from paliglass.scale.annotator import Annotator, Job
from paliglass.scale.output import CHECKPOINT, MANIFEST_FILE, PARTS, Output

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig

__all__ = ["annotate", "connected", "require_slots"]

OTHERS = 3  # CPU slots beside the workers': to read, to filter what is done, to open and write
FILTER_BYTES = CheckpointConfig.CHECKPOINT_ACTOR_MEMORY_BYTES


@contextmanager
def connected(address: str, workers: int, threads: int, verbose: bool = False) -> Iterator[None]:
    """Ray, on a cluster or (`local`) on this machine, with room for a job, for a block of code.

    Raises PaliglassError where there is no cluster, or too few slots for the workers.
    """
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.ERROR)
    if not verbose:  # it warns of each pool of actors
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    slots = max(workers * threads + OTHERS, os.cpu_count() or 1)
    local = {"address": "local", "num_cpus": slots, "include_dashboard": False}
    try:
        ray.init(
            **(local if address == "local" else {"address": address}),
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
        )
    except Exception as error:  # of all kinds, plain `Exception` too
        where = "Ray does not start here" if address == "local" else f"{address}: no Ray answers"
        raise PaliglassError(f"{where} ({reason(error)})") from None
    try:
        require_slots(workers, threads)
        yield
    finally:
        ray.shutdown()


def require_slots(workers: int, threads: int) -> None:
    """Raises PaliglassError where Ray has not the slots for so many workers, and to read."""
    why = f"{workers} workers of {threads} and {OTHERS} to read"
    _require("CPU slots", "CPU", workers * threads + OTHERS, why)


def _require(what: str, resource: str, needed: float, why: str) -> None:
    free = ray.available_resources().get(resource, 0.0)
    if free < needed:
        raise PaliglassError(
            f"Ray has {free:g} {what} free and this needs {needed:g} ({why}): give fewer --workers "
            "or --threads, or a larger cluster; it would wait without end"
        )


def annotate(
    output: Output,
    job: Job,
    workers: int,
    threads: int = 1,
    part_size: int = 100,
    show_progress: bool = False,
    annotator: Callable[..., object] = Annotator,
) -> None:
    """Makes the rows that are not done. Call it within `connected`.

    part_size: pictures of a block, and so at most of a part. annotator: what the workers are made
    of, from a job and its threads.

    Raises PaliglassError where slots lack, or the model cannot be loaded.
    """
    if next(output.entries(output.committed()), None) is None:
        output.drop_repeated_rows()  # the run that ended may have been killed before it did
        return
    device = str(job.loading.get("device", "auto"))
    gpus = num_gpus(device, ray.cluster_resources().get("GPU", 0) > 0)
    if gpus:
        _require("GPUs", "GPU", workers, "one a worker")
    if output.part_files():
        _require("bytes of memory", "memory", FILTER_BYTES, "to know what is done")
    square = job.square()
    context = DataContext.get_current()
    context.enable_progress_bars = show_progress
    context.checkpoint_config = CheckpointConfig(
        "id",
        output.place(CHECKPOINT),
        override_filesystem=output.system,
        delete_checkpoint_on_success=False,  # else a run that is finished would begin anew
    )
    try:
        (
            ray.data.read_parquet(output.place(MANIFEST_FILE), filesystem=output.system)
            .repartition(target_num_rows_per_block=part_size)
            .map_batches(square, batch_size=None, batch_format="pyarrow", num_cpus=0.5)
            .map_batches(
                annotator,
                fn_constructor_args=(job, threads),
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=workers),
                num_cpus=threads,
                num_gpus=gpus,
            )
            .write_parquet(output.place(PARTS), filesystem=output.system)
        )
    except ray.exceptions.RayError as error:
        raise _explained(error) from error
    finally:
        context.checkpoint_config = None
    output.drop_repeated_rows()


def _explained(error: BaseException) -> PaliglassError:
    """The cause that a user can mend, out of Ray's layers of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PaliglassError):
            return cause
        inner = getattr(cause, "cause", None)
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    lines = str(error).strip().splitlines()
    return PaliglassError(f"Ray: {lines[-1].strip() if lines else type(error).__name__}")
