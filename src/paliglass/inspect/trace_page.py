"""A traced answer as one HTML page that needs nothing else: `paliglass trace`.

The page holds its pictures and numbers itself, follows the reader's light or dark scheme, and fits
a phone. All text that came from outside (prompt, answer, vocabulary) is escaped.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from paliglass.evaluation.objects import masks_of
from paliglass.generation import Request
from paliglass.inspect.tracing import Candidate, TracedPicture, TracedRow, trace
from paliglass.tasks.boxes import parse_boxes
from paliglass.tasks.prompts import without_placeholders

if TYPE_CHECKING:
    from paliglass.model import PaliGemma
    from paliglass.modeling_mask_codec import MaskCodec
    from paliglass.pictures import Picture

__all__ = ["TracedAnswer", "to_html", "trace_answer"]

MASK_PATCHES = 12  # of the picture's tokens in the drawn mask: all of their rows are alike
MASK_WORDS = 24
ATTENTION_LIMIT = 4_000_000  # bytes of maps in a page; beyond it, heads are not told apart


@dataclass(frozen=True)
class TracedAnswer:
    """An answer and all that was computed on the way to it.

    words: the answer's tokens as text, with the closing `<eos>` if it was said. codec: what draws
    the masks in it.
    """

    name: str
    prompt: str
    text: str
    words: list[str]
    row: TracedRow
    picture: TracedPicture
    spell: Callable[[int], str]
    codec: MaskCodec | None = None


def trace_answer(
    model: PaliGemma, image: Picture, prompt: str, name: str = "", max_new_tokens: int = 64
) -> TracedAnswer:
    """Runs one prompt about one picture, greedily, and keeps everything.

    name: what the page calls the model. Raises PictureError, PromptError.
    """

    def spell(token: int) -> str:
        word = model.processor.tokenizer.id_to_token(token) or f"[{token}]"
        return word.replace("▁", "␣").replace("\n", "\\n")

    with trace(model) as t:
        prepared = model.processor.prepare(image)
        request = Request(without_placeholders(prompt), [prepared], max_new_tokens=max_new_tokens)
        [done] = model.complete([request])
    ended = done.finish_reason == "stop"
    ids = [*done.ids, model.processor.eos_token_id] if ended else done.ids
    text = model.processor.decode(done.ids)
    words = [spell(token) for token in ids]
    row, picture = t.rows[0], t.pictures[0]
    return TracedAnswer(name, prompt, text, words, row, picture, spell, model.mask_codec)


def to_html(answer: TracedAnswer, candidates: int = 5) -> str:
    """The page. candidates: how many words to show for each step."""
    row, picture = answer.row, answer.picture
    side = round(len(picture) ** 0.5)
    data, heads = _attention(row, len(answer.words))
    layers = len(row.attention_names)
    size = picture.pixels.shape[-1]
    held = row.cache[len(answer.words) - 1]
    objects = _objects(answer, size)
    return Template(_part("trace_page.html")).substitute(
        style=_part("trace_page.css"),
        script=_part("trace_page.js"),
        title=escape(answer.text.splitlines()[0] if answer.text else "no answer"),
        answer=escape(answer.text),
        prompt=escape(answer.prompt),
        model=escape(answer.name),
        picture=_png(picture.pixels),
        objects=objects,
        found="In orange: what the answer found in it." if objects else "",
        size=size,
        side=side,
        patch=size // side,
        patches=len(picture),
        layers="".join(f'<option value="{i + 1}">layer {i}</option>' for i in range(layers)),
        heads="".join(f'<option value="{i + 1}">head {i}</option>' for i in range(heads)),
        heads_hidden="" if heads else "hidden",
        words="".join(
            _word(word, top, answer.spell)
            for word, top in zip(answer.words, row.top(candidates), strict=False)
        ),
        lens=_lens(answer),
        mask=_mask(answer),
        cache=_cache(row, answer.words),
        cache_tokens=held.tokens,
        cache_bytes=_bytes(held.bytes),
        cache_each=_bytes(held.bytes // held.tokens),
        prompt_tokens=row.passes[0],
        data=json.dumps({"side": side, "layers": layers, "heads": heads, **data}),
    )


def _part(name: str) -> str:
    return files("paliglass").joinpath("inspect", name).read_text("utf-8")


def _attention(row: TracedRow, words: int) -> tuple[dict[str, str], int]:
    """The maps for the page, and of how many heads.

    maps: for each word, for the mean of all layers and each layer, for the mean of all heads and
    each head, P bytes: the weight on each patch as a share of the map's largest. shares: beside
    each map the sum over picture, prompt and answer, in 1/255. Both in base64.
    """
    is_picture = row.is_picture
    is_answer = torch.arange(len(row), device=is_picture.device) >= row.passes[0]
    some = slice(row.answer.start, row.answer.start + words)
    weights = torch.stack([row.attention(name, positions=some) for name in row.attention_names])
    weights = torch.cat((weights.mean(0, keepdim=True), weights))  # layers + 1, H, words, n
    if weights[..., is_picture].numel() > ATTENTION_LIMIT:
        weights = weights.mean(1, keepdim=True)
    else:
        weights = torch.cat((weights.mean(1, keepdim=True), weights), 1)
    weights = weights.permute(2, 0, 1, 3)
    parts = [is_picture, ~is_picture & ~is_answer, is_answer]
    shares = torch.stack([weights[..., part].sum(-1) for part in parts], -1)
    maps = weights[..., is_picture]
    maps = maps / maps.amax(-1, keepdim=True).clamp(min=1e-12)
    data = {"maps": _base64(maps), "shares": _base64(shares)}
    return data, weights.shape[2] - 1


def _base64(shares: Tensor) -> str:
    values = (shares.clamp(0, 1) * 255).round().byte().cpu().contiguous().numpy()
    return base64.b64encode(values.tobytes()).decode("ascii")


def _objects(answer: TracedAnswer, size: int) -> str:
    """The answer's boxes, and its masks where there is a codec, over the picture of that size."""
    found = parse_boxes(answer.text, thin=True)
    masks = masks_of(found, answer.codec, size, size) if answer.codec else []
    parts = []
    for mask in masks:
        if mask.any():
            colour = np.array([217, 130, 43, 150], np.uint8)
            shade = _data_url(Image.fromarray(mask[..., None] * colour))
            parts.append(f'<image href="{shade}" width="{size}" height="{size}"/>')
    for thing in found:
        x0, y0, x1, y1 = (size * edge for edge in thing.box)
        parts.append(
            f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}">'
            f"<title>{escape(thing.label)}</title></rect>"
        )
    return f'<svg viewBox="0 0 {size} {size}" class="found">{"".join(parts)}</svg>' * bool(parts)


