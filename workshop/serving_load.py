"""Load on a server, and what it does under it: `python -m workshop.serving_load`.

    load        1,000 requests of mixed tasks from 32 clients, a tenth of them cut off midway: how
                many were lost or wrong, and the server's memory along the way
    throughput  one client against eight, tokens a second and time to the first token
    peers       the same work against `transformers serve` on the same checkpoint

Each starts the servers it needs on 127.0.0.1, by the same commands that a user would.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import typer

from paliglass.checkpoints.hub import locate
from paliglass.model import PaliGemma, load
from paliglass.sampling import Sampling
from workshop.commands import run

WAIT_SECONDS = 600
TASKS = (
    ("chat", "caption en"),
    ("chat", "ocr"),
    ("chat", "what is in the picture?"),
    ("chat", "detect tractor ; dog"),
    ("sampled", "caption en"),
    ("stream", "caption en"),
    ("choice", "is there a dog?"),
    ("detect", "tractor ; apple"),
    ("segment", "dog"),
    ("query", "what colour is it?"),
)


@dataclass(frozen=True)
class Work:
    """A request. kind, text: as in `TASKS`. is_cut: its client hangs up before the answer."""

    kind: str
    text: str
    address: str
    seed: int = 0
    is_cut: bool = False

    @staticmethod
    def mixed(
        count: int, addresses: Sequence[str], choose: random.Random, cut_share: float = 0.0
    ) -> list[Work]:
        """Requests of all kinds about some pictures."""
        return [
            Work(
                *choose.choice(TASKS),
                choose.choice(addresses),
                choose.randrange(3),
                choose.random() < cut_share,
            )
            for _ in range(count)
        ]

    @property
    def path(self) -> str:
        is_chat = self.kind in ("chat", "sampled", "stream", "choice")
        return "/v1/chat/completions" if is_chat else f"/v1/{self.kind}"

    @property
    def body(self) -> dict[str, Any]:
        if self.path != "/v1/chat/completions":
            name = "question" if self.kind == "query" else "object"
            return {"image_url": self.address, name: self.text}
        content = [
            {"type": "text", "text": self.text},
            {"type": "image_url", "image_url": {"url": self.address}},
        ]
        body: dict[str, Any] = {
            "model": "mini",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 40,
        }
        if self.kind == "sampled":
            body |= {"temperature": 1.0, "seed": self.seed}
        if self.kind == "choice":
            schema = {"enum": ["yes", "no"]}
            form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
            body["response_format"] = form
        return body | ({"stream": True} if self.kind == "stream" or self.is_cut else {})


def picture_of(address: str) -> bytes:
    return base64.b64decode(address.partition(",")[2])


def expected_answers(model: PaliGemma, work: Sequence[Work]) -> dict[Work, str]:
    """What Python says to each request alone."""
    known: dict[Work, str] = {}
    for item in work:
        if item not in known:
            known[item] = _expected(model, item)
    return known


def _expected(model: PaliGemma, item: Work) -> str:
    from paliglass.generation import Request, complete
    from paliglass.serving.prompts import Chat, PromptTask
    from paliglass.tasks.answering import GenerationOptions

    picture = model.processor.prepare(picture_of(item.address))
    if item.kind == "detect":
        found = model.detect(picture, item.text)
        return _numbers([(d.label, *d.box) for d in found], found.width, found.height)
    if item.kind == "segment":
        segments = model.segment(picture, item.text)
        return _numbers([(s.label, *s.box) for s in segments], segments.width, segments.height)
    if item.kind == "query":
        return str(model.ask(picture, item.text))
    if item.kind == "choice":
        return json.dumps(str(model.ask(picture, item.text, choices=["yes", "no"])))
    task = PromptTask(model.processor, Chat(item.text, [], []).prompt)
    options = GenerationOptions(max_new_tokens=40)
    if item.kind == "sampled":
        options = GenerationOptions(max_new_tokens=40, temperature=1.0, seed=item.seed)
    [request] = task.requests([picture], options, 0)
    assert isinstance(request, Request)
    assert isinstance(request.sampling, Sampling)
    [done] = complete(model.model, model.processor, [request])
    return str(task.result([picture], [done]))


def _numbers(found: Sequence[tuple[Any, ...]], width: int, height: int) -> str:
    sides = (width, height, width, height)
    return json.dumps(
        [
            [label, *(round(e / s, 4) for e, s in zip(box, sides, strict=True))]
            for label, *box in found
        ]
    )


@dataclass
class LoadResult:
    """What came of requests. answers: by place; seconds: of each; first: to its first byte."""

    work: Sequence[Work]
    answers: dict[int, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    tokens: int = 0
    cut: int = 0
    busy: int = 0
    wall: float = 0.0

    def wrong(self, expected: dict[Work, str]) -> list[str]:
        """Answers that differ from the request's alone."""
        return [
            f"{self.work[i].kind} {self.work[i].text!r}: {answer!r}, not {expected[self.work[i]]!r}"
            for i, answer in self.answers.items()
            if answer != expected[self.work[i]]
        ]


