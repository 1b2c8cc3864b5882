"""The lab's two engines answer alike: every method, and with every part of the model changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.lab.helpers import MINI, PATCHES, SIZES, needs_node, run_engine, shapes, store
from tests.tiny import GEMMA2, tiny_model, tiny_processor, worded_config

from paliglass import PaliGemma, load
from paliglass.checkpoints import save_folder
from paliglass.errors import PaliglassError
from paliglass.lab.torch_engine import METHODS, TorchLab, engine, weights
from paliglass.lab.torch_engine.weights import matrix_of, principal, rounded, rounded_copy

PICTURE = np.asarray(shapes(0))
P = PATCHES
LAST = P + 2  # of the prompt "detect circle"
EDITS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "bgr": {"channels": "bgr"},
    "grey": {"channels": "grey"},
    "no tower positions": {"towerPositions": "none"},
    "transposed": {"towerPositions": "transposed"},
    "shuffled": {"features": "shuffled"},
    "pooled and scaled": {"features": "pooled", "scaleFeatures": True},
    "zero": {"features": "zero"},
    "words without √D": {"unscaledWords": True},
    "no rotary": {"noRotary": True},
    "shifted": {"shift": 7},
    "no newline": {"noNewline": True},
    "centred norms": {"norm": "layer"},
    "causal": {"mask": {"name": "causal"}},
    "blind": {"mask": {"name": "blind"}},
    "answer alone": {"mask": {"name": "self"}},
    "window": {"mask": {"name": "window", "window": 3}},
    "painted": {
        "mask": {
            "painted": [
                [0, P + 6, 3, 40, 0],
                [10, 20, LAST, LAST + 2, 1],
                [P - 4, P + 26, P - 4, P + 26, 0],
            ]
        }
    },
    "relu": {"activation": "relu"},
    "no activation": {"activation": "none"},
    "no scale": {"unscaledScores": True},
    "parts off": {
        "off": ["tower.1", "tower.2.0", "tower.3.mlp", "decoder.0.3", "decoder.1.attention"]
    },
    "a layer and an MLP off": {"off": ["decoder.2", "decoder.1.mlp", "tower.0.attention"]},
    "neurons off": {"off": ["decoder.1.mlp.7", "decoder.1.mlp.575", "decoder.3.mlp.0"]},
    "four bits": {"bits": {"bits": 4, "group": 0, "part": "all"}},
    "three bits in groups": {"bits": {"bits": 3, "group": 32, "part": "decoder"}},
    "patched": {
        "patches": [
            {"layer": -1, "position": LAST, "vector": [0.5] * 192},
            {"layer": 1, "position": 5, "vector": [0.1 * (i % 7) for i in range(192)]},
        ]
    },
}
MATRIX = "language_model.model.layers.1.mlp.down_proj.weight"
Calls = list[tuple[str, dict[str, Any]]]
LATER: Calls = [
    ("keep", {"run": 1}),
    ("attention", {"run": 1, "part": "tower", "layer": 2, "head": 1}),
    ("attention", {"run": 1, "part": "decoder", "layer": 3, "head": 2}),
    ("heads", {"run": 1, "part": "decoder", "token": LAST}),
    ("heads", {"run": 1, "part": "tower", "token": 9, "to": True}),
    ("cell", {"run": 1, "part": "decoder", "layer": 1, "head": 2, "row": 30, "column": LAST + 4}),
    ("cell", {"run": 1, "part": "decoder", "layer": 1, "head": 2, "row": LAST, "column": 7}),
    ("cell", {"run": 1, "part": "tower", "layer": 0, "head": 3, "row": 8, "column": 7}),
    ("hidden", {"run": 1, "part": "decoder", "layer": -1}),
    ("hidden", {"run": 1, "part": "tower", "layer": 5}),
    ("lens", {"run": 1, "positions": [P + 1, LAST, LAST + 1], "k": 2}),
    ("logits", {"run": 1, "step": 0}),
    ("top", {"run": 1, "step": 1, "k": 4}),
    ("edges", {"run": 1, "first": 0}),
    ("patch", {"run": 1, "layer": 2, "position": LAST}),
    ("attribution", {"run": 1, "position": LAST, "id": 300}),
    ("score", {"run": 1, "step": 0, "ids": [300, 5]}),
    ("mask", {"run": 1}),
    ("distances", {"run": 1, "layer": 1, "head": 0, "most": 20, "span": [0, P]}),
    ("cache", {"run": 1, "layer": 0}),
    ("exchanged", {"run": 1, "position": P + 1, "id": 300, "how": "stale"}),
    ("exchanged", {"run": 1, "position": P + 1, "id": 300, "how": "column"}),
    ("components", {"run": 1, "part": "tower", "layer": 3, "first": 0, "count": P}),
    ("similar", {"run": 1, "part": "decoder", "layer": 2, "token": 9, "first": 0, "count": P}),
    ("stream", {"run": 1, "part": "tower", "position": 9}),
    ("stream", {"run": 1, "part": "decoder", "position": LAST}),
    ("neurons", {"run": 1, "layer": 1, "position": LAST, "k": 4}),
    ("projected", {"run": 1, "patch": 19}),
    ("filters", {}),
    ("matrices", {}),
    ("matrix", {"name": MATRIX, "bits": 4}),
    ("matrix", {"name": MATRIX, "bits": 2, "group": 32}),
    ("matrix", {"name": MATRIX, "bits": 16}),
    ("nearest", {"id": 300, "k": 4}),
    ("tableComponents", {"ids": list(range(2048, 3072, 16)), "k": 2}),
    ("merges", {"text": "a yellow tractor 🚜"}),
    ("merges", {"text": ""}),
    ("words", {"ids": [0, 1, 5, 300, 2050]}),
    ("tokenize", {"text": "detect a tractor"}),
    ("ids", {}),
]


INNER = ("components", "similar", "stream", "neurons", "projected")


@pytest.fixture(scope="module")
def mini() -> PaliGemma:
    return load("mini", dtype="float32", fast=False)


def both(
    model: PaliGemma, folder: Path, tmp_path: Path, calls: Calls
) -> tuple[list[Any], list[Any]]:
    """What the two engines answer to calls about `PICTURE`, which is p; the first is load's."""
    codec = folder / "mask_codec.safetensors"
    out = tmp_path / "answers.json"
    run_engine(
        task="protocol",
        folder=str(folder),
        codec=str(codec) if codec.exists() else None,
        picture=store(tmp_path, [Image.fromarray(PICTURE)])[0],
        calls=calls,
        out=str(out),
    )
    lab = TorchLab(model)
    answers = [lab.ask("load", {})]
    picture = {"width": PICTURE.shape[1], "height": PICTURE.shape[0], "data": PICTURE}
    lab.ask("picture", {"name": "p", "picture": picture})
    answers += [lab.ask(method, values) for method, values in calls]
    return json.loads(out.read_text()), answers


