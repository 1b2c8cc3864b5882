"""The way through the model's own modules, written out once more: every part may be changed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.constrained import Allowed
from paliglass.lab.torch_engine.records import Edits, Heads, Layer, Mask, Stream, Tower
from paliglass.layers.rope import apply_rotary, rotary_cos_sin
from paliglass.modeling_gemma import GemmaModel
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.tasks.grammar import ObjectGrammar

__all__ = ["Forward", "Run", "norm"]


@dataclass
class Run:
    """A prompt with its answer. logits, allowed: before each of the answer's tokens."""

    way: Forward
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
        """Without the tower's record, which runs share."""
        return self.stream.nbytes + sum(row.nbytes for row in self.logits)

    def part(self, name: str, layer: int) -> Tensor:
        """The stream after a layer of tower or decoder, T × D; −1: what enters the first."""
        if name == "tower":
            return self.tower.inputs if layer < 0 else self.tower.layers[layer].output
        return self.stream.inputs if layer < 0 else self.stream.layers[layer].output

    def whole_mask(self) -> Tensor:
        """T × T, True = may look."""
        places = torch.arange(self.stream.length, device=self.stream.inputs.device)
        return self.mask(places[:, None], places[None])


class Forward:
    """A network with plain modules, and the edits that a run asks for."""

    def __init__(
        self, network: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor
    ) -> None:
        self.network, self.processor = network, processor
        self.config = network.config

    def look(self, pixels: Tensor, edits: Edits) -> Tower:
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
        pixels = pixels.to(weight)
        x = embeddings.patch_embedding(pixels[None]).flatten(2)[0].T
        positions = embeddings.position_embedding.weight
        if edits.get("towerPositions") == "transposed":
            side = self.config.vision_config.patches_per_side
            positions = positions.reshape(side, side, -1).transpose(0, 1).flatten(0, 1)
        if edits.get("towerPositions") != "none":
            x = x + positions
        found = Tower(pixels, x, [], 1.0, x)
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

    def prefill(self, prompt: str, tower: Tower, edits: Edits) -> Run:
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
        embeddings = self.embed(ids, edits)
        embeddings[:count] = features
        run = Run(
            self, ids, edits, _mask(len(ids), count, edits.get("mask") or {}), tower, self.empty()
        )
        run.logits.append(self.logits(self.extend(run, run.stream, embeddings)[-1]))
        return run

    def embed(self, ids: Iterable[int], edits: Edits) -> Tensor:
        """Words, T × D; `<image>`'s places are to be filled."""
        decoder: GemmaModel = self.network.language_model.model
        known = [0 if id == self.config.image_token_index else id for id in ids]
        tokens = torch.tensor(known, device=decoder.norm.weight.device)
        return decoder.embed_tokens(tokens) if edits.get("unscaledWords") else decoder.embed(tokens)

    def empty(self) -> Stream:
        text = self.config.text_config
        like = self.network.language_model.model.norm.weight
        none = like.new_empty(0, text.hidden_size)
        q = like.new_empty(text.num_attention_heads, 0, text.head_dim)
        k = like.new_empty(text.num_key_value_heads, 0, text.head_dim)
        return Stream(
            none, none, [Layer(q, k, k, none, none) for _ in range(text.num_hidden_layers)]
        )

    def extend(self, run: Run, stream: Stream, embeddings: Tensor) -> Tensor:
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
            h = norm(layer.input_layernorm, x, edits)
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
                heads = Heads(q, kept.k, kept.v, self.scale(edits), self.cap, mask)
                attended = attention.o_proj(_mixed(heads, part, off))
                if layer.has_post_norms:
                    attended = norm(layer.post_attention_layernorm, attended, edits)
                x = x + attended
            kept.middle = torch.cat((kept.middle, x))
            if f"{part}.mlp" not in off:
                x = x + self._mlp(number, x, edits)
            if part in off:
                x = before
            x = _pasted(x, start, number, edits)
            kept.output = torch.cat((kept.output, x))
        final = norm(decoder.norm, x, edits)
        stream.final = torch.cat((stream.final, final))
        return final

    def _mlp(self, number: int, x: Tensor, edits: Edits) -> Tensor:
        layer: Any = self.network.language_model.model.layers[number]
        out: Tensor = layer.mlp.down_proj(self.inner(number, x, edits)[-1])
        if layer.has_post_norms:
            out = norm(layer.post_feedforward_layernorm, out, edits)
        return out

    def inner(self, number: int, x: Tensor, edits: Edits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inside an MLP, T × hidden each: gate, gelu(gate), up, and the product of the last two."""
        layer: Any = self.network.language_model.model.layers[number]
        before = layer.post_attention_layernorm
        if layer.has_post_norms:
            before = layer.pre_feedforward_layernorm
        h = norm(before, x, edits)
        gate, up = layer.mlp.gate_proj(h), layer.mlp.up_proj(h)
        activated = _activate(gate, edits)
        values = activated * up
        under = f"decoder.{number}.mlp."
        silent = [int(part.removeprefix(under)) for part in _off(edits) if part.startswith(under)]
        values[:, silent] = 0
        return gate, activated, up, values

    def scale(self, edits: Edits) -> float:
        return 1.0 if edits.get("unscaledScores") else self.config.text_config.query_scale

    @property
    def cap(self) -> float | None:
        return self.config.text_config.attn_logit_softcapping

    def logits(self, hidden: Tensor) -> Tensor:
        """… × D after the last norm → … × W of the words that may be said, in float32."""
        return self.processor.word_logits(self.network.language_model.logits(hidden))

    def generate(
        self,
        run: Run,
        forced: list[int],
        grammar: ObjectGrammar | None,
        limit: int,
        patience: float,
    ) -> None:
        """Answers greedily: to the end, the limit in tokens, or for so many seconds."""
        start = time.perf_counter()
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
            if step + 1 == limit or time.perf_counter() - start > patience:
                break
            state = None if state is None else state.after(token)
            run.logits.append(self.say(run, run.stream, token))

    def say(self, run: Run, stream: Stream, token: int) -> Tensor:
        """One more word through the decoder: the logits of the next one."""
        return self.logits(self.extend(run, stream, self.embed([token], run.edits))[-1])

    def heads(self, run: Run, part: str, layer: int) -> Heads:
        """What a layer's attention was computed from, all queries at once."""
        if part == "tower":
            kept, scale = run.tower.layers[layer], run.tower.scale
            return Heads(kept.q, kept.k, kept.v, scale)
        kept = run.stream.layers[layer]
        return Heads(kept.q, kept.k, kept.v, self.scale(run.edits), self.cap, run.whole_mask())

    def num_layers(self, part: str) -> int:
        config = self.config
        return (config.vision_config if part == "tower" else config.text_config).num_hidden_layers


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


def norm(module: nn.Module, x: Tensor, edits: Edits) -> Tensor:
    """An RMSNorm, of x without its mean where the edits want a LayerNorm's centring."""
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
