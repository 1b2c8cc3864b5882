"""The lab in a real browser, from a file, without a network: it shows what torch computes."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image
from tests.lab.browser import Browser, needs_browser, start_browser
from tests.lab.helpers import MINI, PATCHES, PER_ROW
from torch.utils.flop_counter import FlopCounterMode

from paliglass import PaliGemma, load
from paliglass.cli import main
from paliglass.contrastive.folders import load_contrastive
from paliglass.inspect.lessons import find
from paliglass.inspect.tracing import INPUTS, TracedRow, trace
from paliglass.lab.build import PAGE, build, build_pieces
from paliglass.lab.torch_engine import TorchLab
from paliglass.layers.rope import apply_rotary, rotary_cos_sin

pytestmark = [needs_browser, pytest.mark.slow]

VIEWS = (
    "live attention mask bench break boxes cache lens rope contrastive "
    "patches stream tokens bits roofline"
).split()
# Of the examples that have one right answer, that answer.
RIGHT = {
    "How many?": "3",
    "Which colour?": "red",
    "It is not there": "nothing",
    "Read": "CAFE",
    "An empty picture": "nothing",
}
# The engine has nothing left to answer, and goes on having nothing.
SETTLED = """
    const {store} = lab;
    for (let calm = 0; calm < 4; ) {
      await new Promise(f => setTimeout(f, 40));
      calm = store.busy || store.client.waiting.size ? 0 : calm + 1;
    }"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("lab") / "lab.html"
    with pytest.raises(SystemExit) as done:
        main(["lab", "--out", str(path)])
    assert done.value.code == 0
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as found:
        found.resize(1280)
        yield found


@pytest.fixture(scope="module")
def mini() -> PaliGemma:
    return load("mini", dtype="float32", fast=False)


@pytest.fixture(autouse=True)
def no_complaints(browser: Browser) -> Iterator[None]:
    browser.errors()
    yield
    assert browser.errors() == []


def show(browser: Browser, page: str, view: str, **state: Any) -> None:
    """Opens a view with a state, as a link does, and waits until it has drawn itself."""
    browser.open(f"{page}#{quote(json.dumps({'view': view} | state))}")
    browser.run(SETTLED)


def do(browser: Browser, script: str) -> None:
    browser.run(f"{script}; {SETTLED}")


def click(browser: Browser, label: str) -> None:
    """Presses the button that reads so."""
    find = "[...document.querySelectorAll('button')].find(b => b.textContent.trim() === given[0])"
    browser.run(
        f"const b = {find}; if (!b) throw Error('no ' + given[0]); b.click(); {SETTLED}",
        label,
    )


def text(browser: Browser, selector: str) -> str:
    found = browser.run("return document.querySelector(given[0])?.textContent ?? ''", selector)
    assert isinstance(found, str)
    return found


def texts(browser: Browser, selector: str) -> list[str]:
    found = browser.run(
        "return [...document.querySelectorAll(given[0])].map(n => n.textContent)", selector
    )
    assert isinstance(found, list)
    return found


def drawn(browser: Browser) -> Image.Image:
    """The picture on the page, at the size in which the engine is given it."""
    url = browser.run("return lab.stage.plain.toDataURL()")
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")


def traced(mini: PaliGemma, image: Image.Image, prompt: str) -> TracedRow:
    with trace(mini) as found:
        mini.generate(image, prompt)
    return found.rows[0]


def percent(share: float) -> str:
    """As dom.js writes it."""
    value = 100 * share
    if 0 < value < 0.1:
        return "< 0.1 %"
    return f"{value:.{1 if value < 10 else 0}f} %"


@contextmanager
def causal(mini: PaliGemma) -> Iterator[None]:
    def change(_module: Any, inputs: Any) -> Any:
        embeddings, positions, mask, *rest = inputs
        if embeddings.shape[1] > 1:  # what is decoded later is causal anyway
            mask = mask & torch.ones(mask.shape[-2:], dtype=torch.bool).tril()
        return (embeddings, positions, mask, *rest)

    handle = mini.model.language_model.model.register_forward_pre_hook(change)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_says_itself_in_words_and_fits_every_width(
    browser: Browser, page: str, view: str
) -> None:
    for theme, widths in (("light", (360, 1280)), ("dark", (768, 1920))):
        browser.theme(theme)
        for width in widths:
            browser.resize(width)
            show(browser, page, view, task="segment" if view == "boxes" else "caption")
            if view == "contrastive":
                browser.wait("document.querySelector('.pairs')")
            assert len(text(browser, ".in-words p")) > 40
            assert browser.run("return document.documentElement.scrollWidth") <= width
            assert len(text(browser, "h2")) > 2
            assert text(browser, ".heading .link").startswith("Lesson ")
    browser.resize(1280)
    browser.theme("light")


def test_the_answer_and_how_sure_it_is(browser: Browser, page: str, mini: PaliGemma) -> None:
    show(browser, page, "live")
    row = traced(mini, drawn(browser), "caption en")
    said = mini.generate(drawn(browser), "caption en")
    assert text(browser, ".answer-text") == said
    shares = row.logits(row.answer).softmax(-1).amax(-1).tolist()
    assert texts(browser, ".sure .num") == [percent(share) for share in shares]