def assert_alike(page: Any, here: Any, place: str, tolerance: float = 1e-4) -> None:
    if isinstance(page, dict):
        page, here = ({**one, "milliseconds": 0} for one in (page, here))
        assert {str(key) for key in here} == set(page), place
        for key, value in here.items():
            assert_alike(page[str(key)], value, f"{place}.{key}", tolerance)
    elif isinstance(here, np.ndarray) or (
        isinstance(page, list) and page and all(isinstance(x, int | float) for x in page)
    ):
        assert np.shape(here) == np.shape(page), place
        largest = max(1.0, float(np.abs(page).max(initial=0)))
        assert np.abs(np.subtract(page, here)).max(initial=0) <= tolerance * largest, place
    elif isinstance(page, list):
        assert len(page) == len(here), place
        for i, (a, b) in enumerate(zip(page, here, strict=True)):
            assert_alike(a, b, f"{place}[{i}]", tolerance)
    elif isinstance(page, float) or isinstance(here, float):
        assert here == pytest.approx(page, rel=10 * tolerance, abs=tolerance), place
    else:
        assert page == here, place


@needs_node
@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
def test_both_engines_answer_alike(mini: PaliGemma, tmp_path: Path, edits: dict[str, Any]) -> None:
    prompt = "detect circle"
    asked = {"edits": edits, "maxNewTokens": 12, "forced": [2100, 2200, 2300, 2400, 300]}
    calls: Calls = [
        ("run", {"picture": "p", "prompt": prompt, **asked}),
        ("run", {"picture": "p", "prompt": prompt}),
    ]
    calls += (
        [*LATER, ("moved", {"run": 1, "other": 2})]
        if not edits
        else [*LATER[:18], *(call for call in LATER if call[0] in INNER)]
    )
    # Without a scale mini's scores are seven times too large, and the softmax's rounding with them.
    asked_of = small_queries(tmp_path / "mini") if "unscaledScores" in edits else (mini, MINI)
    page, here = both(*asked_of, tmp_path, calls)
    names = ["load", *(method for method, _ in calls)]
    for name, a, b in zip(names, page, here, strict=True):
        assert_alike(a, b, name)


def small_queries(folder: Path) -> tuple[PaliGemma, Path]:
    """mini with the scale in its queries: one that without a scale is mini itself."""
    model = load("mini", dtype="float32", fast=False)
    size = SIZES.text_config.head_dim
    assert size == SIZES.vision_config.hidden_size // SIZES.vision_config.num_attention_heads
    for name, parameter in model.model.named_parameters():
        if ".q_proj." in name:
            parameter.detach().mul_(size**-0.5)
    save_folder(model.model, folder, model.processor)
    return model, folder


