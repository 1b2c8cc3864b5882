"""The lab's other engine: any checkpoint, computed by torch, behind the protocol of engine/lab.js.

The page asks by a method's name and gets what the engine in the page would answer; tests hold the
two together, edits included. Weights and modules are the model's own; the way through them is
written out once more, as engine/gemma.js does, because here every part of it can be changed.

What a run keeps is a `Stream`: for each layer queries, keys, values and what comes out. All tensors
are of one prompt, without a batch's dimension: T × D, or heads × T × head_dim.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.config import PaliGemmaConfig
from paliglass.constrained import Allowed
from paliglass.errors import PaliglassError
from paliglass.layers.attention import attend_reference
from paliglass.layers.rope import apply_rotary, rotary_cos_sin
from paliglass.model import PaliGemma
from paliglass.modeling_gemma import GemmaModel
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.tasks.boxes import parse_boxes
from paliglass.tasks.grammar import ObjectGrammar
from paliglass.tasks.prompts import split_labels

__all__ = ["TorchLab"]

KEPT = 10  # runs that can still be asked about, and pictures
HELD = 8  # runs that the page asked to keep
MEMORY = 4 << 30  # bytes that kept runs may take, those that are held too
_CAPITAL = re.compile("[A-Z]")  # the page's names, maxNewTokens, are max_new_tokens here
EXCHANGED = 64  # tokens of an answer after a word of its prompt was exchanged
Edits = Mapping[str, Any]
Mask = Callable[[Tensor, Tensor], Tensor]
"""Rows and columns, T × 1 and 1 × S → T × S, True = may look."""


@dataclass
class Heads:
    """What a layer's attention is computed from. q: H × T × d; k, v: K × S × d."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    cap: float | None = None
    mask: Tensor | None = None

    def attend(self) -> tuple[Tensor, Tensor]:
        """The heads' output, H × T × d, and weights, H × T × S."""
        mask = None if self.mask is None else self.mask[None, None]
        q, k, v = self.q[None], self.k[None], self.v[None]
        out, weights = attend_reference(q, k, v, mask, self.scale, self.cap)
        return out[0], weights[0]

    def row(self, token: int) -> Heads:
        """The same for a single query."""
        mask = None if self.mask is None else self.mask[token : token + 1]
        return Heads(self.q[:, token : token + 1], self.k, self.v, self.scale, self.cap, mask)

    def scores(self, head: int) -> Tensor:
        """A head's scores before the softmax, T × S in float32; −inf where it may not look."""
        key = head * len(self.k) // len(self.q)
        scores = self.q[head].float() @ self.k[key].float().T * self.scale
        if self.cap:
            scores = (scores / self.cap).tanh() * self.cap
        return scores if self.mask is None else scores.masked_fill(~self.mask, -torch.inf)


@dataclass
class Layer:
    """One layer of a stream: its heads' q, k, v, the stream after attention, and after the MLP."""

    q: Tensor
    k: Tensor
    v: Tensor
    middle: Tensor
    output: Tensor

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in vars(self).values())

    def cut(self, count: int) -> Layer:
        """The first tokens alone."""
        q, k, v = (x[:, :count] for x in (self.q, self.k, self.v))
        return Layer(q, k, v, self.middle[:count], self.output[:count])


@dataclass
class Stream:
    """Tokens on their way through the decoder, and its cache. inputs, final: T × D."""

    inputs: Tensor
    final: Tensor
    layers: list[Layer]

    @property
    def length(self) -> int:
        return len(self.inputs)

    @property
    def nbytes(self) -> int:
        return self.inputs.nbytes + self.final.nbytes + sum(one.nbytes for one in self.layers)

    def cut(self, count: int) -> Stream:
        """The first tokens alone."""
        layers = [layer.cut(count) for layer in self.layers]
        return Stream(self.inputs[:count], self.final[:count], layers)


@dataclass
class Tower:
    """A picture on its way through the vision tower. inputs, features: P × D."""

    inputs: Tensor
    layers: list[Layer]
    scale: float
    features: Tensor


@dataclass
class Run:
    """A prompt with its answer. logits, allowed: before each of the answer's tokens."""

    prompt: list[int]
    edits: Edits
    mask: Mask
    tower: Tower
    stream: Stream
    logits: list[Tensor] = field(default_factory=list)
    allowed: list[Allowed | None] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def nbytes(self) -> int:
        tower = self.tower.inputs.nbytes + sum(layer.nbytes for layer in self.tower.layers)
        return self.stream.nbytes + tower + sum(row.nbytes for row in self.logits)


