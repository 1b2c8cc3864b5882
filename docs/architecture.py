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


class Plan(Drawing):
    """A drawing of boxes, and arrows that say what flows."""

    def flow(self, x: float, y: float, shape: tuple[int, ...] | str, length: float = 30) -> None:
        self.arrow(x, y, x, y + length)
        words = shape if isinstance(shape, str) else " × ".join(f"{n:,}" for n in shape)
        self.text(x + 9, y + length / 2 + 4, words, "small mono", "start")

    def block(self, x: float, y: float, w: float, h: float, title: str) -> None:
        """The outline of what is repeated."""
        self.parts.append(
            f'<rect class="line" x="{x}" y="{y}" width="{w}" height="{h}" rx="8" '
            'stroke-dasharray="5 4"/>'
        )
        self.text(x + w - 10, y + 17, title, "small strong", "end")

    def skip(self, x: float, y0: float, y1: float, out: float) -> None:
        """A connection that goes round: from y0 to y1."""
        self.parts.append(
            f'<path class="line" stroke-width="1.5" d="M{x} {y0}H{out}V{y1}H{x - 7}"/>'
        )
        self.text(x, y1 + 5, "⊕", "strong")


def draw(config: PaliGemmaConfig, path: Path) -> None:
    """Writes the figure."""
    vision, text = config.vision_config, config.text_config
    shape = shapes(config, WORDS)
    tower, decoder = "vision_tower.vision_model.", "language_model.model."
    plan = Plan(1150)
    left, right, w = 20, 372, 288
    a, b = left + w / 2, right + w / 2
    patch, heads = vision.patch_size, vision.num_attention_heads

    plan.label(left, 10, w, 44, "a picture\nof any size, squashed to a square", "faint")
    plan.label(right, 10, w, 44, "a prompt\n<image> … <image> <bos> caption en \\n", "faint")
    plan.flow(a, 56, (1, 3, vision.image_size, vision.image_size))
    plan.flow(b, 56, f"1 × {vision.num_patches} + {WORDS} ids")
    plan.label(left, 88, w, 44, f"embeddings\npatches of {patch} × {patch} → vectors, + positions")
    plan.label(
        right, 88, w, 44, f"embed_tokens\n{text.vocab_size:,} × {text.hidden_size:,}, times √D"
    )
    plan.flow(a, 134, shape[f"{tower}embeddings"])
    plan.block(left, 166, w, 232, f"encoder layer × {vision.num_hidden_layers}")
    inner, wide = left + 34, w - 54
    plan.label(inner, 192, wide, 26, "LayerNorm")
    plan.label(inner, 222, wide, 44, f"self_attn\n{heads} heads of {vision.head_dim}, no mask")
    plan.skip(a, 180, 278, left + 14)
    plan.label(inner, 290, wide, 26, "LayerNorm")
    middle = vision.intermediate_size
    plan.label(
        inner,
        320,
        wide,
        44,
        f"mlp\n{vision.hidden_size:,} → {middle:,} → {vision.hidden_size:,}, GELU",
    )
    plan.skip(a, 282, 378, left + 14)
    plan.flow(a, 400, shape[f"{tower}encoder"])
    plan.label(left, 432, w, 26, "post_layernorm")
    plan.flow(a, 460, shape[f"{tower}post_layernorm"])
    plan.label(
        left,
        492,
        w,
        44,
        f"multi_modal_projector\n{vision.hidden_size:,} → {text.hidden_size:,}",
    )
    plan.flow(a, 538, shape["multi_modal_projector"])
    plan.flow(b, 134, shape[f"{decoder}embed_tokens"], 434)
    full = right + w - left
    plan.label(
        left, 570, full, 30, "merge: the picture's vectors in the places of <image>", "faint"
    )
    c = left + full / 2
    plan.flow(c, 602, shape[f"{decoder}layers.0"])
    plan.block(left, 634, full, 290, f"decoder layer × {text.num_hidden_layers}")
    inner, wide = left + 40, full - 60
    plan.label(inner, 660, wide, 26, "RMSNorm")
    third = (wide - 20) / 3
    query = " × ".join(map(str, shape[f"{decoder}layers.0.self_attn.q_proj"]))
    key = " × ".join(map(str, shape[f"{decoder}layers.0.self_attn.k_proj"]))
    plan.label(inner, 692, third, 44, f"q_proj, RoPE\n{query}")
    plan.label(inner + third + 10, 692, third, 44, f"k_proj, RoPE → cache\n{key}")
    plan.label(inner + 2 * third + 20, 692, third, 44, f"v_proj → cache\n{key}")
    group = text.num_attention_heads // text.num_key_value_heads
    plan.label(
        inner,
        742,
        wide,
        44,
        f"attention under the prefix-LM mask, o_proj\n{text.num_attention_heads} query heads of "
        f"{text.head_dim}, {group} to a key head",
    )
    plan.skip(c, 648, 798, left + 18)
    plan.label(inner, 810, wide, 26, "RMSNorm")
    plan.label(
        inner,
        842,
        wide,
        44,
        f"mlp, GeGLU\ngelu(gate) · up: {text.hidden_size:,} → {text.intermediate_size:,}, "
        f"down: → {text.hidden_size:,}",
    )
    plan.skip(c, 802, 904, left + 18)
    plan.flow(c, 926, shape[f"{decoder}layers.0"])
    plan.label(left, 958, full, 26, "norm: RMSNorm")
    plan.flow(c, 986, shape[f"{decoder}norm"])
    plan.label(left, 1018, full, 44, "lm_head\nthe embedding table once more (tied weights)")
    plan.flow(c, 1064, shape["language_model.lm_head"])
    plan.label(
        left,
        1096,
        full,
        44,
        "softmax of the last row, temperature, top-k, top-p → the next token\n"
        "which goes back to embed_tokens, alone: the cache remembers the rest",
        "faint",
    )
    plan.write(path)


if __name__ == "__main__":
    draw(PRESETS["paligemma-3b-224"], Path(__file__).parent / "architecture.svg")