def ask_all(url: str, work: Sequence[Work], clients: int) -> LoadResult:
    """Sends requests from so many clients, each one after the other; 429 is tried again."""
    report = LoadResult(work)
    lock = threading.Lock()
    waiting = iter(enumerate(work))

    def client() -> None:
        with httpx.Client(base_url=url, timeout=WAIT_SECONDS, trust_env=False) as http:
            while True:
                with lock:
                    item = next(waiting, None)
                if item is None:
                    return
                try:
                    _ask(http, *item, report, lock)
                except Exception as error:
                    with lock:
                        report.lost.append(f"{item[1].kind} {item[1].text!r}: {error!r}")

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(client) for _ in range(clients)]:
            future.result()
    report.wall = time.perf_counter() - begin
    return report


def _ask(http: httpx.Client, i: int, item: Work, report: LoadResult, lock: threading.Lock) -> None:
    begin = time.perf_counter()
    while True:
        with http.stream("POST", item.path, json=item.body) as answer:
            if answer.status_code == 429:
                report.busy += 1
                time.sleep(0.05)
                continue
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code} {answer.read().decode()[:200]}")
            if item.is_cut:
                next(answer.iter_bytes(), b"")
                with lock:
                    report.cut += 1
                return
            parts, first = [], 0.0
            for part in answer.iter_bytes():
                parts.append(part)
                first = first or time.perf_counter() - begin
        break
    text, tokens = _read(item, b"".join(parts).decode())
    with lock:
        report.answers[i] = text
        report.tokens += tokens
        report.seconds.append(time.perf_counter() - begin)
        report.first.append(first)


def _read(item: Work, text: str) -> tuple[str, int]:
    """An answer in the form of `expected_answers`, and its tokens as far as it tells."""
    if item.kind == "stream":
        lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        pieces = [choice["delta"].get("content") or "" for choice in choices]
        if "[DONE]" not in text:
            raise RuntimeError(f"the stream ends early: {text[-200:]}")
        return "".join(pieces), sum(map(bool, pieces))
    found = json.loads(text)
    if item.kind in ("detect", "segment"):
        edges = ("x_min", "y_min", "x_max", "y_max")
        items = found["objects" if item.kind == "detect" else "segments"]
        boxes = [(o["label"], *((o.get("bbox") or o)[e] for e in edges)) for o in items]
        return _numbers(boxes, 1, 1), 0
    if item.kind == "query":
        return str(found["answer"]), 0
    usage = found.get("usage") or {}
    return found["choices"][0]["message"]["content"], usage.get("completion_tokens", 0)


# ------------------------------------------------------------------------- servers


