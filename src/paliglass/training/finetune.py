"""Fine-tuning: a model that exists learns a task from pictures, prefixes and suffixes.

- the loss is the suffix's alone; prefix and picture see each other fully (prefix-LM)
- logits are computed where a suffix token is to be predicted, and nowhere else: of a row of 270
  tokens that is ten, of a table of 257 152 words
- on accelerate: mixed precision, gradient accumulation, several processes under `torchrun`. A
  step's loss is the mean over the suffix tokens of *all* its rows, whatever batches and processes
  they lie in, so neither changes the result
- which rows a step sees follows from its number alone, and checkpoints hold all else: a resumed run
  has the very losses of an unbroken one
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from paliglass.checkpoints import save_folder
from paliglass.checkpoints.assembly import assemble
from paliglass.errors import PaliglassError, PictureError
from paliglass.evaluation.cases import OBJECT_TASKS
from paliglass.evaluation.examples import ANSWERS, CAPTIONS, to_questions
from paliglass.evaluation.objects import Matches, match_boxes
from paliglass.evaluation.texts import cider, exact, vqa_accuracy
from paliglass.model import CODEC, PaliGemma
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.ops.int8 import Int8Linear
from paliglass.ops.losses import IGNORE
from paliglass.pictures import load_picture
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.training.attention import use_plain_attention
from paliglass.training.checks import contact_sheet
from paliglass.training.examples import Example
from paliglass.training.lora import add_lora, save_lora
from paliglass.training.pairs import batch_indices
from paliglass.training.runs import (
    Screen,
    check_same,
    cut_log,
    new_checkpoint,
    stop_signals,
    stopped_early,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

SHORT = 512  # tokens of a picture up to which all attention weights are kept for the backward pass

Part = Literal["all", "decoder", "attention", "projector"]
Batch = dict[str, Tensor]

# What learns, by the parameters' names.
PARTS: dict[Part, Callable[[str], bool]] = {
    "all": lambda name: True,
    "decoder": lambda name: not name.startswith("vision_tower."),
    "attention": lambda name: name.startswith("language_model.") and ".self_attn." in name,
    "projector": lambda name: name.startswith("multi_modal_projector."),
}


@dataclass(frozen=True)
class FinetuneRecipe:
    """The run's settings.

    part: what learns; with `lora_rank` above 0, the layers that get adapters ("all", "decoder" or
    "attention"). batch_size: rows in a step, over all processes and all of `accumulate`'s parts.
    learning_rate: the peak, after `warm_up` (share of the steps), whence it falls as a cosine to 0.
    shard: each process holds a part of weights, gradients and optimizer (FSDP2, arXiv 2304.11277).
    """

    steps: int
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 2e-5
    warm_up: float = 0.05
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    part: Part = "all"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    precision: Literal["fp32", "bf16"] = "bf16"
    checkpointing: bool = False
    shard: bool = False
    seed: int = 0


class SuffixLoss(nn.Module):
    """A model with its loss on suffixes, as one module: what DistributedDataParallel wraps."""

    def __init__(self, model: PaliGemmaForConditionalGeneration, label_smoothing: float) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, batch: Batch) -> Tensor:
        """The sum over the batch's suffix tokens, in nats."""
        labels = batch["labels"][:, 1:]
        hidden = self.model.hidden_states(
            batch["input_ids"],
            batch["pixel_values"],
            batch["attention_mask"],
            batch["token_type_ids"],
        )
        asked = labels != IGNORE
        logits = self.model.language_model.logits(hidden[:, :-1][asked]).float()
        return F.cross_entropy(
            logits, labels[asked], reduction="sum", label_smoothing=self.label_smoothing
        )


