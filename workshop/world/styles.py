"""Other styles of a sticker: recoloured, as line art, in two colours, blurred, printed.

All work on premultiplied RGBA at the size at which it is pasted. What a thing covers stays what it
was: line art is ink on paper of the thing's own outline.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

__all__ = ["restyle"]

Pixels = NDArray[np.uint8]

_LUMA = np.array((0.299, 0.587, 0.114), np.float32)
_GREY = np.full((3, 3), 1 / 3, np.float32)
_TURN = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], np.float32) / np.float32(3**0.5)


def restyle(rgba: Pixels, rng: np.random.Generator) -> Pixels:
    """The thing in a random other style; h × w × 4, premultiplied, as is what comes back."""
    if min(rgba.shape[:2]) < 8:
        return rgba
    style = rng.random()
    if style < 0.24:
        return _hue(rgba, rng)
    if style < 0.32:
        return _toned(rgba, rng)
    if style < 0.46:
        return _line_art(rgba, rng)
    if style < 0.58:
        return _two_colours(rgba, rng)
    if style < 0.68:
        return _blurred(rgba, rng)
    if style < 0.76:
        return _pixelated(rgba, rng)
    if style < 0.86:
        return _printed(rgba, rng)
    if style < 0.94:
        return _bordered(rgba, rng)
    return _flat(rgba, rng)


def _with_alpha(rgb: NDArray[np.floating[Any]], rgba: Pixels) -> Pixels:
    """Premultiplied colours beside the thing's own alpha, which bounds them."""
    alpha = rgba[..., 3:]
    return np.concatenate((np.clip(rgb, 0, alpha).astype(np.uint8), alpha), axis=2)


def _hue(rgba: Pixels, rng: np.random.Generator) -> Pixels:
    """Hues turned around the grey axis (Rodrigues' formula), saturation and light changed a bit."""
    angle = rng.uniform(0.3, 2 * np.pi - 0.3)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    turn = cos * np.eye(3, dtype=np.float32) + (1 - cos) * _GREY + sin * _TURN
    rgb = rgba[..., :3].astype(np.float32) @ turn.T
    return _with_alpha(rgb * np.float32(rng.uniform(0.75, 1.2)), rgba)


def _toned(rgba: Pixels, rng: np.random.Generator) -> Pixels:
    """Grey, or grey with a tint, at times as a negative."""
    luma = rgba[..., :3].astype(np.float32) @ _LUMA
    if rng.random() < 0.2:
        luma = rgba[..., 3] - luma
    tint = np.ones(3, np.float32) if rng.random() < 0.5 else rng.uniform(0.6, 1.15, 3)
    return _with_alpha(luma[..., None] * tint.astype(np.float32), rgba)


def _inks(rng: np.random.Generator) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """A dark and a light colour, at times the other way round."""
    dark = rng.uniform(0, 110, 3) if rng.random() < 0.6 else rng.uniform(0, 40) * np.ones(3)
    light = rng.uniform(190, 256, 3) if rng.random() < 0.6 else 255 * np.ones(3)
    if rng.random() < 0.15:
        dark, light = light, dark
    return np.asarray(dark, np.float32), np.asarray(light, np.float32)


def _straight_luma(rgba: Pixels) -> NDArray[np.floating[Any]]:
    alpha = np.maximum(rgba[..., 3].astype(np.float32), 1)
    return rgba[..., :3].astype(np.float32) @ _LUMA / alpha * 255


def _line_art(rgba: Pixels, rng: np.random.Generator) -> Pixels:
    """Edges of light and of the outline as ink, the rest as paper."""
    alpha = rgba[..., 3].astype(np.float32)
    padded = np.pad(rgba.astype(np.float32), ((1, 1), (1, 1), (0, 0)))
    across = np.abs(padded[1:-1, 2:] - padded[1:-1, :-2]).max(axis=2)
    down = np.abs(padded[2:, 1:-1] - padded[:-2, 1:-1]).max(axis=2)
    edge = np.clip((np.hypot(across, down) - rng.uniform(20, 45)) / rng.uniform(40, 90), 0, 1)
    ink, paper = _inks(rng)
    share = edge[..., None]
    mixed = share * ink + (1 - share) * paper
    return _with_alpha(mixed * alpha[..., None] / 255, rgba)


def _two_colours(rgba: Pixels, rng: np.random.Generator) -> Pixels:
    """Dark and light parts as one colour each; the border between them follows the thing's own."""
    luma, solid = _straight_luma(rgba), rgba[..., 3] > 127
    if not solid.any():
        return rgba
    own = luma[solid]
    border = float(own.mean()) if rng.random() < 0.5 else float(np.median(own)) + 1
    share = np.clip((luma - border) / 12 + 0.5, 0, 1)[..., None]
    ink, paper = _inks(rng)
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return _with_alpha((share * paper + (1 - share) * ink) * alpha, rgba)


def _blurred(rgba: Pixels, rng: np.random.Generator) -> Pixels:
    picture = Image.frombytes("RGBa", rgba.shape[1::-1], np.ascontiguousarray(rgba).tobytes())
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 1.4)))))


def _pixelated(rgba: Pixels, rng: np.random.Generator) -> Pixels:
    """Coarser pixels, or fewer colours."""
    if rng.random() < 0.5:
        step = int(rng.integers(40, 90))
        rgb = (rgba[..., :3].astype(np.float32) / step).round() * step
        return _with_alpha(rgb, rgba)
    height, width = rgba.shape[:2]
    size = 2 if min(height, width) < 48 else int(rng.integers(2, 4))
    coarse = rgba[size // 2 :: size, size // 2 :: size]
    return coarse.repeat(size, 0).repeat(size, 1)[:height, :width] if coarse.size else rgba


def _printed(rgba: Pixels, rng: np.random.Generator) -> Pixels:
    """Grain, scratches or hatching over it."""
    height, width = rgba.shape[:2]
    if rng.random() < 0.6:
        grain = rng.normal(1, rng.uniform(0.06, 0.2), (height, width)).astype(np.float32)
    else:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        wave = np.sin((x + (y if rng.random() < 0.5 else -y)) * np.float32(rng.uniform(0.8, 2.0)))
        grain = 1 - np.float32(rng.uniform(0.1, 0.3)) * (wave > 0)
    return _with_alpha(rgba[..., :3] * grain[..., None], rgba)


def _bordered(rgba: Pixels, rng: np.random.Generator) -> Pixels:
    """A rim around it, white as a sticker's, or black."""
    width = int(rng.integers(1, 3))
    wide = np.pad(rgba, ((width, width), (width, width), (0, 0)))
    picture = Image.fromarray(wide[..., 3])
    rim = np.asarray(picture.filter(ImageFilter.MaxFilter(2 * width + 1)))
    shade = 255 if rng.random() < 0.6 else int(rng.integers(0, 60))
    rest = (255 - wide[..., 3:].astype(np.float32)) / 255 * rim[..., None] / 255
    rgb = wide[..., :3] + rest * shade
    alpha = wide[..., 3:] + rest * 255
    return np.concatenate((np.minimum(rgb, alpha), alpha), axis=2).astype(np.uint8)


def _flat(rgba: Pixels, rng: np.random.Generator) -> Pixels:
    """Its silhouette in one colour, its dark parts a shade darker."""
    luma = _straight_luma(rgba)[..., None]
    colour = rng.uniform(20, 235, 3).astype(np.float32)
    shade = 1 - np.float32(rng.uniform(0.25, 0.6)) * (luma < luma.mean())
    return _with_alpha(colour * shade * rgba[..., 3:] / 255, rgba)
