"""Questions about a run, answered from what it kept: nothing is computed before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paliglass.errors import PaliglassError
from paliglass.lab.torch_engine.forward import Run, norm
from paliglass.lab.torch_engine.records import Layer
from paliglass.lab.torch_engine.weights import floats, largest, matrix_of, principal, spell
from paliglass.layers.rope import apply_rotary, rotary_cos_sin

__all__ = ["QUESTIONS", "log_p"]

EXCHANGED = 64  # tokens of an answer after a word of its prompt was exchanged


def attention(run: Run, part: str, layer: int, head: int) -> Any:
    """Weights of one head, T × S."""
    return floats(run.way.heads(run, part, layer).attend()[1][head])


def heads(run: Run, part: str, token: int, to: bool = False) -> Any:
    """One row (or, `to`, one column) of every head: layers × heads of S (or T) numbers."""
    rows = []
    for layer in range(run.way.num_layers(part)):
        heads = run.way.heads(run, part, layer)
        weights = heads.attend()[1][:, :, token] if to else heads.row(token).attend()[1][:, 0]
        rows.append([floats(one) for one in weights])
    return rows


def cell(run: Run, part: str, layer: int, head: int, row: int, column: int) -> Any:
    """One cell down to its sum: q and k, their products, score, what the softmax divides."""
    heads = run.way.heads(run, part, layer).row(row)
    q, k = (
        heads.q[head, 0].float(),
        heads.k[head * len(heads.k) // len(heads.q)][column].float(),
    )
    scores = heads.scores(head)[0]
    exponentials = (scores - scores.max()).exp()
    total = exponentials.sum()
    return {
        "q": floats(q),
        "k": floats(k),
        "products": floats(q * k),
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


def hidden(run: Run, part: str, layer: int) -> Any:
    """The stream after a layer."""
    return floats(run.part(part, layer))


def lens(run: Run, positions: Sequence[int], k: int = 3) -> Any:
    """Layers × positions: the likeliest words had the decoder ended there."""
    last_norm = run.way.network.language_model.model.norm
    rows = []
    for layer in range(-1, run.way.num_layers("decoder")):
        stream = run.part("decoder", layer)[list(positions)]
        logits = run.way.logits(norm(last_norm, stream, run.edits))
        rows.append([_candidates(run, one, k) for one in logits])
    return rows


def _candidates(run: Run, logits: Tensor, k: int) -> list[dict[str, Any]]:
    p = logits.softmax(-1)
    return [
        {"id": id, "word": spell(run.way.processor, id), "p": float(p[id])} for id in largest(p, k)
    ]


def logits(run: Run, step: int) -> Any:
    """Before an answer's word: logits of all words, and which the grammar allowed."""
    allowed = run.allowed[step]
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
    return {"logits": floats(run.logits[step]), "allowed": kept}


def top(run: Run, step: int, k: int = 10) -> Any:
    """The likeliest words before an answer's word."""
    return _candidates(run, run.logits[step], k)


def edges(run: Run, first: int) -> Any:
    """For the four edges of a box: probabilities of the 1024 places."""
    start = run.way.processor.token_id("<loc0000>")
    rows = run.logits[first : first + 4]
    return [floats(row.softmax(-1)[start : start + 1024]) for row in rows]


def patch(run: Run, layer: int, position: int) -> Any:
    """The vector to paste: a token's stream after a layer."""
    row: list[float] = run.part("decoder", layer)[position].tolist()
    return row


