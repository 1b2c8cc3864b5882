"""Draws `docs/architecture.svg`: PaliGemma with the shape of what flows along every arrow.

The numbers are those of a configuration; a test holds `shapes` against what a model really passes
on. `make docs` draws it anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

from paliglass import PRESETS, PaliGemmaConfig

sys.path.insert(0, str(Path(__file__).parent / "lessons"))
from figures import PARTS, Drawing

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


class Plan(Drawing):
    """A drawing of boxes, and arrows that say what flows."""

    def __init__(self, height: float) -> None:
        super().__init__(height)
        self.parts.append(PARTS)

    def flow(
        self, x: float, y: float, shape: tuple[int, ...] | str = "", length: int = 30, side: int = 1
    ) -> None:
        """An arrow down, and what flows: at its right, or with side −1 at its left."""
        self.arrow(x, y, x, y + length)
        words = shape if isinstance(shape, str) else " × ".join(f"{n:,}" for n in shape)
        anchor = "start" if side > 0 else "end"
        self.text(x + 9 * side, y + length / 2 + 4, words, "small", anchor)

    def line(self, path: str, kind: str = "line") -> None:
        self.parts.append(f'<path class="{kind}" fill="none" stroke-width="1.5" d="{path}"/>')

    def block(self, x: float, y: float, w: float, h: float) -> None:
        """The outline of what is repeated."""
        self.parts.append(
            f'<rect class="line" x="{x}" y="{y}" width="{w}" height="{h}" rx="8" '
            'stroke-dasharray="5 4"/>'
        )

    def skip(self, x: float, y0: float, y1: float, out: float) -> None:
        """A connection that leaves the stream at y0, goes round by `out` and is added at y1."""
        self.parts.append(f'<circle cx="{x}" cy="{y0}" r="2.5" class="grey"/>')
        self.line(f"M{x} {y0}H{out}V{y1}H{x - 20}")
        self.arrow(x - 22, y1, x - 10, y1)
        self.parts.append(f'<circle class="box" cx="{x}" cy="{y1}" r="9"/>')
        self.line(f"M{x - 5} {y1}h10M{x} {y1 - 5}v10")


LEFT, FULL = 6, 358  # what stands left of the loop back from the sampled token
VISION, WORDS_X, WORDS_W = 190, 202, 162  # the picture's column is so wide; the words' one
PICTURE, TEXT, STREAM = 76, 346, 114  # where the arrows run


def draw(config: PaliGemmaConfig, path: Path) -> None:
    """Writes the figure."""
    vision, text = config.vision_config, config.text_config
    shape = shapes(config, WORDS)
    tower, decoder = "vision_tower.vision_model.", "language_model.model."
    plan = Plan(1572)
    for x, kind in ((50, "vision"), (150, "words"), (246, "answer")):
        plan.rect(x, 8, 16, 14, kind)
        plan.text(x + 24, 20, kind, "small", "start")

    plan.label(LEFT, 34, VISION, 60, "a picture\nof any size,\nsquashed to a square", "vision")
    prompt = "a prompt\n<image> … <image>\n<bos> caption en \\n"
    plan.label(WORDS_X, 34, WORDS_W, 60, prompt, "words")
    plan.flow(PICTURE, 96, (1, 3, vision.image_size, vision.image_size))
    plan.flow(TEXT, 96, f"1 × {vision.num_patches} + {WORDS} ids", side=-1)
    patch = f"{vision.patch_size} × {vision.patch_size}"
    cut = f"embeddings\npatches of {patch}\n→ vectors, + positions"
    plan.label(LEFT, 128, VISION, 60, cut, "vision")
    table = f"embed_tokens\n{text.vocab_size:,} × {text.hidden_size:,}\ntimes √D"
    plan.label(WORDS_X, 128, WORDS_W, 60, table, "words")
    plan.flow(PICTURE, 190, shape[f"{tower}embeddings"])
    plan.text(LEFT + VISION + 10, 240, "encoder layer", "small strong", "start")
    plan.text(LEFT + VISION + 10, 257, f"× {vision.num_hidden_layers}", "small strong", "start")
    _encoder_layer(plan, config, 222)
    plan.flow(PICTURE, 568, shape[f"{tower}encoder"])
    plan.label(LEFT, 600, VISION, 26, "post_layernorm", "vision")
    plan.flow(PICTURE, 628, shape[f"{tower}post_layernorm"])
    widths = f"{vision.hidden_size:,} → {text.hidden_size:,}"
    plan.label(LEFT, 660, VISION, 44, f"multi_modal_projector\n{widths}", "vision")
    plan.flow(PICTURE, 706, shape["multi_modal_projector"])
    plan.flow(TEXT, 190, shape[f"{decoder}embed_tokens"], 546, side=-1)

    plan.label(LEFT, 738, FULL / 2, 44, "merge\nthe picture's vectors", "vision")
    plan.label(LEFT + FULL / 2, 738, FULL / 2, 44, "\nin the places of <image>", "words")
    plan.flow(STREAM, 784, shape[f"{decoder}layers.0"])
    _decoder_layer(plan, config, 816)
    plan.flow(STREAM, 1340, shape[f"{decoder}layers.0"])
    plan.label(LEFT, 1372, FULL, 26, "norm: RMSNorm")
    plan.flow(STREAM, 1400, f"1 × 1 × {text.hidden_size:,}, the last position")
    head = "lm_head\nthe embedding table once more (tied)"
    plan.label(LEFT, 1432, FULL, 44, head, "answer")
    plan.flow(STREAM, 1478, f"1 × 1 × {text.vocab_size:,} logits")
    sampled = "softmax, temperature, top-k, top-p\nthe next token"
    plan.label(LEFT, 1510, FULL, 44, sampled, "answer")
    plan.line(f"M{LEFT + FULL} 1532H378V158H374", "s-orange")
    plan.arrow(378, 158, WORDS_X + WORDS_W + 2, 158, "s-orange")
    plan.parts.append(
        '<text class="small orange" text-anchor="middle" '
        'transform="translate(394 460) rotate(-90)">'
        "the next token goes in alone: the cache holds all others</text>"
    )
    plan.write(path)


def _encoder_layer(plan: Plan, config: PaliGemmaConfig, top: float) -> None:
    """346 tall."""
    vision = config.vision_config
    plan.block(LEFT, top, VISION, 346)
    inner, wide = LEFT + 30, VISION - 36
    heads = f"{vision.num_attention_heads} heads of {vision.head_dim},\nno mask"
    width, middle = vision.hidden_size, vision.intermediate_size
    for y, name, words in (
        (top, "layer_norm1", f"self_attn\n{heads}"),
        (top + 171, "layer_norm2", f"mlp, GELU\n{width:,} → {middle:,}\n→ {width:,}"),
    ):
        plan.flow(PICTURE, y, "", 28)
        plan.label(inner, y + 30, wide, 26, name, "vision")
        plan.flow(PICTURE, y + 56, "", 14)
        plan.label(inner, y + 72, wide, 60, words, "vision")
        plan.flow(PICTURE, y + 132, "", 14)
        plan.skip(PICTURE, y + 10, y + 156, LEFT + 14)
    plan.line(f"M{PICTURE} {top + 165}v6M{PICTURE} {top + 336}v10")


def _decoder_layer(plan: Plan, config: PaliGemmaConfig, top: float) -> None:
    """524 tall. Keys and values pass through the cache."""
    text, shape = config.text_config, shapes(config, WORDS)
    name = "language_model.model.layers.0.self_attn."
    query = " × ".join(f"{n:,}" for n in shape[f"{name}q_proj"])
    key = " × ".join(f"{n:,}" for n in shape[f"{name}k_proj"])
    plan.block(LEFT, top, FULL, 524)
    layers = f"decoder layer × {text.num_hidden_layers}"
    plan.text(LEFT + FULL - 10, top + 19, layers, "small strong", "end")
    inner, wide = LEFT + 30, FULL - 36
    half = (wide - 10) / 2
    right = inner + half + 10
    plan.flow(STREAM, top, "", 28)
    plan.label(inner, top + 30, wide, 26, "input_layernorm: RMSNorm")
    for x, words in (
        (inner, f"q_proj\nRoPE\n{query}"),
        (right, f"k_proj, v_proj\nRoPE for the keys\n{key} each"),
    ):
        plan.flow(x + half / 2, top + 56, "", 14)
        plan.label(x, top + 72, half, 60, words)
    plan.flow(right + half / 2, top + 132, "new", 30)
    plan.label(right, top + 164, half, 44, "KV cache\nof all tokens so far")
    plan.flow(right + half / 2, top + 208, "all", 30)
    plan.flow(inner + half / 2, top + 132, "", 106)
    group = text.num_attention_heads // text.num_key_value_heads
    heads = f"{text.num_attention_heads} query heads of {text.head_dim}, {group} to a key head"
    attention = f"attention\nunder the prefix-LM mask, then o_proj\n{heads}"
    plan.label(inner, top + 240, wide, 60, attention)
    plan.flow(STREAM, top + 300, "", 14)
    plan.skip(STREAM, top + 10, top + 324, LEFT + 14)
    plan.flow(STREAM, top + 333, "", 29)
    plan.label(inner, top + 364, wide, 26, "post_attention_layernorm: RMSNorm")
    plan.flow(STREAM, top + 390, "", 14)
    width, middle = text.hidden_size, text.intermediate_size
    gated = f"gelu(gate) · up: {width:,} → {middle:,}\ndown: {middle:,} → {width:,}"
    plan.label(inner, top + 406, wide, 60, f"mlp, GeGLU\n{gated}")
    plan.flow(STREAM, top + 466, "", 14)
    plan.skip(STREAM, top + 342, top + 490, LEFT + 14)
    plan.line(f"M{STREAM} {top + 499}v25")


if __name__ == "__main__":
    draw(PRESETS["paligemma-3b-224"], Path(__file__).parent / "architecture.svg")