def test_dragging_a_thing_answers_anew(browser: Browser, page: str, mini: PaliGemma) -> None:
    show(browser, page, "live", task="detect", words={"detect": "tractor"})
    before = drawn(browser)
    box = browser.run(
        "const b = lab.stage.picture.canvas.getBoundingClientRect(); return [b.x, b.y, b.width]"
    )
    start, end = (
        [round(box[0] + x * box[2]), round(box[1] + y * box[2])]
        for x, y in ((0.3, 0.64), (0.6, 0.7))
    )
    moves = [{"type": "pointerMove", "x": x, "y": y, "duration": 0} for x, y in (start, end, end)]
    pressed = [
        moves[0],
        {"type": "pointerDown", "button": 0},
        *moves[1:],
        {"type": "pointerUp", "button": 0},
    ]
    mouse = {
        "type": "pointer",
        "id": "mouse",
        "parameters": {"pointerType": "mouse"},
        "actions": pressed,
    }
    browser.ask("POST", "/actions", actions=[mouse])
    browser.run(SETTLED)
    after = drawn(browser)
    assert before.tobytes() != after.tobytes()
    found = browser.run("return lab.store.result.text")
    assert (
        found == mini.generate(after, "detect tractor") != mini.generate(before, "detect tractor")
    )
    assert text(browser, ".side.a p").startswith("detect tractor")  # the state before


def test_a_view_that_brings_a_picture_shows_it(browser: Browser, page: str) -> None:
    show(browser, page, "live")
    before = drawn(browser)
    do(browser, "lab.store.set({scene: {ground: '#d9d9d9', things: []}})")
    assert drawn(browser).getextrema() == ((0xD9, 0xD9),) * 3
    do(browser, "lab.tour.go('masks', 0)")
    assert browser.run("return lab.store.state.view") == "mask"
    assert drawn(browser).tobytes() == before.tobytes()


def test_what_is_offered_is_asked(browser: Browser, page: str, mini: PaliGemma) -> None:
    show(browser, page, "live", task="ask")
    offers = texts(browser, ".suggested button")
    assert "where is the tractor?" in offers
    for offer in offers:
        click(browser, offer)
        expected = mini.generate(drawn(browser), f"answer en {offer}")
        assert text(browser, ".answer-text") == expected != ""
        assert texts(browser, ".suggested [aria-pressed=true]") == [offer]
    do(browser, "lab.store.set({view: 'mask'})")
    assert texts(browser, ".suggested button") == []


def test_every_example_draws_what_it_names(browser: Browser, page: str) -> None:
    show(browser, page, "live")
    stickers = json.loads((PAGE / "stickers.json").read_text(encoding="utf-8"))["stickers"]
    seen = 0
    for card in range(len(texts(browser, ".cards .card"))):
        do(browser, f"document.querySelectorAll('.cards .card')[{card}].click()")
        things = browser.run("return lab.store.state.scene.things")
        assert {one["name"] for one in things if one["kind"] == "sticker"} <= set(stickers)
        right = RIGHT.get(texts(browser, ".cards .card b")[card])
        assert right in (None, text(browser, ".answer-text"))
        seen += bool(right)
    assert seen == len(RIGHT)


def test_a_link_brings_the_state_back(browser: Browser, page: str) -> None:
    show(
        browser,
        page,
        "attention",
        task="ask",
        words={"ask": "how many stars?"},
        layer=2,
        head=3,
        edits={"noRotary": True},
    )
    do(browser, "lab.store.set({token: 20, key: 7})")
    browser.run("await new Promise(f => setTimeout(f, 400))")
    address, said = browser.run("return [location.href, lab.store.result.text]")
    state = browser.run("return JSON.stringify(lab.store.state)")
    browser.open(address)
    browser.run(SETTLED)
    assert browser.run("return JSON.stringify(lab.store.state)") == state
    assert browser.run("return lab.store.result.text") == said


def test_a_link_brings_a_views_own_dials_back(browser: Browser, page: str) -> None:
    show(browser, page, "tokens")
    do(
        browser,
        "const field = document.querySelector('.view.tokens > input');"
        "field.value = 'two cats'; field.dispatchEvent(new Event('input'));"
        "await new Promise(f => setTimeout(f, 300))",
    )
    do(browser, "document.querySelector('.view.tokens .token.word').click()")
    first = text(browser, ".view.tokens .token.word")
    do(browser, "lab.store.set({view: 'roofline'})")
    click(browser, "int4")
    browser.run("await new Promise(f => setTimeout(f, 400))")
    address = browser.run("return location.href")
    browser.open(address)
    browser.run(SETTLED)
    assert "int4" in texts(browser, ".roofline [aria-pressed=true]")
    do(browser, "lab.store.set({view: 'tokens'})")
    assert browser.run("return document.querySelector('.view.tokens > input').value") == "two cats"
    assert texts(browser, ".view.tokens .token.word[aria-pressed=true]") == [first]
    # What does not fit is passed over.
    show(
        browser, page, "contrastive", own={"contrastive": {"texts": 3, "b": "x", "loss": "siglip"}}
    )
    browser.wait("document.querySelector('.pairs')")
    assert len(texts(browser, ".pairs textarea")) == 4


@pytest.mark.parametrize(
    ("view", "state"),
    [
        ("live", {"scene": None, "words": None, "edits": None, "task": "no", "forced": ["x"]}),
        ("live", {"scene": {"ground": "#fff", "things": [None]}, "words": {"caption": 5}}),
        ("attention", {"layer": 99, "head": -1, "token": 0.5}),
        ("boxes", {"task": "detect", "own": {"boxes": {"object": -1, "key": 99}}}),
        ("lens", {"own": {"lens": {"layer": -5}}}),
        ("roofline", {"own": {"roofline": {"rows": 0, "bits": 0}}}),
    ],
)
def test_what_of_a_link_does_not_fit_is_passed_over(
    browser: Browser, page: str, view: str, state: dict[str, Any]
) -> None:
    show(browser, page, view, **state)
    assert len(text(browser, ".answer-text")) > 10
    assert len(text(browser, ".in-words p")) > 40


