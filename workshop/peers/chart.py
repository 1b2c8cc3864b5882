"""The comparison as a picture: bars, an SVG for light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from paliglass.inspect.bench import Measured

PANELS = {  # what is shown, its title, and whether more is better
    "tokens_per_s": ("tokens a second", "longer is better"),
    "first_token_s": ("seconds to the first token", "shorter is better"),
    "memory_gb": ("peak memory, GB", "shorter is better"),
}
WIDTH, NAMES, ROW, BAR, HEAD = 400, 122, 28, 18, 42  # text of 13.5 is 11 on a phone


def to_svg(title: str, found: Mapping[str, Measured]) -> str:
    """Three panels of bars, an engine a row; the first engine's bars stand out."""
    figures = {name: engine.to_dict() for name, engine in found.items()}
    bars = sum(what in values for what in PANELS for values in figures.values())
    height = 44 + len(PANELS) * HEAD + ROW * bars + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" font-family="system-ui, sans-serif" font-size="13.5">',
        "<style>svg{background:#fff}text{fill:#22242a}.soft{fill:#6c6f78}.bar{fill:#b9bcc6}"
        ".ours{fill:#2f6fb7}@media(prefers-color-scheme:dark){svg{background:#15171c}"
        "text{fill:#e8e6e1}.soft{fill:#9a9ca5}.bar{fill:#5d626e}.ours{fill:#6aa9ee}}</style>",
        f'<text x="8" y="28" font-size="16" font-weight="650">{escape(title)}</text>',
    ]
    top = 44
    for what, (name, note) in PANELS.items():
        parts.append(
            f'<text x="8" y="{top + 24}" font-weight="600">{name} '
            f'<tspan class="soft" font-weight="400">{note}</tspan></text>'
        )
        top += HEAD
        largest = max(values.get(what, 0.0) for values in figures.values())
        for engine, values in figures.items():
            if what not in values:  # of an engine that reads prompts alone
                continue
            width = (WIDTH - NAMES - 60) * values[what] / largest
            kind = "ours" if engine.startswith("paliglass") else "bar"
            parts.append(
                f'<text x="{NAMES}" y="{top + 14}" text-anchor="end">{escape(engine)}</text>'
                f'<rect class="{kind}" x="{NAMES + 10}" y="{top}" width="{width:.1f}" '
                f'height="{BAR}" rx="2"/>'
                f'<text x="{NAMES + 18 + width:.1f}" y="{top + 14}">{values[what]:.3g}</text>'
            )
            top += ROW
    return "".join([*parts, "</svg>\n"])
