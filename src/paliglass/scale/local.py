"""Annotating on one machine: threads open pictures while the model runs; parts as rows come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from paliglass.data.ahead import reading_threads, work_ahead
from paliglass.scale.annotator import Annotator
from paliglass.scale.opening import Opened
from paliglass.scale.output import Output
from paliglass.scale.rows import Row

__all__ = ["annotate"]


def annotate(
    output: Output,
    annotator: Annotator,
    done: set[str],
    part_size: int = 100,
    tell: Callable[[Row], object] = lambda row: None,
) -> None:
    """Makes the rows that are not done, and writes so many together. tell: is given each."""
    square, threads = annotator.job.square(), reading_threads()
    number = output.next_number()
    rows: list[Row] = []
    with ThreadPoolExecutor(threads) as pool:
        ahead = work_ahead(
            pool, square.open, output.entries(done), annotator.options.batch_size + threads
        )

        def opened() -> Iterator[Opened]:
            for _, future in ahead:
                yield future.result()

        try:
            for row in annotator.annotate(opened()):
                rows.append(row)
                tell(row)
                if len(rows) == part_size:
                    output.write_part(number, rows)
                    number, rows = number + 1, []
        finally:  # an interrupted run keeps what it has
            pool.shutdown(cancel_futures=True)
            if rows:
                output.write_part(number, rows)