class TorchLab:
    """Answers what the page asks; one question at a time.

    model: with the plain modules, as `load(…, fast=False)` gives it.
    """

    def __init__(self, model: PaliGemma) -> None:
        self.model, self.network, self.processor = model, model.model, model.processor
        self.config = model.model.config
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
            named = {_CAPITAL.sub(r"_\g<0>", name).lower(): v for name, v in values.items()}
            return getattr(self, METHODS[method])(**named)
        except PaliglassError:
            raise
        except Exception as error:  # whatever a page sends, it gets an answer
            raise PaliglassError(f"{method}: {error}") from None

    # Pictures and answers

    def load(self) -> dict[str, Any]:
        """What the page must know of the model."""
        return {"config": _config(self.config, self.processor), "simd": True}

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
        tower = self._look(self.pictures[picture], edits)
        times.append(time.perf_counter())
        run = self._prefill(prompt, tower, edits)
        times.append(time.perf_counter())
        self._generate(
            run, list(forced), self._grammar(prompt) if grammar else None, max_new_tokens
        )
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
        log_p = [float(_log_p(row, id)) for row, id in zip(run.logits, run.answer, strict=False)]
        return {
            "run": number,
            "prompt": run.prompt,
            "promptWords": self._spell_all(run.prompt),
            "answer": run.answer,
            "answerWords": self._spell_all(run.answer),
            "logProbabilities": log_p,
            "text": text,
            "ended": run.ended,
            "boxes": boxes,
            "length": run.stream.length,
            "milliseconds": {"tower": tower_ms, "prefill": prefill_ms, "decode": decode_ms},
        }

    def keep(self, run: int) -> None:
        """Keeps a run when newer ones push the old out."""
        self.held = [*(one for one in self.held if one != run), run][-HELD:]

    def _forget(self) -> None:
        *loose, _ = (number for number in self.runs if number not in self.held)  # the newest stays
        held = [number for number in self.held if number in self.runs]
        total = sum(run.nbytes for run in self.runs.values())
        for i, number in enumerate([*loose, *held]):
            if i <= len(loose) - KEPT or total > MEMORY:
                total -= self.runs.pop(number).nbytes

    def _found(self, run: int) -> Run:
        if run not in self.runs:
            raise PaliglassError(f"run {run} is no longer kept")
        return self.runs[run]

    def _grammar(self, prompt: str) -> ObjectGrammar | None:
        task, _, labels = prompt.partition(" ")
        if task not in ("detect", "segment") or not (found := split_labels(labels, task)):
            return None
        return ObjectGrammar(self.processor, found, masks=task == "segment")

    # The way through the model

    def _look(self, pixels: Tensor, edits: Edits) -> Tower:
        """3 × S × S → the tower's record."""
        if edits.get("channels") == "bgr":
            pixels = pixels.flip(0)
        if edits.get("channels") == "grey":
            mean, std = (
                torch.as_tensor(getattr(self.processor, name)).reshape(-1, 1, 1).float()
                for name in ("image_mean", "image_std")
            )
            red, green, blue = ((pixels * std + mean) * 255).round()
            grey = (0.299 * red + 0.587 * green + 0.114 * blue + 0.5).floor()
            pixels = (grey / 255 - mean) / std
        tower = self.network.vision_tower.vision_model
        embeddings = tower.embeddings
        weight = embeddings.patch_embedding.weight
        x = embeddings.patch_embedding(pixels[None].to(weight)).flatten(2)[0].T
        positions = embeddings.position_embedding.weight
        if edits.get("towerPositions") == "transposed":
            side = self.config.vision_config.patches_per_side
            positions = positions.reshape(side, side, -1).transpose(0, 1).flatten(0, 1)
        if edits.get("towerPositions") != "none":
            x = x + positions
        found = Tower(x, [], 1.0, x)
        off = _off(edits)
        layers: Any = tower.encoder.layers
        for number, layer in enumerate(layers):
            part, before, attention = f"tower.{number}", x, layer.self_attn
            h = layer.layer_norm1(x)
            q, k, v = (
                project(h).unflatten(-1, (attention.heads, -1)).transpose(0, 1)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            found.scale = 1.0 if edits.get("unscaledScores") else attention.attention.scale
            if f"{part}.attention" not in off:
                mixed = _mixed(Heads(q, k, v, found.scale), part, off)
                x = x + attention.out_proj(mixed)
            middle = x
            if f"{part}.mlp" not in off:
                inner = _activate(layer.mlp.fc1(layer.layer_norm2(x)), edits)
                x = x + layer.mlp.fc2(inner)
            if part in off:
                x = before
            found.layers.append(Layer(q, k, v, middle, x))
        found.features = tower.post_layernorm(x)
        return found

    def _prefill(self, prompt: str, tower: Tower, edits: Edits) -> Run:
        ids = self.processor.encode_prefix(prompt)
        if edits.get("noNewline"):
            ids = [
                *ids[: self.processor.num_image_tokens + 1],
                *self.processor.encode_plain(prompt),
            ]
        features = self.network.multi_modal_projector(tower.features)
        count, width = features.shape
        if edits.get("scaleFeatures"):
            features = features * width**0.5
        kind = edits.get("features")
        if kind == "zero":
            features = torch.zeros_like(features)
        elif kind == "shuffled":
            features = features[_shuffled(count)]
        elif kind == "pooled":
            features = features.mean(0, keepdim=True).expand_as(features)
        embeddings = self._embed(ids, edits)
        embeddings[:count] = features
        run = Run(ids, edits, _mask(len(ids), count, edits.get("mask") or {}), tower, self._empty())
        run.logits.append(self._logits(self._extend(run, run.stream, embeddings)[-1]))
        return run

    def _embed(self, ids: Iterable[int], edits: Edits) -> Tensor:
        """Words, T × D; `<image>`'s places are to be filled."""
        decoder: GemmaModel = self.network.language_model.model
        table = decoder.embed_tokens.weight
        known = [0 if id == self.config.image_token_index else id for id in ids]
        tokens = torch.tensor(known, device=table.device)
        return decoder.embed_tokens(tokens) if edits.get("unscaledWords") else decoder.embed(tokens)

    def _empty(self) -> Stream:
        text = self.config.text_config
        table = self.network.language_model.model.embed_tokens.weight
        none = table.new_empty(0, text.hidden_size)
        q = table.new_empty(text.num_attention_heads, 0, text.head_dim)
        k = table.new_empty(text.num_key_value_heads, 0, text.head_dim)
        return Stream(
            none, none, [Layer(q, k, k, none, none) for _ in range(text.num_hidden_layers)]
        )

    def _extend(self, run: Run, stream: Stream, embeddings: Tensor) -> Tensor:
        """New tokens, T × D, through all layers beside what the stream holds: after the norm."""
        decoder: GemmaModel = self.network.language_model.model
        edits, off, start = run.edits, _off(run.edits), stream.length
        end = start + len(embeddings)
        places = torch.arange(start, end, device=embeddings.device)
        positions = places + 1 + edits.get("shift", 0)
        text, dtype = self.config.text_config, embeddings.dtype
        rotary = rotary_cos_sin(positions[None], text.head_dim, text.rope_theta, dtype)
        rotary = rotary[0][0], rotary[1][0]
        mask = run.mask(places[:, None], torch.arange(end, device=places.device)[None])
        x = _pasted(embeddings, start, -1, edits)
        stream.inputs = torch.cat((stream.inputs, x))
        layers: Any = decoder.layers
        for number, layer in enumerate(layers):
            part, before, kept = f"decoder.{number}", x, stream.layers[number]
            attention = layer.self_attn
            h = _norm(layer.input_layernorm, x, edits)
            q, k, v = (
                project(h).unflatten(-1, (-1, text.head_dim)).transpose(0, 1)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if not edits.get("noRotary"):
                q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
            kept.q, kept.k, kept.v = (
                torch.cat(pair, dim=1) for pair in ((kept.q, q), (kept.k, k), (kept.v, v))
            )
            if f"{part}.attention" not in off:
                heads = Heads(q, kept.k, kept.v, self._scale(edits), self._cap, mask)
                attended = attention.o_proj(_mixed(heads, part, off))
                if layer.has_post_norms:
                    attended = _norm(layer.post_attention_layernorm, attended, edits)
                x = x + attended
            kept.middle = torch.cat((kept.middle, x))
            if f"{part}.mlp" not in off:
                x = x + self._mlp(layer, x, edits)
            if part in off:
                x = before
            x = _pasted(x, start, number, edits)
            kept.output = torch.cat((kept.output, x))
        final = _norm(decoder.norm, x, edits)
        stream.final = torch.cat((stream.final, final))
        return final

    def _mlp(self, layer: Any, x: Tensor, edits: Edits) -> Tensor:
        norms = (layer.post_attention_layernorm, None)
        if layer.has_post_norms:
            norms = (layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm)
        h = _norm(norms[0], x, edits)
        gated = _activate(layer.mlp.gate_proj(h), edits) * layer.mlp.up_proj(h)
        out: Tensor = layer.mlp.down_proj(gated)
        return out if norms[1] is None else _norm(norms[1], out, edits)

    def _scale(self, edits: Edits) -> float:
        return 1.0 if edits.get("unscaledScores") else self.config.text_config.query_scale

    @property
    def _cap(self) -> float | None:
        return self.config.text_config.attn_logit_softcapping

    def _logits(self, hidden: Tensor) -> Tensor:
        """… × D after the last norm → … × W of the words that may be said, in float32."""
        return self.processor.word_logits(self.network.language_model.logits(hidden))

    def _generate(
        self, run: Run, forced: list[int], grammar: ObjectGrammar | None, limit: int
    ) -> None:
        limit = min(limit, self.config.text_config.max_position_embeddings - len(run.prompt))
        state = None if grammar is None else grammar.start()
        for step in range(limit):
            logits = run.logits[step]
            allowed = None if state is None else state.allowed(limit - step)
            token = int(logits.argmax() if allowed is None else _best(logits, allowed))
            token = forced[step] if step < len(forced) else token
            run.allowed.append(allowed)
            run.answer.append(token)
            if token == self.processor.eos_token_id:
                run.ended = True
                break
            if step + 1 == limit:
                break
            state = None if state is None else state.after(token)
            run.logits.append(self._say(run, run.stream, token))

    def _say(self, run: Run, stream: Stream, token: int) -> Tensor:
        """One more word through the decoder: the logits of the next one."""
        return self._logits(self._extend(run, stream, self._embed([token], run.edits))[-1])

    # Questions about a run

    def _heads(self, run: Run, part: str, layer: int) -> Heads:
        if part == "tower":
            kept, scale = run.tower.layers[layer], run.tower.scale
            return Heads(kept.q, kept.k, kept.v, scale)
        kept = run.stream.layers[layer]
        return Heads(kept.q, kept.k, kept.v, self._scale(run.edits), self._cap, self._whole(run))

    def _whole(self, run: Run) -> Tensor:
        places = torch.arange(run.stream.length, device=run.stream.inputs.device)
        return run.mask(places[:, None], places[None])

    def attention(self, run: int, part: str, layer: int, head: int) -> Any:
        """Weights of one head, T × S."""
        return _floats(self._heads(self._found(run), part, layer).attend()[1][head])

    def heads(self, run: int, part: str, token: int, to: bool = False) -> Any:
        """One row (or, `to`, one column) of every head: layers × heads of S (or T) numbers."""
        found, rows = self._found(run), []
        for layer in range(self._num_layers(part)):
            heads = self._heads(found, part, layer)
            weights = heads.attend()[1][:, :, token] if to else heads.row(token).attend()[1][:, 0]
            rows.append([_floats(one) for one in weights])
        return rows

    def _num_layers(self, part: str) -> int:
        config = self.config
        return (config.vision_config if part == "tower" else config.text_config).num_hidden_layers

    def cell(self, run: int, part: str, layer: int, head: int, row: int, column: int) -> Any:
        """One cell down to its sum: q and k, their products, score, what the softmax divides."""
        heads = self._heads(self._found(run), part, layer).row(row)
        q, k = (
            heads.q[head, 0].float(),
            heads.k[head * len(heads.k) // len(heads.q)][column].float(),
        )
        scores = heads.scores(head)[0]
        exponentials = (scores - scores.max()).exp()
        total = exponentials.sum()
        return {
            "q": _floats(q),
            "k": _floats(k),
            "products": _floats(q * k),
            "dot": float(q @ k),
            "scale": heads.scale,
            "score": _number(scores[column]),
            "most": float(scores.max()),
            "exponential": float(exponentials[column]),
            "sum": float(total),
            "weight": float(exponentials[column] / total),
            "seen": int((scores > -torch.inf).sum()),
            "masked": bool(scores[column] == -torch.inf),
        }

    def _stream(self, run: Run, part: str, layer: int) -> Tensor:
        """A layer's stream, T × D; −1 is what enters the first."""
        if part == "tower":
            return run.tower.inputs if layer < 0 else run.tower.layers[layer].output
        return run.stream.inputs if layer < 0 else run.stream.layers[layer].output

    def hidden(self, run: int, part: str, layer: int) -> Any:
        """The stream after a layer."""
        return _floats(self._stream(self._found(run), part, layer))

    def lens(self, run: int, positions: Sequence[int], k: int = 3) -> Any:
        """Layers × positions: the likeliest words had the decoder ended there."""
        found, norm = self._found(run), self.network.language_model.model.norm
        rows = []
        for layer in range(-1, self._num_layers("decoder")):
            stream = self._stream(found, "decoder", layer)[list(positions)]
            logits = self._logits(_norm(norm, stream, found.edits))
            rows.append([self._candidates(one, k) for one in logits])
        return rows

    def _candidates(self, logits: Tensor, k: int) -> list[dict[str, Any]]:
        p = logits.softmax(-1)
        ids = p.sort(stable=True, descending=True).indices[:k].tolist()
        return [{"id": id, "word": self._spell(id), "p": float(p[id])} for id in ids]

    def logits(self, run: int, step: int) -> Any:
        """Before an answer's word: logits of all words, and which the grammar allowed."""
        found = self._found(run)
        allowed = found.allowed[step]
        kept = (
            None
            if allowed is None
            else {
                "ids": list(allowed.ids),
                "low": allowed.low,
                "high": allowed.high,
                "excluded": list(allowed.excluded),
            }
        )
        return {"logits": _floats(found.logits[step]), "allowed": kept}

    def top(self, run: int, step: int, k: int = 10) -> Any:
        """The likeliest words before an answer's word."""
        return self._candidates(self._found(run).logits[step], k)

    def edges(self, run: int, first: int) -> Any:
        """For the four edges of a box: probabilities of the 1024 places."""
        found, start = self._found(run), self.processor.token_id("<loc0000>")
        rows = found.logits[first : first + 4]
        return [_floats(row.softmax(-1)[start : start + 1024]) for row in rows]

    def patch(self, run: int, layer: int, position: int) -> Any:
        """The vector to paste: a token's stream after a layer."""
        row: list[float] = self._stream(self._found(run), "decoder", layer)[position].tolist()
        return row

    def attribution(self, run: int, position: int, id: int) -> Any:
        """What each head and MLP adds to a word's logit, the last norm's divisor held fixed."""
        if self.config.text_config.has_post_norms:
            raise PaliglassError("attribution reads Gemma 1's layers, which add without a norm")
        found, decoder = self._found(run), self.network.language_model.model
        last = found.stream.layers[-1].output[position].float()
        centred = last - last.mean() if found.edits.get("norm") == "layer" else last
        scale = torch.rsqrt(centred.square().mean() + decoder.norm.eps)
        table = decoder.embed_tokens.weight[id].float()
        direction = table * scale * (1 + decoder.norm.weight.float())
        parts = [("embedding", found.stream.inputs[position].float() @ direction)]
        layers: Any = decoder.layers
        for number, layer in enumerate(layers):
            kept = found.stream.layers[number]
            before = self._stream(found, "decoder", number - 1)[position].float()
            middle, after = kept.middle[position].float(), kept.output[position].float()
            mixed = self._heads(found, "decoder", number).row(position).attend()[0][:, 0]
            output = layer.self_attn.o_proj.weight.unflatten(1, mixed.shape)  # D × H × d
            added = torch.einsum("hd,ohd->ho", mixed, output).float()
            is_off = bool((middle == before).all())
            for head, vector in enumerate(added):
                worth = vector.new_zeros(()) if is_off else vector @ direction
                parts.append((f"decoder.{number}.{head}", worth))
            parts.append((f"decoder.{number}.mlp", (after - middle) @ direction))
        told = [{"name": name, "value": float(value)} for name, value in parts]
        return {"parts": told, "logit": float(last @ direction)}

    def moved(self, run: int, other: int) -> Any:
        """How far each token's stream is from another run's after every layer: layers × T."""
        one, two = self._found(run), self._found(other)
        count = min(one.stream.length, two.stream.length)
        rows = []
        for layer in range(self._num_layers("decoder")):
            a, b = (self._stream(x, "decoder", layer)[:count].float() for x in (one, two))
            rows.append(_floats((a - b).norm(dim=-1) / b.norm(dim=-1)))
        return rows

    def score(self, run: int, step: int, ids: Sequence[int]) -> Any:
        """log p of given words after each other, from a step on."""
        logits = self._found(run).logits
        return [float(_log_p(logits[step + i], id)) for i, id in enumerate(ids)]

    def mask(self, run: int) -> Any:
        """T × T: 1 where the mask lets a token look."""
        return self._whole(self._found(run)).to(torch.uint8).flatten().cpu().numpy()

    def distances(
        self, run: int, layer: int, head: int, most: int, span: tuple[int, int]
    ) -> dict[str, Any]:
        """A head's scores by distance: its mean query and key, turned 0 … most − 1 places apart."""
        found, text = self._found(run), self.config.text_config
        kept, half = found.stream.layers[layer], text.head_dim // 2
        places = torch.arange(*span)
        positions = -(places + 1 + found.edits.get("shift", 0))
        cos, sin = rotary_cos_sin(positions[None], text.head_dim, text.rope_theta, torch.float32)
        key = head * len(kept.k) // len(kept.q)
        means = []
        for vectors in (kept.q[head], kept.k[key]):
            own = vectors[span[0] : span[1]].float().cpu()
            means.append(apply_rotary(own[None, None], cos, sin)[0, 0].mean(0))
        (q1, q2), (k1, k2) = (mean.double().chunk(2) for mean in means)
        even, odd = q1 * k1 + q2 * k2, q2 * k1 - q1 * k2
        turn = text.rope_theta ** (-2 * torch.arange(half).double() / text.head_dim)
        angles = torch.arange(most).double()[:, None] * turn
        scores = (even * angles.cos() - odd * angles.sin()).sum(-1) * text.query_scale
        pairs = [
            {"even": e, "odd": o, "turn": t}
            for e, o, t in zip(even.tolist(), odd.tolist(), turn.tolist(), strict=True)
        ]
        return {
            "scores": scores.tolist(),
            "q": _floats(means[0]),
            "k": _floats(means[1]),
            "pairs": pairs,
        }

    def cache(self, run: int, layer: int) -> dict[str, Any]:
        """Keys and values that the cache holds for a layer: T × (K · d) each."""
        kept = self._found(run).stream.layers[layer]
        k, v = (_floats(x.transpose(0, 1)) for x in (kept.k, kept.v))
        return {"k": k, "v": v, "width": len(kept.k) * kept.k.shape[-1]}

    def exchanged(self, run: int, position: int, id: int, how: str) -> dict[str, Any]:
        """The answer after a word of the prompt is exchanged behind the cache's back.

        "stale" keeps every key and value, "column" renews the word's own and no one else's.
        """
        found = self._found(run)
        count = len(found.prompt)
        stream, logits = found.stream.cut(count), found.logits[0]
        if how == "column":
            # The word alone goes through once more; its key and value land in its old place.
            alone = found.stream.cut(position)
            self._extend(found, alone, self._embed([id], found.edits))
            for layer, fresh in zip(stream.layers, alone.layers, strict=True):
                for name in ("k", "v"):
                    renewed = getattr(layer, name).clone()
                    renewed[:, position] = getattr(fresh, name)[:, position]
                    setattr(layer, name, renewed)
            stream = stream.cut(count - 1)
            logits = self._say(found, stream, found.prompt[-1])
        answer: list[int] = []
        while len(answer) < EXCHANGED:
            token = int(logits.argmax())
            if token == self.processor.eos_token_id:
                break
            answer.append(token)
            logits = self._say(found, stream, token)
        return {"answer": answer, "text": self.processor.decode(answer)}

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
        return _floats(codec.decode(torch.tensor([list(codes)], device=device))[0])

    def words(self, ids: Sequence[int]) -> dict[str, str]:
        """What ids are called."""
        return {str(id): self._spell(id) for id in ids}

    def tokenize(self, text: str) -> dict[str, Any]:
        """A text's ids and what they are called."""
        ids = self.processor.encode_plain(text)
        return {"ids": ids, "words": self._spell_all(ids)}

    def ids(self) -> dict[str, int]:
        """Ids that `<loc0000>` and `<seg000>` start at, and the end."""
        location, code = (self.processor.token_id(t) for t in ("<loc0000>", "<seg000>"))
        return {"firstLocation": location, "firstCode": code, "eos": self.processor.eos_token_id}

    def _spell(self, id: int) -> str:
        token = self.processor.tokenizer.id_to_token(id)
        return f"#{id}" if token is None else token.replace("▁", " ")

    def _spell_all(self, ids: Iterable[int]) -> list[str]:
        return [self._spell(id) for id in ids]


METHODS = {
    name: name
    for name in (
        "load picture run keep attention heads cell hidden lens logits top edges patch attribution "
        "moved score mask distances cache exchanged words tokenize ids"
    ).split()
} | {"decodeMask": "decode_mask"}


def _config(config: PaliGemmaConfig, processor: PaliGemmaProcessor) -> dict[str, Any]:
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


def _mask(prefix: int, picture: int, edit: Mapping[str, Any]) -> Mask:
    """Who may look at whom, by the name of a rule, with rectangles painted over it."""
    window = int(edit.get("window", 16))
    rules: dict[str, Mask] = {
        "prefix": lambda t, s: (s <= t) | ((t < prefix) & (s < prefix)),
        "causal": lambda t, s: s <= t,
        "blind": lambda t, s: (s <= t) | ((t < picture) & (s < picture)),
        "self": lambda t, s: torch.where(t < prefix, s < prefix, (s <= t) & (s >= prefix - 1)),
        "window": lambda t, s: torch.where(t < prefix, s < prefix, (s <= t) & (s > t - window)),
    }
    rule, painted = rules[edit.get("name", "prefix")], edit.get("painted") or ()

    def mask(t: Tensor, s: Tensor) -> Tensor:
        may = rule(t, s)
        for top, bottom, left, right, value in painted:
            inside = (t >= top) & (t <= bottom) & (s >= left) & (s <= right)
            may = torch.where(inside, torch.tensor(bool(value), device=may.device), may)
        # A row without a single key has no softmax: a token goes on seeing itself.
        return may | (t == s) if painted else may

    return mask


def _off(edits: Edits) -> frozenset[str]:
    return frozenset(edits.get("off") or ())


def _mixed(heads: Heads, part: str, off: frozenset[str]) -> Tensor:
    """The heads' output side by side, T × (H · d), without those that are switched off."""
    out = heads.attend()[0]
    silent = [head for head in range(len(out)) if f"{part}.{head}" in off]
    if silent:
        out = out.clone()
        out[silent] = 0
    return out.transpose(0, 1).flatten(1)


def _norm(module: nn.Module, x: Tensor, edits: Edits) -> Tensor:
    centred = x - x.mean(-1, keepdim=True) if edits.get("norm") == "layer" else x
    out: Tensor = module(centred)
    return out


def _activate(x: Tensor, edits: Edits) -> Tensor:
    kind = edits.get("activation")
    if kind == "none":
        return x
    return F.relu(x) if kind == "relu" else F.gelu(x, approximate="tanh")


def _pasted(x: Tensor, start: int, layer: int, edits: Edits) -> Tensor:
    """x, T × D, with given vectors in the places of tokens after a layer."""
    for patch in edits.get("patches") or ():
        place = patch["position"] - start
        if patch["layer"] == layer and 0 <= place < len(x):
            x = x.clone()
            x[place] = torch.as_tensor(patch["vector"], dtype=x.dtype, device=x.device)
    return x


def _shuffled(count: int) -> list[int]:
    """One order of 0 … count − 1, always the same: Fisher and Yates with a small generator."""
    order, state = list(range(count)), 1
    for i in range(count - 1, 0, -1):
        state = state * 48271 % 2147483647
        j = state % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def _best(logits: Tensor, allowed: Allowed) -> int:
    may = torch.full_like(logits, -torch.inf)
    for ids in (list(allowed.ids), slice(allowed.low, allowed.high)):
        may[ids] = logits[ids]
    may[[id for id in allowed.excluded if id not in allowed.ids]] = -torch.inf
    return int(may.argmax())


def _log_p(logits: Tensor, id: int) -> Tensor:
    return logits[id] - logits.logsumexp(-1)


def _number(value: Tensor) -> float | None:
    found = float(value)
    return found if np.isfinite(found) else None


def _floats(x: Tensor) -> Any:
    """Numbers in float32, laid end to end: a numpy array."""
    return x.detach().float().cpu().contiguous().flatten().numpy()
