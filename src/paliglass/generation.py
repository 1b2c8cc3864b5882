"""The loop: a running batch that answers requests, a token of each at a step.

    admit    whole prompts are prefilled together and join the batch
    step     every row says its next token; rows that end leave, and the others are extended

- offline lists, folders, streaming, grammars and a server read the same events
- a request's answer does not depend on who else is in the batch, nor on when it joined: its
  random numbers are its own, and a row sees its own slots of the cache alone
- a picture goes through the vision tower once for all prompts about it that are near in time, and
  a prompt that several ask at once through the decoder once
- all of a prompt sees all of it, so that its keys and values serve the very same prompt about the
  very same pictures, and no other: a batch may keep them for that
- what a constraint leaves no choice about costs no step of its own: forced tokens go through the
  decoder together with the decision before them
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from paliglass.constrained import Allowed, Constraint, allowed_columns
from paliglass.errors import PaliglassError, PromptError
from paliglass.layers.kv_cache import KVCache
from paliglass.lru_cache import LRUCache
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.pictures import PreparedPicture
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.sampling import GREEDY, Sampling, choose

__all__ = [
    "MAX_NEW_TOKENS",
    "Completion",
    "Event",
    "FinishReason",
    "Request",
    "RunningBatch",
    "complete",
    "run",
]

MAX_NEW_TOKENS = 256
FinishReason = Literal["stop", "length"]
UNLIMITED = 1 << 62  # tokens
FEATURE_BYTES = 1 << 28  # of pictures' features that are kept for further prompts
LIKE_LENGTH = 1.1  # prompts are padded to one length where the longest is at most so much longer


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt about pictures, and how it is to be answered.

    seed: of this request's own random numbers, an int or several; None takes fresh ones.
    max_new_tokens: of the answer, the end not counted. allow_special_tokens: whether `<loc0001>`
    and the like in the prompt are tokens, not text. num_alternatives: how many of the likeliest
    tokens each event tells of; under a constraint, none.
    """

    prompt: str
    pictures: Sequence[PreparedPicture] = ()
    constraint: Constraint | None = None
    sampling: Sampling = GREEDY
    seed: int | tuple[int, ...] | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    allow_special_tokens: bool = False
    num_alternatives: int = 0


class Event(NamedTuple):
    """A request's next token, with its log-probability in nats.

    finish_reason: of an answer's last event. With "stop" the token is an end token. alternatives:
    the likeliest tokens at this place with theirs, the likeliest first; see `Request`. error: why
    the request has no answer, in its last event, whose other numbers then mean nothing.
    """

    request: Request
    token: int
    log_prob: float
    finish_reason: FinishReason | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    error: PaliglassError | None = None


@dataclass
class Completion:
    """A whole answer: its ids without the end token, the log-probability of each, nats.

    finish_reason: "stop" where the model ended it, "length" where the limit did. end_log_prob: of
    the end token, 0 where there is none. error: why there is no whole answer.
    """

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    end_log_prob: float = 0.0
    error: PaliglassError | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that the model said, the end included."""
        return len(self.ids) + (self.finish_reason == "stop")

    def add(self, event: Event) -> None:
        """Takes in the answer's next event."""
        if event.error is not None:
            self.error = event.error
        elif event.finish_reason == "stop":
            self.finish_reason, self.end_log_prob = "stop", event.log_prob
        else:
            self.ids.append(event.token)
            self.log_probs.append(event.log_prob)


