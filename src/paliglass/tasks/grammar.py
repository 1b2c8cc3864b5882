"""Which token may come next: finite-state machines that make every answer one that can be read.

    detect    (<loc>×4 label (" ; " <loc>×4 label)*)?  <eos>
    segment   the same with <seg>×16 after each <loc>×4
    choices   one of the given answers, <eos>
    number    digits, <eos>

- a label is one of those asked for, in the tokens the processor would write it with at its place
- boxes have area: y1 > y0 and x1 > x0 by construction
- near the limit nothing is begun that could not be finished: an answer ends whole
- the same label with the same four edges is said only once, so that no answer goes round in circles

States are immutable; what they allow is a few ids and one range, which a batch turns into a mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from paliglass.constrained import Allowed
from paliglass.errors import PromptError
from paliglass.processing_paligemma import LOCATION_TOKENS, SEGMENT_TOKENS, PaliGemmaProcessor
from paliglass.tasks.boxes import BINS, MASK_TOKENS, Box, ParsedBox

__all__ = [
    "YES_NO",
    "ChoiceGrammar",
    "Grammar",
    "Node",
    "NumberGrammar",
    "ObjectGrammar",
    "ObjectState",
    "WordGrammar",
    "WordState",
]

YES_NO = ("yes", "no")
_LAST = BINS - 1


@dataclass(slots=True, eq=False)
class Node:
    """A place in a trie over token sequences.

    children: by token. end: the sequence after which `<eos>` may come. opens: the sequence after
    which another object begins. separates: the token that leads here is no part of any label.
    lengths: for each sequence that can be finished from here, the fewest tokens to where `<eos>`
    may come.
    """

    children: dict[int, Node] = field(default_factory=dict)
    end: int | None = None
    opens: int | None = None
    separates: bool = True
    lengths: dict[int, int] = field(default_factory=dict)

    def add(self, ids: Iterable[int], length: int | None = None) -> Node:
        """Lays a sequence below this node: the node where it ends.

        length: how many tokens are the label, which the others separate from what follows; None:
            all of them.
        """
        node = self
        for place, token in enumerate(ids):
            node = node.children.setdefault(token, Node())
            node.separates &= length is not None and place >= length
        return node

    def measure(self, object_length: int = 0) -> None:
        """Fills in `lengths`, here and below; another object takes as many tokens as that.

        Without recursion: a label may be thousands of tokens long.
        """
        nodes = [self]
        for node in nodes:
            nodes += node.children.values()
        for node in reversed(nodes):
            if node.opens is not None:
                node.lengths[node.opens] = object_length
            if node.end is not None:
                node.lengths[node.end] = 0
            for child in node.children.values():
                for index, length in child.lengths.items():
                    node.lengths[index] = min(length + 1, node.lengths.get(index, length + 1))

    def min_length(self, taken: Container[int] = ()) -> int | None:
        """The fewest tokens to a sequence's end that is not taken; None: all of them are."""
        return min((n for index, n in self.lengths.items() if index not in taken), default=None)

    def fits(self, budget: int, taken: Container[int] = ()) -> bool:
        """Whether `budget` tokens, the one that leads here among them, reach such an end."""
        length = self.min_length(taken)
        return length is not None and length < budget

    @property
    def max_length(self) -> int:
        """The most tokens from here to a sequence's end, each by its shortest way."""
        return max(self.lengths.values(), default=0)


