"""6 · The loop: prefill once, then decode token by token.

- the pictures go through the vision tower once, before anything else
- prefill runs the whole prompt and fills the cache; a decode step runs one token a row
- only the last position's logits are ever computed, and only real words can be chosen
- on a GPU the decode step is one CUDA graph (recorded blind so far: no GPU has run it yet)
- rows of one batch may have prompts of different length, padded on either side
- an answer may be held to a grammar: what has no alternative then costs no step
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paliglass.errors import PromptError
from paliglass.layers.kv_cache import FixedCache, KVCache
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.sampling import Sampling, choose

GREEDY = Sampling()
WORTH_A_GRAPH = 6  # steps from which on recording a CUDA graph, which takes three, pays


@dataclass(frozen=True)
class Step:
    """One token for each row. ids: B; log_probs: B, nats; is_new: B, False once a row has ended."""

    ids: Tensor
    log_probs: Tensor
    is_new: Tensor


@dataclass(frozen=True)
class Completion:
    """What a row was answered: ids without `<eos>`, the log-probability of each, and whether
    `<eos>` ended it (else the limit did), with its log-probability.
    """

    ids: list[int]
    log_probs: list[float]
    ended: bool
    end_log_prob: float = 0.0


class Choices(NamedTuple):
    """The tokens that may come next: some ids, and those of low … high − 1 not in `excluded`.

    in_whole: whether the log-probability of what is said is that among all words, not among these
    alone: how likely the one word is that may come tells whether it is true.
    """

    ids: tuple[int, ...]
    low: int = 0
    high: int = 0
    excluded: tuple[int, ...] = ()
    in_whole: bool = False

    @property
    def only(self) -> int | None:
        """The one token that may come, where there is but one."""
        if len(self.ids) == 1 and self.low == self.high:
            return self.ids[0]
        return self.low if not self.ids and self.high - self.low == 1 else None


class State(Protocol):
    """How far an answer has come that follows a grammar; immutable. See `tasks.grammar`."""

    @property
    def need(self) -> int:
        """The fewest tokens before `<eos>` may come."""
        ...

    def choices(self, room: int) -> Choices:
        """What may come next where `room` more tokens may be said; at least one token."""
        ...

    def after(self, token: int) -> Self:
        """The state after one of the `choices`."""
        ...


def prefill(
    model: PaliGemmaForConditionalGeneration, batch: Mapping[str, Tensor], cache: KVCache
) -> Tensor:
    """Runs the prompts, fills the cache: the logits after each prompt's last token, B × V."""
    return model.language_model.logits(run_prompts(model, batch, cache))


def run_prompts(
    model: PaliGemmaForConditionalGeneration, batch: Mapping[str, Tensor], cache: KVCache
) -> Tensor:
    """`prefill` but for the head: B × D after each prompt's last token."""
    attention_mask = batch["attention_mask"]
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (attention_mask * places).argmax(-1)
    watched = is_watched(model)
    hidden = model.hidden_states(
        batch["input_ids"],
        pixel_values=batch.get("pixel_values"),
        image_features=batch.get("image_features"),
        attention_mask=attention_mask,
        kv_cache=cache,
        wanted=None if watched else last,
    )
    return hidden[torch.arange(len(hidden)), last] if watched else hidden[:, 0]


