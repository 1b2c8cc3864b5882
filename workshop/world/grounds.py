"""What things lie on: flat, graded, striped, noisy, papery or photo-like grounds."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Ground", "colour_name", "draw_ground", "static"]

Ground = tuple[NDArray[np.uint8], str | None]


def draw_ground(rng: np.random.Generator, size: int, plain: bool = False) -> Ground:
    """A picture, size × size × 3, mostly pale, sometimes strong or dark; and what colour it is.

    The colour is None where people would not agree on one. plain: flat, and often white.
    """
    draw = rng.random()
    if draw < (0.5 if plain else 0.12):
        colour = np.full(3, 255.0) if rng.random() < 0.8 else np.full(3, rng.uniform(0, 12))
    elif draw < 0.65:
        colour = rng.uniform(185, 256, size=3)
    elif draw < 0.85:
        colour = rng.uniform(60, 235, size=3)
    else:
        colour = rng.uniform(10, 80, size=3)
    style = 0.0 if plain else rng.random()
    if style < 0.42:
        flat = np.broadcast_to(colour.astype(np.uint8), (size, size, 3)).copy()
        return flat, colour_name(colour)
    if style < 0.62:
        return _graded(rng, size, colour)
    if style < 0.74:
        return _cloudy(rng, size, colour, 14.0), None
    if style < 0.8:
        return _striped(rng, size, colour), None
    if style < 0.88:
        return _papery(rng, size, colour), colour_name(colour)
    return _photo_like(rng, size), None


def _graded(rng: np.random.Generator, size: int, colour: NDArray[np.float64]) -> Ground:
    other = colour + rng.uniform(-45, 45, size=3)
    angle = rng.uniform(0, 2 * math.pi)
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    ramp = 0.5 + (axis * math.cos(angle) + axis[:, None] * math.sin(angle)) / 1.42
    field = colour.astype(np.float32) + ramp[..., None] * (other - colour).astype(np.float32)
    one, two = colour_name(colour), colour_name(np.clip(other, 0, 255))
    return np.clip(field, 0, 255).astype(np.uint8), one if one == two else None


def _cloudy(
    rng: np.random.Generator, size: int, colour: NDArray[np.float64], strength: float
) -> NDArray[np.uint8]:
    cells = int(rng.integers(3, 25))
    coarse = np.clip(colour + rng.normal(0, strength, size=(cells, cells, 3)), 0, 255)
    picture = Image.fromarray(coarse.astype(np.uint8))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).copy()


def _striped(rng: np.random.Generator, size: int, colour: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Stripes, checks or dots of two near colours."""
    other = np.clip(colour + rng.choice([-1, 1]) * rng.uniform(12, 40, size=3), 0, 255)
    period = size / rng.uniform(4, 16)
    phase = np.arange(size) / period + rng.random()
    x, y = phase % 1 < 0.5, (phase * rng.uniform(0.8, 1.2)) % 1 < 0.5
    pattern = rng.integers(4)
    if pattern == 0:
        on = np.broadcast_to(x, (size, size))
    elif pattern == 1:
        on = np.broadcast_to(y[:, None], (size, size))
    elif pattern == 2:
        on = x ^ y[:, None]
    else:
        fraction = phase % 1 - 0.5
        on = fraction**2 + fraction[:, None] ** 2 < 0.07
    return np.where(on[..., None], colour, other).astype(np.uint8)