class ObjectGrammar:
    """The answers to `detect` and, with masks, to `segment`.

    Args:
        processor: whose tokens are spoken.
        labels: what may be found; see `tasks.prompts.split_labels`.
        masks: whether 16 segment tokens follow each box.
    """

    def __init__(
        self, processor: PaliGemmaProcessor, labels: Sequence[str], masks: bool = False
    ) -> None:
        self.labels = tuple(labels)
        self.eos = processor.eos_token_id
        self.first_location = processor.token_id(LOCATION_TOKENS[0])
        self.first_code = processor.token_id(SEGMENT_TOKENS[0])
        self.num_codes = MASK_TOKENS if masks else 0
        # In the midst of an answer a label stands between "> " and " ; <", at its end before <eos>:
        # a tokenizer may write the two differently, so both are laid out whole.
        self.trie = Node()
        self.label_lengths = []
        for i, label in enumerate(self.labels):
            ids = processor.encode_plain(f" {label}")
            node = self.trie.add(ids)
            node.end = i if node.end is None else node.end
            node = self.trie.add(processor.encode_plain(f" {label} ; "), len(ids))
            node.opens = i if node.opens is None else node.opens
            self.label_lengths.append(len(ids))
        # Room for the longest label: then each of them may follow a box once it is begun.
        self.object_length = 4 + self.num_codes + max(self.label_lengths)
        self.trie.measure(self.object_length)

    def start(self) -> ObjectState:
        return ObjectState(self)

    def read(self, ids: Sequence[int]) -> list[ParsedBox]:
        """What an answer of this grammar says; `start` and `end` are places in `ids`.

        The span of an object is its box, its codes and its label, without what separates it from
        the next one. Raises KeyError for ids that this grammar does not allow.
        """
        state, found, start = self.start(), [], 0
        for i, token in enumerate(ids):
            before, state = state, state.after(token)
            if len(state.objects) > len(before.objects):
                found.append(self._parsed(before, state.objects[-1][1], start))
                start = i + 1
        if state.node is not None and state.node.end is not None:
            found.append(self._parsed(state, state.node.end, start))
        return found

    def _parsed(self, state: ObjectState, label: int, start: int) -> ParsedBox:
        y0, x0, y1, x1 = (edge / _LAST for edge in state.edges)
        end = start + 4 + self.num_codes + self.label_lengths[label]
        return ParsedBox(
            self.labels[label],
            Box(x0, y0, x1, y1),
            start,
            end,
            state.codes if state.codes else None,
        )


@dataclass(frozen=True, slots=True)
class ObjectState:
    """How far an answer has come. objects: the complete ones, as (edges y0 x0 y1 x1, label).

    edges, codes: those of the object under way; node: where in its label it is, None before that.
    """

    grammar: ObjectGrammar
    objects: tuple[tuple[tuple[int, ...], int], ...] = ()
    edges: tuple[int, ...] = ()
    codes: tuple[int, ...] = ()
    node: Node | None = None

    @property
    def fair_budget(self) -> int:
        """An object with the longest label."""
        return self.grammar.object_length

    def allowed(self, budget: int) -> Allowed:
        """What may come next where `budget` more tokens may be said, `<eos>` not counted."""
        grammar = self.grammar
        if self.node is not None:
            return self._allowed_labels(self.node, budget)
        place = len(self.edges)
        if place == 4:
            return Allowed((), grammar.first_code, grammar.first_code + len(SEGMENT_TOKENS))
        may_end = not self.objects and not place
        ids = (grammar.eos,) if may_end else ()
        if may_end and budget < grammar.object_length:
            return Allowed(ids)
        # The first edges leave room for the others, which lie beyond them.
        low = self.edges[place - 2] + 1 if place >= 2 else 0
        high = BINS if place >= 2 else _LAST
        base = grammar.first_location
        return Allowed(ids, base + low, base + high, tuple(base + e for e in self._exhausted()))

    def after(self, token: int) -> ObjectState:
        """The state after a token that is allowed."""
        grammar = self.grammar
        if self.node is not None:
            node = self.node.children[token]
            if node.opens is not None:
                return ObjectState(grammar, (*self.objects, (self.edges, node.opens)))
            return ObjectState(grammar, self.objects, self.edges, self.codes, node)
        edges, codes = self.edges, self.codes
        if len(edges) < 4:
            edges = (*edges, _within(token - grammar.first_location, BINS))
        else:
            codes = (*codes, _within(token - grammar.first_code, len(SEGMENT_TOKENS)))
        whole = len(edges) == 4 and len(codes) == grammar.num_codes
        return ObjectState(grammar, self.objects, edges, codes, grammar.trie if whole else None)

    def _taken(self) -> set[int]:
        """The labels that these edges have been said with."""
        return {label for edges, label in self.objects if edges == self.edges}

    def _allowed_labels(self, node: Node, budget: int) -> Allowed:
        taken = self._taken()
        ids = [t for t, child in node.children.items() if child.fits(budget, taken)]
        if node.end is not None and node.end not in taken:
            ids.append(self.grammar.eos)
        # Where a label goes on, how likely its next token is among all words tells whether it fits
        # the box; where it ends, there is nothing to learn.
        score_over_vocab = any(not child.separates for child in node.children.values())
        return Allowed(tuple(ids), score_over_vocab=score_over_vocab)

    def _exhausted(self) -> list[int]:
        """Next edges behind which every box has been said with every label."""
        if not self.objects:
            return []
        labels = Counter(edges for edges, _ in self.objects)
        full = [edges for edges, count in labels.items() if count == len(self.grammar.labels)]
        place = len(self.edges)
        behind = Counter(edges[place] for edges in full if edges[:place] == self.edges)
        return [edge for edge, count in behind.items() if count == self._boxes_behind(edge)]

    def _boxes_behind(self, edge: int) -> int:
        """How many boxes begin with the edges so far and this one."""
        edges = (*self.edges, edge)
        free_y = _LAST - edges[0]
        if len(edges) == 1:
            return free_y * _LAST * BINS // 2
        free_x = _LAST - edges[1]
        return (free_y * free_x, free_x, 1)[len(edges) - 2]


