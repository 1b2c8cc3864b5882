"""The lab's other engine: any checkpoint, computed by torch, behind the protocol of engine/lab.js.

The page asks by a method's name and gets what the engine in the page would answer; tests hold the
two together, edits included.

records    what happens on the way, kept to be asked about
forward    the way through the model's own modules, every part of it open to change; a run
questions  what can be asked about a run
weights    and about the weights alone; a network in fewer bits
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paliglass.config import PaliGemmaConfig
from paliglass.errors import PaliglassError
from paliglass.lab.torch_engine.forward import Forward, Run
from paliglass.lab.torch_engine.questions import QUESTIONS, log_p
from paliglass.lab.torch_engine.records import Edits, Tower
from paliglass.lab.torch_engine.weights import Merges, Weights, floats, rounded_copy, spell
from paliglass.model import PaliGemma
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.tasks.boxes import parse_boxes
from paliglass.tasks.grammar import ObjectGrammar
from paliglass.tasks.prompts import split_labels

__all__ = ["METHODS", "TorchLab"]

KEPT = 10  # runs that can still be asked about, and pictures
HELD = 8  # runs that the page asked to keep
PATIENCE = 60.0  # seconds of an answer's words: a large model on a small machine is cut off
TOWERS = 4  # pictures whose way through the tower is kept for the next prompt
MEMORY = 4 << 30  # bytes that kept runs and towers may take, those that are held too
_CAPITAL = re.compile("[A-Z]")
_OF_TOWER = ("channels", "towerPositions", "activation", "unscaledScores")


class TorchLab:
    """Answers what the page asks; one question at a time.

    model: with the plain modules, as `load(…, fast=False)` gives it.
    """

    def __init__(self, model: PaliGemma) -> None:
        self.model, self.processor = model, model.processor
        self.config = model.model.config
        self.way = Forward(model.model, model.processor)
        self.weights = Weights(model.model, model.processor)
        self.towers: list[tuple[Forward, Tensor, Edits, Tower]] = []
        self.rounded: tuple[Edits, Forward] | None = None
        self.runs: dict[int, Run] = {}
        self.held: list[int] = []
        self.pictures: dict[str, Tensor] = {}
        self.next = 1

    @torch.inference_mode()
    def ask(self, method: str, values: Mapping[str, Any]) -> Any:
        """What a method answers: plain values, with numpy arrays where numbers are many.

        Raises PaliglassError for a method that there is not, and for values that it cannot take.
        """
        if method not in METHODS:
            raise PaliglassError(f"the lab has no method {method[:40]!r}")
        try:
            named = {_to_snake(name): value for name, value in values.items()}
            if method not in QUESTIONS:
                owner = self.weights if method in _OF_WEIGHTS else self
                return getattr(owner, _to_snake(method))(**named)
            found = {name: self._found(named[name]) for name in ("run", "other") if name in named}
            return QUESTIONS[method](**named | found)
        except PaliglassError:
            raise
        except Exception as error:  # whatever a page sends, it gets an answer
            raise PaliglassError(f"{method}: {str(error) or type(error).__name__}") from None

    # Pictures and answers

    def load(self) -> dict[str, Any]:
        """What the page must know of the model."""
        return {"config": page_config(self.config, self.processor), "simd": True}

    def picture(self, name: str, picture: Mapping[str, Any]) -> None:
        """A picture by a name, for the runs that follow: width, height, rows of RGB or RGBA."""
        width, height = int(picture["width"]), int(picture["height"])
        data = np.asarray(picture["data"], np.uint8).reshape(height, width, -1)
        if data.shape[2] == 4:  # laid over white
            alpha = data[..., 3:].astype(np.float64)
            over = (data[..., :3] * alpha + 255 * (255 - alpha)) / 255
            data = np.floor(over + 0.5).astype(np.uint8)
        self.pictures[name] = self.processor.prepare(data).pixels
        for old in list(self.pictures)[:-KEPT]:
            del self.pictures[old]

    def run(
        self,
        picture: str,
        prompt: str,
        edits: Edits | None = None,
        forced: Sequence[int] = (),
        grammar: bool = False,
        max_new_tokens: int = 96,
    ) -> dict[str, Any]:
        """Answers a prompt about a picture greedily: what the page shows, a number to ask by."""
        if picture not in self.pictures:
            raise PaliglassError(f"there is no picture {picture}")
        edits = edits or {}
        times = [time.perf_counter()]
        way = self._way(edits.get("bits"))
        tower = self._look(way, self.pictures[picture], edits)
        times.append(time.perf_counter())
        run = way.prefill(prompt, tower, edits)
        times.append(time.perf_counter())
        rule = self._grammar(prompt) if grammar else None
        way.generate(run, list(forced), rule, max_new_tokens, PATIENCE)
        times.append(time.perf_counter())
        number, self.next = self.next, self.next + 1
        self.runs[number] = run
        self._forget()
        text = self.processor.decode(run.answer)
        boxes = [
            {
                "label": box.label,
                "box": list(box.box),
                "codes": None if box.codes is None else list(box.codes),
                "start": box.start,
                "end": box.end,
                "mask": None if box.codes is None else self._mask_of(box.codes),
            }
            for box in parse_boxes(text)
        ]
        tower_ms, prefill_ms, decode_ms = (1000 * float(t) for t in np.diff(times))
        said = [float(log_p(row, id)) for row, id in zip(run.logits, run.answer, strict=False)]
        return {
            "run": number,
            "prompt": run.prompt,
            "promptWords": self._spell_all(run.prompt),
            "answer": run.answer,
            "answerWords": self._spell_all(run.answer),
            "logProbabilities": said,
            "text": text,
            "ended": run.ended,
            "boxes": boxes,
            "length": run.stream.length,
            "milliseconds": {"tower": tower_ms, "prefill": prefill_ms, "decode": decode_ms},
        }

    def _way(self, rounding: Edits | None) -> Forward:
        """What computes: weights in fewer bits are a network of their own; the last one stays."""
        if not rounding:
            return self.way
        if self.rounded is None or self.rounded[0] != rounding:
            self.rounded = None  # its memory first
            self.towers = [kept for kept in self.towers if kept[0] is self.way]
            self.runs = {n: run for n, run in self.runs.items() if run.way is self.way}
            network = rounded_copy(self.way.network, rounding)
            self.rounded = (dict(rounding), Forward(network, self.processor))
        return self.rounded[1]

    def _look(self, way: Forward, pixels: Tensor, edits: Edits) -> Tower:
        """A picture through the tower, once for all prompts and edits that do not reach it."""
        own = {name: edits.get(name) for name in _OF_TOWER}
        own["off"] = sorted(part for part in edits.get("off") or () if part.startswith("tower."))
        for kept in self.towers:
            if kept[0] is way and kept[1] is pixels and kept[2] == own:
                self.towers = [kept, *(one for one in self.towers if one is not kept)]
                return kept[3]
        tower = way.look(pixels, edits)
        self.towers = [(way, pixels, own, tower), *self.towers][:TOWERS]
        return tower

    def keep(self, run: int) -> None:
        """Keeps a run when newer ones push the old out."""
        self.held = [*(one for one in self.held if one != run), run][-HELD:]

    def _forget(self) -> None:
        *loose, _ = (number for number in self.runs if number not in self.held)  # the newest stays
        held = [number for number in self.held if number in self.runs]
        while len(self.towers) > 1 and self.nbytes > MEMORY:
            self.towers.pop()  # computed anew when asked for; a run that goes is lost to the page
        for i, number in enumerate([*loose, *held]):
            if i <= len(loose) - KEPT or self.nbytes > MEMORY:
                del self.runs[number]

    @property
    def nbytes(self) -> int:
        """Of all runs and towers that are kept; a tower that several share counts once."""
        towers = [run.tower for run in self.runs.values()] + [kept[3] for kept in self.towers]
        distinct = {id(tower): tower for tower in towers}.values()
        return sum(one.nbytes for one in distinct) + sum(one.nbytes for one in self.runs.values())

    def _found(self, run: int) -> Run:
        if run not in self.runs:
            raise PaliglassError(f"run {run} is no longer kept")
        return self.runs[run]

    def _grammar(self, prompt: str) -> ObjectGrammar | None:
        task, _, labels = prompt.partition(" ")
        if task not in ("detect", "segment") or not (found := split_labels(labels, task)):
            return None
        return ObjectGrammar(self.processor, found, masks=task == "segment")

    # Words and masks

    def decode_mask(self, codes: Sequence[int]) -> Any:
        """Sixteen codes → 64 × 64 numbers, above 0 inside."""
        mask = self._mask_of(codes)
        if mask is None:
            raise PaliglassError("this model has no mask codec")
        return mask

    def _mask_of(self, codes: Sequence[int]) -> Any:
        codec = self.model.mask_codec
        if codec is None:
            return None
        device = next(codec.parameters()).device
        return floats(codec.decode(torch.tensor([list(codes)], device=device))[0])

    def words(self, ids: Sequence[int]) -> dict[str, str]:
        """What ids are called."""
        return {str(id): spell(self.processor, id) for id in ids}

    def tokenize(self, text: str) -> dict[str, Any]:
        """A text's ids and what they are called."""
        ids = self.processor.encode_plain(text)
        return {"ids": ids, "words": self._spell_all(ids)}

    def merges(self, text: str) -> dict[str, Any]:
        """A text's pieces as they merge."""
        return {"steps": self._merges.steps(text)}

    @cached_property
    def _merges(self) -> Merges:
        return Merges(self.processor.tokenizer.to_str())

    def ids(self) -> dict[str, int]:
        """Ids that `<loc0000>` and `<seg000>` start at, and the end."""
        location, code = (self.processor.token_id(t) for t in ("<loc0000>", "<seg000>"))
        return {"firstLocation": location, "firstCode": code, "eos": self.processor.eos_token_id}

    def _spell_all(self, ids: Iterable[int]) -> list[str]:
        return [spell(self.processor, id) for id in ids]