def test_an_attention_weight_is_torchs(browser: Browser, page: str, mini: PaliGemma) -> None:
    show(browser, page, "attention", layer=2, head=1, token=PATCHES, key=20)
    row = traced(mini, drawn(browser), "caption en")
    weights = row.attention(2)[1, PATCHES]
    assert texts(browser, ".steps .num")[-1] == percent(weights[20].item())
    best = weights.topk(5).values.tolist()
    assert texts(browser, ".largest .num") == [percent(share) for share in best]


def test_what_is_pointed_at_is_lit_wherever_it_is_shown(browser: Browser, page: str) -> None:
    def point(selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """The mouse goes to a place in an element, in shares of its size."""
        box = browser.run(
            "const node = document.querySelector(given[0]); node.scrollIntoView({block: 'center'});"
            "const b = node.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]",
            selector,
        )
        at = {"x": round(box[0] + x * box[2]), "y": round(box[1] + y * box[3])}
        move = {"type": "pointerMove", "duration": 0, **at}
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}}
        browser.ask("POST", "/actions", actions=[{**mouse, "actions": [move]}])
        browser.run(SETTLED)

    lit = (
        "return [...document.querySelectorAll('[data-place]')]"
        ".filter(n => getComputedStyle(n).boxShadow !== 'none').map(n => n.dataset.place)"
    )
    show(browser, page, "attention", part="decoder", token=PATCHES + 6)
    word = str(PATCHES + 2)
    point(f".sentence [data-place='{word}']")
    assert browser.run(lit) == [word] * browser.run(
        "return document.querySelectorAll(`[data-place='${given[0]}']`).length", word
    )
    assert len(browser.run(lit)) >= 3  # in the sentence, among the weights, in the sum
    assert browser.run("return document.querySelectorAll('.over .lit').length") == 0

    # Once the numbers are other ones, what is pointed at stays lit; a patch also in the picture.
    point("#picture", 3.5 / PER_ROW, 2.5 / PER_ROW)
    patch = str(2 * PER_ROW + 3)
    assert set(browser.run(lit)) == {patch}
    square = "return ['x', 'y'].map(n => +document.querySelector('.over .lit').getAttribute(n))"
    assert browser.run(square) == [3000 / PER_ROW, 2000 / PER_ROW]
    point("h2")
    assert browser.run(lit) == []
    assert browser.run("return document.querySelectorAll('.over .lit').length") == 0


def test_a_finger_slides_to_the_patch_that_it_means(browser: Browser, page: str) -> None:
    browser.resize(400)
    show(browser, page, "attention")
    box = browser.run(
        "const b = lab.stage.picture.canvas.getBoundingClientRect(); return [b.x, b.y, b.width]"
    )
    assert box[2] / PER_ROW > 13  # pixels for a patch
    places = [(0.5, 2.5), (2.5, 2.5), (3.5, 2.5)]  # in patches; up and down would scroll
    down, *slide = [
        {"type": "pointerMove", "x": round(box[0] + x), "y": round(box[1] + y), "duration": 0}
        for x, y in ((x * box[2] / PER_ROW, y * box[2] / PER_ROW) for x, y in places)
    ]
    pressed = [
        down,
        {"type": "pointerDown", "button": 0},
        *slide,
        {"type": "pointerUp", "button": 0},
    ]
    touch = {"type": "pointer", "id": "finger", "parameters": {"pointerType": "touch"}}
    browser.run(
        "window.lights = []; const {picture} = lab.stage, light = picture.light.bind(picture);"
        "picture.light = place => (lights.push(place), light(place))"
    )
    browser.ask("POST", "/actions", actions=[touch | {"actions": pressed}])
    browser.run(SETTLED)
    chosen = 2 * PER_ROW + 3
    assert browser.run("return lab.store.state.token") == chosen
    lights = browser.run("return lights")
    assert [place for place in lights if place >= 0] == [chosen - 3, chosen - 1, chosen]
    assert lights[-1] == -1
    browser.resize(1280)


def test_a_causal_mask_gives_torchs_answer(browser: Browser, page: str, mini: PaliGemma) -> None:
    show(browser, page, "mask", task="detect")
    plain = browser.run("return lab.store.result.text")
    click(browser, "causal")
    with causal(mini):
        expected = mini.generate(drawn(browser), "detect tractor ; doughnut")
    assert browser.run("return lab.store.result.text") == expected != plain
    assert len(texts(browser, ".ab .said")) == 2


