"""A quarter of an hour with one GPU: everything that needs it, in one command.

    python -m workshop.gpu_day --prepare         # beforehand, here: artwork and tokenizer as files
    python -m workshop.gpu_day --out OUT         # there; no network, nothing to install
    python -m workshop.gpu_day --out OUT --share 0.01 --device cpu       # the rehearsal

No network there: what `NEEDED` names is installed beforehand. A machine that has most of it lacked
wheels of msgspec and of typer >= 0.29, which the package imports, and of pydantic, pydantic-core,
annotated-types, typing-inspection and annotated-doc: carry them.

Four stages, each a process of its own with an end to its time, so that one that fails or hangs
costs the others nothing:

    check    how fast memory and matrices are; float32 and bfloat16 beside the CPU; an accelerated
             model (CUDA graphs) says what the plain one says, step by step, in a running batch
             whose rows come and go, and in several threads; gradients
    decode   a 3B with random weights: first token and tokens a second, beside transformers' eager
             and compiled loops, as a share of what the memory's bandwidth allows
    measure  scenes a second that all cores make ready, and that the GPU learns from
    train    mini's training, its weights copied out as it goes

Every result is a line of `results.jsonl`, written when it is known; `log.txt` has what the stages
print; `weights-N.safetensors` are mini's newest weights in parts of at most 15 MiB, of which
`--out OUT --join FOLDER` makes a model.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from PIL import Image
from torch import Tensor

from paliglass.config import PRESETS, PaliGemmaConfig
from paliglass.files import replacing
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from workshop.commands import run

SECONDS = {"check": 90.0, "decode": 100.0, "measure": 60.0, "train": 330.0}
NEEDED = (
    "torch numpy pillow safetensors tokenizers typer annotated-doc rich huggingface-hub filelock "
    "msgspec pydantic pydantic-core annotated-types typing-inspection accelerate transformers peft "
    "pyyaml jinja2"
).split()
CACHE = Path(".cache/world")
TOKENIZER = CACHE / "tokenizer.json"
OURS = "model."  # the network's names of the model's weights; its other heads stay behind
GRACE = 10.0  # seconds for a stage to end by itself when its time is up
PART_BYTES = 15 << 20  # of a file that comes back


# What the stages know of the model: four functions.
ROOM = 128  # tokens that can follow a prompt


def begin(
    model: PaliGemmaForConditionalGeneration, batch: Mapping[str, Tensor]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The logits after each prompt, B × V, and what turns one more token a row into the next ones.

    At most `ROOM` tokens; ids are B.
    """
    rows, length = batch["input_ids"].shape
    to_logits = model.language_model.logits
    with torch.inference_mode():
        cache = model.new_cache(rows, length + ROOM)
        logits = to_logits(model.prefill(**batch, kv_cache=cache, last_only=True))

    @torch.inference_mode()
    def step(ids: Tensor) -> Tensor:
        return to_logits(model.extend(ids[:, None], cache)[:, -1])

    return logits, step


def greedy(
    model: PaliGemmaForConditionalGeneration, batch: Mapping[str, Tensor], count: int
) -> list[list[int]]:
    """`count` greedy tokens of each row, whatever they are but pictures' places."""
    logits, step = begin(model, batch)
    words = model.config.image_token_index
    tokens = [logits[:, :words].argmax(-1)]
    while len(tokens) < count:
        logits = step(tokens[-1])
        tokens.append(logits[:, :words].argmax(-1))
    said: list[list[int]] = torch.stack(tokens, 1).tolist()
    return said


def accelerated(model: PaliGemmaForConditionalGeneration) -> PaliGemmaForConditionalGeneration:
    """A copy that decodes as a loaded model does."""
    from paliglass.fast import accelerate

    fast = copy.deepcopy(model)
    accelerate(fast)
    return fast


