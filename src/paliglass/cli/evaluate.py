"""eval: how right a model is on data of one's own."""

from __future__ import annotations

import json as json_text
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from paliglass.cli.app import command, complain, fail
from paliglass.cli.messages import note, waiting
from paliglass.cli.options import (
    BatchSizeOption,
    CocoTask,
    JsonObject,
    ModelOptions,
    Overwrite,
    refuse_existing_file,
)
from paliglass.cli.scores import print_scores, tell_progress, warn

__all__ = ["EvaluatedModel", "evaluate"]


@dataclass(frozen=True)
class EvaluatedModel(ModelOptions):
    """Which model is judged, in larger batches: nobody waits for the first answer."""

    batch_size: BatchSizeOption = 32


def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            exists=True,
            help="What `paliglass train finetune --data` takes; of a folder with splits valid, val "
            "or test.",
        ),
    ],
    *,
    images: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where COCO's or VQAv2's pictures are."),
    ] = None,
    task: Annotated[CocoTask, typer.Option(help="For boxes of COCO and YOLO.")] = "detect",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Examples; all of them by default."),
    ] = None,
    free: Annotated[
        bool,
        typer.Option(
            "--free",
            help="Let detect and segment say what they will, not boxes with the labels of the "
            "prompt or, where the right answers have others, of the data.",
        ),
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="The answer's limit.", show_default="half again the longest right one"
        ),
    ] = None,
    json: JsonObject = False,
    html: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="A page of the scores and the worst answers to write."),
    ] = None,
    overwrite: Overwrite = False,
    run: EvaluatedModel,
) -> None:
    """Score a model on your data: each prompt by the metric of its task.

    Prompts are read as in training: `<loc0001>` in one is the token. An answer that the limit cuts
    is scored as far as it goes. A picture that cannot be read is named on stderr and the others go
    on; then the exit code is 1.
    """
    refuse_existing_file(html, overwrite)
    with waiting(f"loading {run.model}"):
        loaded = run.load()
    from paliglass.data.reading import open_examples
    from paliglass.evaluation.judge import (
        answer,
        longest_reference,
        refuse_unscorable,
        remarks,
        to_questions,
    )
    from paliglass.evaluation.metrics import score
    from paliglass.evaluation.page import to_html
    from paliglass.formats.export import write_files

    codec = loaded.mask_codec
    examples = open_examples(data, images, task, codec, split="held out", tell=warn)
    everything = to_questions(examples)
    questions = everything[:limit]
    refuse_unscorable(questions, codec)
    longest = longest_reference(loaded, questions)
    if max_new_tokens is not None and longest > max_new_tokens:
        warn(f"a right answer has {longest} tokens; --max-new-tokens {max_new_tokens} cuts it")
    complaints: list[str] = []

    def told(message: str) -> None:
        complaints.append(message)
        complain(message)

    cases = answer(
        loaded,
        questions,
        free=free,
        batch_size=run.batch_size,
        max_new_tokens=max_new_tokens,
        among=everything,
        progress=lambda done: tell_progress(data.name, done, len(questions)),
        complain=told,
    )
    if all(case.failure for case in cases):
        astray = complaints and all(said.endswith("no such file") for said in complaints)
        hint = "; --images names the folder that its pictures are in" if astray else ""
        fail(f"not one of the prompts could be answered{hint}")
    for remark in remarks(cases):
        warn(remark)
    scores, answered = {data.name: score(cases, codec)}, {data.name: cases}
    if html is not None:
        name = run.model if run.adapter is None else f"{run.adapter} on {run.model}"
        write_files(html.parent, {html.name: to_html(f"How right is {name}?", scores, answered)})
        note(f"the page: {html}")
    if json:
        found = {
            name: {task: value.to_dict() for task, value in rows.items()}
            for name, rows in scores.items()
        }
        print(json_text.dumps(found, ensure_ascii=False))
    else:
        print_scores(scores)
    unanswered = len(questions) - sum(not case.failure for case in cases)
    if unanswered:
        fail(f"{unanswered} of {len(questions)} prompts could not be answered")


evaluate.__name__ = "eval"
command(evaluate)
