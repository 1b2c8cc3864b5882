"""The lab's engine computes what the Python package computes."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.lab.helpers import ENGINE, MINI, PATCHES, floats, needs_node, run_engine, shapes, store
from tokenizers import Tokenizer
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from paliglass import PRESETS, PaliGemma, PaliGemmaForConditionalGeneration, load
from paliglass.checkpoints.folder import read_config
from paliglass.checkpoints.mask_codec import load_mask_codec
from paliglass.config import SigLipConfig
from paliglass.contrastive.config import (
    CbowConfig,
    ContrastiveConfig,
    ResNetConfig,
    TextTransformerConfig,
)
from paliglass.contrastive.folders import load_contrastive, save_contrastive
from paliglass.contrastive.modeling_contrastive import ContrastiveModel
from paliglass.generation import Request
from paliglass.inspect.tracing import INPUTS, trace
from paliglass.lab.torch_engine import TorchLab
from paliglass.lab.torch_engine.engine import page_config
from paliglass.sampling import draw, keep_top_k, keep_top_p
from paliglass.tasks.grammar import ObjectGrammar
from paliglass.tasks.prompts import detect_prompt, segment_prompt

pytestmark = needs_node

PROMPTS = [
    "caption en",
    "answer en what color is the circle?",
    detect_prompt("circle ; square"),
    segment_prompt("triangle"),
    "ocr",
]
LIMIT = 40


@pytest.fixture(scope="module")
def mini() -> PaliGemma:
    return load("mini", dtype="float32", fast=False)


def texts(count: int) -> list[str]:
    """Prompts of words, spaces, other scripts, emoji and tokens written out."""
    source = random.Random(0)
    pieces = [
        *(
            "what color is the star?",
            "detect",
            "caption en",
            " ",
            "  ",
            "   ",
            "\n",
            "\t",
            "tractor",
        ),
        *(
            "Überraschung",
            "你好",
            "日本語",
            "привет",
            "مرحبا",
            "🦊",
            "👩‍👩‍👧",
            "🇩🇪",
            "é",
            "e\u0301",
            "𝔸",
        ),
        *(
            "<loc0001>",
            "<seg000>",
            "<eos>",
            "<image>",
            "<loc",
            "<0x0A>",
            "▁",
            "<<bos>>",
            "\ufeff",
            "\0",
        ),
    ]
    letters = [*range(32, 127), *range(160, 400), *range(0x4E00, 0x4E40), *range(0x1F600, 0x1F640)]
    return [
        "".join(
            source.choice(pieces) if source.random() < 0.5 else chr(source.choice(letters))
            for _ in range(source.randint(0, 12))
        )
        for _ in range(count)
    ]


def answer_ids(
    model: PaliGemma,
    image: Image.Image,
    prompt: str,
    limit: int,
    grammar: ObjectGrammar | None = None,
) -> list[int]:
    """The tokens of the package's answer, `<eos>` included."""
    constraint = grammar.start() if grammar else None
    picture = model.processor.prepare(image)
    request = Request(prompt, [picture], constraint, max_new_tokens=limit)
    done = next(iter(model.complete([request])))
    return done.ids + [model.processor.eos_token_id] * (done.finish_reason == "stop")


def test_ids_and_texts_are_the_tokenizers(mini: PaliGemma) -> None:
    asked = texts(2000)
    source = random.Random(1)
    ids = [[source.randrange(3200) for _ in range(source.randint(0, 20))] for _ in range(1000)]
    ids += [[source.randrange(4, 260) for _ in range(source.randint(0, 8))] for _ in range(1000)]
    found = run_engine("tokenize", tokenizer=str(MINI / "tokenizer.json"), texts=asked, ids=ids)
    assert found["plain"] == [mini.processor.encode_plain(text) for text in asked]
    assert found["special"] == [
        mini.processor.tokenizer.encode(text, add_special_tokens=False).ids for text in asked
    ]
    assert found["decoded"] == [
        mini.processor.tokenizer.decode(one, skip_special_tokens=False) for one in ids
    ]


def test_pictures_are_resized_to_the_byte(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    images, sides = [], []
    for number in range(200):
        height, width = source.integers(1, 1 + (40 if number % 2 else 400), 2)
        noise = source.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if number % 3 == 0:
            noise = np.where(noise > 127, np.uint8(255), np.uint8(0))  # bicubic overshoots
        images.append(Image.fromarray(noise))
        sides.append(int(source.choice([192, 128, 224, 64, 33])))
    stored = [
        one | {"side": side} for one, side in zip(store(tmp_path, images), sides, strict=True)
    ]
    run_engine("resize", pictures=stored, out=str(tmp_path / "out"))
    found = np.fromfile(tmp_path / "out", dtype=np.uint8)
    for image, side in zip(images, sides, strict=True):
        expected = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).ravel()
        mine, found = found[: expected.size], found[expected.size :]
        assert (mine == expected).all(), (image.size, side)