def spoken(model: PaliGemmaForConditionalGeneration, threads: int = 1) -> list[list[int]]:
    """What a running batch of four rows says to a dozen prompts, words and boxes.

    Answers of many lengths: rows leave at different steps, and others take their places.
    threads: that many batches at once, each with all of the prompts; all their answers.
    """
    from paliglass.checkpoints.hub import locate
    from paliglass.checkpoints.processor import load_processor
    from paliglass.generation import Request, complete
    from paliglass.sampling import GREEDY, Sampling
    from paliglass.tasks.grammar import ObjectGrammar

    processor = load_processor(locate("mini"), model.config)
    side = model.config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randint(0, 256, (6, side, side, 3), generator=generator, dtype=torch.uint8)
    pictures = [processor.prepare(Image.fromarray(picture.numpy())) for picture in noisy]
    boxes = ObjectGrammar(processor, ["dog", "red cup"])
    requests = [
        Request(
            "detect dog ; red cup" if i % 4 == 3 else "caption en" + " of it" * (i % 3),
            [pictures[i % 6], pictures[i % 5]][: 1 + (i % 5 == 2)],
            boxes.start() if i % 4 == 3 else None,
            Sampling(4.0) if i % 2 == 0 else GREEDY,  # mini's own words about noise are few
            seed=i,
            max_new_tokens=40 if i % 4 == 3 else 3 + 5 * i,
        )
        for i in range(12)
    ]

    def say(_: int) -> list[list[int]]:
        return [done.ids for done in complete(model, processor, requests, 4)]

    with ThreadPoolExecutor(threads) as pool:
        return [ids for answers in pool.map(say, range(threads)) for ids in answers]


class ResultLog:
    """Lines of `results.jsonl`, each written and printed as soon as it is known."""

    def __init__(self, out: Path, stage: str) -> None:
        self.path, self.stage, self.started = out / "results.jsonl", stage, time.monotonic()

    def __call__(self, name: str, **found: Any) -> None:
        seconds = round(time.monotonic() - self.started, 1)
        line = json.dumps({"stage": self.stage, "at": seconds, "name": name, **found})
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            print(line, file=file)

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """A check that fails is a result, and the next one is made all the same."""
        try:
            yield
        except Exception as error:  # whatever it is, the others are worth having
            import traceback

            traceback.print_exc()
            self(name, failed=" ".join(f"{type(error).__name__}: {error}".split())[:500])


def seconds_of(run: Callable[[], object], device: str, times: int = 5) -> float:
    """The median of some runs, after one that is not counted."""

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    run()
    found = []
    for _ in range(times):
        start = clock()
        run()
        found.append(clock() - start)
    return statistics.median(found)


def copy_rate(device: str, share: float) -> float:
    """Bytes that a large copy within the memory reads and writes in a second."""
    here = torch.empty(int(4e9 * share), dtype=torch.uint8, device=device).random_()
    there = torch.empty_like(here)
    return 2 * here.numel() / seconds_of(partial(there.copy_, here), device)


def distance(mine: Tensor, truth: Tensor) -> float:
    """|mine − truth| / |truth|."""
    mine, truth = mine.double().cpu(), truth.double().cpu()
    return float((mine - truth).norm() / truth.norm())