def _png(pixels: Tensor) -> str:
    """3 × S × S in [−1, 1] → a data URL."""
    values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    return _data_url(Image.fromarray(values.cpu().numpy()))


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _word(word: str, top: Sequence[Candidate], spell: Callable[[int], str]) -> str:
    """A card: where the model looked, and what else it might have said."""
    name = escape(word.strip() or "␣")
    rows = "".join(
        f'<li><span class="bar" style="width:{100 * c.probability:.1f}%"></span>'
        f"<b>{escape(spell(c.id).strip() or '␣')}</b><i>{_percent(c.probability)}</i></li>"
        for c in top
    )
    return (
        f'<figure class="word"><figcaption>{name}</figcaption><div class="look">'
        f'<canvas role="img" aria-label="where it looked for {name}"></canvas></div>'
        '<div class="shares"><span></span><span></span><span></span></div>'
        f'<ol class="candidates">{rows}</ol></figure>'
    )


def _lens(answer: TracedAnswer) -> str:
    """A table: the likeliest word after each layer, the last layer at the bottom."""
    head = "".join(f"<th>{escape(word.strip() or '␣')}</th>" for word in answer.words)
    rows = []
    for layer in range(len(answer.row.attention_names)):
        cells = []
        for word, [best] in zip(answer.words, answer.row.lens(layer), strict=False):
            found = answer.spell(best.id)
            kind = ' class="said"' if found == word else ""
            cells.append(
                f'<td{kind} style="--p:{best.probability:.2f}" '
                f'title="{_percent(best.probability)}">{escape(found.strip() or "␣")}</td>'
            )
        rows.append(f"<tr><th>layer {layer}</th>{''.join(cells)}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _mask(answer: TracedAnswer) -> str:
    """Who may look at whom, as SVG: some of the picture's tokens, all words up to a number."""
    row = answer.row
    count = int(row.is_picture.sum())
    step = max(1, count // MASK_PATCHES)
    shown = [*range(0, count, step)][:MASK_PATCHES]
    places = [*shown, *range(count, min(len(row), count + MASK_WORDS))]
    mask = row.mask()[places][:, places].tolist()
    ids = row.ids[places].tolist()
    cell, left = 16, 88
    edge = cell * len(places)
    parts = []
    for i, visible in enumerate(mask):
        y = i * cell
        if i >= len(shown):
            label = escape(answer.spell(ids[i]).strip() or "␣")
            parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{label}</text>')
        kind = "answer" if places[i] >= row.passes[0] else "prompt"
        parts += [
            f'<rect class="{kind if seen else "hidden"}" x="{left + j * cell}" y="{y}" '
            f'width="{cell - 1.5}" height="{cell - 1.5}" rx="2"/>'
            for j, seen in enumerate(visible)
        ]
    middle = len(shown) * cell / 2 + 4
    label = f'<text x="{left - 8}" y="{middle}" text-anchor="end">picture</text>'
    return (
        f'<svg viewBox="0 0 {left + edge} {edge}" role="img" aria-label="attention mask" '
        f'style="max-width:{left + edge}px">{label}{"".join(parts)}</svg>'
    )


def _cache(row: TracedRow, words: Sequence[str]) -> str:
    """The cache after each step, as SVG bars: what was there already, and what came to it."""
    sizes = [size.tokens for size in row.cache][: len(words)]
    width, height = 640, 150
    each = width / len(sizes)
    parts = []
    for i, tokens in enumerate(sizes):
        old = sizes[i - 1] if i else 0
        tall, low = (height * value / sizes[-1] for value in (tokens, old))
        box = f'x="{i * each + 1:.1f}" width="{max(each - 2, 1):.1f}"'
        parts.append(f'<rect class="old" {box} y="{height - low:.1f}" height="{low:.1f}"/>')
        parts.append(
            f'<rect class="new" {box} y="{height - tall:.1f}" '
            f'height="{max(tall - low, 1.5):.1f}"><title>{tokens} tokens</title></rect>'
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="cache after each step">{"".join(parts)}</svg>'
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "<1 %".replace("<", "&lt;")


def _bytes(count: int) -> str:
    from paliglass.checkpoints.memory import gigabytes

    return f"{count / 1024:.1f} KiB" if count < 2**20 else gigabytes(count)