def test_painting_forbids(browser: Browser, page: str) -> None:
    def middles() -> tuple[int, list[int]]:
        """The drawing's columns, and the one in the middle of each place's: a word has several."""
        length, columns = browser.run(
            "return [lab.store.result.length, document.querySelector('.mask-canvas').width]"
        )
        wide, rest = divmod(columns - PATCHES, length - PATCHES)
        assert (wide > 1, rest) == (True, 0)
        words = range(PATCHES + wide // 2, columns, wide)
        return columns, [*range(PATCHES), *words]

    show(browser, page, "mask")
    prompt, *box = browser.run(
        "const canvas = document.querySelector('.mask-canvas');"
        "canvas.scrollIntoView({block: 'center'});"
        "const b = canvas.getBoundingClientRect();"
        "return [lab.store.result.prompt.length, b.x, b.y, b.width]"
    )
    columns, at = middles()
    # The prompt's last word and the whole answer are not to see patches from the fourth on, nor the
    # prompt's first two words.
    top, bottom, left, right = prompt - 1, len(at) - 1, 3, PATCHES + 1
    unit = box[2] / columns  # of the drawing, in pixels
    assert (at[right] - at[right - 1]) * unit > 8
    start, end = (
        {
            "type": "pointerMove",
            "x": round(box[0] + (at[s] + 0.5) * unit),
            "y": round(box[1] + (at[t] + 0.5) * unit),
            "duration": 0,
        }
        for t, s in ((top, left), (bottom, right))
    )
    pressed = [start, {"type": "pointerDown", "button": 0}, end, {"type": "pointerUp", "button": 0}]
    mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}}
    browser.ask("POST", "/actions", actions=[mouse | {"actions": pressed}])
    browser.run(SETTLED)
    painted = browser.run("return lab.store.state.edits.mask.painted")
    assert painted == [[top, bottom, left, right, 0]]

    # What is drawn is what the model was run with, whatever it answers now.
    columns, at = middles()
    mask, url = browser.run(
        "const mask = await lab.store.client.ask('mask', {run: lab.store.result.run});"
        "return [[...mask], document.querySelector('.mask-canvas').toDataURL()]"
    )
    allowed = np.array(mask, dtype=bool).reshape(len(at), len(at))
    assert not allowed[top : bottom + 1, left : right + 1].any()
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))
    places = image[np.ix_(at, at)]
    paper = places[top, left]
    assert ((places != paper).any(-1) == allowed).all()


def test_painting_by_keys(browser: Browser, page: str) -> None:
    show(browser, page, "mask")
    press = (
        "document.querySelector('.mask-canvas').dispatchEvent("
        "new KeyboardEvent('keydown', {key, shiftKey, bubbles: true}))"
    )
    keys = [("ArrowDown", True), ("ArrowRight", False), ("Enter", False), ("ArrowUp", False)]
    for key, shift in [*keys, ("ArrowRight", True), ("Enter", False)]:
        do(browser, f"const key = {json.dumps(key)}, shiftKey = {json.dumps(shift)}; {press}")
    assert browser.run("return lab.store.state.edits.mask.painted") == [
        [PER_ROW - 1, PER_ROW, 1, PER_ROW + 1, 0]
    ]


def test_the_next_words_are_torchs_and_another_can_be_said(
    browser: Browser, page: str, mini: PaliGemma
) -> None:
    show(browser, page, "bench")
    click(browser, "The least sure word")
    at = browser.run("return lab.store.token - lab.store.result.prompt.length + 1")
    row = traced(mini, drawn(browser), "caption en")
    shares = row.logits(row.answer)[at].softmax(-1).topk(5).values.tolist()
    shown = texts(browser, ".words tbody td:nth-child(2) .num")[:5]
    assert shown == [percent(share) for share in shares]
    before = browser.run("return lab.store.result.answer")
    do(browser, "document.querySelectorAll('.words tbody tr:not(.said) button')[0].click()")
    after = browser.run("return lab.store.result.answer")
    assert after[:at] == before[:at]
    assert after[at] != before[at]
    assert len(texts(browser, ".tree li")) == 2


def test_breaking_asks_first_and_tells_the_truth(
    browser: Browser, page: str, mini: PaliGemma
) -> None:
    show(browser, page, "break")
    click(browser, "Red and blue swapped")
    assert (
        browser.run("return Object.keys(lab.store.state.edits).length") == 0
    )  # not before a guess
    click(browser, "The same")
    red, green, blue = drawn(browser).split()
    expected = mini.generate(Image.merge("RGB", (blue, green, red)), "caption en")
    assert browser.run("return lab.store.result.text") == expected
    assert "not as you said" in text(browser, ".switch.on")
    do(browser, "lab.store.set({view: 'live'})")
    assert text(browser, ".changes").startswith("Changed: colours")  # whatever the view


def test_boxes_edges_and_grammar_are_the_packages(
    browser: Browser, page: str, mini: PaliGemma
) -> None:
    show(browser, page, "boxes", task="segment", words={"segment": "tractor"})
    prompt = "segment tractor"
    row = traced(mini, drawn(browser), prompt)
    chances = row.logits(row.answer)[:4].softmax(-1)[:, 2048:3072].amax(-1).tolist()
    assert texts(browser, ".edge-list > div > .num") == [percent(share) for share in chances]
    codes = [int(code) for code in texts(browser, ".key-code")]
    assert codes == browser.run("return lab.store.result.boxes[0].codes")
    click(browser, "on: only what makes a readable answer")
    found = mini.segment(drawn(browser), "tractor")
    boxes = browser.run("return lab.store.result.boxes.map(b => [b.label, b.box])")
    assert [label for label, _ in boxes] == [one.label for one in found]
    expected = [edge / 512 for one in found for edge in one.box]
    assert [edge for _, box in boxes for edge in box] == pytest.approx(expected)
    # The mask that is drawn covers what the package's does: the same share of the picture.
    inside = browser.run("return lab.store.result.boxes[0].mask.filter(v => v > 0).length / 4096")
    x0, y0, x1, y1 = boxes[0][1]
    assert inside * (x1 - x0) * (y1 - y0) == pytest.approx(found[0].mask.mean(), abs=0.01)