@contextmanager
def started(command: Sequence[str], url: str, health: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server's process, once it answers."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            begin = time.monotonic()
            while True:
                if process.poll() is not None or time.monotonic() - begin > WAIT_SECONDS:
                    log.seek(0)
                    raise RuntimeError(log.read().decode()[-3000:])
                try:
                    if httpx.get(url + health, trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def paliglass_server(model: str, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "paliglass", "serve", "--model", model, "--name", "mini"]
    with started([*command, "--port", str(port), *options], url, "/health") as process:
        yield url, process


def resident(pid: int) -> float:
    """Megabytes of a process in memory."""
    text = Path(f"/proc/{pid}/status").read_text("utf-8")
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found is not None
    return int(found[1]) / 1024


def scenes(count: int, things: int = 3) -> list[str]:
    """Pictures as data: addresses, of shapes in colours; of one thing, that is a circle."""
    from PIL import Image, ImageDraw

    addresses = []
    for seed in range(count):
        choose = random.Random(seed)
        image = Image.new("RGB", (256, 256), "white")
        pen = ImageDraw.Draw(image)
        for _ in range(things):
            x, y, side = choose.randrange(180), choose.randrange(180), choose.randrange(30, 75)
            colour = choose.choice(["red", "blue", "green", "orange", "purple", "black"])
            shape = choose.choice([pen.ellipse, pen.rectangle]) if things > 1 else pen.ellipse
            shape((x, y, x + side, y + side), fill=colour)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        addresses.append(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return addresses


# ------------------------------------------------------------------------ commands


def load_test(model: str, count: int, clients: int) -> bool:
    """Prints how it went; whether all was well."""
    work = Work.mixed(count, scenes(24), random.Random(1), cut_share=0.1)
    expected = expected_answers(load(model, device="cpu", dtype="float32"), work)
    with paliglass_server(model, "--dtype", "float32", "--cache", "8") as (url, process):
        ask_all(url, Work.mixed(50, scenes(24), random.Random(2)), clients)  # warm
        memory: list[float] = []
        parts = 10
        total, answered = LoadResult(work), 0
        for part in range(parts):
            some = work[part * count // parts : (part + 1) * count // parts]
            report = ask_all(url, some, clients)
            total.lost += report.lost
            total.lost += [f"WRONG {line}" for line in report.wrong(expected)]
            total.cut += report.cut
            total.busy += report.busy
            total.wall += report.wall
            answered += len(report.answers)
            memory.append(resident(process.pid))
        metrics = httpx.get(f"{url}/metrics", trust_env=False).text
        left = [
            int(float(n))
            for n in re.findall(r"^paliglass_(?:queue|running)\w+ (\S+)", metrics, re.M)
        ]
    half = memory[parts // 2 - 1 :]
    growth = half[-1] / half[0] - 1
    print(f"{count} requests, {clients} clients: {total.wall:.1f} s, {answered} answered,")
    print(f"{total.cut} cut off, {total.busy} times 429, {len(total.lost)} lost or wrong")
    print(f"left in line and running: {left}")
    print("memory, MB:", *(f"{m:.0f}" for m in memory), f"(second half {growth:+.1%})")
    for line in total.lost[:10]:
        print(" ", line)
    is_whole = answered + total.cut == count and not total.lost and not any(left)
    return is_whole and growth <= 0.05


@dataclass(frozen=True)
class Rate:
    """Of answers about new pictures: tokens a second, seconds to the first one (median)."""

    tokens: float
    first: float


def rate(
    url: str, name: str, addresses: Sequence[str], clients: int, text: str, max_tokens: int
) -> Rate:
    """Asks about each picture, for a whole answer; then about some for streams, for the first."""
    waiting = iter(addresses)
    lock = threading.Lock()
    counts: list[int] = []
    firsts: list[float] = []

    def client(is_streamed: bool) -> None:
        with httpx.Client(base_url=url, timeout=WAIT_SECONDS, trust_env=False) as http:
            while True:
                with lock:
                    address = next(waiting, None)
                if address is None:
                    return
                body = Work("stream" if is_streamed else "chat", text, address).body
                body |= {"model": name, "max_tokens": max_tokens}
                begin = time.perf_counter()
                with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                    if answer.status_code != 200:
                        raise RuntimeError(answer.read().decode()[:300])
                    if is_streamed:
                        first = 0.0
                        for line in answer.iter_lines():
                            if '"content":"' in line and '"content":""' not in line:
                                first = first or time.perf_counter() - begin
                        if first:  # nothing may be found
                            firsts.append(first)
                    else:
                        counts.append(json.loads(answer.read())["usage"]["completion_tokens"])

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(client, False) for _ in range(clients)]:
            future.result()
    seconds = time.perf_counter() - begin
    waiting = iter([f"{address}" for address in addresses[: max(clients, 8)]])
    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(client, True) for _ in range(clients)]:
            future.result()
    return Rate(sum(counts) / seconds, statistics.median(firsts))


CHAT_TEMPLATE = """\
{%- for message in messages -%}{%- for part in message.content -%}
{%- if part.type == "image" -%}<image>{%- endif -%}{%- endfor -%}
{%- for part in message.content -%}
{%- if part.type == "text" -%}{{ part.text }}{%- endif -%}{%- endfor -%}{%- endfor -%}
"""


@contextmanager
def transformers_server(model: str, dtype: str) -> Iterator[tuple[str, str]]:
    """(address, the model's name) of `transformers serve` on a copy with a chat template.

    PaliGemma's checkpoints have none, and without one it answers every request with 500.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        whole = locate(model).absolute()  # links to what is relative would lead nowhere
        own_template = shutil.ignore_patterns("chat_template*")
        shutil.copytree(whole, folder, ignore=own_template, copy_function=os.symlink)
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
        command += ["--dtype", dtype, "--log-level", "error"]
        with started(command, url, "/health"):
            yield url, str(folder)


CLIENTS = ("1 client", "8 clients")


def compare(
    model: str,
    dtype: str,
    rounds: int,
    addresses: Sequence[str],
    with_peer: bool,
    text: str,
    max_tokens: int,
) -> None:
    """Prints the rates of one client and of eight, in turn, and the ratios of the medians."""
    ours = {"paliglass": ("--dtype", dtype), "paliglass in int8": ("--quantize", "int8")}
    found: dict[str, list[Rate]] = {}
    with ExitStack() as stack:
        servers = {}
        for own, options in ours.items():
            url, _ = stack.enter_context(paliglass_server(model, *options, "--cache", "0"))
            servers[own] = (url, "mini")
        if with_peer:
            servers["transformers serve"] = stack.enter_context(transformers_server(model, dtype))
        for server in servers.values():
            rate(*server, addresses[:8], 8, text, max_tokens)  # warm
        for _ in range(rounds):
            for name, server in servers.items():
                for clients in (1, 8):
                    some = addresses[: len(addresses) // 3] if clients == 1 else addresses
                    key = f"{name}, {clients} client{'s' * (clients > 1)}"
                    measured = rate(*server, some, clients, text, max_tokens)
                    found.setdefault(key, []).append(measured)
                    print(f"{key}: {measured.tokens:.1f} tokens/s", file=sys.stderr, flush=True)
    print(f"{text}, {dtype}, {rounds} rounds:")
    print("| | tokens/s | time to first token |\n|---|---:|---:|")
    medians = {}
    for key, rates in found.items():
        medians[key] = statistics.median(r.tokens for r in rates)
        first = statistics.median(r.first for r in rates)
        print(f"| {key} | {medians[key]:.1f} | {1000 * first:.0f} ms |")
    for own in ours:
        one, eight = (medians[f"{own}, {who}"] for who in CLIENTS)
        print(f"{own}, 8 clients against 1: {eight / one:.2f} ×")
        for who in CLIENTS if with_peer else ():
            ratio = medians[f"{own}, {who}"] / medians[f"transformers serve, {who}"]
            print(f"{own} against transformers serve, {who}: {ratio:.2f} ×")


def serving_load(
    what: Annotated[
        Literal["load", "throughput", "peers"],
        typer.Argument(help="load: answers and memory; throughput: speed; peers: beside others."),
    ],
    model: Annotated[str, typer.Option(help="What is served.")] = "mini",
    requests: Annotated[int, typer.Option(min=1, help="Of the load.")] = 1000,
    clients: Annotated[int, typer.Option(min=1, help="Of the load.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Of which medians are told.")] = 3,
    pictures: Annotated[int, typer.Option(min=1, help="That are asked about in a round.")] = 48,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of all but ours in int8.")
    ] = "float32",
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Of an answer; the load has its own.")
    ] = 40,
) -> None:
    """Put a load on a server: what is lost or wrong, its memory, and its speed beside others."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if what == "load":
        if not load_test(model, requests, clients):
            raise typer.Exit(1)
        return
    compare(model, dtype, rounds, scenes(pictures), what == "peers", "caption en", max_tokens)
    if what == "throughput":  # of answers of 22 tokens what a step costs counts for more
        compare(model, dtype, rounds, scenes(pictures, 1), False, "segment circle", max_tokens)


if __name__ == "__main__":
    run(serving_load)
