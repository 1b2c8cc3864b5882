"""What a notebook sees of results, and results made of a text."""

from __future__ import annotations

import io
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.tiny import noise_picture

import paliglass
from paliglass import Box, Detection, Found, PaliglassError, Segment, load, parse_answer
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig

SCENE = Path(__file__).parents[2] / "assets" / "scene.png"
BOX = Box(2, 3, 20, 30)


class Page(HTMLParser):
    """Tags and texts of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def found(picture: Any = None, label: str = "dog") -> Found[Detection]:
    return Found([Detection(label, BOX, 0.875)], 64, 48, picture=picture)


def test_what_was_found_knows_its_picture(mini: Any) -> None:
    with Image.open(SCENE) as image:
        for given_as in (SCENE, str(SCENE), SCENE.read_bytes(), image.copy(), np.asarray(image)):
            result = mini.detect(given_as, "tractor")
            assert result.draw().tobytes() == result.draw(SCENE).tobytes()
            assert result.above(0.5).draw().size == image.size
    [first, second] = mini.detect([SCENE, SCENE], "tractor")
    assert first.picture == second.picture == SCENE


def test_a_picture_that_is_not_known_is_asked_for() -> None:
    with pytest.raises(PaliglassError, match=r"draw\(picture\)"):
        found().draw()


def test_a_notebook_shows_the_picture_and_a_table_of_harmless_texts() -> None:
    html = found(noise_picture(64, 48), "<b>dog</b>")._repr_html_()
    page = Page(html)
    assert page.tags.count("img") == 1
    assert "b" not in page.tags
    assert {"<b>dog</b>", "0.88", "20", "30"} <= set(page.texts)
    png = found(noise_picture(64, 48))._repr_png_()
    assert png is not None
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (64, 48)


def test_without_a_picture_a_notebook_shows_the_table(tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    for result in (found(), found(gone)):
        assert "img" not in Page(result._repr_html_()).tags
        assert result._repr_png_() is None
    assert Found([], 4, 4)._repr_html_() == "nothing found"


def test_large_pictures_are_shown_small() -> None:
    large = Image.new("RGB", (4000, 1000))
    png = Found([Detection("dog", BOX, 0.5)], 4000, 1000, picture=large)._repr_png_()
    assert png is not None
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (1024, 256)


def test_an_answer_tells_its_score_and_whether_it_was_cut() -> None:
    page = Page(paliglass.Answer("<i>two\ndogs", 0.25, "length")._repr_html_())
    assert "i" not in page.tags
    assert "(score 0.25, cut at the limit)" in page.texts


def test_show_takes_the_notebook_or_the_systems_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image))
    found(noise_picture(64, 48)).show()
    assert len(shown) == 1

    notebook: list[Any] = []
    display = type(sys)("IPython.display")
    display.display = notebook.append  # type: ignore[attr-defined]
    ipython = type(sys)("IPython")
    ipython.get_ipython = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    found(noise_picture(64, 48)).show()
    assert (len(shown), len(notebook)) == (1, 1)


def test_arrays() -> None:
    mask = np.zeros((48, 64), bool)
    mask[3:5] = True
    segments = Found([Segment("dog", BOX, mask, 0.5), Segment("cat", BOX, ~mask, 0.25)], 64, 48)
    assert segments.xyxy.tolist() == [list(BOX)] * 2
    assert segments.scores.tolist() == [0.5, 0.25]
    assert segments.labels == ["dog", "cat"]
    assert (segments.masks == np.stack([mask, ~mask])).all()
    empty: Found[Segment] = Found([], 64, 48)
    assert empty.xyxy.shape == (0, 4)
    assert empty.masks.shape == (0, 48, 64)
    with pytest.raises(PaliglassError, match="no masks"):
        _ = found().masks


def test_a_table_for_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    mask = np.ones((48, 64), bool)
    frame = Found([Segment("dog", BOX, mask, 0.5)], 64, 48).to_pandas()
    assert frame.to_dict("records") == [
        {"label": "dog", "score": 0.5, "x0": 2, "y0": 3, "x1": 20, "y1": 30, "area": 48 * 64}
    ]
    columns = ["label", "score", "x0", "y0", "x1", "y1"]
    assert list(Found([], 4, 4).to_pandas().columns) == list(found().to_pandas().columns) == columns
    assert isinstance(frame, pandas.DataFrame)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(PaliglassError, match="pip install pandas"):
        found().to_pandas()


def test_a_model_is_told_in_three_lines(mini: Any) -> None:
    lines = repr(mini).splitlines()
    assert len(lines) == 3
    count = sum(parameter.numel() for parameter in mini.model.parameters())
    millions = f"{count / 1e6:.2f} M"
    assert (
        lines[0] == f"PaliGemma: {millions} parameters, computes in bfloat16 on {mini.model.device}"
    )
    config = mini.model.config
    side, tokens = config.vision_config.image_size, config.num_image_tokens
    assert f"{side} × {side} pixels as {tokens} tokens" in lines[1]
    assert "segment" in lines[2]


class TestParseAnswer:
    """A raw answer, of any PaliGemma anywhere, as boxes and masks."""

    def test_what_the_model_wrote_is_what_detect_finds(self, mini: Any) -> None:
        text = mini.generate(SCENE, "detect tractor ; doughnut")
        parsed = parse_answer(text, (512, 512))
        expected = mini.detect(SCENE, "tractor ; doughnut", free=True)
        assert [(i.label, i.box) for i in parsed] == [(i.label, i.box) for i in expected]
        assert len(parsed) == 2

    @pytest.mark.parametrize("size", [(-5, 10), (0, 0), (640,), (640, 480, 3), (6.5, 4)])
    def test_a_size_that_no_picture_has_is_refused(self, size: Any) -> None:
        with pytest.raises(PaliglassError, match="give a picture's width and height in pixels"):
            parse_answer("<loc0256><loc0128><loc0768><loc0896> cat", size)

    def test_masks(self, mini: Any) -> None:
        text = mini.generate(SCENE, "segment doughnut")
        parsed = parse_answer(text, (512, 512), mini.mask_codec, SCENE)
        [expected] = mini.segment(SCENE, "doughnut", free=True)
        assert (parsed.masks[0] == expected.mask).all()
        assert parsed.draw().size == (512, 512)
        assert isinstance(parse_answer(text, (512, 512))[0], Detection)
        small = MaskCodec(MaskCodecConfig(8, 2, 4))  # has no such codes
        assert isinstance(parse_answer(text, (512, 512), small)[0], Detection)

    @given(
        st.lists(
            st.sampled_from(["<loc0001>", "<loc1023>", "<loc9>", "<seg001>", "dog", " ; ", "\n"])
        ).map("".join)
        | st.text()
    )
    def test_whatever_it_is_made_of(self, text: str) -> None:
        codec = MaskCodec(MaskCodecConfig(8, 2, 4))
        for item in parse_answer(text, (64, 48), codec):
            x0, y0, x1, y1 = item.box
            assert 0 <= x0 < x1 <= 64
            assert 0 <= y0 < y1 <= 48


@pytest.fixture(scope="module")
def mini() -> Any:
    return load("mini", device="cpu")