def _papery(rng: np.random.Generator, size: int, colour: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Fine grain, the same in all channels."""
    bank = _grain(size)
    grain = bank[rng.integers(len(bank))]
    shift = rng.integers(size, size=2)
    grain = np.roll(grain, (int(shift[0]), int(shift[1])), (0, 1)) * np.float32(rng.uniform(3, 9))
    return np.clip(colour.astype(np.float32) + grain[..., None], 0, 255).astype(np.uint8)


def _photo_like(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """What a photograph out of focus looks like: light and colour over all scales, in two tones."""
    bank = _scales(size)
    light, tint = (bank[i] for i in rng.integers(len(bank), size=2))
    shift = rng.integers(size, size=2)
    tint = np.roll(tint, (int(shift[0]), int(shift[1])), (0, 1))
    if rng.random() < 0.5:
        light = light[:, ::-1]
    middle = rng.uniform(70, 200)
    one, two = rng.uniform(-45, 45, size=(2, 3)).astype(np.float32)
    share = np.clip(0.5 + tint[..., None] / 3, 0, 1)
    field = middle + light[..., None] * rng.uniform(12, 38) + one * share + two * (1 - share)
    if rng.random() < 0.5:  # the sky is above
        field += np.linspace(rng.uniform(0, 40), rng.uniform(-40, 0), size)[:, None, None]
    return np.clip(field, 0, 255).astype(np.uint8)


@lru_cache(maxsize=4)
def _grain(size: int) -> NDArray[np.float32]:
    """Eight fields of white noise of deviation 1, size × size."""
    return np.random.default_rng(1).standard_normal((8, size, size)).astype(np.float32)


@lru_cache(maxsize=4)
def _scales(size: int) -> NDArray[np.float32]:
    """48 fields of noise whose amplitude falls as one over frequency, as photographs' does."""
    rng = np.random.default_rng(2)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    fields = []
    for steepness in np.linspace(0.9, 1.8, 48):
        noise = rng.standard_normal((2, *frequency.shape)) / frequency**steepness
        field = np.fft.irfft2(noise[0] + 1j * noise[1], (size, size))
        fields.append(field / field.std())
    return np.stack(fields).astype(np.float32)


def static(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """A picture that shows nothing: white noise, in colour or grey, fine or coarse."""
    scale = int(rng.choice([1, 1, 2, 4, 8]))
    side = -(-size // scale)
    channels = 3 if rng.random() < 0.6 else 1
    if rng.random() < 0.5:
        noise = rng.integers(0, 256, (side, side, channels), dtype=np.uint8)
    else:
        wide = rng.normal(rng.uniform(60, 200), rng.uniform(15, 70), (side, side, channels))
        noise = np.clip(wide, 0, 255).astype(np.uint8)
    noise = np.broadcast_to(noise, (side, side, 3))
    return noise.repeat(scale, 0).repeat(scale, 1)[:size, :size].copy()


def colour_name(rgb: NDArray[np.float64]) -> str | None:
    """What most would call a colour, or None where it lies between two names."""
    red, green, blue = (float(value) / 255 for value in rgb)
    high, low = max(red, green, blue), min(red, green, blue)
    chroma = high - low
    if high < 0.14:
        return "black"
    if chroma < 0.045:
        return "white" if low > 0.955 else "grey" if 0.3 < high < 0.8 else None
    saturation = chroma / high
    if saturation < 0.22 or high < 0.3:
        return None  # a tinted grey, or too dark to tell
    if high == red:
        hue = (60 * (green - blue) / chroma) % 360
    elif high == green:
        hue = 60 * (blue - red) / chroma + 120
    else:
        hue = 60 * (red - green) / chroma + 240
    if saturation < 0.5:  # pale colours: only those that have a plain name
        ranges: tuple[tuple[float, float, str], ...] = (
            (90, 150, "green"),
            (200, 245, "blue"),
            (265, 290, "purple"),
            (320, 352, "pink"),
        )
    else:
        ranges = (
            (352, 360, "red"),
            (0, 10, "red"),
            (24, 38, "orange" if high > 0.75 else "brown"),
            (48, 62, "yellow" if high > 0.7 else ""),
            (90, 150, "green"),
            (200, 250, "blue"),
            (268, 292, "purple"),
            (318, 340, "pink" if high > 0.75 else ""),
        )
    return next((name for a, b, name in ranges if a <= hue <= b and name), None)
