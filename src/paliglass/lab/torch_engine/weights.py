"""Questions about the weights alone, and a network with its weights in fewer bits."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.errors import PaliglassError
from paliglass.fast import Int8Linear
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.processing_paligemma import PaliGemmaProcessor

__all__ = [
    "Merges",
    "Weights",
    "floats",
    "largest",
    "matrix_of",
    "principal",
    "rounded_copy",
    "spell",
]

TABLE = "language_model.model.embed_tokens.weight"
LARGEST_COPY = 1 << 30  # bytes of weights that are held a second time, in fewer bits
BINS = 121
GUARD, ROUNDS = 8, 80  # as engine/principal.js: directions beside the wanted ones, iterations
SAMPLE = 32
WINDOWS, PATIENCE = 5, 0.012  # a speed is measured in so many windows, of so many seconds
ROWS = 8192  # of the table that are read at once
LONGEST = 400  # characters whose merges are shown


def floats(x: Tensor) -> Any:
    """Numbers in float32, laid end to end: a numpy array."""
    return x.detach().float().cpu().contiguous().flatten().numpy()


def spell(processor: PaliGemmaProcessor, id: int) -> str:
    """A token as a reader should see it: ▁ as a space."""
    token = processor.tokenizer.id_to_token(id)
    return f"#{id}" if token is None else token.replace("▁", " ")


def largest(values: Tensor, k: int) -> list[int]:
    """Places of the k largest of V numbers, the first of equals first, without sorting them all."""
    least = values.topk(min(k, len(values))).values[-1]
    among = (values >= least).nonzero()[:, 0]
    order = values[among].sort(stable=True, descending=True).indices[:k]
    found: list[int] = among[order].tolist()
    return found


def principal(rows: Tensor, k: int) -> dict[str, Any]:
    """How far each of n rows, n × D, lies along the first k components; shares of the variance.

    By subspace iteration on the smaller of the two products, n × n or D × D, and a last rotation
    (Rayleigh and Ritz). The largest number of a column is positive.
    """
    centred = (rows - rows.mean(0)).double()
    n, width = centred.shape
    products = centred @ centred.T if n <= width else centred.T @ centred
    shape = len(products), min(len(products), k + GUARD)
    start = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    basis = start.to(products.device)
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(products @ basis).Q
    values, turn = torch.linalg.eigh(basis.T @ products @ basis)
    values, vectors = values.flip(0)[:k].clamp(min=0), basis @ turn.flip(1)[:, :k]
    scores = vectors * values.sqrt() if n <= width else centred @ vectors
    signs = scores.gather(0, scores.abs().argmax(0, keepdim=True)).sign()
    shares = values / products.trace().clamp(min=torch.finfo(torch.float64).tiny)
    return {"scores": floats(scores * signs), "shares": shares.tolist()}


def matrix_of(module: nn.Module) -> Tensor:
    """What a module multiplies by, O × I: of one in int8 its integers times their scales."""
    weight = _weight(module)
    return weight * module.scale[:, None] if isinstance(module, Int8Linear) else weight.flatten(1)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def matrices(network: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """What vectors are multiplied by: each matrix's name, the part that it belongs to, its module.

    The output layer is the table's.
    """
    for name, module in sorted(network.named_modules()):
        weight = getattr(module, "weight", None)
        is_matrix = isinstance(weight, Tensor) and weight.ndim > 1
        if not is_matrix or "position_embedding" in name or name.endswith("lm_head"):
            continue
        part = "decoder" if name.startswith("language_model.") else "tower"
        name += ".weight"
        yield name, "table" if name == TABLE else part, module


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """O × I with the nearest of −m … m times a scale, m = 2^(bits − 1) − 1, in float32.

    The scale is a group's largest weight over m; a group is so many inputs, or all of them for 0,
    and where there are fewer.
    """
    if not 2 <= bits <= 8:
        raise PaliglassError("weights are rounded to 2 … 8 bits")
    if group < 0:
        raise PaliglassError("a group is so many weights of a row, or 0 for all of them")
    rows, columns = weight.shape
    size = min(group or columns, columns)
    padded = F.pad(weight.float(), (0, -columns % size)).reshape(rows, -1, size)
    scale = padded.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    whole = (padded / torch.where(scale > 0, scale, 1.0) + 0.5).floor()
    return (whole * scale).reshape(rows, -1)[:, :columns]


def rounded_copy(
    network: PaliGemmaForConditionalGeneration, rounding: Mapping[str, Any]
) -> PaliGemmaForConditionalGeneration:
    """A network with its weights in fewer bits; the original's stay as they are.

    Raises PaliglassError where a second copy is too much.
    """
    if any(isinstance(module, Int8Linear) for module in network.modules()):
        raise PaliglassError("the weights are in int8 already; without --quantize they are rounded")
    held = sum(parameter.nbytes for parameter in network.parameters())
    if held > LARGEST_COPY:
        raise PaliglassError(
            f"rounding wants a second copy of the weights, {held / 1e9:.1f} GB; "
            "`paliglass lab --quantize int8` shows the model in fewer bits"
        )
    copy = deepcopy(network)
    for _, part, module in matrices(copy):
        if rounding["part"] in ("all", part):
            weight = matrix_of(module)
            weight.copy_(rounded(weight, int(rounding["bits"]), int(rounding.get("group", 0))))
    return copy


class Weights:
    """Answers about a network's weights."""

    def __init__(
        self, network: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor
    ) -> None:
        self.network, self.processor = network, processor
        self.decoder = network.language_model.model
        self.words = processor.num_words

    def filters(self) -> dict[str, Any]:
        """The tower's first matrix, O × (3 · p²), and its bias."""
        embedding = self.network.vision_tower.vision_model.embeddings.patch_embedding
        assert embedding.bias is not None
        return {"weights": floats(embedding.weight), "bias": floats(embedding.bias)}

    def matrices(self) -> list[dict[str, Any]]:
        """All matrices: what they are called and how large they are."""
        return [
            {"name": name, "part": part, "rows": shape[0], "columns": math.prod(shape[1:])}
            for name, part, module in matrices(self.network)
            for shape in [_weight(module).shape]
        ]

    def matrix(self, name: str, bits: int, group: int = 0) -> dict[str, Any]:
        """One matrix beside itself in fewer bits; 16: as it is."""
        found = next((one for own, _, one in matrices(self.network) if own == name), None)
        if found is None:
            raise PaliglassError(f"the model has no matrix {name[:80]!r}")
        weight = matrix_of(found).float()
        after = weight if bits >= 16 else rounded(weight, bits, group)
        most = weight.abs().max()
        half = BINS // 2
        counts = [
            ((x / most * half).double() + half + 0.5).floor().long().flatten().bincount(None, BINS)
            for x in (weight, after)
        ]
        return {
            "most": float(most),
            "before": floats(counts[0]),
            "after": floats(counts[1]),
            "error": float((weight - after).norm() / weight.norm()),
            "sample": [floats(x[0, :SAMPLE]) for x in (weight, after)],
        }

    def nearest(self, id: int, k: int = 8) -> dict[str, Any]:
        """The words whose rows of the table point most nearly the same way."""
        norms = self._norms
        norm = norms[id]
        products = self.network.language_model.lm_head(self._rows([id]))[0, : self.words].float()
        cosines = products / torch.where(norms > 0, norm * norms, torch.inf)
        cosines[id] = -torch.inf
        found = largest(cosines, k)
        return {
            "norm": float(norm),
            "nearest": [
                {"id": one, "word": spell(self.processor, one), "cosine": float(cosines[one])}
                for one in found
            ],
        }

    @cached_property
    def _norms(self) -> Tensor:
        # A whole table in numbers may be gigabytes.
        parts = torch.split(torch.arange(self.words), ROWS)
        return torch.cat([self._rows(ids).float().norm(dim=1) for ids in parts])

    def _rows(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Rows of the table."""
        tokens = torch.as_tensor(ids, device=self.decoder.norm.weight.device)
        rows: Tensor = self.decoder.embed_tokens(tokens)
        return rows

    def table_components(self, ids: Sequence[int], k: int = 2) -> dict[str, Any]:
        """Principal components of some words' rows of the table."""
        return principal(self._rows(list(ids)).float(), k)

    def measure(self) -> dict[str, float]:
        """Operations a second with many tokens, bytes of weights a second with a single one."""
        layers: Any = self.decoder.layers
        up, head = layers[0].mlp.up_proj, self.network.language_model.lm_head
        table = self.decoder.embed_tokens.weight
        many, one = (self.decoder.norm.weight.new_full((n, table.shape[1]), 0.5) for n in (64, 1))
        return {
            "operations": _rate(2 * len(many) * up.weight.numel(), lambda: up(many)),
            "bytes": _rate(table.nbytes, lambda: head(one)),
            "bytesPerWeight": table.itemsize,
        }


def _rate(amount: float, work: Callable[[], Tensor]) -> float:
    """The best of some short windows: a busy machine measures less."""
    float(work()[0, 0])
    best = 0.0
    for _ in range(WINDOWS):
        times, start = 0, time.perf_counter()
        while times == 0 or time.perf_counter() - start < PATIENCE:
            float(work()[0, 0])  # waits for a GPU
            times += 1
        best = max(best, times * amount / (time.perf_counter() - start))
    return best


class Merges:
    """Byte-pair merges of a `tokenizer.json`, one by one, which `tokenizers` does not tell."""

    def __init__(self, tokenizer_json: str) -> None:
        model = json.loads(tokenizer_json)["model"]
        self.vocabulary = model["vocab"]
        merges = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        self.ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}

    def steps(self, text: str) -> list[list[str]]:
        """A text's pieces: its characters or their bytes, then after each merge."""
        if len(text) > LONGEST:
            raise PaliglassError(f"merges are shown for {LONGEST} characters at most")
        pieces: list[str] = []
        for character in text.replace(" ", "▁"):
            known = character in self.vocabulary
            pieces += [character] if known else [f"<0x{byte:02X}>" for byte in character.encode()]
        steps = [pieces]
        while True:
            pairs = enumerate(pairwise(pieces))
            found = [(self.ranks[pair], at) for at, pair in pairs if pair in self.ranks]
            if not found:
                return [[piece.replace("▁", " ") for piece in step] for step in steps]
            _, at = min(found)
            pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]
            steps.append(pieces)