def _within(value: int, count: int) -> int:
    if not 0 <= value < count:
        raise KeyError(value)
    return value


class ChoiceGrammar:
    """A closed set of answers.

    Raises PromptError without any choice, or for an empty one.
    """

    def __init__(self, processor: PaliGemmaProcessor, choices: Sequence[str]) -> None:
        self.answers = tuple(dict.fromkeys(choices))
        if not self.answers or not all(answer.strip() for answer in self.answers):
            raise PromptError("give at least one choice, none of them empty, such as: yes, no")
        self.eos = processor.eos_token_id
        self.trie = Node()
        for i, answer in enumerate(self.answers):
            node = self.trie.add(processor.encode_plain(answer))
            node.end = i if node.end is None else node.end
        self.trie.measure()

    def start(self) -> WordState:
        return WordState(self.trie, self.eos)

    def read(self, ids: Sequence[int]) -> str:
        """The choice that was made, letter by letter as it was given."""
        node = self.trie
        for token in ids:
            node = node.children[token]
        if node.end is None:
            raise KeyError(ids[-1])
        return self.answers[node.end]


class NumberGrammar:
    """A number in digits."""

    def __init__(self, processor: PaliGemmaProcessor) -> None:
        self.eos = processor.eos_token_id
        self._decode = processor.decode
        more = Node(end=0)
        more.children = {processor.encode_plain(digit)[-1]: more for digit in "0123456789"}
        more.lengths = {0: 0}
        self.trie = Node(children=dict(more.children), lengths={0: 1})

    def start(self) -> WordState:
        return WordState(self.trie, self.eos)

    def read(self, ids: Sequence[int]) -> str:
        """The number, as it was said."""
        return self._decode(ids)


@dataclass(frozen=True, slots=True)
class WordState:
    """A place in a trie of answers."""

    node: Node
    eos: int

    @property
    def fair_budget(self) -> int:
        """The longest of the answers: else the limit would choose among them."""
        return self.node.max_length

    def allowed(self, budget: int) -> Allowed:
        """What may come next where `budget` more tokens may be said, `<eos>` not counted."""
        ids = [t for t, child in self.node.children.items() if child.fits(budget)]
        return Allowed((*ids, self.eos) if self.node.end is not None else tuple(ids))

    def after(self, token: int) -> WordState:
        """The state after a token that is allowed."""
        return WordState(self.node.children[token], self.eos)


WordGrammar = ChoiceGrammar | NumberGrammar
Grammar = ObjectGrammar | WordGrammar