def run(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    requests: Iterable[Request],
    max_rows: int = 8,
) -> Iterator[Event]:
    """Answers requests, at most `max_rows` at a time, and yields their tokens as they come.

    Requests are taken as rows become free, so that an endless iterator will do.

    Raises PromptError as `RunningBatch.admit` does, and ValueError without a row.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows is {max_rows}; it must be 1 or more")
    batch = RunningBatch(model, processor)
    waiting = iter(requests)
    together = max(1, max_rows // 4)  # prompts that are prefilled one by one take longer each
    while True:
        free = max_rows - len(batch)
        if free >= together:
            batch.admit(list(islice(waiting, free)))
        if not len(batch):
            return
        yield from batch.step()


def complete(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    requests: Iterable[Request],
    max_rows: int = 8,
    raises: bool = True,
) -> Iterator[Completion]:
    """Whole answers, in the order of the requests; see `run`.

    raises: the error of a request that has no answer; else its `Completion` tells it.
    """
    completions: dict[Request, Completion] = {}  # of those that are not yielded yet, in order

    def noted() -> Iterator[Request]:
        for request in requests:
            request = replace(request)  # the same one may be asked several times
            completions[request] = Completion()
            yield request

    finished: set[Request] = set()
    for event in run(model, processor, noted(), max_rows):
        if raises and event.error is not None:
            raise event.error
        completions[event.request].add(event)
        if event.finish_reason is not None:
            finished.add(event.request)
        while completions and (first := next(iter(completions))) in finished:
            finished.remove(first)
            yield completions.pop(first)


class _Prompt(NamedTuple):
    """All that a prompt's keys and values depend on: its pictures' digests, and its ids."""

    digests: tuple[bytes, ...]
    ids: tuple[int, ...]


class _Prefix(NamedTuple):
    """A prompt that has been through the decoder: one row's cache; 1 × D, what came out last."""

    cache: KVCache
    last: Tensor


@dataclass(eq=False)
class _Row:
    """An answer under way.

    num_run: how many of its tokens have been through the decoder. pending_scores: places of tokens
    whose log-probability waits for what the decoder makes of the token before them. num_told: how
    many of the tokens have been handed out as events.
    """

    request: Request
    prompt: _Prompt
    generator: np.random.Generator
    budget: int
    state: Constraint | None
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    alternatives: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    pending_scores: set[int] = field(default_factory=set)
    num_run: int = 0
    num_told: int = 0
    finish_reason: FinishReason | None = None
    error: PaliglassError | None = None

    @property
    def is_deciding(self) -> bool:
        return self.finish_reason is None and self.num_run == len(self.ids)

    @property
    def is_done(self) -> bool:
        return self.finish_reason is not None and not self.pending_scores

    def append(self, token: int, log_prob: float, ends: Sequence[int]) -> None:
        """Adds a chosen token, and all that are forced after it."""
        while True:
            self.ids.append(token)
            self.log_probs.append(log_prob)
            if token in ends:
                self.finish_reason = "stop"
                return
            self.budget -= 1
            if self.state is None:
                break
            self.state = self.state.after(token)
            allowed = self.state.allowed(self.budget)
            if allowed.forced is None:
                break
            if allowed.forced in ends and self.state.allowed(UNLIMITED).forced is None:
                self.finish_reason = "length"  # only the limit ends it here
                return
            if allowed.score_over_vocab and allowed.forced not in ends:
                self.pending_scores.add(len(self.ids))
            token, log_prob = allowed.forced, 0.0
        if self.budget == 0:
            self.finish_reason = "length"

    def fail(self, error: PaliglassError) -> None:
        """Ends it without an answer; what is not told yet is let go of."""
        del self.ids[self.num_told :], self.log_probs[self.num_told :]
        self.ids.append(0)
        self.log_probs.append(math.nan)
        self.pending_scores.clear()
        self.finish_reason, self.error = "length", error

    def events(self) -> Iterator[Event]:
        """Those tokens that are not told yet and whose log-probability is known."""
        known = min(self.pending_scores, default=len(self.ids))
        while self.num_told < known:
            i = self.num_told
            self.num_told += 1
            last = self.num_told == len(self.ids)
            reason = self.finish_reason if last else None
            others = self.alternatives.get(i, ())
            error = self.error if last else None
            yield Event(self.request, self.ids[i], self.log_probs[i], reason, others, error)


