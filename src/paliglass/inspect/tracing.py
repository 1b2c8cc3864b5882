"""Looking inside: with `trace(model)`, every intermediate of what runs in the block has a name.

    with paliglass.trace(m) as t:
        m.caption("picture.png")
    t.rows[0].attention("language_model.model.layers.3.self_attn")    # heads × n × n

- names are the checkpoint's module names
- forward hooks only: a model that is not traced runs at the same speed. What decodes by compiled
  functions (int8 and int4 with the extra `fast`) runs its modules while it is traced, whose sums
  are rounded otherwise: where two words are nearly as likely, another one may be said
- attention weights, which the fused kernel never forms, are computed when they are asked for, from
  q, k and the mask that the kernel was given
- a row is one prompt with its answer, without padding: what the prefill and the later steps of one
  token each have seen lies side by side, as if it had gone through in one piece
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from paliglass.errors import PaliglassError
from paliglass.layers.attention import Attention, attend_reference
from paliglass.layers.kv_cache import KVCache
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

if TYPE_CHECKING:
    from paliglass.model import PaliGemma
    from paliglass.processing_paligemma import PaliGemmaProcessor

__all__ = [
    "DECODER",
    "DECODER_LAYERS",
    "INPUTS",
    "TOWER",
    "TOWER_LAYERS",
    "CacheSize",
    "Candidate",
    "Stack",
    "Trace",
    "TracedPicture",
    "TracedRow",
    "trace",
]

TOWER = "vision_tower.vision_model"
TOWER_LAYERS = f"{TOWER}.encoder.layers"
DECODER = "language_model.model"
DECODER_LAYERS = f"{DECODER}.layers"
NORM = f"{DECODER}.norm"
INPUTS = "inputs_embeds"
"""What enters the decoder after the merge, under transformers' name: no module's output."""


class Candidate(NamedTuple):
    """A word that might come next. probability: among all words, before any temperature."""

    id: int
    probability: float


class CacheSize(NamedTuple):
    """What the key/value cache holds of a row after a pass, over all layers."""

    tokens: int
    bytes: int


@dataclass
class _Pass:
    """One run of a stack over B × T tokens.

    is_token: B × T, False on padding. hidden: by name, B × T × D. heads: by attention's name, its
    q (H), k and v (K heads) of the T tokens themselves.
    """

    is_token: Tensor
    mask: Tensor | None = None
    ids: Tensor | None = None
    pixels: Tensor | None = None
    hidden: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


Parts = list[tuple[_Pass, int]]
"""A row's way: the passes that it was in, and its place in each."""