def noise(config: PaliGemmaConfig, rows: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Rows of a picture and eight words each, all of noise."""
    generator = torch.Generator().manual_seed(0)
    side, limit = config.vision_config.image_size, min(config.image_token_index, 3000)
    words = torch.randint(3, limit, (rows, 8), generator=generator)
    places = torch.full((rows, config.num_image_tokens), config.image_token_index)
    ids = torch.cat((places, words), dim=1)
    pixels = torch.rand((rows, 3, side, side), generator=generator) * 2 - 1
    return {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
        "pixel_values": pixels.to(device, dtype),
    }


def check(report: ResultLog, device: str, share: float, limit: Callable[[], float]) -> None:
    """Stage 1: is what runs there what runs here?"""
    from paliglass.checkpoints.folder import load_model
    from paliglass.checkpoints.hub import locate

    versions = {name: _version(name) for name in NEEDED}
    missing = [name for name, version in versions.items() if version is None]
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    report("machine", python=sys.version.split()[0], device=name, cores=os.cpu_count(), **versions)
    report("missing", packages=missing)
    with report.trying("memory"):
        report("memory", bytes_per_second=copy_rate(device, share))
    with report.trying("matrices"):
        side = max(256, int(8192 * share**0.5) // 64 * 64)
        a, b = torch.randn(2, side, side, device=device).bfloat16()
        report("matrices", side=side, flops=2 * side**3 / seconds_of(lambda: a @ b, device))
    for dtype in ("float32", "bfloat16"):
        with report.trying(f"parity {dtype}"):
            reference = load_model(locate("mini"), "cpu", "float32")
            model = load_model(locate("mini"), device, dtype)
            batch = noise(model.config, 4, device, model.dtype)
            truth = begin(reference, noise(model.config, 4, "cpu", torch.float32))[0]
            fast = accelerated(model)
            for way, one in (("plain", model), ("accelerated", fast)):
                mine = begin(one, batch)[0]
                report(
                    f"parity {dtype}",
                    way=way,
                    distance=distance(mine, truth),
                    same_words=float((mine.argmax(-1).cpu() == truth.argmax(-1)).float().mean()),
                )
        with report.trying(f"accelerated {dtype}"):
            # The same modules one by one: in bfloat16 others are rounded otherwise, and may say
            # another word where two are about as likely.
            unrecorded = accelerated(model)
            unrecorded.__class__ = PaliGemmaForConditionalGeneration
            for rows in (1, 3, 4):
                batch = noise(model.config, rows, device, model.dtype)
                plain, alike, found = (greedy(one, batch, 48) for one in (model, unrecorded, fast))
                report(
                    f"accelerated {dtype}",
                    rows=rows,
                    equal=same(alike, found),
                    equal_to_plain=same(plain, found),
                )
            plain, alike, found = (spoken(one) for one in (model, unrecorded, fast))
            several = spoken(accelerated(model), 3)
            report(
                f"running batch {dtype}",
                answers=len(plain),
                tokens=sum(map(len, plain)),
                equal=same(alike, found),
                equal_in_threads=same(alike * 3, several),
                equal_to_plain=same(plain, found),
                **recordings(fast),
            )
    with report.trying("gradients"):
        grads = []
        for where in ("cpu", device):
            model = load_model(locate("mini"), where, "float32").requires_grad_(True)
            batch = noise(model.config, 2, where, torch.float32)
            labels = batch["input_ids"].roll(-1, 1)
            labels[:, : model.config.num_image_tokens] = -100
            loss = model(**batch, labels=labels).loss
            assert loss is not None
            loss.backward()
            grads.append(
                torch.cat(
                    [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
                )
            )
        report("gradients", distance=distance(grads[1], grads[0]))


def same(one: list[list[int]], other: list[list[int]]) -> float:
    """The share of answers that are the same."""
    return statistics.fmean(a == b for a, b in zip(one, other, strict=True))


def recordings(model: PaliGemmaForConditionalGeneration) -> dict[str, int]:
    """How many CUDA graphs a model has recorded, and could not."""
    graphs = getattr(model, "graphs", None)
    return {} if graphs is None else {"recorded": graphs.recorded, "failed": len(graphs.failed)}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def reduced(config: PaliGemmaConfig, share: float) -> PaliGemmaConfig:
    """A share of a model's layers and words, at its widths; all of it for 1."""
    if share == 1:
        return config
    text, vision = config.text_config, config.vision_config
    words = max(4096, int(text.vocab_size * share))
    return dataclasses.replace(
        config,
        text_config=dataclasses.replace(
            text,
            vocab_size=words,
            num_hidden_layers=max(1, int(text.num_hidden_layers * share)),
        ),
        vision_config=dataclasses.replace(
            vision, num_hidden_layers=max(1, int(vision.num_hidden_layers * share))
        ),
        image_token_index=words - 1,
    )


def random_model(config: PaliGemmaConfig, device: str) -> PaliGemmaForConditionalGeneration:
    """Weights drawn where they will lie: matrices that keep the size of what they map."""
    from paliglass.checkpoints.assembly import assemble, expected_shapes, skeleton

    generator = torch.Generator(device).manual_seed(0)

    def tensors() -> Iterator[tuple[str, str, Tensor]]:
        for name, shape in expected_shapes(skeleton(config)).items():
            drawn = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
            if "norm" in name or name.endswith("bias"):
                rest = 1.0 if name.endswith("weight") and "layer_norm" in name else 0.0
                yield name, name, rest + 0.02 * drawn
            else:
                fan_in = shape[1:].numel() if "embed" not in name else shape[-1]
                yield name, name, drawn / fan_in**0.5

    return assemble(config, tensors(), "random", torch.bfloat16, torch.device(device))


def decode(report: ResultLog, device: str, share: float, limit: Callable[[], float]) -> None:
    """Stage 2: how fast is a 3B, and how fast could it be?"""
    config = reduced(PRESETS["paligemma-3b-224"], share)
    count = 32 if device == "cuda" else 4
    model = random_model(config, device)
    decoder = sum(p.numel() * p.element_size() for p in model.language_model.parameters())
    bandwidth = copy_rate(device, share)
    floor = decoder / bandwidth  # every weight of the decoder is read once a token
    report("model", decoder_bytes=decoder, bytes_per_second=bandwidth, floor_ms=1e3 * floor)

    def measure(name: str, rows: int, first: float, token: float) -> None:
        report(
            name,
            rows=rows,
            first_ms=round(1e3 * first, 3),
            token_ms=round(1e3 * token, 3),
            tokens_per_second=round(rows / token, 1),
            of_bandwidth=round(floor / token, 3),
        )

    fast = accelerated(model)
    ways: dict[str, tuple[PaliGemmaForConditionalGeneration, int]] = {
        "accelerated": (fast, count),
        "plain": (model, 4),  # a token takes twenty times as long
    }
    for name, (one, tokens) in ways.items():
        for rows in ((1, 8, 32) if name == "accelerated" else (1, 8)) if device == "cuda" else (1,):
            if limit() < 10:
                return
            with report.trying(f"paliglass, {name}"):
                batch = noise(config, rows, device, torch.bfloat16)
                first = seconds_of(partial(begin, one, batch), device, 3)
                logits, step = begin(one, batch)
                word = logits.argmax(-1)

                def steps(step: Any = step, word: Tensor = word, tokens: int = tokens) -> None:
                    for _ in range(tokens):
                        word = step(word).argmax(-1)

                token = seconds_of(steps, device, 2) / tokens
                measure(f"paliglass, {name}", rows, first, token)
                if rows == 1:
                    report(f"calls of a token, {name}", **calls_of(partial(step, word)))
    report("recordings", **recordings(fast))
    del fast
    with report.trying("transformers"):
        _their_decode(report, model, count, measure, device, limit)


def calls_of(step: Callable[[], object]) -> dict[str, Any]:
    """How many of torch's calls a step makes, and which take most of the processor's time, ms."""
    with torch.profiler.profile() as found:
        step()
    averages = found.key_averages()
    slowest = sorted(averages, key=lambda call: -call.self_cpu_time_total)[:8]
    return {
        "calls": sum(call.count for call in averages if call.key.startswith("aten::")),
        "starts": sum(call.count for call in averages if call.key.startswith("cudaLaunch")),
        "slowest": {call.key: round(call.self_cpu_time_total / 1e3, 2) for call in slowest},
    }


def _their_decode(
    report: ResultLog,
    model: PaliGemmaForConditionalGeneration,
    count: int,
    measure: Callable[..., None],
    device: str,
    limit: Callable[[], float],
) -> None:
    """The same weights in transformers: its eager loop, and its loop over a compiled step."""
    import transformers

    from paliglass.checkpoints.saving import save_folder

    transformers.logging.set_verbosity_error()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        save_folder(model, Path(folder) / "model")
        theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
            Path(folder) / "model", dtype=torch.bfloat16, device_map=device
        )
    theirs.eval()
    theirs.generation_config.eos_token_id = None
    with report.trying("transformers' logits"), torch.inference_mode():
        batch = noise(model.config, 1, device, torch.bfloat16)
        types = {"token_type_ids": torch.zeros_like(batch["input_ids"])}
        real = model.config.image_token_index
        truth = theirs(**batch, **types).logits[:, -1, :real]
        mine = begin(model, batch)[0][:, :real]
        report("transformers' logits", distance=distance(mine, truth))
    eager: dict[str, str] = {}
    compiled = {"cache_implementation": "static"}
    # Eager rows of 8 take as long as one: they come last, since compiling may take all the time.
    order = [("eager", 1, eager), ("compiled", 1, compiled)]
    if device == "cuda":
        order += [("compiled", 8, compiled), ("eager", 8, eager)]
    for way, rows, options in order:
        if limit() < 15:
            return
        batch = noise(model.config, rows, device, torch.bfloat16)
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])

        def run(tokens: int, b: Any = batch, o: Any = options) -> object:
            with torch.inference_mode():
                return theirs.generate(**b, max_new_tokens=tokens, do_sample=False, **o)

        name = f"transformers, {way}"
        with report.trying(name):
            first = seconds_of(partial(run, 1), device, 2)
            every = seconds_of(partial(run, count), device, 2)
            measure(name, rows, first, (every - first) / (count - 1))


