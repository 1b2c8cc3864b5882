"""annotate: a prompt about pictures without number, on one machine or on Ray."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from paliglass.cli.app import command, fail
from paliglass.cli.messages import counted, level, note, waiting
from paliglass.cli.options import MIN_SCORE, RecursiveOption, RunOptions, locate_model, usage
from paliglass.cli.screen import Screen
from paliglass.tasks.prompts import as_prompt, without_placeholders

if TYPE_CHECKING:
    from paliglass.scale.annotator import Job
    from paliglass.scale.output import Output

__all__ = ["annotate"]

Export = Literal["parquet", "jsonl", "coco"]


@command
def annotate(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="Folders, quoted patterns, .tar (WebDataset), .parquet, .txt with a path a line, "
            "a data set's .json or .jsonl; here, or at s3:// or gs://.",
        ),
    ],
    *,
    task: Annotated[
        str,
        typer.Option(
            help='PaliGemma\'s prompt: "detect dog ; cat", "segment dog", "caption en", "ocr"; '
            "what is none is a question."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Where the rows go, as Parquet; with --ray a place that all machines see.",
        ),
    ],
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A Ray cluster, or local: Ray on this machine."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Of --ray, each with a model.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each model.")] = None,
    part_size: Annotated[
        int, typer.Option(min=1, help="Pictures of a part: what a crash costs at most, a worker.")
    ] = 100,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out: skip the pictures it has.")
    ] = False,
    retry_errors: Annotated[
        bool,
        typer.Option("--retry-errors", help="As --resume; rows that are errors are made again."),
    ] = False,
    format: Annotated[
        Export, typer.Option("--format", "-f", help="What is made of the rows beside Parquet.")
    ] = "parquet",
    recursive: RecursiveOption = False,
    column: Annotated[
        str | None, typer.Option(help="Of Parquet: pictures' bytes or paths.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Of Parquet: ids; by default file#row.")
    ] = None,
    min_score: Annotated[
        float,
        typer.Option(min=0, max=1, help="Of detect and segment: leave out what is less sure."),
    ] = MIN_SCORE,
    free: Annotated[
        bool, typer.Option("--free", help="Let detect and segment write what they like.")
    ] = False,
    mask_codec: Annotated[
        str | None, typer.Option(help="What turns codes into masks, if the model has none.")
    ] = None,
    run: RunOptions,
) -> None:
    """Ask the same about any number of pictures: a row of Parquet for each, on one machine or many.

    A picture that fails is a row with an error, and then the exit code is 1. A killed run leaves
    whole parts: --resume goes on, with each row once.
    """
    if workers > 1 and ray is None:
        raise typer.BadParameter("--workers are of --ray; --ray local starts it on this machine")
    if not without_placeholders(task):
        raise typer.BadParameter("--task is empty")
    prompt = as_prompt(task)
    from paliglass.scale.annotator import Job
    from paliglass.scale.output import Output
    from paliglass.scale.sources import entries

    loading: dict[str, Any] = {"device": run.device, "dtype": run.dtype, "adapter": run.adapter}
    loading |= {"quantize": run.quantize, "mask_codec": mask_codec}
    with usage():
        job = Job(prompt, run.model, loading, run.options(), min_score, free)
    locate_model(run.model, run.adapter)
    settings: dict[str, Any] = {"sources": sources, "recursive": recursive, "column": column}
    settings |= {"id_column": id_column, "engine": "one machine" if ray is None else "ray"}
    with Output(out, settings | job.settings(), resume or retry_errors) as output:
        if retry_errors:
            note(f"{out}: {counted(output.forget_errors(), 'row')} with an error: made again")
        if prompt != without_placeholders(task):
            note(f"asked as a question: {prompt!r}")
        with waiting("listing the pictures"):
            total = output.manifest(entries(sources, recursive, column, id_column))
        try:
            if ray is None:
                _here(output, job, total, threads, part_size)
            else:
                _on_ray(output, job, ray, workers, threads or 1, part_size)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"whole parts are in {out}; --resume goes on") from None
        summary = output.check()
        made = "parts/*.parquet"
        if format != "parquet":
            made += f", {output.export(format, job.labels)}"
        note(f"{out}: {counted(summary.rows, 'row')} in {made}")
    if summary.failed:
        fail(f"{summary.failed} of {summary.rows} rows are errors, such as {summary.first_error}")


def _here(output: Output, job: Job, total: int, threads: int | None, part_size: int) -> None:
    """On one machine, with a bar and complaints as they come."""
    from paliglass.scale import local
    from paliglass.scale.annotator import Annotator

    done = output.done()
    if len(done) == total:
        return
    with waiting(f"loading {job.model}"):
        annotator = Annotator(job, threads)
    with Screen(total, keeps_on=True) as screen:
        screen.advance(len(done))
        screen.start_clock()

        def tell(row: dict[str, Any]) -> None:
            if row["error"] is None:
                screen.answered(1, row["num_tokens"])
            else:
                screen.complain(row["error"])
            screen.advance()

        local.annotate(output, annotator, done, part_size, tell)


def _on_ray(
    output: Output, job: Job, address: str, workers: int, threads: int, part_size: int
) -> None:
    from paliglass.scale import pipeline

    is_verbose, at_terminal = level() == "verbose", sys.stderr.isatty()
    with ExitStack() as stack:
        with waiting(f"starting Ray ({address})"):
            stack.enter_context(pipeline.connected(address, workers, threads, is_verbose))
        bars = at_terminal and level() != "quiet"
        pipeline.annotate(output, job, workers, threads, part_size, show_progress=bars)