class Stack:
    """One row's way through a stack of layers. n: its tokens, without padding."""

    prefix: str

    def __init__(self, trace: Trace, parts: Parts) -> None:
        self._trace = trace
        self._passes = [some for some, _ in parts]
        self._places = [place for _, place in parts]
        self._kept = [some.is_token[place].nonzero()[:, 0] for some, place in parts]

    def __len__(self) -> int:
        return sum(map(len, self._kept))

    @property
    def names(self) -> list[str]:
        """What `hidden` knows, in the order in which it was computed."""
        return list(self._passes[0].hidden)

    @property
    def attention_names(self) -> list[str]:
        """What `query`, `key`, `value` and `attention` know."""
        return list(self._passes[0].heads)

    def hidden(self, name: str) -> Tensor:
        """A module's output, n × D."""
        return self._joined([self._known(some.hidden, name) for some in self._passes])

    @property
    def norms(self) -> dict[str, Tensor]:
        """The length of each token's vector after every module: n numbers in float32."""
        return {name: self.hidden(name).float().norm(dim=-1) for name in self.names}

    def query(self, attention: str | int) -> Tensor:
        """Queries after RoPE, H × n × head_dim. attention: a name, or the layer's number."""
        return self._head(attention, 0)

    def key(self, attention: str | int) -> Tensor:
        """Keys after RoPE, K × n × head_dim."""
        return self._head(attention, 1)

    def value(self, attention: str | int) -> Tensor:
        """Values, K × n × head_dim."""
        return self._head(attention, 2)

    def mask(self, attention: str | int = 0) -> Tensor:
        """Who may look at whom, n × n, True = may see: row i is token i's."""
        raise NotImplementedError

    @torch.no_grad()
    def attention(
        self,
        attention: str | int,
        heads: Sequence[int] | None = None,
        positions: slice = slice(None),
    ) -> Tensor:
        """The weights softmax(q·kᵀ·scale), heads × n × n in float32; each row's sum is 1.

        heads: which of the query heads; None: all. positions: whose rows to compute; at 896 pixels
        all of them are 70 MB a head.
        """
        name = self._name(attention)
        query, key = self.query(name).float()[None], self.key(name).float()[None]
        query = query[:, :, positions]
        module = self._trace.modules[name]
        if heads is not None:
            group = query.shape[1] // key.shape[1]
            query = query[:, list(heads)]
            key = key[:, [head // group for head in heads]]
        mask = self.mask(name)[None, None, positions]
        return attend_reference(query, key, key, mask, module.scale, module.softcap)[1][0]

    def _name(self, attention: str | int) -> str:
        if isinstance(attention, str):
            return attention
        count = len(self._trace.model.get_submodule(self.prefix))  # type: ignore[arg-type]
        return f"{self.prefix}.{attention % count}.self_attn"

    def _head(self, attention: str | int, which: int) -> Tensor:
        name = self._name(attention)
        return self._joined([self._known(some.heads, name)[which] for some in self._passes])

    def _known(self, found: dict[str, Any], name: str) -> Any:
        if name not in found:
            raise PaliglassError(f"{name} was not traced; there are {', '.join(found) or 'none'}")
        return found[name]

    def _joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """The row's tokens of … B × … T × D tensors, one pass after the other: … n × D."""
        own = [
            tensor[place].index_select(-2, kept)
            for tensor, place, kept in zip(tensors, self._places, self._kept, strict=True)
        ]
        return torch.cat(own, dim=-2)


class TracedPicture(Stack):
    """A picture's patches on their way through the vision tower; n is P."""

    prefix = TOWER_LAYERS

    @property
    def pixels(self) -> Tensor:
        """What the tower was given, 3 × S × S in about [−1, 1]."""
        pixels = self._passes[0].pixels
        assert pixels is not None
        return pixels[self._places[0]]

    @property
    def patch_embeddings(self) -> Tensor:
        """Patches with their positions, P × D, before the first layer."""
        return self.hidden(f"{TOWER}.embeddings")

    def mask(self, attention: str | int = 0) -> Tensor:
        """Everyone sees everyone."""
        return torch.ones(len(self), len(self), dtype=torch.bool, device=self._kept[0].device)


class TracedRow(Stack):
    """A prompt with its pictures and its answer on their way through the decoder.

    The answer's last token is in it only if it went through the decoder: one that ends an answer
    does not.
    """

    prefix = DECODER_LAYERS

    @property
    def ids(self) -> Tensor:
        """The tokens, n; `<image>` where a picture's features stand."""
        ids = self._joined([some.ids[..., None] for some in self._passes if some.ids is not None])
        # What the table is asked for in a picture's place is its row 0; see `embed`.
        in_prompt = torch.arange(len(ids), device=ids.device) < self.passes[0]
        is_picture = (ids[:, 0] == 0) & in_prompt
        return ids[:, 0].masked_fill(is_picture, self._trace.model.config.image_token_index)

    @property
    def is_picture(self) -> Tensor:
        """n, True on a picture's tokens."""
        return self.ids == self._trace.model.config.image_token_index

    @property
    def passes(self) -> list[int]:
        """How many of the tokens went through in each pass: the prompt, then mostly one by one."""
        return [len(kept) for kept in self._kept]

    @property
    def cache(self) -> list[CacheSize]:
        """How the key/value cache grew, pass by pass; what the row needs of it, without spares."""
        text = self._trace.model.config.text_config
        size = self._passes[0].hidden[INPUTS].element_size()
        each = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * size
        held = torch.tensor(self.passes).cumsum(0).tolist()
        return [CacheSize(tokens, tokens * each) for tokens in held]

    def mask(self, attention: str | int = 0) -> Tensor:
        """Who may look at whom, n × n, put together from all passes' masks."""
        n, end = len(self), 0
        whole = torch.zeros(n, n, dtype=torch.bool, device=self._kept[0].device)
        for some, place, kept in zip(self._passes, self._places, self._kept, strict=True):
            assert some.mask is not None
            mask = some.mask.expand(len(some.is_token), -1, -1, -1)[place, 0][kept]
            start, end = end, end + len(kept)
            # A cache holds a row's tokens from its first slot on; the prompt sees its own batch.
            whole[start:end, :end] = mask[:, :end] if start else mask[:, kept]
        return whole

    @torch.no_grad()
    def picture_attention(
        self,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        positions: slice = slice(None),
    ) -> Tensor:
        """Where each token looks in the pictures: n × pictures × √P × √P, the mean over layers and
        heads. What is missing to a sum of 1 goes to words.
        """
        names = self.attention_names if layers is None else [self._name(i) for i in layers]
        weights = torch.stack([self.attention(name, heads, positions).mean(0) for name in names])
        side = self._trace.model.config.vision_config.patches_per_side
        return weights.mean(0)[:, self.is_picture].reshape(weights.shape[1], -1, side, side)

    @torch.no_grad()
    def logits(self, positions: slice = slice(None)) -> Tensor:
        """What is said about the token after each position, n × W in float32.

        W: the words that may be said; of a traced network without a processor, the whole table.
        """
        return self._trace.word_logits(self.hidden(NORM)[positions])

    @property
    def answer(self) -> slice:
        """The positions after which a token of the answer was chosen: from the prompt's last on."""
        return slice(self.passes[0] - 1, len(self))

    def top(self, k: int = 5) -> list[list[Candidate]]:
        """The k likeliest words at each step of the answer, the first step after the prompt."""
        return _likeliest(self.logits(self.answer), k)

    @torch.no_grad()
    def lens(self, layer: int, k: int = 1) -> list[list[Candidate]]:
        """`top`, had the decoder ended after a layer: its output, through the last norm and the
        head. How an answer forms from layer to layer (the "logit lens").
        """
        language_model = self._trace.model.language_model
        hidden = self.hidden(self._name(layer).removesuffix(".self_attn"))[self.answer]
        return _likeliest(self._trace.word_logits(language_model.model.norm.forward(hidden)), k)


def _likeliest(logits: Tensor, k: int) -> list[list[Candidate]]:
    # `topk` orders equal numbers as it likes; here the lowest id comes first, as in argmax.
    found = logits.softmax(-1).sort(stable=True, dim=-1, descending=True)
    pairs = zip(found.indices[:, :k].tolist(), found.values[:, :k].tolist(), strict=True)
    return [[Candidate(*one) for one in zip(*pair, strict=True)] for pair in pairs]


class Trace:
    """What a traced block computed.

    pictures: all that went through the vision tower, in order. rows: all prompts, in order.
    """

    def __init__(
        self,
        model: PaliGemmaForConditionalGeneration,
        processor: PaliGemmaProcessor | None = None,
    ) -> None:
        self.model, self._processor = model, processor
        self.modules: dict[str, Attention] = {}
        self._tower: list[_Pass] = []
        self._decoder: list[_Pass] = []
        self._rows: dict[int, Parts] = {}  # by the cache's row_ids, in order
        self._cache: KVCache | None = None  # of the pass at hand
        self._ids: Tensor | None = None

    def __repr__(self) -> str:
        lengths = ", ".join(str(len(row)) for row in self.rows) or "none yet"
        return f"<Trace of {len(self.pictures)} pictures; prompts with their tokens: {lengths}>"

    @property
    def pictures(self) -> list[TracedPicture]:
        return [
            TracedPicture(self, [(some, place)])
            for some in self._tower
            for place in range(len(some.is_token))
        ]

    @property
    def rows(self) -> list[TracedRow]:
        return [TracedRow(self, parts) for parts in self._rows.values()]

    def word_logits(self, hidden: Tensor) -> Tensor:
        """… × D after the last norm → what is said about the next word, in float32."""
        logits = self.model.language_model.logits(hidden)
        return logits.float() if self._processor is None else self._processor.word_logits(logits)

    def _begin_tower(self, _module: nn.Module, inputs: Any, output: Tensor) -> None:
        is_token = torch.ones(output.shape[:2], dtype=torch.bool, device=output.device)
        found = _Pass(is_token, pixels=inputs[0].detach())
        found.hidden[f"{TOWER}.embeddings"] = output.detach()
        self._tower.append(found)

    def _see_ids(self, _module: nn.Module, inputs: Any) -> None:
        self._ids = inputs[0]

    def _begin_decoder(self, _module: nn.Module, inputs: Any) -> None:
        embeddings, _, mask, *rest = inputs
        cache: KVCache | None = rest[0] if rest else None
        if cache is None:
            row_ids = [-1 - len(self._rows) - place for place in range(len(embeddings))]
        else:
            row_ids = cache.row_ids
        is_prompt = cache is None or cache.holds_prompt_only
        if is_prompt:  # nobody sees padding, and a token sees itself
            is_token = mask.any(-2)[:, 0].expand(embeddings.shape[:2])
        else:
            assert cache is not None
            is_token = cache.slots != cache.capacity
            for row, original in cache.copied_from.items():
                if original in self._rows:  # a prompt that was run once for several rows
                    self._rows.setdefault(row, list(self._rows[original][:1]))
            if not all(row in self._rows for row in row_ids):
                raise PaliglassError(
                    "a trace must see a prompt from its beginning: begin it before the prompt is "
                    "run"
                )
        found = _Pass(is_token, mask, self._ids, hidden={INPUTS: embeddings.detach()})
        self._cache = None if is_prompt else cache
        self._decoder.append(found)
        for place, row in enumerate(row_ids):
            if is_token[place].any():  # a row may wait while others go on
                self._rows.setdefault(row, []).append((found, place))

    def _latest(self, name: str) -> _Pass:
        return (self._tower if name.startswith(TOWER) else self._decoder)[-1]

    def _keep_output(self, name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._latest(name).hidden[name] = output.detach()

    def _keep_heads(self, name: str, _module: nn.Module, inputs: Any) -> None:
        query, key, value, _ = inputs
        cache = self._cache
        if name.startswith(DECODER) and cache is not None:
            # Out of the cache, the new tokens' own. Padding's spare slot lies beyond what is in
            # use; whatever is taken in its stead is left out when the row is put together.
            slots = cache.slots.clamp(max=key.shape[2] - 1)[:, None, :, None]
            key, value = (
                past.gather(2, slots.expand(*past.shape[:2], -1, past.shape[3]))
                for past in (key, value)
            )
        self._latest(name).heads[name] = (query.detach(), key.detach(), value.detach())


@contextmanager
def trace(
    model: PaliGemma | PaliGemmaForConditionalGeneration, layers: Sequence[int] | None = None
) -> Iterator[Trace]:
    """Keeps all that a model computes in the block: `with paliglass.trace(model) as t: …`.

    Args:
        model: what `load` returns, or the network in it.
        layers: which layers of the tower and the decoder to keep, negative ones from the end;
            None: all of them. What a layer costs: for each token its output and its q, k and v.

    Yields a `Trace`, which may be read inside the block and after it. Raises PaliglassError for a
    layer that neither part has, and for a prompt that began before the block.
    """
    network, processor = (
        (model, None)
        if isinstance(model, PaliGemmaForConditionalGeneration)
        else (model.model, model.processor)
    )
    decoder, tower = network.language_model.model, network.vision_tower.vision_model
    stacks = {TOWER_LAYERS: tower.encoder.layers, DECODER_LAYERS: decoder.layers}
    kept = _layer_numbers(layers, {prefix: len(stack) for prefix, stack in stacks.items()})
    found = Trace(network, processor)
    handles = [
        tower.embeddings.register_forward_hook(found._begin_tower),
        decoder.embed_tokens.register_forward_pre_hook(found._see_ids),
        decoder.register_forward_pre_hook(found._begin_decoder),
    ]
    for prefix, stack in stacks.items():
        for number in kept[prefix]:
            name, own = f"{prefix}.{number}", f"{prefix}.{number}.self_attn"
            attention = network.get_submodule(f"{own}.attention")
            assert isinstance(attention, Attention)
            found.modules[own] = attention
            handles += [
                attention.register_forward_pre_hook(partial(found._keep_heads, own)),
                stack[number].register_forward_hook(partial(found._keep_output, name)),
            ]
    for name, norm in ((f"{TOWER}.post_layernorm", tower.post_layernorm), (NORM, decoder.norm)):
        handles.append(norm.register_forward_hook(partial(found._keep_output, name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _layer_numbers(layers: Sequence[int] | None, counts: dict[str, int]) -> dict[str, list[int]]:
    """The numbers of the layers to keep, from 0, of each stack of so many layers."""
    chosen = range(max(counts.values())) if layers is None else layers
    for layer in chosen:
        if not any(-count <= layer < count for count in counts.values()):
            raise PaliglassError(
                f"there is no layer {layer}: the tower has {counts[TOWER_LAYERS]}, the decoder "
                f"{counts[DECODER_LAYERS]}"
            )
    return {
        prefix: sorted({layer % count for layer in chosen if -count <= layer < count})
        for prefix, count in counts.items()
    }