def train(
    report: ResultLog,
    device: str,
    share: float,
    limit: Callable[[], float],
    out: Path,
    work: Path,
    scenes: int,
    options: list[str],
) -> None:
    """Stage 4: mini, for as long as there is time. A second call goes on where the first ended."""
    workers = max(1, (os.cpu_count() or 2) - 1)
    if "--weights" not in options and TOKENIZER.exists() and not (work / TOKENIZER.name).exists():
        work.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOKENIZER, work)
    command = [sys.executable, "-m", "workshop.pretrain", "--out", str(work), "--resume"]
    command += ["--scenes", str(scenes), "--prompts", "8", "--workers", str(workers)]
    command += ["--log-every", "20", "--checkpoint-seconds", "60" if share == 1 else "5"]
    command += ["--world-cache", str(CACHE), *options]
    # The end of its rates' decay is the end of the run, and some seconds go before and after it.
    command += ["--minutes", str(minutes_of(work, max(5.0, limit() - 25)))]
    command += ["--precision", "bf16"] if device == "cuda" else []
    environment = os.environ | ({} if device == "cuda" else {"ACCELERATE_USE_CPU": "true"})
    process = subprocess.Popen(command, env=environment)
    seen = 0.0
    busy: list[float] = []
    while process.poll() is None and limit() > 3:
        time.sleep(2)
        busy += _gpu_use(device)
        seen = publish(work, out, seen)
    process.terminate()
    process.wait()
    publish(work, out, 0.0)
    report("training", ended=process.returncode, gpu_busy=statistics.fmean(busy) if busy else None)
    log = work / "log.jsonl"
    if log.exists() and (lines := log.read_text().splitlines()):
        last = json.loads(lines[-1])
        rate = scenes * last["step"] / max(1, last["seconds"])
        report("training", scenes_per_second=round(rate, 1), last=last)