@pytest.mark.slow
@pytest.mark.parametrize("wasm", [True, False], ids=["wasm", "javascript"])
def test_logits_and_tokens_are_torchs(mini: PaliGemma, tmp_path: Path, wasm: bool) -> None:
    images = [shapes(seed) for seed in range(50 if wasm else 2)]
    found = run_engine(
        "answers",
        folder=str(MINI),
        wasm=wasm,
        pictures=store(tmp_path, images),
        requests=[{"prompt": prompt, "maxNewTokens": LIMIT} for prompt in PROMPTS],
        out=str(tmp_path / "logits"),
    )["found"]
    logits = floats(tmp_path / "logits", -1, mini.processor.num_words)
    asked = [(image, prompt) for image in images for prompt in PROMPTS]
    worst = 0.0
    for (image, prompt), one in zip(asked, found, strict=True):
        mine, logits = logits[: len(one["ids"])], logits[len(one["ids"]) :]
        batch = mini.processor(prompt, image)
        assert batch["input_ids"][0].tolist() == one["prompt"]
        said = torch.tensor([one["ids"][:-1]], dtype=torch.long)
        ids = torch.cat((batch["input_ids"], said), 1)
        types = torch.cat((torch.zeros_like(batch["input_ids"]), torch.ones_like(said)), 1)
        with torch.inference_mode():
            expected = mini.model(ids, batch["pixel_values"], token_type_ids=types).logits
        expected = expected[0, len(one["prompt"]) - 1 :, : mine.shape[1]]
        worst = max(worst, (expected - torch.from_numpy(mine)).abs().max().item())
        assert expected.argmax(-1).tolist() == one["ids"]
    assert worst < 1e-4


def test_boxes_under_the_grammar_are_the_packages(mini: PaliGemma, tmp_path: Path) -> None:
    images = [shapes(seed) for seed in range(100, 106)]
    labels = ["circle", "red square", "triangle"]
    found = run_engine(
        "answers",
        folder=str(MINI),
        wasm=True,
        pictures=store(tmp_path, images),
        requests=[
            {"prompt": detect_prompt(labels), "labels": labels, "masks": False, "maxNewTokens": 60},
            {"prompt": segment_prompt(labels), "labels": labels, "masks": True, "maxNewTokens": 60},
        ],
        out=str(tmp_path / "logits"),
    )["found"]
    expected = []
    for image in images:
        for prompt, masks in ((detect_prompt(labels), False), (segment_prompt(labels), True)):
            grammar = ObjectGrammar(mini.processor, labels, masks)
            expected.append(answer_ids(mini, image, prompt, 60, grammar))
    assert [one["ids"] for one in found] == expected


@pytest.mark.parametrize("prompt", ["caption en", "answer en what color is the circle?"])
def test_what_happens_inside_is_what_a_trace_sees(
    mini: PaliGemma, tmp_path: Path, prompt: str
) -> None:
    image = shapes(7)
    found = run_engine(
        "traced",
        folder=str(MINI),
        picture=store(tmp_path, [image])[0],
        prompt=prompt,
        out=str(tmp_path / "out"),
    )
    with trace(mini) as traced:
        text = mini.generate(image, prompt)
    assert found["text"] == text
    row, tower = traced.rows[0], traced.pictures[0]
    assert found["ids"] == row.ids.tolist()
    expected = []
    for stack, names in ((tower, tower.attention_names), (row, row.attention_names)):
        expected += [weights for name in names for weights in stack.attention(name)]
        inputs = tower.patch_embeddings if stack is tower else stack.hidden(INPUTS)
        expected += [inputs, *(stack.hidden(name.removesuffix(".self_attn")) for name in names)]
    flat = torch.cat([one.flatten() for one in expected])
    torch.testing.assert_close(
        torch.from_numpy(floats(tmp_path / "out", -1)), flat, atol=1e-3, rtol=1e-4
    )

    position = row.answer.start
    layer = mini.model.language_model.model.layers[1].self_attn
    assert [one["id"] for one in found["lens"]] == [one.id for one in row.lens(1, 3)[0]]
    assert found["logit"] == pytest.approx(
        row.logits()[position, found["answer"][0]].item(), abs=1e-4
    )
    assert found["attributed"] == pytest.approx(found["logit"], abs=1e-3)
    assert found["last"] == pytest.approx(found["logit"], abs=1e-3)
    cell = found["cell"]
    assert cell["weight"] == pytest.approx(row.attention(1)[2, position, 5].item(), abs=1e-6)
    assert cell["dot"] * cell["scale"] == pytest.approx(cell["score"], abs=1e-4)
    # A token at distance 0 from itself: the score that its query and its key really have.
    query, key = row.query(1)[0, 7], row.key(1)[0, 7]
    assert found["scores"][0] == pytest.approx(
        (query @ key * layer.attention.scale).item(), abs=1e-3
    )
    # The cache is all that an answer knows of the prompt.
    assert found["stale"] == found["text"]