_OWN = frozenset("load picture run keep words tokenize merges ids decodeMask".split())
_OF_WEIGHTS = frozenset("filters matrices matrix nearest tableComponents measure".split())
METHODS = _OWN | _OF_WEIGHTS | QUESTIONS.keys()


def _to_snake(name: str) -> str:
    """The page's names, maxNewTokens, are max_new_tokens here."""
    return _CAPITAL.sub(r"_\g<0>", name).lower()


def page_config(config: PaliGemmaConfig, processor: PaliGemmaProcessor) -> dict[str, Any]:
    """Sizes under the names of engine/config.js."""
    vision, text = config.vision_config, config.text_config
    return {
        "vision": {
            "width": vision.hidden_size,
            "hidden": vision.intermediate_size,
            "layers": vision.num_hidden_layers,
            "heads": vision.num_attention_heads,
            "side": vision.image_size,
            "patch": vision.patch_size,
            "channels": vision.num_channels,
            "eps": vision.layer_norm_eps,
        },
        "text": {
            "vocab": text.vocab_size,
            "width": text.hidden_size,
            "hidden": text.intermediate_size,
            "layers": text.num_hidden_layers,
            "heads": text.num_attention_heads,
            "keyHeads": text.num_key_value_heads,
            "headDim": text.head_dim,
            "eps": text.rms_norm_eps,
            "theta": text.rope_theta,
            "scale": text.query_scale,
            "scoreCap": text.attn_logit_softcapping or None,
            "logitCap": text.final_logit_softcapping or None,
            "postNorms": text.has_post_norms,
            "limit": text.max_position_embeddings,
        },
        "imageToken": config.image_token_index,
        "eos": processor.eos_token_id,
        "words": processor.num_words,
        "perRow": vision.patches_per_side,
        "patches": config.num_image_tokens,
    }
