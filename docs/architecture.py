"""Draws `docs/architecture.svg`: PaliGemma with the shape of what flows along every arrow.

The numbers are those of a configuration; a test holds `shapes` against what a model really passes
on. `make docs` draws it anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

from paliglass import PRESETS, PaliGemmaConfig

sys.path.insert(0, str(Path(__file__).parent / "lessons"))
from figures import Drawing

WORDS = 4  # <bos> caption en \n


def shapes(config: PaliGemmaConfig, words: int) -> dict[str, tuple[int, ...]]:
    """What each module returns for one picture with that many words, by the module's name."""
    vision, text = config.vision_config, config.text_config
    tokens = vision.num_patches + words
    seen, wide = (1, vision.num_patches, vision.hidden_size), (1, tokens, text.hidden_size)
    tower, decoder = "vision_tower.vision_model.", "language_model."
    return {
        f"{tower}embeddings": seen,
        f"{tower}encoder.layers.0.self_attn": seen,
        f"{tower}encoder.layers.0.mlp.fc1": (*seen[:2], vision.intermediate_size),
        f"{tower}encoder": seen,
        f"{tower}post_layernorm": seen,
        "multi_modal_projector": (1, vision.num_patches, text.hidden_size),
        f"{decoder}model.embed_tokens": wide,
        f"{decoder}model.layers.0.self_attn.q_proj": (
            *wide[:2],
            text.num_attention_heads * text.head_dim,
        ),
        f"{decoder}model.layers.0.self_attn.k_proj": (
            *wide[:2],
            text.num_key_value_heads * text.head_dim,
        ),
        f"{decoder}model.layers.0.self_attn": wide,
        f"{decoder}model.layers.0.mlp.gate_proj": (*wide[:2], text.intermediate_size),
        f"{decoder}model.layers.0": wide,
        f"{decoder}model.norm": wide,
        f"{decoder}lm_head": (*wide[:2], text.vocab_size),
    }


COLOURS = """<style>
  .vision { fill: #cfe1f5; stroke: #2f6fb7 } .words { fill: #d3ebda; stroke: #3c8d5a }
  .answer { fill: #fbe0c1; stroke: #d9822b }
  @media (prefers-color-scheme: dark) {
    .vision { fill: #1d3a5a } .words { fill: #1f4630 } .answer { fill: #56391a }
  }
</style>"""


class Plan(Drawing):
    """A drawing of boxes, and arrows that say what flows."""

    def __init__(self, height: float) -> None:
        super().__init__(height, 680)
        self.small = 11.0  # too wide for a phone's page in any case
        self.parts.append(COLOURS)

    def flow(self, x: float, y: float, shape: tuple[int, ...] | str = "", length: int = 30) -> None:
        self.arrow(x, y, x, y + length)
        words = shape if isinstance(shape, str) else " × ".join(f"{n:,}" for n in shape)
        self.text(x + 9, y + length / 2 + 4, words, "small mono", "start")

    def line(self, path: str, kind: str = "line") -> None:
        self.parts.append(f'<path class="{kind}" fill="none" stroke-width="1.5" d="{path}"/>')

    def block(self, x: float, y: float, w: float, h: float, title: str) -> None:
        """The outline of what is repeated."""
        self.parts.append(
            f'<rect class="line" x="{x}" y="{y}" width="{w}" height="{h}" rx="8" '
            'stroke-dasharray="5 4"/>'
        )
        self.text(x + w - 10, y + 17, title, "small strong", "end")

    def skip(self, x: float, y0: float, y1: float, out: float) -> None:
        """A connection that leaves the stream at y0, goes round by `out` and is added at y1."""
        self.parts.append(f'<circle cx="{x}" cy="{y0}" r="2.5" class="grey"/>')
        self.line(f"M{x} {y0}H{out}V{y1}H{x - 20}")
        self.arrow(x - 22, y1, x - 10, y1)
        self.parts.append(f'<circle class="box" cx="{x}" cy="{y1}" r="9"/>')
        self.line(f"M{x - 5} {y1}h10M{x} {y1 - 5}v10")