def test_the_cache_counts_as_the_package(browser: Browser, page: str, mini: PaliGemma) -> None:
    show(browser, page, "cache")
    size = traced(mini, drawn(browser), "caption en").cache[-1]
    assert f"holds {size.tokens} tokens" in text(browser, ".cache p:not(.heading p)")
    assert f"{size.bytes / 1000:.1f} kB" in text(browser, ".cache")
    do(browser, "[...document.querySelectorAll('[aria-label=\"a step back\"]')][0].click()")
    assert f"holds {size.tokens - 1} tokens" in text(browser, ".cache")


def test_a_stale_cache_says_what_it_said_and_a_fresh_one_something_else(
    browser: Browser, page: str, mini: PaliGemma
) -> None:
    show(browser, page, "cache", task="detect", words={"detect": "tractor"})
    do(
        browser,
        "const field = document.querySelector('.narrow input'); field.value = 'doughnut';"
        "field.dispatchEvent(new Event('input'))",
    )
    click(browser, "Exchange")
    stale, column, fresh = texts(browser, ".cache .said")
    assert stale == mini.generate(drawn(browser), "detect tractor")
    assert fresh == mini.generate(drawn(browser), "detect doughnut") != stale
    assert column  # whatever it is: neither of the two has to be right


def test_dragging_an_edge_asks_what_the_label_is_worth_there(
    browser: Browser, page: str, mini: PaliGemma
) -> None:
    show(browser, page, "boxes", task="detect", words={"detect": "doughnut"})
    own = browser.run("return lab.store.result.answer")
    do(
        browser,
        "const edge = document.querySelector('.edge-list input[aria-label=left]');"
        "edge.value = 100; edge.dispatchEvent(new Event('input'));"
        "await new Promise(f => setTimeout(f, 200))",
    )
    answer = browser.run("return lab.store.result.answer")
    assert answer[:4] == [own[0], 2048 + 100, *own[2:4]]
    batch = mini.processor("detect doughnut", drawn(browser))
    ids = torch.cat((batch["input_ids"], torch.tensor([answer[:4]])), 1)
    types = torch.cat((torch.zeros_like(batch["input_ids"]), torch.ones(1, 4, dtype=torch.long)), 1)
    with torch.inference_mode():
        logits = mini.model(ids, batch["pixel_values"], token_type_ids=types).logits[0, -1]
    found = browser.run("return Math.exp(lab.store.result.logProbabilities[4])")
    assert found == pytest.approx(logits[:3200].softmax(-1)[answer[4]].item(), abs=1e-4)
    click(browser, "The model's own box")
    assert browser.run("return lab.store.result.answer") == own


def test_the_lens_reads_what_the_package_reads(
    browser: Browser, page: str, mini: PaliGemma
) -> None:
    show(browser, page, "lens")
    row = traced(mini, drawn(browser), "caption en")
    for layer in range(4):
        expected = [percent(step[0].probability) for step in row.lens(layer)]
        cells = f".lens tbody tr:nth-child({4 - layer}) td:nth-child(n + {2 + 3}) button"
        titles = browser.run(
            "return [...document.querySelectorAll(given[0])].map(n => n.title)", cells
        )
        assert titles == expected
    click(browser, "An empty picture")
    browser.wait("document.querySelector('.thumb')")
    do(
        browser,
        "[...document.querySelectorAll('button')]"
        ".find(b => b.textContent.startsWith('Paste B')).click()",
    )
    assert browser.run("return lab.store.state.edits.patches.length") == 1


def test_scores_by_distance_are_torchs(browser: Browser, page: str, mini: PaliGemma) -> None:
    show(browser, page, "rope", layer=1, head=1)
    row = traced(mini, drawn(browser), "caption en")
    back = -torch.arange(1, PATCHES + 1)[None]
    cos, sin = rotary_cos_sin(back, 48, 10000.0, torch.float32)
    query = apply_rotary(row.query(1)[None, 1:2, :PATCHES], cos, sin).mean(2)
    key = apply_rotary(row.key(1)[None, 0:1, :PATCHES], cos, sin).mean(2)
    expected = []
    for distance in range(0, 4 * PER_ROW + 1, PER_ROW):
        turn = rotary_cos_sin(torch.tensor([[distance]]), 48, 10000.0, torch.float32)
        expected.append((apply_rotary(query[None], *turn) * key).sum().item() / 48**0.5)
    shown = [float(value.replace("−", "-")) for value in texts(browser, ".plot .value")]
    assert shown == pytest.approx(expected, abs=0.06)


def test_cosines_are_the_dual_encoders(browser: Browser, page: str) -> None:
    show(browser, page, "contrastive")
    browser.wait("document.querySelector('.pairs')")
    model, processor = load_contrastive(MINI.parent / "mini_dual")
    model = model.float()
    asked = browser.run(
        "return [...document.querySelectorAll('.pairs textarea')].map(n => n.value)"
    )
    with torch.inference_mode():
        picture = model.embed_images(processor.pixels(drawn(browser))[None])
        expected = (picture @ model.embed_texts(**processor.words(asked)).T)[0].tolist()
    row = texts(browser, ".pairs tbody tr:first-child small:last-of-type")
    shown = [float(value.removeprefix("cos ").replace("−", "-")) for value in row]
    assert shown == pytest.approx(expected, abs=0.006)
    click(browser, "Train with SigLIP's")
    browser.wait("document.querySelector('.toy + div .readout').textContent.startsWith('step 600')")
    first, last = browser.run(
        "const {textContent} = document.querySelector('.toy + div .readout');"
        "return textContent.match(/[0-9.]+(?=\\)| \\()/g).map(Number)"
    )
    assert first < last  # the loss, now and at first