class Finetuner:
    """A model in fine-tuning: what learns of it, the optimizer, the step.

    What learns is float32, and bfloat16 only while it computes; frozen weights keep their dtype,
    or are float32 too with `precision="fp32"`.
    """

    def __init__(
        self,
        model: PaliGemmaForConditionalGeneration,
        recipe: FinetuneRecipe,
        accelerator: Accelerator,
    ) -> None:
        share = accelerator.num_processes * recipe.accumulate
        if recipe.batch_size % share:
            raise PaliglassError(
                f"a batch of {recipe.batch_size} rows cannot be shared by {share} (processes × "
                "--accumulate); choose a multiple"
            )
        if any(isinstance(module, Int8Linear) for module in model.modules()):
            raise PaliglassError(
                "a model in int8 cannot be trained: fine-tune the one that it was made from, and "
                "quantise the result"
            )
        self.model, self.recipe, self.accelerator = model, recipe, accelerator
        self.rows = recipe.batch_size // share
        torch.manual_seed(recipe.seed)
        if recipe.precision == "fp32" and not recipe.shard:
            model.float()
        if recipe.lora_rank:
            targets = recipe.part
            add_lora(model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout, targets)
        else:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(PARTS[recipe.part](name))
                if parameter.requires_grad and not recipe.shard:
                    parameter.data = parameter.data.float()
        if accelerator.device.type == "cpu" and model.config.num_image_tokens <= SHORT:
            use_plain_attention(model)
        if recipe.checkpointing:
            checkpoint_layers(model)
        loss = SuffixLoss(model.train(), recipe.label_smoothing)
        self.loss = _shard(loss, recipe.precision) if recipe.shard else accelerator.prepare(loss)
        self.learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
        matrices = [p for p in self.learning.values() if p.ndim > 1]
        vectors = [p for p in self.learning.values() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            fused=not recipe.shard,
        )
        self.step = 0

    @property
    def progress(self) -> float:
        """How much of the run is over, 0 … 1."""
        return self.step / self.recipe.steps

    @property
    def rate(self) -> float:
        """The next step's learning rate."""
        recipe = self.recipe
        rising = max(1, round(recipe.warm_up * recipe.steps))
        if self.step < rising:
            return recipe.learning_rate * (self.step + 1) / rising
        falling = (self.step - rising) / max(1, recipe.steps - rising)
        return recipe.learning_rate * (1 + math.cos(math.pi * falling)) / 2

    def train_step(self, group: Sequence[Batch]) -> float:
        """One update from `accumulate` batches, of each this process's share. Returns the loss."""
        accelerator, recipe = self.accelerator, self.recipe
        group = [{k: v.to(accelerator.device) for k, v in batch.items()} for batch in group]
        # Dropout of step n is that of step n, whatever came before it.
        torch.manual_seed(recipe.seed + 1_000_003 * self.step + accelerator.process_index)
        tokens = torch.stack([(b["labels"][:, 1:] != IGNORE).sum() for b in group]).sum()
        tokens = accelerator.reduce(tokens, "sum")
        total = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(group, 1):
            last = number == len(group)
            with _no_sync(self.loss, wanted=not last and accelerator.num_processes > 1):
                loss = self.loss(batch)
                # Processes' gradients are averaged; they are to be summed.
                accelerator.backward(loss * accelerator.num_processes / tokens)
            total += loss.detach()
        norm = whole(nn.utils.clip_grad_norm_(self.learning.values(), 1.0))
        if not math.isfinite(norm):  # before it reaches weights and checkpoint
            raise PaliglassError(
                f"step {self.step + 1}: the gradient is not finite; a smaller --learning-rate may "
                "help"
            )
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(accelerator.reduce(total, "sum") / tokens)

    @torch.no_grad()
    def mean_loss(self, batches: Iterator[Batch]) -> float:
        """Nats per suffix token, without an update and without dropout."""
        self.loss.eval()
        total = tokens = 0.0
        for batch in batches:
            batch = {k: v.to(self.accelerator.device) for k, v in batch.items()}
            total += float(self.loss(batch))
            tokens += int((batch["labels"][:, 1:] != IGNORE).sum())
        self.loss.train()
        return total / max(tokens, 1)

    def learned(self) -> dict[str, Tensor]:
        """What has learned, by name, gathered from all processes: each of them must ask.

        The first one alone gets it; the others get nothing.
        """
        return self.gather(self.learning)

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors as a whole, on the CPU where they are shards, for the first process alone.

        One at a time: what takes all GPUs together would not fit onto each of them.
        """
        main, kept = self.accelerator.is_main_process, {}
        for name, tensor in tensors.items():
            gathered = whole(tensor.detach())
            if main:
                kept[name] = (gathered.cpu() if gathered is not tensor else gathered).contiguous()
        return kept

    def restore(self, path: Path) -> None:
        """Takes over what `learned` gave, from a safetensors file."""
        with torch.no_grad():
            for name, tensor in load_file(path).items():
                self.learning[name].copy_(_like(tensor, self.learning[name]))

    def save(self, folder: Path, extra: dict[str, Any]) -> None:
        """Writes `folder` whole or not at all; what was there is replaced.

        To be called by every process: what is sharded is gathered. The first one writes.
        """
        learned, optimizer = self.learned(), self.optimizer.state_dict()
        optimizer["state"] = {n: self.gather(m) for n, m in optimizer["state"].items()}
        if not self.accelerator.is_main_process:
            return
        with new_checkpoint(folder) as new:
            save_file(learned, new / "weights.safetensors")
            torch.save(optimizer, new / "optimizer.pt")
            about = {"step": self.step, "recipe": asdict(self.recipe), **extra}
            (new / "state.json").write_text(json.dumps(about), encoding="utf-8")

    def resume(self, folder: Path) -> dict[str, Any]:
        """Goes on from what `save` wrote; returns its `extra`.

        Raises CheckpointError where it was written with another recipe.
        """
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        check_same(folder, state.pop("recipe"), asdict(self.recipe))
        self.restore(folder / "weights.safetensors")
        past = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True, mmap=True)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, moments in past["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = _like(moments[name], parameters[number])
        self.optimizer.load_state_dict(past)
        self.step = state.pop("step")
        return state


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered, which takes every process; another as it is."""
    gathered: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return gathered


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, sharded as a parameter is."""
    if not isinstance(parameter, DTensor):
        return tensor
    on_device = tensor.to(parameter.device)
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements)


def _shard(loss: SuffixLoss, precision: str) -> nn.Module:
    """Cuts every layer's weights into as many parts as there are processes (FSDP2).

    A layer is gathered when its turn comes, and let go after it. A shard has one dtype,
    float32; the model may be on the CPU with its file's dtype: a layer at a time becomes float32.
    """
    if not dist.is_initialized():
        raise PaliglassError("--shard is for several processes: torchrun --nproc-per-node 2 …")
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None, reduce_dtype=torch.float32
    )
    model = loss.model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for layer in (*model.vision_tower.vision_model.encoder.layers, *_decoder_layers(model)):
        fully_shard(layer.float(), mesh=mesh, mp_policy=policy)
    for part in loss.parameters():  # what no layer has
        if not isinstance(part, DTensor):
            part.data = part.data.float()
    fully_shard(loss, mesh=mesh, mp_policy=policy)
    return loss


def _decoder_layers(model: PaliGemmaForConditionalGeneration) -> list[nn.Module]:
    return list(model.language_model.model.layers)


@contextmanager
def _no_sync(module: nn.Module, wanted: bool) -> Iterator[None]:
    """No exchange of gradients between processes in this block."""
    if not wanted:
        yield
    elif isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(False)
        yield
        module.set_requires_gradient_sync(True)
    else:
        with module.no_sync():  # type: ignore[operator]
            yield


@contextmanager
def _gathered(module: nn.Module) -> Iterator[None]:
    """What belongs to no layer of a sharded model is in one place in this block, as decoding needs.

    Layers are gathered when their turn comes, as in training: all processes decode the same.
    """
    if isinstance(module, FSDPModule):
        module.unshard()
    yield
    if isinstance(module, FSDPModule):
        module.reshard()


def checkpoint_layers(model: PaliGemmaForConditionalGeneration) -> None:
    """Keeps of each layer its input only; the backward pass computes the rest once more."""
    for layer in (*model.vision_tower.vision_model.encoder.layers, *_decoder_layers(model)):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


class _Rows(Dataset[tuple[Example, Tensor, str]]):
    """Example `index` with its pixels. A broken picture gives way to the next whole one."""

    def __init__(self, examples: Sequence[Example], processor: PaliGemmaProcessor) -> None:
        self.examples, self.processor = examples, processor

    def __getitem__(self, index: int) -> tuple[Example, Tensor, str]:
        broken = ""
        for offset in range(len(self.examples)):
            example = self.examples[(index + offset) % len(self.examples)]
            try:
                return example, self.processor.pixels(example.image), broken
            except PictureError as error:
                broken = broken or f"{example.where}: {error}"
        raise PictureError(f"not one of the {len(self.examples)} pictures can be read: {broken}")

    def collate(self, rows: list[tuple[Example, Tensor, str]]) -> tuple[Batch, list[str]]:
        """Rows → a batch, and what was wrong."""
        batch = self.processor.words(
            [example.prefix for example, _, _ in rows],
            [1] * len(rows),
            [example.suffix for example, _, _ in rows],
            allow_special_tokens=True,
        )
        batch["pixel_values"] = torch.stack([pixels for _, pixels, _ in rows])
        return batch, [broken for _, _, broken in rows if broken]


def batches(
    examples: Sequence[Example],
    processor: PaliGemmaProcessor,
    order: Iterator[list[int]],
    workers: int = 0,
) -> Iterator[tuple[Batch, list[str]]]:
    """Batches of the rows that `order` names, prepared by worker processes, and complaints."""
    dataset = _Rows(examples, processor)
    yield from DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=dataset.collate,
        num_workers=workers,
    )


def shares(trainer: Finetuner, count: int) -> Iterator[list[int]]:
    """Which rows each batch of this process holds, from the trainer's step on."""
    recipe, accelerator = trainer.recipe, trainer.accelerator
    for step in batch_indices(count, recipe.batch_size, recipe.seed, trainer.step, recipe.steps):
        for part in range(recipe.accumulate):
            first = (part * accelerator.num_processes + accelerator.process_index) * trainer.rows
            yield step[first : first + trainer.rows]