def attribution(run: Run, position: int, id: int) -> Any:
    """What each head and MLP adds to a word's logit, the last norm's divisor held fixed."""
    if run.way.config.text_config.has_post_norms:
        raise PaliglassError("attribution reads Gemma 1's layers, which add without a norm")
    decoder = run.way.network.language_model.model
    last = run.stream.layers[-1].output[position].float()
    centred = last - last.mean() if run.edits.get("norm") == "layer" else last
    scale = torch.rsqrt(centred.square().mean() + decoder.norm.eps)
    row = decoder.embed_tokens(torch.tensor(id, device=last.device)).float()
    direction = row * scale * (1 + decoder.norm.weight.float())
    parts = [("embedding", run.stream.inputs[position].float() @ direction)]
    layers: Any = decoder.layers
    for number, layer in enumerate(layers):
        kept = run.stream.layers[number]
        before = run.part("decoder", number - 1)[position].float()
        middle, after = kept.middle[position].float(), kept.output[position].float()
        mixed = run.way.heads(run, "decoder", number).row(position).attend()[0][:, 0]
        output = matrix_of(layer.self_attn.o_proj).reshape(-1, *mixed.shape)  # D × H × d
        added = torch.einsum("hd,ohd->ho", mixed, output.to(mixed)).float()
        is_off = bool((middle == before).all())
        for head, vector in enumerate(added):
            worth = vector.new_zeros(()) if is_off else vector @ direction
            parts.append((f"decoder.{number}.{head}", worth))
        parts.append((f"decoder.{number}.mlp", (after - middle) @ direction))
    told = [{"name": name, "value": float(value)} for name, value in parts]
    return {"parts": told, "logit": float(last @ direction)}


def moved(run: Run, other: Run) -> Any:
    """How far each token's stream is from another run's after every layer: layers × T."""
    count = min(run.stream.length, other.stream.length)
    rows = []
    for layer in range(run.way.num_layers("decoder")):
        a, b = (x.part("decoder", layer)[:count].float() for x in (run, other))
        rows.append(floats((a - b).norm(dim=-1) / b.norm(dim=-1)))
    return rows


def score(run: Run, step: int, ids: Sequence[int]) -> Any:
    """log p of given words after each other, from a step on."""
    return [float(log_p(run.logits[step + i], id)) for i, id in enumerate(ids)]


def mask(run: Run) -> Any:
    """T × T: 1 where the mask lets a token look."""
    return run.whole_mask().to(torch.uint8).flatten().cpu().numpy()


def distances(run: Run, layer: int, head: int, most: int, span: tuple[int, int]) -> dict[str, Any]:
    """A head's scores by distance: its mean query and key, turned 0 … most − 1 places apart."""
    text = run.way.config.text_config
    kept, half = run.stream.layers[layer], text.head_dim // 2
    places = torch.arange(*span)
    positions = -(places + 1 + run.edits.get("shift", 0))
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
        "q": floats(means[0]),
        "k": floats(means[1]),
        "pairs": pairs,
    }


def cache(run: Run, layer: int) -> dict[str, Any]:
    """Keys and values that the cache holds for a layer: T × (K · d) each."""
    kept = run.stream.layers[layer]
    k, v = (floats(x.transpose(0, 1)) for x in (kept.k, kept.v))
    return {"k": k, "v": v, "width": len(kept.k) * kept.k.shape[-1]}


def exchanged(run: Run, position: int, id: int, how: str) -> dict[str, Any]:
    """The answer after a word of the prompt is exchanged behind the cache's back.

    "stale" keeps every key and value, "column" renews the word's own and no one else's.
    """
    count = len(run.prompt)
    stream, logits = run.stream.cut(count), run.logits[0]
    if how == "column":
        # The word alone goes through once more; its key and value land in its old place.
        alone = run.stream.cut(position)
        run.way.extend(run, alone, run.way.embed([id], run.edits))
        for layer, fresh in zip(stream.layers, alone.layers, strict=True):
            for name in ("k", "v"):
                renewed = getattr(layer, name).clone()
                renewed[:, position] = getattr(fresh, name)[:, position]
                setattr(layer, name, renewed)
        stream = stream.cut(count - 1)
        logits = run.way.say(run, stream, run.prompt[-1])
    answer: list[int] = []
    while len(answer) < EXCHANGED:
        token = int(logits.argmax())
        if token == run.way.processor.eos_token_id:
            break
        answer.append(token)
        logits = run.way.say(run, stream, token)
    return {"answer": answer, "text": run.way.processor.decode(answer)}


def _rows(run: Run, part: str, layer: int, first: int, count: int) -> Tensor:
    rows = run.part(part, layer)[first : first + count]
    if len(rows) != count:
        raise PaliglassError(f"there are no tokens {first} to {first + count - 1}")
    return rows.float()


def components(run: Run, part: str, layer: int, first: int, count: int, k: int = 3) -> Any:
    """Principal components of some tokens' streams after a layer."""
    return principal(_rows(run, part, layer, first, count), k)