@needs_node
@pytest.mark.parametrize("prompt", ["detect circle ; square", "segment triangle", "caption en"])
def test_both_engines_keep_to_the_grammar(mini: PaliGemma, tmp_path: Path, prompt: str) -> None:
    calls: Calls = [
        ("run", {"picture": "p", "prompt": prompt, "grammar": True}),
        ("logits", {"run": 1, "step": 0}),
        ("run", {"picture": "p", "prompt": prompt, "forced": [2100, 2200], "grammar": True}),
        ("decodeMask", {"codes": list(range(16))}),
    ]
    page, here = both(mini, MINI, tmp_path, calls)
    assert page[1]["text"] == here[1]["text"]
    for name, a, b in zip(("load", "run", "logits", "forced", "mask"), page, here, strict=True):
        assert_alike(a, b, name)


@needs_node
def test_gemma_2_is_answered_for_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = worded_config(**GEMMA2)
    model = PaliGemma(tiny_model(config, std=0.3), tiny_processor())
    save_folder(model.model, tmp_path / "tiny", model.processor)
    calls: Calls = [("run", {"picture": "p", "prompt": "caption en", "maxNewTokens": 6})]
    page, here = both(model, tmp_path / "tiny", tmp_path, calls)
    assert_alike(page, here, "gemma 2")


def test_a_model_in_int8_is_one_with_the_weights_that_int8_leaves() -> None:
    model = load("mini", dtype="float32", quantize="int8", fast=False)
    plain = load("mini", dtype="float32", fast=False)
    left = {name: matrix_of(module) for name, _, module in weights.matrices(model.model)}
    for name, _, module in weights.matrices(plain.model):
        matrix = matrix_of(module).detach()
        assert (matrix - left[name]).abs().max() <= matrix.abs().amax(1).max() / 250
        matrix.copy_(left[name])
    picture = {"width": PICTURE.shape[1], "height": PICTURE.shape[0], "data": PICTURE}
    asked = {"edits": {}, "maxNewTokens": 12, "forced": [2100, 2200, 2300, 2400, 300]}
    calls: Calls = [
        ("picture", {"name": "p", "picture": picture}),
        ("run", {"picture": "p", "prompt": "detect circle", **asked}),
        ("run", {"picture": "p", "prompt": "detect circle"}),
        *LATER,
    ]
    labs = TorchLab(plain), TorchLab(model)
    for method, values in calls:
        a, b = (lab.ask(method, values) for lab in labs)
        assert_alike(json.loads(json.dumps(a, default=np.ndarray.tolist)), b, method)
    assert labs[1].ask("measure", {})["bytesPerWeight"] == 1
    with pytest.raises(PaliglassError, match="in int8 already"):
        labs[1].ask("run", {"picture": "p", "prompt": "ocr", "edits": {"bits": {"bits": 4}}})
    found = labs[1].ask("run", {"picture": "p", "prompt": "caption en"})
    assert found["text"] == model.generate(PICTURE, "caption en")


def test_it_answers_as_the_package_does(mini: PaliGemma) -> None:
    lab = TorchLab(mini)
    picture = {"width": PICTURE.shape[1], "height": PICTURE.shape[0], "data": PICTURE}
    lab.ask("picture", {"name": "p", "picture": picture})
    found = lab.ask("run", {"picture": "p", "prompt": "caption en"})
    assert found["text"] == mini.generate(PICTURE, "caption en")


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("__init__", {}, "no method"),
        ("_forget", {}, "no method"),
        ("run", {}, "run: "),
        ("run", {"picture": "other", "prompt": "x"}, "no picture other"),
        ("run", {"picture": "p", "prompt": "x", "edits": {"mask": {"name": "moon"}}}, "run: "),
        ("hidden", {"run": 9, "part": "tower", "layer": 0}, "run 9 is no longer kept"),
        ("picture", {"name": "p", "picture": {"width": 2, "height": 2, "data": [1]}}, "picture: "),
        ("top", {"run": 1, "step": 99}, "top: "),
        ("matrix", {"name": "moon", "bits": 4}, "the model has no matrix 'moon'"),
        ("matrix", {"name": MATRIX, "bits": 4, "group": -3}, "a group is so many weights"),
    ],
)
def test_what_cannot_be_answered_is_named(
    mini: PaliGemma, method: str, values: dict[str, Any], message: str
) -> None:
    lab = TorchLab(mini)
    picture = {"width": 1, "height": 1, "data": [1, 2, 3]}
    lab.ask("picture", {"name": "p", "picture": picture})
    lab.ask("run", {"picture": "p", "prompt": "caption en", "maxNewTokens": 1})
    with pytest.raises(PaliglassError, match=message):
        lab.ask(method, values)


