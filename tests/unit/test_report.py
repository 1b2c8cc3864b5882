"""The page of a trace: whole in itself, escaped, and with the trace's own numbers."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch
from tests.tiny import noise_picture, tiny_model, tiny_processor, worded_config

from paliglass.inspect import trace_page as report
from paliglass.inspect.trace_page import to_html, trace_answer
from paliglass.model import PaliGemma
from paliglass.modeling_mask_codec import MaskCodec


@pytest.fixture(scope="module")
def model() -> PaliGemma:
    return PaliGemma(tiny_model(worded_config()), tiny_processor())


def test_the_page_loads_nothing(model: PaliGemma) -> None:
    page = to_html(trace_answer(model, noise_picture(), "cap en", "tiny", 6))
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|@import|url\((?!\$)""", page)
    assert "$" not in re.sub(r"<script>.*</script>", "", page, flags=re.DOTALL)


def test_what_came_from_outside_is_escaped(model: PaliGemma) -> None:
    page = to_html(trace_answer(model, noise_picture(), "<script>x</script>", "<b>", 2))
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert page.count("<script>") == 1
    assert "<b></span>" not in page
    assert "<span>&lt;b&gt;</span>" in page


def test_the_maps_are_the_traces(model: PaliGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = trace_answer(model, noise_picture(), "cap en", max_new_tokens=4)
    row, words, patches = answer.row, len(answer.words), 16
    found = json.loads(re.search(r"DATA = (\{.*?\});", to_html(answer))[1])  # type: ignore[index]
    maps = np.frombuffer(base64.b64decode(found["maps"]), np.uint8)
    maps = maps.reshape(words, 4, 5, patches)  # 3 layers and 4 heads, and the means of both
    shares = np.frombuffer(base64.b64decode(found["shares"]), np.uint8).reshape(words, 4, 5, 3)
    for layer, head in ((None, None), (2, None), (1, 3)):
        weights = row.picture_attention(
            None if layer is None else [layer], None if head is None else [head], row.answer
        ).flatten(1)
        index = 0 if layer is None else layer + 1, 0 if head is None else head + 1
        expected = weights / weights.amax(-1, keepdim=True) * 255
        assert np.abs(maps[:, *index] - expected.numpy()).max() <= 0.51
        assert np.abs(shares[:, *index, 0] - weights.sum(-1).numpy() * 255).max() <= 0.51
    monkeypatch.setattr(report, "ATTENTION_LIMIT", 10)
    few = json.loads(re.search(r"DATA = (\{.*?\});", to_html(answer))[1])  # type: ignore[index]
    assert few["heads"] == 0
    assert np.array_equal(
        np.frombuffer(base64.b64decode(few["maps"]), np.uint8).reshape(words, 4, patches),
        maps[:, :, 0],
    )


def test_words_candidates_and_cache(model: PaliGemma) -> None:
    answer = trace_answer(model, noise_picture(), "cap en", max_new_tokens=3)
    page = to_html(answer, candidates=2)
    heads = [unescape(word) for word in re.findall(r"<figcaption>(.*?)</figcaption>", page)]
    assert heads == [word.strip() or "␣" for word in answer.words]
    lists = re.findall(r'<ol class="candidates">(.*?)</ol>', page)
    firsts = [unescape(re.search(r"<b>(.*?)</b>", one)[1]) for one in lists]  # type: ignore[index]
    assert firsts == heads  # greedy
    assert all(one.count("<li>") == 2 for one in lists)
    tokens = re.findall(r"<title>(\d+) tokens</title>", page)
    assert tokens == [str(size.tokens) for size in answer.row.cache]


def test_the_drawn_mask_is_the_mask(model: PaliGemma) -> None:
    answer = trace_answer(model, noise_picture(), "cap en", max_new_tokens=4)
    cells = re.findall(r'<rect class="(prompt|answer|hidden)" x="(\d+)" y="(\d+)"', to_html(answer))
    side = round(len(cells) ** 0.5)
    drawn = np.zeros((side, side), bool)
    for kind, x, y in cells:
        drawn[int(y) // 16, (int(x) - 88) // 16] = kind != "hidden"
    words = len(answer.row) - 16
    assert np.array_equal(drawn[-words:, -words:], answer.row.mask()[16:, 16:].numpy())
    assert drawn[:, : side - words].all()


def test_what_was_found_is_drawn(model: PaliGemma) -> None:
    answer = trace_answer(model, noise_picture(), "cap en", max_new_tokens=2)
    nothing = to_html(answer)
    assert 'class="found"' not in nothing
    assert "In orange" not in nothing
    text = "<loc0000><loc0256><loc0512><loc0768> <i>dog</i>" + "<seg001>" * 16
    codec = MaskCodec()
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.fill_(0.1)
    masked = "<loc0000><loc0256><loc0512><loc0768>" + "<seg001>" * 16 + " dog"
    page = to_html(replace(answer, text=text))
    edge = answer.picture.pixels.shape[-1] / 1023
    x, y, wide, tall = map(
        float, re.findall(r'<rect x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)">', page)[0]
    )
    assert (x, y, wide, tall) == pytest.approx((256 * edge, 0, 512 * edge, 512 * edge), abs=0.06)
    assert "<title>&lt;i&gt;dog&lt;/i&gt;" in page
    assert "<image" not in page
    assert "In orange: what the answer found in it." in page
    assert to_html(replace(answer, text=masked, codec=codec)).count("<image") == 1