def draw(config: PaliGemmaConfig, path: Path) -> None:
    """Writes the figure."""
    vision, text = config.vision_config, config.text_config
    shape = shapes(config, WORDS)
    tower, decoder = "vision_tower.vision_model.", "language_model.model."
    plan = Plan(1352)
    left, right, w = 20, 352, 288
    a, b = left + w / 2, right + w / 2
    for x, kind in ((150, "vision"), (270, "words"), (390, "answer")):
        plan.rect(x, 8, 16, 14, kind)
        plan.text(x + 24, 20, kind, "small", "start")

    plan.label(left, 34, w, 44, "a picture\nof any size, squashed to a square", "vision")
    plan.label(right, 34, w, 44, "a prompt\n<image> … <image> <bos> caption en \\n", "words")
    plan.flow(a, 80, (1, 3, vision.image_size, vision.image_size))
    plan.flow(b, 80, f"1 × {vision.num_patches} + {WORDS} ids")
    patch = vision.patch_size
    plan.label(
        left,
        112,
        w,
        44,
        f"embeddings\npatches of {patch} × {patch} → vectors, + positions",
        "vision",
    )
    plan.label(
        right,
        112,
        w,
        44,
        f"embed_tokens\n{text.vocab_size:,} × {text.hidden_size:,}, times √D",
        "words",
    )
    plan.flow(a, 158, shape[f"{tower}embeddings"])
    _encoder_layer(plan, config, left, w, 190)
    plan.flow(a, 504, shape[f"{tower}encoder"])
    plan.label(left, 536, w, 26, "post_layernorm", "vision")
    plan.flow(a, 564, shape[f"{tower}post_layernorm"])
    widths = f"{vision.hidden_size:,} → {text.hidden_size:,}"
    plan.label(left, 596, w, 44, f"multi_modal_projector\n{widths}", "vision")
    plan.flow(a, 642, shape["multi_modal_projector"])
    plan.flow(b, 158, shape[f"{decoder}embed_tokens"], 514)

    full = right + w - left
    c = left + 230.0  # where the decoder's stream runs
    plan.rect(left, 674, full / 2, 30, "vision")
    plan.rect(left + full / 2, 674, full / 2, 30, "words")
    merged = "merge: the picture's vectors in the places of <image>"
    plan.text(left + full / 2, 694, merged, "strong")
    plan.flow(c, 706, shape[f"{decoder}layers.0"])
    _decoder_layer(plan, config, left, full, c, 738)
    plan.flow(c, 1132, shape[f"{decoder}layers.0"])
    plan.label(left, 1164, full, 26, "norm: RMSNorm")
    plan.flow(c, 1192, f"1 × 1 × {text.hidden_size:,}, the last position alone")
    plan.label(
        left, 1224, full, 44, "lm_head\nthe embedding table once more (tied weights)", "answer"
    )
    plan.flow(c, 1270, f"1 × 1 × {text.vocab_size:,} logits")
    plan.label(left, 1302, full, 44, "softmax, temperature, top-k, top-p\nthe next token", "answer")
    plan.line(f"M{left + full} 1324H666V134H656", "s-orange")
    plan.arrow(656, 134, right + w + 2, 134, "s-orange")
    plan.parts.append(
        '<text class="small orange" text-anchor="middle" '
        'transform="translate(677 430) rotate(-90)">'
        "the next token goes in alone: the cache holds all others</text>"
    )
    plan.write(path)


def _encoder_layer(plan: Plan, config: PaliGemmaConfig, left: float, w: float, top: float) -> None:
    """312 tall."""
    vision, a = config.vision_config, left + w / 2
    plan.block(left, top, w, 312, f"encoder layer × {vision.num_hidden_layers}")
    inner, wide = left + 34, w - 54
    heads = f"{vision.num_attention_heads} heads of {vision.head_dim}, no mask"
    width, middle = vision.hidden_size, vision.intermediate_size
    for y, name, words in (
        (top, "layer_norm1", f"self_attn\n{heads}"),
        (top + 154, "layer_norm2", f"mlp\n{width:,} → {middle:,} → {width:,}, GELU"),
    ):
        plan.flow(a, y, "", 28)
        plan.label(inner, y + 30, wide, 26, name, "vision")
        plan.flow(a, y + 56, "", 14)
        plan.label(inner, y + 72, wide, 44, words, "vision")
        plan.flow(a, y + 116, "", 14)
        plan.skip(a, y + 10, y + 140, left + 14)
    plan.line(f"M{a} {top + 149}v6M{a} {top + 303}v9")


def _decoder_layer(
    plan: Plan, config: PaliGemmaConfig, left: float, full: float, c: float, top: float
) -> None:
    """392 tall. Keys and values pass through the cache at its right."""
    text, shape = config.text_config, shapes(config, WORDS)
    name = "language_model.model.layers.0.self_attn."
    query = " × ".join(map(str, shape[f"{name}q_proj"]))
    key = " × ".join(map(str, shape[f"{name}k_proj"]))
    plan.block(left, top, full, 392, f"decoder layer × {text.num_hidden_layers}")
    inner, wide = left + 34, 400
    half = (wide - 10) / 2
    plan.flow(c, top, "", 28)
    plan.label(inner, top + 30, wide, 26, "input_layernorm: RMSNorm")
    for x, words in (
        (inner, f"q_proj, RoPE\n{query}"),
        (inner + half + 10, f"k_proj, RoPE; v_proj\n{key} each"),
    ):
        plan.flow(x + half / 2, top + 56, "", 14)
        plan.label(x, top + 72, half, 44, words)
    plan.flow(inner + half / 2, top + 116, "", 34)
    cache, box = inner + wide + 44, 120
    plan.label(cache, top + 72, box, 124, "KV cache\nkeys and values\nof all tokens so far")
    plan.arrow(inner + wide, top + 94, cache - 2, top + 94)
    plan.text((inner + wide + cache) / 2, top + 87, "new", "small soft")
    plan.arrow(cache, top + 174, inner + wide + 2, top + 174)
    plan.text((inner + wide + cache) / 2, top + 167, "all", "small soft")
    group = text.num_attention_heads // text.num_key_value_heads
    heads = f"{text.num_attention_heads} query heads of {text.head_dim}, {group} to a key head"
    plan.label(inner, top + 152, wide, 44, f"attention under the prefix-LM mask, o_proj\n{heads}")
    plan.flow(c, top + 196, "", 14)
    plan.skip(c, top + 10, top + 220, left + 16)
    plan.flow(c, top + 229, "", 27)
    plan.label(inner, top + 258, wide, 26, "post_attention_layernorm: RMSNorm")
    plan.flow(c, top + 284, "", 14)
    width, middle = text.hidden_size, text.intermediate_size
    gated = f"gelu(gate) · up: {width:,} → {middle:,}, down: → {width:,}"
    plan.label(inner, top + 300, wide, 44, f"mlp, GeGLU\n{gated}")
    plan.flow(c, top + 344, "", 14)
    plan.skip(c, top + 238, top + 368, left + 16)
    plan.line(f"M{c} {top + 377}v15")


if __name__ == "__main__":
    draw(PRESETS["paligemma-3b-224"], Path(__file__).parent / "architecture.svg")