class RunningBatch:
    """Requests that are answered together; who is in it changes from step to step.

    `len(batch)` is the number of its rows. Where numbers are no numbers any more, as after an
    overflow in float16, the request ends with an error; where the model's weights are none, `step`
    raises PaliglassError.

    feature_bytes: how much of pictures' features is kept for further prompts about them.
    prefix_bytes: how much of whole prompts' keys and values, for the same prompt asked again.
    """

    def __init__(
        self,
        model: PaliGemmaForConditionalGeneration,
        processor: PaliGemmaProcessor,
        *,
        feature_bytes: int = FEATURE_BYTES,
        prefix_bytes: int = 0,
    ) -> None:
        self.model, self.processor = model, processor
        config = model.config
        self.ends = config.text_config.eos_token_ids
        self._rows: list[_Row] = []
        self._cache: KVCache | None = None
        self._last: Tensor = torch.empty(0)  # B × D, what came out at each row's newest token
        self.features: LRUCache[bytes, Tensor] = LRUCache(feature_bytes)
        self.prefixes: LRUCache[_Prompt, _Prefix] = LRUCache(prefix_bytes)

    def __len__(self) -> int:
        return sum(not row.is_done for row in self._rows)

    def check(self, request: Request) -> int:
        """The number of its prompt's tokens. Raises PromptError where `admit` would.

        Reads what never changes, so that any thread may ask.
        """
        return len(self._new_row(request).prompt.ids)

    @torch.inference_mode()
    def admit(self, requests: Sequence[Request]) -> list[bool]:
        """Prefills requests' prompts; they take part from the next `step` on.

        Returns which prompts were known and did not have to be run. Raises PromptError, and admits
        none, where a prompt or the limit leaves too little room.
        """
        rows = [self._new_row(request) for request in requests]
        known = [row.prompt in self.prefixes for row in rows]
        new = [row for row, is_known in zip(rows, known, strict=True) if not is_known]
        self._encode_pictures([picture for row in new for picture in row.request.pictures])
        while new:
            longest = LIKE_LENGTH * min(len(row.prompt.ids) for row in new)
            self._prefill([row for row in new if len(row.prompt.ids) <= longest])
            new = [row for row in new if len(row.prompt.ids) > longest]
        for row, is_known in zip(rows, known, strict=True):
            if is_known:
                cache, last = self.prefixes[row.prompt]
                self._renew_rows([row], cache.copy_rows([0]), last)
        self.features.trim()
        self.prefixes.trim()
        return known

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Every row says its next token; the events that this makes certain, row by row."""
        self._decide()
        self._extend()
        events = [event for row in self._rows for event in row.events()]
        if 2 * len(self) <= len(self._rows):  # fewer would often copy the cache for little
            self._renew_rows()
        return events

    def cancel(self, request: Request) -> None:
        """Takes a request out, whatever it has said; no events of it follow."""
        for row in self._rows:
            if row.request is request:
                row.finish_reason, row.num_told = "stop", len(row.ids)
                row.pending_scores.clear()

    def _new_row(self, request: Request) -> _Row:
        ids = self.processor.encode_prefix(
            request.prompt, len(request.pictures), request.allow_special_tokens
        )
        limit = self.model.config.text_config.max_position_embeddings
        if len(ids) >= limit:
            raise PromptError(
                f"the prompt has {len(ids)} tokens with its pictures; the model takes fewer "
                f"than {limit}"
            )
        if request.max_new_tokens < 1:
            raise PromptError(f"max_new_tokens is {request.max_new_tokens}; it must be 1 or more")
        budget = min(request.max_new_tokens, limit - len(ids))
        state = request.constraint
        if state is not None and budget < state.fair_budget:
            mend = "shorten the prompt" if budget < request.max_new_tokens else "raise it"
            raise PromptError(
                f"an answer may need {state.fair_budget} tokens, and max_new_tokens leaves room "
                f"for {budget}: {mend}"
            )
        prompt = _Prompt(tuple(picture.digest for picture in request.pictures), tuple(ids))
        return _Row(request, prompt, np.random.default_rng(request.seed), budget, state)

    def _prefill(self, rows: Sequence[_Row]) -> None:
        """Runs prompts of about one length together, and each only once."""
        device = self.model.device
        distinct = list(dict.fromkeys(row.prompt for row in rows))
        batch = self.processor.pad([ids for _, ids in distinct])
        features = [self.features[digest] for digests, _ in distinct for digest in digests]
        cache = self.model.new_cache(len(distinct), batch["input_ids"].shape[1] + KVCache.GROWTH)
        last = self.model.prefill(
            batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            image_features=torch.stack(features) if features else None,
            kv_cache=cache,
            last_only=True,
        )
        if self.prefixes.max_bytes:
            for i, prompt in enumerate(distinct):
                kept = _Prefix(cache.copy_rows([i]), last[i : i + 1].clone())
                self.prefixes.put(prompt, kept, kept.cache.num_bytes + kept.last.nbytes)
        if len(distinct) < len(rows):
            which = [distinct.index(row.prompt) for row in rows]
            cache, last = cache.copy_rows(which), last[which]
        self._renew_rows(rows, cache, last)

    def _encode_pictures(self, pictures: Sequence[PreparedPicture]) -> None:
        """Sends those that are not known through the vision tower, together and each once."""
        new = {p.digest: p.pixels for p in pictures if p.digest not in self.features}
        for picture in pictures:
            if picture.digest not in new:
                _ = self.features[picture.digest]  # used now
        if new:
            pixels = torch.stack(list(new.values())).to(self.model.device)
            encoded = self.model.get_image_features(pixels)
            for digest, features in zip(new, encoded, strict=True):
                self.features.put(digest, features.clone(), features.nbytes)

    def _renew_rows(
        self,
        new_rows: Sequence[_Row] = (),
        new: KVCache | None = None,
        last: Tensor | None = None,
    ) -> None:
        """Lets go of the rows that are done, and takes in new ones behind the others."""
        keep = [i for i, row in enumerate(self._rows) if not row.is_done]
        if self._cache is not None and keep:
            if new is not None or len(keep) < len(self._rows):
                self._cache.replace_rows(keep, new)
                own = self._last[keep]
                self._last = own if last is None else torch.cat((own, last))
        else:
            self._cache = new
            self._last = torch.empty(0) if last is None else last
        self._rows = [*(self._rows[i] for i in keep), *new_rows]

    def _decide(self) -> None:
        deciding = [i for i, row in enumerate(self._rows) if row.is_deciding]
        free = [i for i in deciding if self._rows[i].state is None]
        held = [i for i in deciding if self._rows[i].state is not None]
        if free:
            logits = self._logits(self._last[free])
            self._choose(free, logits)
            self._note_alternatives(free, logits)
        if held:
            states = [(self._rows[i].state, self._rows[i].budget) for i in held]
            allowed = [state.allowed(budget) for state, budget in states if state is not None]
            columns, mask = (t.to(self.model.device) for t in allowed_columns(allowed))
            hidden = self._last[held]
            logits = self.model.language_model.logits(hidden, columns).float()
            self._choose(held, logits.masked_fill(~mask, -torch.inf), columns, allowed)

    def _note_alternatives(self, which: Sequence[int], logits: Tensor) -> None:
        """Notes the likeliest of N × V at the tokens just chosen, where requests want to know."""
        rows = [self._rows[i] for i in which]
        most = max(row.request.num_alternatives for row in rows)
        if most:
            values, ids = logits.log_softmax(-1).topk(min(most, logits.shape[-1]))
            found = zip(rows, ids.tolist(), values.tolist(), strict=True)
            for row, tokens, log_probs in found:
                pairs = list(zip(tokens, log_probs, strict=True))[: row.request.num_alternatives]
                row.alternatives[len(row.ids) - 1] = tuple(pairs)

    def _choose(
        self,
        which: Sequence[int],
        logits: Tensor,
        columns: Tensor | None = None,
        allowed: Sequence[Allowed] = (),
    ) -> None:
        """Chooses a token for some rows. columns: the ids that the logits are of; None: all."""
        rows = [self._rows[i] for i in which]
        places, found = choose(
            logits, [row.request.sampling for row in rows], [row.generator for row in rows]
        )
        ids = (places if columns is None else columns[places]).tolist()
        log_probs = found.tolist()
        over_vocab = [i for i, some in enumerate(allowed) if some.score_over_vocab]
        if over_vocab:
            hidden = self._last[[which[i] for i in over_vocab]]
            scores = self._scores(hidden, [ids[i] for i in over_vocab])
            for i, score in zip(over_vocab, scores, strict=True):
                log_probs[i] = score
        for row, token, log_prob in zip(rows, ids, log_probs, strict=True):
            if math.isnan(log_prob):
                row.fail(self._overflow)
            else:
                row.append(token, log_prob, self.ends)

    def _extend(self) -> None:
        """Runs the tokens that have not been through the decoder yet, each row its own number."""
        new: list[list[int]] = []
        for row in self._rows:
            # An end token is not run, nor is an answer's last token; what others wait for is.
            last = len(row.ids) if row.finish_reason is None else max(row.pending_scores, default=0)
            new.append(row.ids[row.num_run : last])
        longest = max(map(len, new), default=0)
        if not longest:
            return
        assert self._cache is not None
        device = self.model.device
        ids = torch.tensor([[*some, *[0] * (longest - len(some))] for some in new], device=device)
        counts = torch.tensor([len(some) for some in new], device=device)
        is_token = torch.arange(longest, device=device) < counts[:, None]
        hidden = self.model.extend(ids, self._cache, is_token)
        newest = hidden[torch.arange(len(new), device=device), (counts - 1).clamp(min=0)]
        self._last = torch.where(counts[:, None] > 0, newest, self._last)
        self._score_pending(hidden, new)
        for row, some in zip(self._rows, new, strict=True):
            row.num_run += len(some)

    def _score_pending(self, hidden: Tensor, new: Sequence[Sequence[int]]) -> None:
        """Fills in log-probabilities that waited for the tokens just run; hidden: B × T × D."""
        places = [
            (i, j, row.num_run + j + 1)
            for i, row in enumerate(self._rows)
            for j in range(len(new[i]))
            if row.num_run + j + 1 in row.pending_scores
        ]
        if not places:
            return
        batch, token, _ = map(list, zip(*places, strict=True))
        scores = self._scores(hidden[batch, token], [self._rows[i].ids[n] for i, _, n in places])
        for (i, _, place), score in zip(places, scores, strict=True):
            row = self._rows[i]
            if row.error is None and math.isnan(score):
                row.fail(self._overflow)
            elif row.error is None:
                row.log_probs[place] = score
                row.pending_scores.discard(place)

    @cached_property
    def _overflow(self) -> PaliglassError:
        """Looked for once: to read all weights of a large model takes seconds."""
        return _not_finite(self.model)

    def _scores(self, hidden: Tensor, ids: Sequence[int]) -> list[float]:
        """N × D and N ids → the log-probability of each over the whole vocabulary, nats."""
        logits = self._logits(hidden)
        chosen = torch.tensor(ids, device=logits.device)
        return (logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)).tolist()

    def _logits(self, hidden: Tensor) -> Tensor:
        """… × D → … × W in float32, of the words that may be said."""
        return self.processor.word_logits(self.model.language_model.logits(hidden))


def _not_finite(model: PaliGemmaForConditionalGeneration) -> PaliglassError:
    """Why numbers of a row are no numbers any more. Raises it where no row can do better."""
    dtype = str(model.dtype).removeprefix("torch.")
    if (name := model.find_broken_weight()) is not None:
        why = "it is too large for float16, or " if dtype == "float16" else ""
        mend = ": use bfloat16 or float32" if why else ""
        raise PaliglassError(
            f"weight {name} holds NaN or an infinity: {why}the checkpoint is broken{mend}"
        )
    mend = ": use bfloat16 or float32" if dtype == "float16" else ", though its weights are finite"
    return PaliglassError(f"the model's numbers overflowed in {dtype}{mend}")