def test_a_patch_is_projected_as_torch_does(browser: Browser, page: str, mini: PaliGemma) -> None:
    patch = 28
    show(browser, page, "patches", token=patch)
    embedding = mini.model.vision_tower.vision_model.embeddings.patch_embedding
    with torch.inference_mode():
        pixels = mini.processor.prepare(drawn(browser)).pixels[None].float()
        answers = embedding(pixels)[0, :, patch // PER_ROW, patch % PER_ROW]
    best = answers[answers.abs().sort(stable=True, descending=True).indices[:12]].tolist()
    shown = [float(one.replace("−", "-")) for one in texts(browser, ".filter .num")]
    assert shown == pytest.approx(best, abs=0.0051)
    assert len(texts(browser, ".component")) == 7 + 5
    do(browser, "document.querySelectorAll('.component')[3].click()")
    assert text(browser, ".component[aria-pressed=true]") == "tower 2"
    assert browser.run("return lab.stage.picture.map.values.length") == PATCHES


def test_a_view_marks_a_patch_and_leaves_what_was_chosen(browser: Browser, page: str) -> None:
    show(browser, page, "patches")
    assert browser.run("return [lab.store.state.token, lab.stage.picture.patch]") == [
        -1,
        (PATCHES + PER_ROW) // 2,
    ]
    assert len(texts(browser, ".over .query")) == 1
    do(browser, "lab.store.set({view: 'attention'})")
    assert browser.run("return [lab.store.state.token, lab.stage.picture.patch]") == [-1, -1]


def test_an_estimate_counts_the_tower_even_where_it_was_kept(browser: Browser, page: str) -> None:
    show(browser, page, "live")
    found = browser.run(
        """const {store} = lab, {client} = store, {ask} = client;
        const times = [400, 0.01];
        client.ask = async () =>
          ({milliseconds: {tower: times.shift(), prefill: 50, decode: 50}});
        await store.answer("p1", {});
        store.result = await store.answer("p1", {});
        client.ask = ask;
        return [store.estimate(10), store.estimate(10, false)];"""
    )
    assert found == ["about 5 s", "about 5 s"]


def test_how_long_the_tower_took_is_told_once(browser: Browser, page: str) -> None:
    show(browser, page, "live")
    assert browser.run("return lab.store.result.milliseconds.tower > 1")  # it looked ahead
    do(browser, "lab.store.set({task: 'read'})")
    assert browser.run("return lab.store.result.milliseconds.tower") == 0
    do(browser, "lab.store.set({scene: {...lab.store.state.scene, ground: '#ffffff'}})")
    assert browser.run("return lab.store.result.milliseconds.tower > 1")


def test_a_streams_lengths_are_torchs(browser: Browser, page: str, mini: PaliGemma) -> None:
    token = PATCHES + 2
    show(browser, page, "stream", token=token)
    row = traced(mini, drawn(browser), "caption en")
    streams = [
        row.hidden(INPUTS),
        *(row.hidden(name.removesuffix(".self_attn")) for name in row.attention_names),
    ]
    expected = [stream[token].norm().item() for stream in streams]
    shown = [float(one) for one in texts(browser, ".streams td:nth-of-type(3) .num")]
    assert shown == pytest.approx(expected, abs=0.051)
    before = browser.run("return lab.store.result.run")
    click(browser, "Take out")
    assert browser.run("return lab.store.state.edits.off.length") == 1
    assert browser.run("return lab.store.result.run") > before
    assert len(texts(browser, ".stream .verdict .said")) == 2


def test_tokens_and_their_rows_are_the_packages(
    browser: Browser, page: str, mini: PaliGemma
) -> None:
    show(browser, page, "tokens")
    ids = mini.processor.encode_plain("a yellow tractor")
    assert texts(browser, ".token.word small")[-len(ids) :] == [str(id) for id in ids]
    table = mini.model.language_model.model.embed_tokens.weight[:3200]
    cosines = torch.cosine_similarity(table, table[ids[-1]][None])
    cosines[ids[-1]] = -1
    shown = [float(one.replace("−", "-")) for one in texts(browser, ".near .num")]
    assert shown == pytest.approx(cosines.topk(8).values.tolist(), abs=0.0051)
    do(
        browser,
        "const merges = document.querySelector('.slider input[aria-label=merges]');"
        "merges.value = 0; merges.dispatchEvent(new Event('input'))",
    )
    assert "".join(texts(browser, ".piece")) == "a␣yellow␣tractor"
    assert len(texts(browser, ".piece")) == len("a yellow tractor")
    do(
        browser,
        "document.querySelector('.places g[role=button]').dispatchEvent(new Event('click'))",
    )
    assert "Row 2048" in text(browser, ".view.tokens")
    do(
        browser,
        "const space = new KeyboardEvent('keydown', {key: ' ', bubbles: true, cancelable: true});"
        "document.querySelectorAll('.places g[role=button]')[64].dispatchEvent(space);"
        "if (!space.defaultPrevented) throw Error('it scrolls')",
    )
    assert "Row 3071" in text(browser, ".view.tokens")


def test_fewer_bits_answer_as_torch_in_fewer_bits(
    browser: Browser, page: str, mini: PaliGemma
) -> None:
    show(browser, page, "bits")
    click(browser, "3 bits")
    image = np.asarray(drawn(browser))
    lab = TorchLab(mini)
    size = {"width": image.shape[1], "height": image.shape[0]}
    lab.ask("picture", {"name": "p", "picture": {**size, "data": image}})
    rounding = {"bits": 3, "group": 0, "part": "all"}
    found = lab.ask("run", {"picture": "p", "prompt": "caption en", "edits": {"bits": rounding}})
    assert browser.run("return lab.store.result.answer") == found["answer"]
    error = lab.ask(
        "matrix",
        {"name": "language_model.model.layers.0.mlp.down_proj.weight", "bits": 3},
    )["error"]
    assert f"= {percent(error)};" in text(browser, ".bits .readout")
    click(browser, "Ask with each number of bits")
    assert len(texts(browser, ".bits-table tr")) == 7
    click(browser, "16 bits")
    assert browser.run("return Object.keys(lab.store.state.edits).length") == 0

    # With another part changed, too, A is that change alone.
    edits: dict[str, Any] = {"noRotary": True}
    show(browser, page, "bits", edits=edits | {"bits": rounding})
    for i, own in enumerate((edits, edits | {"bits": rounding})):
        found = lab.ask("run", {"picture": "p", "prompt": "caption en", "edits": own})
        assert texts(browser, ".bits .verdict .said")[i] == found["text"]


def test_the_bits_are_asked_once_at_a_time_and_of_one_question(browser: Browser, page: str) -> None:
    show(browser, page, "bits", task="detect")
    asked = browser.run(
        """const {client} = lab.store, ask = client.ask.bind(client), asked = [];
        client.ask = (method, values) => {
          if (method === "run") {
            asked.push([values.prompt, values.grammar]);
            if (asked.length === 3) lab.store.set({grammar: true});
          }
          return ask(method, values);
        };
        const find = () => [...document.querySelectorAll("button")]
          .find(b => b.textContent === "Ask with each number of bits");
        const first = find();
        first.click();
        first.click();
        if (!find().disabled) throw Error("it can be asked twice");
        """
        + SETTLED
        + "client.ask = ask; return asked;"
    )
    # Two answers, a third under way, and the state's own; the loop's question is not on view.
    prompt = "detect tractor ; doughnut"
    assert asked[:3] == [[prompt, False]] * 3
    assert [prompt, True] in asked
    assert len(asked) < 9
    assert texts(browser, ".bits-table tr") == []
    click(browser, "Ask with each number of bits")
    assert len(texts(browser, ".bits-table tr")) == 7


def test_what_fails_behind_a_button_is_told(browser: Browser, page: str) -> None:
    show(browser, page, "bits")
    browser.run(
        """const {client} = lab.store, ask = client.ask.bind(client);
        client.ask = (method, values) =>
          ask(method, values?.edits?.bits ? {...values, picture: "none"} : values);"""
    )
    click(browser, "Ask with each number of bits")
    told = text(browser, ".failure")
    assert browser.errors() != []
    assert told == "That did not work: there is no picture none"
    find = (
        "[...document.querySelectorAll('button')].find(b => b.textContent.startsWith('Ask with'))"
    )
    assert browser.run(f"return [{find}.disabled, {find}.ariaBusy]") == [False, None]
    click(browser, "16 bits")
    assert text(browser, ".failure") == ""


def test_the_roofline_counts_what_torch_counts(
    browser: Browser, page: str, mini: PaliGemma
) -> None:
    show(browser, page, "roofline")
    lab = TorchLab(mini)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower = lab.way.look(mini.processor.prepare(drawn(browser)).pixels, {})
        mini.model.multi_modal_projector(tower.features)
    operations = texts(browser, ".roof tbody tr:first-child .num")[0]
    count, letter = operations.split()
    assert letter == "M"
    assert float(count) == pytest.approx(counter.get_total_flops() / 1e6, rel=0.006)
    click(browser, "PaliGemma 3B at 224")
    assert "PaliGemma 3B: the prompt takes 1.0" in text(browser, ".in-words p")


def test_a_lesson_opens_in_the_page_and_leads_to_the_next(browser: Browser, page: str) -> None:
    show(browser, page, "rope")
    do(browser, "document.querySelector('.heading .link').click()")
    browser.wait("document.querySelector('dialog.lesson[open] h1')")
    assert find("rope").title in text(browser, "dialog h1")
    assert browser.run("return document.querySelector('dialog img').complete")
    do(browser, "document.querySelector('dialog [aria-label^=\"lesson 14\"]').click()")
    browser.wait("document.querySelector('dialog code').textContent === 'paliglass learn gqa'")
    assert browser.run("return document.querySelectorAll('dialog a[href$=\".md\"]').length") == 0
    do(browser, "document.querySelector('dialog [aria-label=\"close the lesson\"]').click()")
    assert not browser.run("return document.querySelector('dialog').open")
    named = browser.run("return lab.tours.map(({lesson}) => lesson)")
    assert [find(topic).topic for topic in named] == named


def test_what_the_tours_claim_is_what_is_measured(browser: Browser, page: str) -> None:
    show(browser, page, "live")
    every = browser.run("return lab.tours.flatMap(({id, steps}) => steps.map((_, i) => [id, i]))")
    wrong = []
    for name, number in every:
        right, measured, told = browser.run(
            """const [id, i] = given;
            const step = lab.tours.find(tour => tour.id === id).steps[i];
            await lab.tour.go(id, i);
            await lab.store.idle;
            await lab.tour.predict(step.right);
            const {first, text} = lab.tour.outcome;
            return [step.right, Number(!first), text];""",
            name,
            number,
        )
        if measured != right:
            wrong.append(f"{name} {number}: {told}")
    assert wrong == []
    steps = browser.run("return lab.tours.map(({steps}) => steps.length)")
    assert min(steps) >= 5
    assert max(steps) <= 8
    options = browser.run(
        "return lab.tours.flatMap(({steps}) => steps.map(({options}) => options.length))"
    )
    assert set(options) == {2}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """The page in pieces on a web server: its address, its folder, what was asked for."""
    page, pieces = build_pieces(MINI, MINI.parent / "mini_dual")
    for piece in pieces:
        (tmp_path / piece.file).write_bytes(piece.packed)
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: Any) -> None:
            asked.append(self.path.lstrip("/").partition("?")[0])

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", tmp_path, asked
        server.shutdown()
        thread.join()