def similar(run: Run, part: str, layer: int, token: int, first: int, count: int) -> Any:
    """Cosines of one token's stream after a layer with those of some others."""
    own = _rows(run, part, layer, token, 1)
    return floats(torch.cosine_similarity(own, _rows(run, part, layer, first, count)))


def stream(run: Run, part: str, position: int) -> dict[str, Any]:
    """A token's stream through all layers: its length, what is added, how far it turns."""
    rows = []
    kept: Sequence[Layer] = run.tower.layers if part == "tower" else run.stream.layers
    for number, layer in enumerate(kept):
        before = run.part(part, number - 1)[position].float()
        middle, after = layer.middle[position].float(), layer.output[position].float()
        is_lost = f"{part}.{number}" in (run.edits.get("off") or ())
        rows.append(
            {
                "attention": 0.0 if is_lost else float((middle - before).norm()),
                "mlp": 0.0 if is_lost else float((after - middle).norm()),
                "length": float(after.norm()),
                "cosine": float(torch.cosine_similarity(before, after, dim=0)),
            }
        )
    return {"input": float(run.part(part, -1)[position].float().norm()), "layers": rows}


def neurons(run: Run, layer: int, position: int, k: int = 8) -> dict[str, Any]:
    """The MLP's neurons that write most into a token's stream, and the words that they raise.

    What a neuron writes is gelu(gate) · up times a column of the down matrix; its words are read
    through the last norm, its divisor held fixed, and the table (arXiv 2203.14680).
    """
    decoder = run.way.network.language_model.model
    middle = run.stream.layers[layer].middle[position : position + 1]
    inner = [one[0].float() for one in run.way.inner(layer, middle, run.edits)]
    gate, activated, up, values = inner
    modules: Any = decoder.layers
    down = matrix_of(modules[layer].mlp.down_proj).float()
    sizes = down.norm(dim=0) * values.abs()
    last = run.stream.layers[-1].output[position].float()
    centred = last - last.mean() if run.edits.get("norm") == "layer" else last
    scale = torch.rsqrt(centred.square().mean() + decoder.norm.eps)
    chosen = largest(sizes, k)
    written = (values * down)[:, chosen].T * scale * (1 + decoder.norm.weight.float())
    words = run.way.processor.num_words
    logits = run.way.network.language_model.lm_head(written.to(decoder.norm.weight))
    logits = logits[:, :words].float()
    adds = not run.way.config.text_config.has_post_norms
    told = []
    for neuron, row in zip(chosen, logits, strict=True):
        told.append(
            {
                "neuron": neuron,
                "gate": float(gate[neuron]),
                "activated": float(activated[neuron]),
                "up": float(up[neuron]),
                "value": float(values[neuron]),
                "size": float(sizes[neuron]),
                "words": [
                    {
                        "id": id,
                        "word": spell(run.way.processor, id),
                        "adds": float(row[id]) if adds else None,
                    }
                    for id in largest(row, 3)
                ],
            }
        )
    working = int((sizes > sizes[chosen[0]] / 10).sum())
    return {"inner": len(sizes), "working": working, "top": told}


def projected(run: Run, patch: int) -> dict[str, Any]:
    """A patch's pixels, the tower's first matrix times them, and that with the position added."""
    embedding = run.way.network.vision_tower.vision_model.embeddings.patch_embedding
    side = run.way.config.vision_config.patch_size
    row, column = divmod(patch, run.way.config.vision_config.patches_per_side)
    pixels = run.tower.pixels[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
    outputs = embedding(pixels[None])
    return {
        "pixels": floats(pixels),
        "outputs": floats(outputs),
        "input": floats(run.tower.inputs[patch]),
    }


def log_p(logits: Tensor, id: int) -> Tensor:
    """log p of one id."""
    return logits[id] - logits.logsumexp(-1)


def _number(value: Tensor) -> float | None:
    found = float(value)
    return found if np.isfinite(found) else None


QUESTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(attention, heads, cell, hidden, lens, logits, top, edges, patch, attribution, moved),
        *(
            score,
            mask,
            distances,
            cache,
            exchanged,
            components,
            similar,
            stream,
            neurons,
            projected,
        ),
    )
}
"""By the page's name; what they call run and other are runs, where the page sends numbers."""