EDITS = {
    "mask": ({"mask": {"name": "causal"}}, False),
    "shift": ({"shift": 1000}, True),
    "off": ({"off": ["decoder.0.3", "tower.2.mlp"]}, False),
    "painted": ({"mask": {"painted": [[0, PATCHES - 1, PATCHES, PATCHES + 16, 0]]}}, False),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_the_same_edit_in_torch(mini: PaliGemma, tmp_path: Path, name: str) -> None:
    """The first logits after a prompt, with the edit made in the Python model."""
    edits, same = EDITS[name]
    image, prompt = shapes(11), "caption en"
    asked = {"folder": str(MINI), "wasm": True, "pictures": store(tmp_path, [image])}
    request = {"prompt": prompt, "maxNewTokens": 1}
    run_engine("answers", **asked, requests=[request], out=str(tmp_path / "plain"))
    run_engine("answers", **asked, requests=[request | {"edits": edits}], out=str(tmp_path / "out"))
    plain, found = (torch.from_numpy(floats(tmp_path / f, -1)) for f in ("plain", "out"))
    batch = mini.processor(prompt, image)
    with edited(mini, name), torch.inference_mode():
        logits = mini.model(**batch).logits[0, -1, : len(found)]
    torch.testing.assert_close(found, logits, atol=2e-4, rtol=0)
    assert torch.allclose(plain, found, atol=5e-3) == same


@contextmanager
def edited(mini: PaliGemma, name: str) -> Iterator[None]:
    """The same edits as in EDITS, by hooks."""
    decoder, tower = mini.model.language_model.model, mini.model.vision_tower.vision_model

    def change(_module: Any, inputs: Any) -> Any:
        embeddings, positions, mask, *rest = inputs
        mask = mask.clone()
        count = mask.shape[-1]
        if name == "mask":
            mask &= torch.ones(count, count, dtype=torch.bool).tril()
        if name == "painted":
            mask[..., :PATCHES, PATCHES:] = False
        shift = 1000 if name == "shift" else 0
        return (embeddings, positions + shift, mask, *rest)

    def silence(_module: Any, inputs: Any) -> Any:
        mixed = inputs[0].clone()
        mixed[..., 3 * 48 :] = 0
        return (mixed,)

    handles = [decoder.register_forward_pre_hook(change)]
    if name == "off":
        output = decoder.layers[0].self_attn.o_proj
        handles.append(output.register_forward_pre_hook(silence))
        mlp = tower.encoder.layers[2].mlp
        handles.append(mlp.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_another_shape_runs_too(tmp_path: Path) -> None:
    """Sizes come from config.json: a Gemma 2 with grouped heads and its caps, weights drawn."""
    torch.manual_seed(0)
    config = json.loads((MINI / "config.json").read_text())
    config["vision_config"] |= {"hidden_size": 48, "num_hidden_layers": 2, "patch_size": 32}
    config["vision_config"] |= {"num_attention_heads": 3, "intermediate_size": 80}
    config["text_config"] |= {"model_type": "gemma2", "hidden_size": 64, "num_hidden_layers": 3}
    config["text_config"] |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 20}
    config["text_config"] |= {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
    config["text_config"] |= {"query_pre_attn_scalar": 30, "num_image_tokens": 16}
    config |= {"projection_dim": 64, "hidden_size": 64}
    config["vision_config"]["projection_dim"] = 64
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    model = PaliGemmaForConditionalGeneration(read_config(tmp_path / "model")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.25)
    save_file(dict(model.named_parameters()), tmp_path / "model" / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(MINI / name, tmp_path / "model" / name)
    image = shapes(3)
    found = run_engine(
        "answers",
        folder=str(tmp_path / "model"),
        wasm=True,
        pictures=store(tmp_path, [image]),
        requests=[{"prompt": "caption en", "maxNewTokens": 4}],
        out=str(tmp_path / "logits"),
    )["found"][0]
    other = load(tmp_path / "model", dtype="float32", fast=False)
    assert found["ids"] == answer_ids(other, image, "caption en", 4)
    logits = torch.from_numpy(floats(tmp_path / "logits", len(found["ids"]), -1))
    with torch.inference_mode():
        expected = other.model(**other.processor("caption en", image)).logits[0, -1]
    torch.testing.assert_close(logits[0], expected[: logits.shape[1]], atol=1e-4, rtol=0)


CBOW = CbowConfig(3201, 20, 24)
VIT = SigLipConfig(
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=64,
    patch_size=16,
)
DUALS: dict[str, dict[str, Any]] = {
    "resnet": {"image": ResNetConfig(hidden_sizes=(8, 16), depths=(1, 2), image_size=64)},
    "vit": {"image": VIT},
    "mean": {"image": VIT, "image_pooling": "mean", "projection_bias": True, "loss": "siglip"},
}


def drawn_dual(folder: Path, text: Any = CBOW, **settings: Any) -> Path:
    """A small dual encoder whose every weight, biases and averages too, was drawn."""
    torch.manual_seed(0)
    model = ContrastiveModel(ContrastiveConfig(text=text, projection_dim=32, **settings))
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif not name.startswith("logit"):
            tensor.normal_(std=0.25)
    save_contrastive(model, folder, Tokenizer.from_file(str(MINI / "tokenizer.json")))
    return folder


@pytest.mark.parametrize("name", ["mini-dual", *DUALS])
def test_the_dual_encoder_is_the_packages(tmp_path: Path, name: str) -> None:
    settings = DUALS.get(name)
    folder = MINI.parent / "mini_dual"
    if settings:
        folder = drawn_dual(tmp_path / "dual", **({"loss": "clip"} | settings))
    model, processor = load_contrastive(folder, device="cpu")
    model = model.float()
    images = [shapes(seed) for seed in range(4)]
    asked = ["a tractor", "A RED star, and <eos>!", "", "x " * 60, "🦊 两只"]
    found = run_engine(
        "dual",
        folder=str(folder),
        pictures=store(tmp_path, images),
        texts=asked,
        out=str(tmp_path / "out"),
    )
    with torch.inference_mode():
        pixels = torch.stack([processor.pixels(image) for image in images])
        expected = torch.cat(
            (model.embed_images(pixels), model.embed_texts(**processor.words(asked)))
        )
    mine = torch.from_numpy(floats(tmp_path / "out", 9, -1))
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)
    assert found["scale"] == pytest.approx(model.scale.item(), rel=1e-6)


@pytest.mark.parametrize("image", [VIT, ResNetConfig(hidden_sizes=(8,), depths=(1,))])
def test_a_text_transformer_is_refused(tmp_path: Path, image: SigLipConfig | ResNetConfig) -> None:
    text = TextTransformerConfig(3201, 20, 40, 1, 2, 24)
    folder = drawn_dual(tmp_path / "dual", text, image=image)
    asked = {"pictures": [], "texts": [], "out": str(tmp_path / "out")}
    with pytest.raises(AssertionError, match="reads texts by cbow, not text_transformer"):
        run_engine("dual", folder=str(folder), **asked)


def test_what_the_page_computes_itself_is_right() -> None:
    """Its ridge regression, and its losses with their gradients."""
    source = np.random.default_rng(0)
    rows, answers = source.normal(size=(60, 9)), np.where(source.random(60) < 0.5, 1, -1)
    logits = torch.from_numpy(source.normal(size=(5, 5)) * 3).requires_grad_()
    found = run_engine(
        "page",
        page=str(ENGINE.parent / "page"),
        rows=rows.tolist(),
        answers=answers.tolist(),
        ridge=2.5,
        logits=logits.tolist(),
    )
    design = np.c_[rows.astype(np.float32).astype(np.float64), np.ones(60)]
    plane = np.linalg.solve(design.T @ design + 2.5 * np.eye(10), design.T @ answers)
    assert found["plane"] == pytest.approx(plane.tolist(), abs=1e-9)
    assert found["accuracy"] == (np.sign(design @ plane) == answers).mean()

    own = torch.arange(5)
    clip = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    siglip = -F.logsigmoid((2 * torch.eye(5) - 1) * logits).sum() / 5
    for loss, mine in zip((clip, siglip), found["losses"], strict=True):
        assert mine["loss"] == pytest.approx(loss.item())
        (gradient,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(torch.tensor(mine["gradient"], dtype=torch.float64), gradient)


def test_costs_are_what_torch_counts(mini: PaliGemma) -> None:
    """Operations of tower, prompt and one more word; weights read; PaliGemma's sizes."""
    lab = TorchLab(mini)
    shape = lab.ask("load", {})["config"]
    with FlopCounterMode(display=False) as first, torch.no_grad():
        tower = lab.way.look(mini.processor.prepare(shapes(1)).pixels, {})
        run = lab.way.prefill("caption en", tower, {})
    with FlopCounterMode(display=False) as second, torch.no_grad():
        lab.way.say(run, run.stream, 300)
    count = len(run.prompt)
    found = run_engine(
        "costs",
        page=str(ENGINE.parent / "page"),
        shape=shape,
        calls=[[count, count], [1, count + 1], [1, count + 1, 3]],
        answers=[
            {
                "prompt": run.prompt,
                "length": count + 1,
                "milliseconds": {"tower": tower_ms, "prefill": 4, "decode": 4},
                "edits": edits,
            }
            for tower_ms, edits in ((4, {}), (4, {"off": ["decoder.1"]}), (0.1, {"off": []}))
        ],
    )
    prompt, word, three = found["decoder"]
    assert found["tower"]["operations"] + prompt["operations"] == first.get_total_flops()
    assert word["operations"] == second.get_total_flops()
    assert three["operations"] == 3 * word["operations"]
    assert three["weights"] == word["weights"]
    matrices = lab.ask("matrices", {})
    held = sum(one["rows"] * one["columns"] for one in matrices)
    assert found["tower"]["weights"] + prompt["weights"] == held
    large = page_config(PRESETS["paligemma-3b-224"], mini.processor)
    for part in ("vision", "text"):
        assert found["large"][part].items() <= large[part].items()
    assert found["large"]["patches"] == large["patches"]
    whole, partial, kept = found["phases"]
    operations = [
        found["tower"]["operations"],
        prompt["operations"],
        word["operations"],
    ]
    assert [one["rate"] for one in whole] == [n / 0.004 for n in operations]
    assert [one["rate"] for one in partial] == [0, 0, 0]
    assert [(one["isKept"], one["rate"] > 0) for one in kept] == [
        (True, False),
        (False, True),
        (False, True),
    ]


def test_a_draw_is_the_packages(tmp_path: Path) -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(0)) * 3
    (tmp_path / "logits").write_bytes(logits.numpy().tobytes())
    settings: list[dict[str, float]] = [
        {"temperature": 0.7},
        {"temperature": 1.3, "topK": 5},
        {"temperature": 1, "topP": 0.8},
        {"temperature": 2, "topK": 40, "topP": 0.5},
    ]
    uniforms = [0.0, 0.1, 0.5, 0.9, 0.9999]
    drawn = run_engine(
        "sample",
        logits=str(tmp_path / "logits"),
        settings=settings,
        uniforms=uniforms,
        out=str(tmp_path / "out"),
    )
    found = torch.from_numpy(floats(tmp_path / "out", len(settings), 300))
    for row, setting in zip(found, settings, strict=True):
        scaled = logits / setting["temperature"]
        if "topK" in setting:
            scaled = keep_top_k(scaled, int(setting["topK"]))
        if "topP" in setting:
            scaled = keep_top_p(scaled, setting["topP"])
        torch.testing.assert_close(row, scaled.softmax(-1)[0], atol=1e-6, rtol=1e-4)
    assert drawn == [draw(logits, torch.tensor([u])).item() for u in uniforms]


def test_masks_are_the_codecs(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    codes = source.integers(0, 128, (20, 16))
    path = MINI / "mask_codec.safetensors"
    run_engine("masks", codec=str(path), codes=codes.tolist(), out=str(tmp_path / "masks"))
    expected = load_mask_codec(path).decode(torch.from_numpy(codes))
    found = torch.from_numpy(floats(tmp_path / "masks", 20, 64, 64))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_kernel_is_its_sources() -> None:
    wasmtime = pytest.importorskip(
        "wasmtime", reason="wasmtime, which reads .wat, is not installed"
    )
    source = (ENGINE / "kernel.wat").read_text(encoding="utf-8")
    assert bytes(wasmtime.wat2wasm(source)) == (ENGINE / "kernel.wasm").read_bytes()