def test_pieces_come_when_they_are_wanted(
    browser: Browser, site: tuple[str, Path, list[str]], mini: PaliGemma
) -> None:
    address, _, asked = site
    show(browser, address, "live")
    assert text(browser, ".answer-text") == mini.generate(drawn(browser), "caption en")
    pieces = [one for one in asked if one.endswith(".bin")]
    assert (pieces.count("stickers.bin"), pieces.count("weights.bin")) == (1, 1)
    assert set(pieces) <= {"stickers.bin", "weights.bin", "codec.bin"}
    show(browser, address, "boxes", task="segment", words={"segment": "tractor"})
    assert browser.run("return lab.store.result.boxes[0].mask.length") == 4096
    assert asked.index("weights.bin") < asked.index("codec.bin")
    assert "dual-weights.bin" not in asked
    do(browser, "lab.store.set({view: 'contrastive'})")
    browser.wait("document.querySelector('.pairs')")
    assert "dual-weights.bin" in asked
    assert "lessons.bin" not in asked
    do(browser, "document.querySelector('.heading .link').click()")
    browser.wait("document.querySelector('dialog.lesson[open] h1')")


def test_the_page_shows_itself_while_the_model_is_on_its_way(
    browser: Browser, site: tuple[str, Path, list[str]]
) -> None:
    address, folder, _ = site
    whole = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(whole[: len(whole) // 2])
    browser.ask("POST", "/url", url=address)
    browser.wait("document.querySelector('.sentence [role=alert]')")
    told = text(browser, ".sentence [role=alert]")
    assert told.startswith("The model could not be read here: ")
    assert len(texts(browser, ".views button")) == len(VIEWS)
    assert browser.run("return document.documentElement.dataset.failed") == "true"

    (folder / "weights.bin").unlink()
    browser.errors()
    browser.ask("POST", "/url", url="about:blank")
    browser.ask("POST", "/url", url=address)
    browser.wait("document.querySelector('.sentence [role=alert]')")
    assert "weights.bin" in text(browser, ".sentence [role=alert]")
    browser.ask("POST", "/url", url=(folder / "index.html").as_uri())
    browser.wait("document.querySelector('.sentence [role=alert]')")
    assert "from a web server alone" in text(browser, ".sentence [role=alert]")
    browser.ask("POST", "/url", url="about:blank")  # seconds later it would complain of its preload
    browser.errors()  # those of the network


def test_on_a_server_of_another_model_it_says_whose_lab_it_is(
    browser: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "served.html"
    path.write_text(build(MINI, None, served='my "model" <i>'), encoding="utf-8")
    show(browser, path.as_uri(), "live")
    assert 'This server answers with my "model" <i>.' in text(browser, ".served")
    assert "mini answers" in text(browser, ".heading p")


def test_what_is_drawn_anew_keeps_the_keyboards_focus(browser: Browser, page: str) -> None:
    show(browser, page, "live", task="ask")
    places = {
        ".suggested button:nth-child(3)": "live",
        ".task[aria-pressed=false]": "live",
        ".token.word:nth-of-type(3)": "attention",
        ".token.answer": "mask",
    }
    for selector, view in places.items():
        do(browser, f"lab.store.set({{view: '{view}', task: 'ask', token: -1}})")
        pressed = browser.run(
            "const one = document.querySelector(given[0]);"
            f"one.focus(); one.click(); {SETTLED}; return one.textContent",
            selector,
        )
        now, still = browser.run(
            "const now = document.activeElement;"
            "return [now.textContent, now.getAttribute('aria-pressed')]"
        )
        assert (now, still) == (pressed, "true"), selector


def test_the_keyboard_is_enough(browser: Browser, page: str) -> None:
    show(browser, page, "live")
    browser.run("lab.stage.picture.canvas.focus()")
    keys = ["\ue007", "\ue014", "\ue014"]  # Enter takes a thing, the right arrow moves it
    actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
    before = browser.run("return lab.store.state.scene.things[0].x")
    browser.ask("POST", "/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])
    browser.run(SETTLED)
    assert browser.run("return lab.store.state.scene.things[0].x") == before + 30
    browser.run("document.activeElement.blur()")
    actions = [{"type": kind, "value": "2"} for kind in ("keyDown", "keyUp")]
    browser.ask("POST", "/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])
    browser.run(SETTLED)
    assert text(browser, "h2") == "Attention: who looks where"
    keys = ["\ue008", "5"]
    actions = [{"type": "keyDown", "value": key} for key in keys]
    actions += [{"type": "keyUp", "value": key} for key in reversed(keys)]
    browser.ask("POST", "/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])
    browser.run(SETTLED)
    assert text(browser, "h2") == "Roofline: computing or reading"
    actions = [{"type": kind, "value": "?"} for kind in ("keyDown", "keyUp")]
    browser.ask("POST", "/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])
    assert text(browser, "dialog[open] h1") == "How to read this page"
    click(browser, "×")
    unnamed = browser.run(
        "return [...document.querySelectorAll('button, input, textarea')].filter(n => "
        "!(n.textContent.trim() || n.ariaLabel || n.closest('label'))).length"
    )
    assert unnamed == 0