def minutes_of(work: Path, left: float) -> float:
    """How long a run takes over all sittings that has so many seconds left in this one.

    One that is under way keeps the length that its rates follow; one that came to its end goes on.
    """
    state = work / "checkpoint" / "state.json"
    if not state.exists():
        return left / 60
    past = json.loads(state.read_text(encoding="utf-8"))
    minutes: float = past["settings"]["minutes"]
    return (past["elapsed"] + left) / 60 if past["ended"] else minutes


def measure_training(report: ResultLog, device: str, scenes: int, seconds: float) -> None:
    """Stage 3: scenes a second that all cores make ready, and that the GPU learns from, alone."""
    from paliglass.checkpoints.folder import load_tokenizer
    from paliglass.checkpoints.hub import locate
    from paliglass.checkpoints.mask_codec import CODEC, load_mask_codec
    from paliglass.processing_paligemma import PaliGemmaProcessor
    from paliglass.training.processes import make_accelerator
    from workshop.pretrain.batches import batches
    from workshop.pretrain.pretrainer import Pretrainer, PretrainLoss
    from workshop.pretrain.recipe import MINI, PretrainRecipe
    from workshop.world import World

    side, workers = MINI.vision_config.image_size, max(1, (os.cpu_count() or 2) - 1)
    codec = load_mask_codec(locate("mini") / CODEC)
    world = World(CACHE, size=side, codec=codec)
    processor = PaliGemmaProcessor(load_tokenizer(locate("mini")), MINI.num_image_tokens, side)
    recipe = PretrainRecipe(
        minutes=99,
        scenes=scenes,
        vision_warmup=0,
        precision="bf16" if device == "cuda" else "fp32",
    )
    grid = MINI.vision_config.patches_per_side
    loader = batches(world, processor, recipe, grid, 0, workers, device=device)
    some = [next(loader) for _ in range(max(2, workers // 4))]  # until all have begun
    start, made = time.perf_counter(), 0
    while time.perf_counter() - start < seconds / 3:
        next(loader)
        made += scenes
    report("scenes", processes=workers, per_second=round(made / (time.perf_counter() - start), 1))
    del loader
    for share in (0, 1):
        with report.trying("steps"):
            asked = dataclasses.replace(recipe, unpacked_share=share)
            network = PretrainLoss(MINI, len(world.patch_classes), asked)
            trainer = Pretrainer(network, make_accelerator())

            def step(trainer: Pretrainer = trainer) -> None:
                trainer.train_step([some[trainer.step % len(some)]])

            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()  # the other way's peak is not this one's
            took = seconds_of(step, device, 10 if device == "cuda" else 1)
            memory = torch.cuda.max_memory_allocated() if device == "cuda" else None
            report(
                "steps",
                packed=not share,
                scenes=scenes,
                per_second=round(scenes / took, 1),
                memory=memory,
            )


def _gpu_use(device: str) -> list[float]:
    """How much of the last moment the GPU was busy, in percent."""
    if device != "cuda":
        return []
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        return [float(subprocess.run(query, capture_output=True, timeout=5).stdout.split()[0])]
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return []


def publish(work: Path, out: Path, seen: float) -> float:
    """Copies the newest checkpoint's weights out, if newer than `seen`; returns how new they are.

    Float32, in parts small enough to come back; each is written whole or not at all.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    try:
        weights = max(work.rglob("weights.safetensors"), key=lambda path: path.stat().st_mtime)
        newest = weights.stat().st_mtime
        if newest <= seen:
            return seen
        tensors = load_file(weights)
        tensors = {k[len(OURS) :]: t for k, t in tensors.items() if k.startswith(OURS)}
    except (ValueError, FileNotFoundError, SafetensorError):  # none yet, or just being replaced
        return seen
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        size += tensor.numel() * tensor.element_size()
        if size > PART_BYTES and parts[-1]:
            parts.append({})
            size = tensor.numel() * tensor.element_size()
        parts[-1][name] = tensor
    for number, part in enumerate(parts, 1):
        with replacing(out / f"weights-{number}.safetensors") as unfinished:
            save_file(part, unfinished)
    for path in (work / "tokenizer.json", work / "log.jsonl", work / "model" / "config.json"):
        if path.exists():
            shutil.copy(path, out / path.name)
    return newest


def join(out: Path, folder: Path) -> None:
    """A model's folder of what `publish` copied out; mini's configuration if there is none."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    from paliglass.checkpoints.assembly import assemble
    from paliglass.checkpoints.folder import read_config
    from paliglass.checkpoints.hub import locate
    from paliglass.checkpoints.saving import save_folder
    from paliglass.processing_paligemma import PaliGemmaProcessor

    config = read_config(out if (out / "config.json").exists() else locate("mini"))
    parts = sorted(out.glob("weights-*.safetensors"))
    tensors = ((name, name, t) for part in parts for name, t in load_file(part).items())
    model = assemble(config, tensors, str(out), torch.bfloat16)
    words = Tokenizer.from_file(str(out / "tokenizer.json"))
    side = config.vision_config.image_size
    save_folder(model, folder, PaliGemmaProcessor(words, config.num_image_tokens, side))
    print(f"{folder}: a model of {sum(p.numel() for p in model.parameters()):,} parameters")


def prepare() -> None:
    """Makes what the stages need and could not fetch: the files to carry are printed."""
    from itertools import chain

    from paliglass.files import write_whole
    from paliglass.training.tokenizer import train_tokenizer
    from workshop.tokenizer import emoji_names, training_texts
    from workshop.world import World
    from workshop.world.art import build

    carried = [build(CACHE, role) for role in ("text", "train")]
    texts = chain(emoji_names(CACHE), training_texts(World(CACHE)))
    write_whole(TOKENIZER, train_tokenizer(texts).to_str(pretty=True))
    for path in (*carried, TOKENIZER):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


@dataclasses.dataclass(frozen=True)
class Day:
    """What all stages have in common."""

    out: Path
    work: Path
    device: str
    share: float
    scenes: int
    options: list[str]


def run_stage(day: Day, stage: str, seconds: float) -> int:
    """The stage as a process of its own, ended with all that it started when its time is up."""
    command = [sys.executable, "-m", "workshop.gpu_day", "--stage", stage]
    command += ["--out", str(day.out), "--work", str(day.work)]
    command += ["--device", day.device, "--share", str(day.share)]
    command += ["--scenes", str(day.scenes)]
    command += ["--seconds", str(seconds), "--", *day.options]
    with (day.out / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds + GRACE)
        finally:  # also where this is interrupted: Ctrl-C does not reach another session
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def gpu_day(
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="The folder of what comes back.")
    ] = None,
    prepare_files: Annotated[
        bool, typer.Option("--prepare", help="Make the files to carry, and end.")
    ] = False,
    join_into: Annotated[
        Path | None, typer.Option("--join", help="Make a model's folder of --out's parts, and end.")
    ] = None,
    stages: Annotated[str, typer.Option(help="Some of them.")] = "check,decode,measure,train",
    seconds: Annotated[
        float | None, typer.Option(show_default="570", help="For all stages together.")
    ] = None,
    share: Annotated[float, typer.Option(help="Of sizes and times: a rehearsal.")] = 1.0,
    device: Annotated[Literal["cuda", "cpu"], typer.Option()] = "cuda",
    work: Annotated[Path, typer.Option(file_okay=False, help="The run's folder.")] = Path(
        "runs/gpu_day"
    ),
    scenes: Annotated[int, typer.Option(min=1, help="In a step of training.")] = 256,
    stage: Annotated[
        Literal["check", "decode", "measure", "train"] | None, typer.Option(hidden=True)
    ] = None,
    options: Annotated[
        list[str] | None, typer.Argument(help="After --: more for `workshop.pretrain`.")
    ] = None,
) -> None:
    """Do all that needs a GPU, in a quarter of an hour: checks, decoding, mini's training."""
    if prepare_files:
        prepare()
        return
    if out is None:
        raise typer.BadParameter("say where results go: --out")
    if join_into is not None:
        join(out, join_into)
        return
    day = Day(out, work, device, share, scenes, options or [])
    day.out.mkdir(parents=True, exist_ok=True)
    if stage is not None:
        end = time.monotonic() + (seconds or SECONDS[stage])

        def limit() -> float:
            return end - time.monotonic()

        report = ResultLog(day.out, stage)
        common = (report, day.device, day.share, limit)
        with report.trying(stage):
            if stage == "train":
                train(*common, day.out, day.work, day.scenes, day.options)
            elif stage == "measure":
                measure_training(report, day.device, day.scenes, limit())
            else:
                {"check": check, "decode": decode}[stage](*common)
        return
    names = stages.split(",")
    if unknown := [name for name in names if name not in SECONDS]:
        raise typer.BadParameter(f"no stage {unknown[0]!r}: choose from {', '.join(SECONDS)}")
    scale = 1.0 if day.share == 1 else max(day.share, 0.1)
    total = seconds or 570 * scale
    end = time.monotonic() + total
    for name in names:
        left = end - time.monotonic()
        # The last one has what is left; no other takes more than its own.
        own = left if name == names[-1] else min(left, SECONDS[name] * scale)
        ResultLog(day.out, name)("ended", code=run_stage(day, name, own))


if __name__ == "__main__":
    run(gpu_day)