def is_watched(model: nn.Module) -> bool:
    """Whether any module has hooks: they are to see every token, so nothing is left out."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def decode_one_token(
    model: PaliGemmaForConditionalGeneration, ids: Tensor, cache: KVCache
) -> Tensor:
    """Runs one more token of each row, ids B: the logits after it, B × V."""
    hidden = model.hidden_states(ids[:, None], kv_cache=cache)
    return model.language_model.logits(hidden[:, -1])


class GraphedDecoder:
    """`decode_one_token` as one CUDA graph: a GPU is told once what takes thousands of calls.

    Its logits are overwritten by the next step. A kernel's first run may allocate, which a graph
    cannot hold, so two steps run before it is recorded, and are forgotten.
    """

    def __init__(self, model: PaliGemmaForConditionalGeneration, cache: KVCache) -> None:
        cache = FixedCache(cache)
        self.ids, lengths = torch.zeros_like(cache.lengths), cache.lengths.clone()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                decode_one_token(model, self.ids, cache)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = decode_one_token(model, self.ids, cache)
        cache.lengths.copy_(lengths)

    def __call__(self, ids: Tensor) -> Tensor:
        """ids: B → logits, B × V."""
        self.ids.copy_(ids)
        self.graph.replay()
        return self.logits


def decoder(
    model: PaliGemmaForConditionalGeneration, cache: KVCache, steps: int
) -> Callable[[Tensor], Tensor]:
    """`decode_one_token` over a filled cache, for at most so many steps: ids B → logits B × V.

    A graph on a GPU, where recording pays and nobody watches the modules, whose hooks it skips.
    """
    if model.device.type == "cuda" and steps >= WORTH_A_GRAPH and not is_watched(model):
        return GraphedDecoder(model, cache)
    return partial(decode_one_token, model, cache=cache)


def run_tokens(
    model: PaliGemmaForConditionalGeneration, tokens: Sequence[Sequence[int]], cache: KVCache
) -> Tensor:
    """Runs some more tokens of each row, each row its own number of them, up to T: B × T × D.

    Shorter rows are padded on the right: nobody sees that, and what comes out there means nothing.
    """
    lengths = torch.tensor([len(row) for row in tokens])
    places = torch.arange(int(lengths.max()))
    ids = torch.tensor([[*row, *[0] * (len(places) - len(row))] for row in tokens])
    return model.hidden_states(
        ids.to(model.device),
        attention_mask=(places < lengths[:, None]).to(model.device),
        kv_cache=cache,
    )


@torch.inference_mode()
def generate_steps(
    model: PaliGemmaForConditionalGeneration,
    batch: Mapping[str, Tensor],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    places: Sequence[int] | None = None,
) -> Iterator[Step]:
    """Answers a processor's batch, one step at a time, until every row has said `<eos>`.

    Stops after `max_new_tokens`, or when the model's length (max_position_embeddings) is full.
    `image_features` in the batch stands for pixel_values that went through the tower before.
    `places` are the rows' in a longer list (0, 1, 2 … by default): what tells the random numbers
    of each from the others'.

    Raises PromptError for a prompt that leaves no room for an answer.
    """
    config = model.config
    max_new_tokens = _room(model, batch, max_new_tokens)
    if max_new_tokens < 1:
        return
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    rows, prompt_length = batch["input_ids"].shape
    cache = model.new_cache(rows, prompt_length + max_new_tokens)
    sources = [sampling.source(place) for place in places or range(rows)]
    ends = torch.tensor(config.text_config.eos_token_ids, device=model.device)
    running = torch.ones(rows, dtype=torch.bool, device=model.device)
    logits = prefill(model, batch, cache)
    decode = decoder(model, cache, max_new_tokens)
    for step in range(max_new_tokens):
        ids, log_probs = choose(logits[:, : config.real_vocab_size], sampling, sources)
        yield Step(ids, log_probs, running)
        running = running & ~torch.isin(ids, ends)
        if step + 1 == max_new_tokens or not running.any():
            return
        logits = decode(ids)


def generate(
    model: PaliGemmaForConditionalGeneration,
    batch: Mapping[str, Tensor],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    places: Sequence[int] | None = None,
) -> list[Completion]:
    """All steps of `generate_steps`, row by row."""
    steps = list(generate_steps(model, batch, max_new_tokens, sampling, places))
    if not steps:
        return [Completion([], [], False) for _ in batch["input_ids"]]
    ids = torch.stack([step.ids for step in steps], dim=1).tolist()
    log_probs = torch.stack([step.log_probs for step in steps], dim=1).tolist()
    lengths = torch.stack([step.is_new for step in steps], dim=1).sum(1).tolist()
    ends = model.config.text_config.eos_token_ids
    completions = []
    for row_ids, row_log_probs, length in zip(ids, log_probs, lengths, strict=True):
        ended = row_ids[length - 1] in ends
        kept = length - 1 if ended else length
        end = row_log_probs[kept] if ended else 0.0
        completions.append(Completion(row_ids[:kept], row_log_probs[:kept], ended, end))
    return completions


@dataclass
class _Row:
    """An answer under way.

    run: how many of its tokens have been through the decoder. unscored: those whose log-probability
    waits for what the decoder makes of the token before them.
    """

    state: State
    room: int
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    run: int = 0
    unscored: set[int] = field(default_factory=set)
    is_over: bool = False
    ended: bool = False
    end_log_prob: float = 0.0

    def say(self, token: int, log_prob: float, ends: Sequence[int]) -> None:
        """Adds a decision, and all that has no alternative after it."""
        self._add(token, log_prob, ends)
        while not self.is_over:
            choices = self.state.choices(self.room)
            if choices.only is None:
                return
            if choices.in_whole and choices.only not in ends:
                self.unscored.add(len(self.ids))
            self._add(choices.only, 0.0, ends)

    def _add(self, token: int, log_prob: float, ends: Sequence[int]) -> None:
        if token in ends:
            self.is_over = self.ended = True
            self.end_log_prob = log_prob
            return
        self.state = self.state.after(token)
        self.ids.append(token)
        self.log_probs.append(log_prob)
        self.room -= 1
        self.is_over = self.room == 0


@torch.inference_mode()
def generate_within(
    model: PaliGemmaForConditionalGeneration,
    batch: Mapping[str, Tensor],
    max_new_tokens: int,
    states: Sequence[State],
    sampling: Sampling = GREEDY,
    places: Sequence[int] | None = None,
    one_by_one: bool = False,
) -> list[Completion]:
    """`generate` where each row keeps to a grammar, from its own state on.

    A token without an alternative costs no step of its own: it is said at once and goes through
    the decoder together with the decision before it, unless `one_by_one`. The head is computed for
    allowed words alone, and log-probabilities are those among them, save where the grammar asks
    for more (`Choices.in_whole`).

    Raises PromptError where a prompt, or the limit, leaves no room for a whole answer.
    """
    max_new_tokens = _room(model, batch, max_new_tokens)
    need = max((state.need for state in states), default=0)
    if need > max_new_tokens:
        raise PromptError(
            f"the shortest answer has {need} tokens, and there is room for {max_new_tokens}: "
            "raise max_new_tokens or shorten the prompt"
        )
    if max_new_tokens < 1:
        return [Completion([], [], False) for _ in states]
    rows = [_Row(state, max_new_tokens) for state in states]
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    sources = [sampling.source(place) for place in places or range(len(rows))]
    ends = model.config.text_config.eos_token_ids
    cache = model.new_cache(len(rows), batch["input_ids"].shape[1] + max_new_tokens)
    last = run_prompts(model, batch, cache)
    while True:
        deciding = [i for i, row in enumerate(rows) if not row.is_over and row.run == len(row.ids)]
        if deciding:
            choices = [rows[i].state.choices(rows[i].room) for i in deciding]
            own = [sources[i] for i in deciding]
            ids, log_probs = choose_among(model, last[deciding], choices, sampling, own)
            for i, token, log_prob in zip(deciding, ids, log_probs, strict=True):
                rows[i].say(token, log_prob, ends)
        if all(row.is_over and not row.unscored for row in rows):
            return [Completion(r.ids, r.log_probs, r.ended, r.end_log_prob) for r in rows]
        tokens = [row.ids[row.run : row.run + 1 if one_by_one else None] for row in rows]
        hidden = run_tokens(model, tokens, cache)
        last = hidden[torch.arange(len(rows)), [max(len(some) - 1, 0) for some in tokens]]
        _score(model, rows, tokens, hidden)
        for row, some in zip(rows, tokens, strict=True):
            row.run += len(some)


def _score(
    model: PaliGemmaForConditionalGeneration,
    rows: Sequence[_Row],
    tokens: Sequence[Sequence[int]],
    hidden: Tensor,
) -> None:
    """Fills in the log-probabilities that waited for the tokens just run; hidden: B × T × D."""
    places = [
        (i, j, row.run + j + 1)
        for i, row in enumerate(rows)
        for j in range(len(tokens[i]))
        if row.run + j + 1 in row.unscored
    ]
    if not places:
        return
    batch_index, token_index, _ = map(list, zip(*places, strict=True))
    said = torch.tensor([rows[i].ids[place] for i, _, place in places], device=hidden.device)
    found = _log_probs_in_whole(model, hidden[batch_index, token_index], said)
    for (i, _, place), log_prob in zip(places, found, strict=True):
        rows[i].log_probs[place] = log_prob
        rows[i].unscored.discard(place)


def _log_probs_in_whole(
    model: PaliGemmaForConditionalGeneration, hidden: Tensor, ids: Tensor
) -> list[float]:
    """N × D and N ids → the log-probability of each among all words, nats."""
    logits = model.language_model.logits(hidden)[:, : model.config.real_vocab_size].float()
    log_probs = logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)
    found: list[float] = log_probs.tolist()
    return found


def choose_among(
    model: PaliGemmaForConditionalGeneration,
    hidden: Tensor,
    choices: Sequence[Choices],
    sampling: Sampling,
    sources: Sequence[np.random.Generator],
) -> tuple[list[int], list[float]]:
    """A token for each row of B × D from its own choices, and its log-probability."""
    columns, allowed = _columns(choices)
    low, high = int(columns[0]), int(columns[-1]) + 1
    is_range = high - low == len(columns)
    words = slice(low, high) if is_range else torch.from_numpy(columns).to(hidden.device)
    logits = model.language_model.logits(hidden, words).float()
    mask = torch.from_numpy(allowed).to(hidden.device)
    places, found = choose(logits.masked_fill(~mask, -torch.inf), sampling, sources)
    ids: list[int] = columns[places.cpu().numpy()].tolist()
    log_probs: list[float] = found.tolist()
    wholes = [i for i, row in enumerate(choices) if row.in_whole]
    if wholes:
        said = torch.tensor([ids[i] for i in wholes], device=hidden.device)
        for i, log_prob in zip(
            wholes, _log_probs_in_whole(model, hidden[wholes], said), strict=True
        ):
            log_probs[i] = log_prob
    return ids, log_probs


def _columns(choices: Sequence[Choices]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The ids that any row may say, ascending, U; and which of them each row may, B × U."""
    spans = [c for c in choices if c.high > c.low]
    low, high = min((c.low for c in spans), default=0), max((c.high for c in spans), default=0)
    single = {token for c in choices for token in c.ids}
    columns = np.unique(np.r_[np.arange(low, high), np.array(sorted(single), dtype=np.int64)])
    allowed = np.zeros((len(choices), len(columns)), dtype=np.bool_)
    for row, some in zip(allowed, choices, strict=True):
        if some.high > some.low:
            first = np.searchsorted(columns, some.low)
            row[first : first + some.high - some.low] = True
            row[np.searchsorted(columns, some.excluded)] = False
        row[np.searchsorted(columns, some.ids)] = True
    return columns, allowed


def _room(
    model: PaliGemmaForConditionalGeneration, batch: Mapping[str, Tensor], max_new_tokens: int
) -> int:
    """How many tokens an answer may have; PromptError where the prompt fills the model's length."""
    prompt_length = batch["input_ids"].shape[1]
    limit = model.config.text_config.max_position_embeddings
    if prompt_length >= limit:
        raise PromptError(
            f"the prompt has {prompt_length} tokens with its pictures; the model takes fewer than "
            f"{limit}"
        )
    return min(max_new_tokens, limit - prompt_length)