@dataclass
class Validation:
    """How a run is judged on the way.

    examples: held out. every: steps between looks. patience: looks without a better score before
    the run ends; 0: none. answers: how many are answered in full, for score and samples.
    """

    examples: Sequence[Example]
    every: int
    patience: int = 0
    answers: int = 64


def score_answers(examples: Sequence[Example], said: Sequence[str]) -> float:
    """0 … 1: the mean over the tasks that there are, each by its own metric.

    F1 at IoU .5 over the boxes of `detect` and `segment`, a tenth of CIDEr for captions, VQA
    accuracy for answers, the share right of the rest.
    """
    boxes: list[Matches] = []
    texts: dict[str, list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
    for example, answer in zip(examples, said, strict=True):
        task = example.prefix.partition(" ")[0]
        if task in OBJECT_TASKS:
            boxes.append(match_boxes(answer, example.suffix))
        else:
            kind = "caption" if task in CAPTIONS else "answer" if task in ANSWERS else "other"
            texts[kind].append((answer, example.answers or (example.suffix,)))
    scores = [sum(boxes, Matches()).f1] if boxes else []
    for kind, pairs in texts.items():
        if kind == "caption":
            found = [value / 10 for value in cider(*map(list, zip(*pairs, strict=True)))]
        else:
            found = [(vqa_accuracy if kind == "answer" else exact)(*pair) for pair in pairs]
        scores.append(sum(found) / len(found))
    return sum(scores) / len(scores)


def _asked(validation: Validation) -> list[Example]:
    """What is answered in full: each prompt about a picture once, and no broken pictures."""
    asked = []
    for question in to_questions(validation.examples):
        with suppress(PictureError):
            load_picture(question.picture)
            path = Path(str(question.picture))
            right = question.answers
            asked.append(Example(path, question.prefix, right[0], "", right))
        if len(asked) == validation.answers:
            break
    return asked


def fingerprint(examples: Sequence[Example]) -> str:
    """Tells data sets apart by their prompts, answers and pictures' names, wherever they lie."""
    lines = (f"{e.image.name}\t{e.prefix}\t{e.suffix}\n" for e in examples)
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    return f"{len(examples)} examples, {digest.hexdigest()[:8]}"


def train(
    trainer: Finetuner,
    processor: PaliGemmaProcessor,
    examples: Sequence[Example],
    out: Path,
    *,
    validation: Validation | None = None,
    workers: int = 0,
    log_every: int = 10,
    checkpoint_seconds: float = 120.0,
    past: dict[str, Any] | None = None,
) -> None:
    """Trains to the end, with lines of `log.jsonl` and `samples.jsonl`, and checkpoints.

    With a validation set the best weights seen are kept, and are what the model has at the end.
    Ctrl-C ends it after the step at hand, with a checkpoint.
    """
    accelerator, recipe = trainer.accelerator, trainer.recipe
    main = accelerator.is_main_process
    about = {"data": fingerprint(examples)}
    if past:
        check_same(out / "checkpoint", {"data": past.get("data")}, about)
    state: dict[str, Any] = {"best": [-1.0, 0.0], "waited": 0, **(past or {}), **about}
    if main:
        if not past:  # of a run that came to no checkpoint
            (out / "best.safetensors").unlink(missing_ok=True)
        for name in ("log.jsonl", "samples.jsonl"):
            cut_log(out / name, trainer.step)
    data = batches(examples, processor, shares(trainer, len(examples)), workers)
    saved = logged = time.monotonic()
    losses: list[float] = []
    complaints: dict[str, None] = {}
    with stop_signals() as stop, Screen(trainer.progress, quiet=not main) as screen:
        while trainer.step < recipe.steps:
            group = list(islice(data, recipe.accumulate))
            losses.append(trainer.train_step([batch for batch, _ in group]))
            for message in (m for _, broken in group for m in broken if m not in complaints):
                complaints[message] = None
                screen.say(f"skipped: {message}")
            done, now = trainer.step == recipe.steps, time.monotonic()
            if trainer.step % log_every == 0 or done:
                line = {
                    "step": trainer.step,
                    "loss": sum(losses) / len(losses),
                    "rate": trainer.rate,
                    "rows_per_second": round(
                        len(losses) * recipe.batch_size / max(now - logged, 1e-9), 2
                    ),
                }
                if main:
                    _append(out / "log.jsonl", line)
                text = f"step {trainer.step}  loss {line['loss']:.3f}"
                screen.show(trainer.progress, f"{text}  {line['rows_per_second']:.1f} rows/s")
                losses, logged = [], now
            if validation is not None and (trainer.step % validation.every == 0 or done):
                _look(trainer, processor, validation, state, out, screen)
                logged = time.monotonic()
            tired = bool(validation and 0 < validation.patience <= state["waited"])
            stopped = _any(accelerator, bool(stop))
            due = _any(accelerator, now - saved >= checkpoint_seconds)
            if due or stopped or done or tired:
                trainer.save(out / "checkpoint", state)
                saved = time.monotonic()
            if tired:
                screen.say(f"step {trainer.step}: no better for {state['waited']} looks, the end")
                break
            if stopped and not done:
                raise stopped_early(out / "checkpoint", trainer.step)
    accelerator.wait_for_everyone()
    if (out / "best.safetensors").exists():
        trainer.restore(out / "best.safetensors")


def _look(
    trainer: Finetuner,
    processor: PaliGemmaProcessor,
    validation: Validation,
    state: dict[str, Any],
    out: Path,
    screen: Screen,
) -> None:
    """Loss and answers on what was held out; keeps the weights if they are the best so far."""
    rows = trainer.rows
    count = len(validation.examples)
    order = (list(range(i, min(i + rows, count))) for i in range(0, count, rows))
    loss = trainer.mean_loss(b for b, _ in batches(validation.examples, processor, order))
    asked = _asked(validation)
    trainer.model.eval()
    with trainer.accelerator.autocast(), _gathered(trainer.loss):
        said = PaliGemma(trainer.model, processor).generate(
            [example.image for example in asked],
            [example.prefix for example in asked],
            allow_special_tokens=True,
            max_new_tokens=128,
        )
    trainer.model.train()
    score = score_answers(asked, said) if asked else 0.0
    better = [score, -loss] > state["best"]  # of equal scores, the lower loss
    state["waited"] = 0 if better else state["waited"] + 1
    learned = trainer.learned() if better else {}
    if trainer.accelerator.is_main_process:
        _append(out / "log.jsonl", {"step": trainer.step, "held_out_loss": loss, "score": score})
        for example, answer in list(zip(asked, said, strict=True))[:4]:
            sample = {"image": str(example.image), "prefix": example.prefix}
            sample |= {"suffix": example.suffix, "said": str(answer)}
            _append(out / "samples.jsonl", {"step": trainer.step, **sample})
        if asked:
            said_of = zip(asked[:8], said, strict=False)
            (out / "samples").mkdir(exist_ok=True)
            contact_sheet(
                [replace(example, suffix=str(answer)) for example, answer in said_of]
            ).save(out / "samples" / f"{trainer.step:06}.png")
        if better:
            unfinished = out / ".best.safetensors.tmp"
            save_file(learned, unfinished)
            unfinished.replace(out / "best.safetensors")
    if better:
        state["best"] = [score, -loss]
    first = f"{asked[0].prefix} → {said[0]}" if asked else ""
    screen.say(f"step {trainer.step}: held-out loss {loss:.3f}, score {score:.3f}; {first}")


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        print(json.dumps(line, ensure_ascii=False), file=file)


def _any(accelerator: Accelerator, flag: bool) -> bool:
    """Whether it is so in any process: all must leave the loop at one step."""
    if accelerator.num_processes == 1:
        return flag
    state = torch.tensor(float(flag), device=accelerator.device)
    dist.all_reduce(state, dist.ReduceOp.MAX)
    return bool(state)


def save_result(
    trainer: Finetuner, base: PaliGemma, folder: Path, name: str, dtype: torch.dtype
) -> None:
    """The adapters in peft's format, or the whole model as a folder, in `dtype`.

    A folder keeps the base's mask codec; its scores' calibration was another model's. name: of the
    base. To be called by every process: what is sharded is gathered. The first one writes.
    """
    state = trainer.gather(dict(trainer.model.named_parameters()))
    if not trainer.accelerator.is_main_process:
        return
    if trainer.recipe.lora_rank:
        save_lora(trainer.model, state, folder, name)
        return
    triples = ((key, key, tensor) for key, tensor in state.items())
    save_folder(assemble(trainer.model.config, triples, name, dtype), folder, base.processor)
    if base.mask_codec is not None:
        base.mask_codec.save(folder / CODEC)