def test_a_group_is_a_row_at_the_most() -> None:
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(weight, 4, 1 << 40), rounded(weight, 4, 0))


@pytest.mark.parametrize(("rows", "width"), [(40, 90), (90, 40), (3, 20), (20, 3)])
def test_components_are_an_exact_decompositions(rows: int, width: int) -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=source) * torch.linspace(2, 0.1, width) + 1
    found = principal(x, 2)
    left, sizes, _ = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False)
    assert found["shares"] == pytest.approx((sizes**2 / (sizes**2).sum())[:2].tolist())
    scores = torch.from_numpy(found["scores"]).reshape(rows, 2).double()
    expected = left[:, :2] * sizes[:2]
    torch.testing.assert_close(scores.abs(), expected.abs(), atol=1e-5, rtol=0)
    assert (scores.amax(0) == scores.abs().amax(0)).all()


def test_methods_are_those_of_the_page() -> None:
    text = (MINI.parent / "lab/engine/lab.js").read_text()
    missing = [name for name in METHODS if f"\n  {name}(" not in text]
    assert missing == []


def test_a_picture_goes_through_the_tower_once(mini: PaliGemma) -> None:
    lab = TorchLab(mini)
    picture = {"width": PICTURE.shape[1], "height": PICTURE.shape[0], "data": PICTURE}
    lab.ask("picture", {"name": "p", "picture": picture})
    asked = {"picture": "p", "prompt": "ocr", "maxNewTokens": 1}
    kinds: list[dict[str, Any]] = [
        {},
        {"noRotary": True},
        {"off": ["decoder.0.1"]},
        {"off": ["decoder.0.1", "tower.0.1"]},
        {"channels": "bgr"},
        {"bits": {"bits": 8, "group": 0, "part": "table"}},
    ]
    for edits in kinds:
        lab.ask("run", {**asked, "edits": edits})
    first, *others = (run.tower for run in lab.runs.values())
    assert [tower is first for tower in others] == [True, True, False, False, False]
    # Four towers are kept for the next prompt; the first, pushed out, by its runs.
    towers = {id(run.tower): run.tower.nbytes for run in lab.runs.values()}
    assert len(towers) == 4
    assert lab.nbytes == sum(towers.values()) + sum(run.nbytes for run in lab.runs.values())
    size = sum(tensor.nbytes for tensor in vars(first.layers[0]).values())
    assert first.nbytes > len(first.layers) * size


def test_a_long_answer_is_cut_off(mini: PaliGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PATIENCE", 0.0)
    lab = TorchLab(mini)
    lab.ask("picture", {"name": "p", "picture": {"width": 1, "height": 1, "data": [1, 2, 3]}})
    found = lab.ask("run", {"picture": "p", "prompt": "caption en"})
    assert (len(found["answer"]), found["ended"]) == (1, False)


def test_a_second_copy_that_is_too_large_is_refused(
    mini: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "LARGEST_COPY", 1 << 20)
    with pytest.raises(PaliglassError, match=r"second copy of the weights, 0\.0 GB"):
        rounded_copy(mini.model, {"bits": 4, "group": 0, "part": "all"})


def test_towers_go_before_runs_do(mini: PaliGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = TorchLab(mini)
    picture = {"width": 1, "height": 1, "data": [1, 2, 3]}
    for name in ("p", "q"):
        lab.ask("picture", {"name": name, "picture": picture})
    lab.ask("run", {"picture": "p", "prompt": "ocr", "maxNewTokens": 1})
    asked = {"picture": "q", "prompt": "ocr", "maxNewTokens": 1}
    lab.ask("run", asked)
    assert len(lab.towers) == 2
    # Room for three runs and their two towers, which is not so much as a third tower wants.
    run, tower = lab.runs[1].nbytes, lab.runs[1].tower.nbytes
    monkeypatch.setattr(engine, "MEMORY", 3 * run + 2 * tower)
    lab.ask("run", asked)
    assert (list(lab.runs), len(lab.towers)) == ([1, 2, 3], 2)
    lab.ask("run", {**asked, "edits": {"channels": "bgr"}})
    assert lab.nbytes <= engine.MEMORY
    assert (list(lab.runs), len(lab.towers)) == ([2, 3, 4], 1)


def test_old_runs_go_and_held_ones_stay(mini: PaliGemma) -> None:
    lab = TorchLab(mini)
    picture = {"width": 1, "height": 1, "data": [1, 2, 3]}
    lab.ask("picture", {"name": "p", "picture": picture})
    for number in range(1, 14):
        assert lab.ask("run", {"picture": "p", "prompt": "ocr", "maxNewTokens": 1})["run"] == number
        if number == 1:
            lab.ask("keep", {"run": 1})
    assert list(lab.runs) == [1, *range(4, 14)]
