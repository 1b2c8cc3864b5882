"""Whatever a file holds, it is read or refused in one line, and takes no memory to speak of."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from safetensors.torch import save, save_file
from tests.tiny import noise_picture, tiny_processor, tiny_tokenizer, worded_config

from paliglass.checkpoints.adapters import CONFIG, WEIGHTS, base_model, with_adapter
from paliglass.checkpoints.big_vision import infer_config, read_big_vision_config
from paliglass.checkpoints.folder import (
    GENERATION,
    INDEX,
    load_tokenizer,
    read_config,
    read_tensors,
    tensor_sizes,
)
from paliglass.checkpoints.mask_codec import load_mask_codec, save_mask_codec
from paliglass.checkpoints.processor import load_processor, make_processor, picture_settings
from paliglass.checkpoints.publishing import model_card, read_settings
from paliglass.checkpoints.saving import save_folder
from paliglass.contrastive.index import Index
from paliglass.errors import PaliglassError
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig
from paliglass.pictures import load_picture

FEW = settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
MEMORY = 1_000_000_000  # bytes more than before


@pytest.fixture(scope="module", autouse=True)
def memory_stays_bounded() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


def read_or_refused(read: Callable[[], object]) -> None:
    """Success or one line, and nothing else."""
    said = ""
    try:
        read()
    except PaliglassError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 20_000


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([0, -1, 1e308, 2**31, 2**63, 10**400])
    | st.sampled_from(["", "q_proj", "LORA", "../x", "\0", "\n"])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def changed(good: dict[str, Any]) -> st.SearchStrategy[Any]:
    """A good JSON object with one to three values that are anything, or anything at all."""
    some = st.dictionaries(st.sampled_from(sorted(good)) | st.text(max_size=8), JSON, max_size=3)
    return some.map(lambda changes: good | changes) | JSON


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


DAMAGE = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 255, 127, 128]) | st.integers(0, 255)),
    max_size=6,
)


def damaged(data: bytes, damage: list[tuple[float, int]], kept: float) -> bytes:
    """Some bytes changed, more of them near the beginning, where the structure is; perhaps cut."""
    spoilt = bytearray(data)
    for place, value in damage:
        spoilt[int(place**3 * (len(spoilt) - 1))] = value
    return bytes(spoilt if kept > 0.5 else spoilt[: int(2 * kept * len(spoilt))])


# Pictures


def picture(kind: str, **options: Any) -> bytes:
    image = {"GIF": noise_picture(20, 16).quantize(8)}.get(kind, noise_picture(20, 16))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXIF = Image.Exif()
EXIF[0x0112] = 6
KINDS = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")
PICTURES = {
    **{kind: picture(kind) for kind in (*KINDS, "GIF", "BMP", "PPM", "JPEG2000")},
    **{f"{kind} with metadata": picture(kind, exif=EXIF, icc_profile=SRGB) for kind in KINDS},
    "deep TIFF": b"",
    "deep PNG": b"",
}
for kind in ("TIFF", "PNG"):
    buffer = io.BytesIO()
    deep = Image.fromarray(np.arange(320, dtype=np.uint16).reshape(16, 20) * 200)
    deep.save(buffer, kind, **({"transparency": 400} if kind == "PNG" else {}))
    PICTURES[f"deep {kind}"] = buffer.getvalue()


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(sorted(PICTURES)),
    damage=DAMAGE,
    kept=st.floats(0, 1),
    frame=st.none() | st.integers(1, 3),
)
def test_pictures(
    kind: str, damage: list[tuple[float, int]], kept: float, frame: int | None
) -> None:
    data = damaged(PICTURES[kind], damage, kept)
    read_or_refused(lambda: load_picture(data, frame))


@FEW
@given(
    data=st.binary(max_size=200),
    start=st.sampled_from(
        [
            *(b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"RIFF....WEBP"),
            *(b"BM", b"P5 ", b"%PDF-1.4\n", b"\0\0\0\x20ftypavif"),
        ]
    ),
)
def test_beginnings_of_pictures(start: bytes, data: bytes) -> None:
    read_or_refused(lambda: load_picture(start + data))


@FEW
@given(
    text=st.text(max_size=60),
    head=st.sampled_from(
        ["", "data:", "data:;base64,", "data:image/png,", "https://", "a#", "\\", "~/"]
    ),
)
def test_names_of_pictures(head: str, text: str) -> None:
    read_or_refused(lambda: load_picture(head + text))


# Adapters

LAYER = "language_model.model.layers.0.self_attn.q_proj"
ADAPTER = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "bias": "none",
    "base_model_name_or_path": "google/paligemma-3b-pt-224",
    "init_lora_weights": True,
    "exclude_modules": None,
    "layers_to_transform": None,
    "use_rslora": False,
}


def base() -> Iterator[tuple[str, str, torch.Tensor]]:
    yield f"{LAYER}.weight", f"{LAYER}.weight", torch.zeros(4, 6)
    yield "language_model.model.norm.weight", "norm", torch.zeros(4)


@FEW
@given(config=changed(ADAPTER))
def test_settings_of_adapters(tmp_path: Path, config: Any) -> None:
    key = f"base_model.model.model.{LAYER.replace('model.', '', 1)}"
    save_file(
        {f"{key}.lora_A.weight": torch.zeros(2, 6), f"{key}.lora_B.weight": torch.zeros(4, 2)},
        tmp_path / WEIGHTS,
    )
    write_json(tmp_path / CONFIG, config)
    read_or_refused(lambda: list(with_adapter(base(), tmp_path)))
    read_or_refused(lambda: base_model(tmp_path))


@FEW
@given(
    shapes=st.dictionaries(
        st.sampled_from([LAYER, "model.language_model.layers.0.self_attn.q_proj", "x", "", "."]),
        st.tuples(*[st.lists(st.integers(0, 7), max_size=3)] * 2),
        max_size=3,
    ),
    dtype=st.sampled_from(
        [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn]
    ),
)
def test_tensors_of_adapters(tmp_path: Path, shapes: dict[str, Any], dtype: torch.dtype) -> None:
    write_json(tmp_path / CONFIG, ADAPTER)
    tensors = {}
    for name, (down, up) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.zeros(down).to(dtype)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.zeros(up).to(dtype)
    save_file(tensors, tmp_path / WEIGHTS)
    read_or_refused(lambda: list(with_adapter(base(), tmp_path)))


# Settings of folders

PROCESSOR = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "size": {"height": 56, "width": 56},
    "resample": 3,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


@FEW
@given(settings=changed(PROCESSOR), is_new=st.booleans())
def test_settings_of_pictures(tmp_path: Path, settings: Any, is_new: bool) -> None:
    (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
    if is_new:
        write_json(tmp_path / "processor_config.json", {"image_processor": settings})
    else:
        write_json(tmp_path / "preprocessor_config.json", settings)

    def read() -> None:
        found = picture_settings(tmp_path, 56)
        processor = make_processor(tiny_tokenizer(), worded_config(), tmp_path, **found)
        assert processor.pixels(noise_picture(5, 4)).isfinite().all()

    read_or_refused(read)


@FEW
@given(generation=changed({"eos_token_id": [1, 2], "bos_token_id": 2}))
def test_settings_of_generation(good_folder: Path, generation: Any) -> None:
    write_json(good_folder / GENERATION, generation)
    read_or_refused(lambda: read_config(good_folder))
    (good_folder / GENERATION).unlink()


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import tiny_model

    folder = tmp_path_factory.mktemp("good") / "model"
    save_folder(tiny_model(worded_config()), folder, tiny_processor())
    return folder


TOKENIZER = tiny_processor().tokenizer.to_str().encode()


@FEW
@given(damage=DAMAGE, kept=st.floats(0.3, 1))
def test_tokenizers(tmp_path: Path, damage: list[tuple[float, int]], kept: float) -> None:
    (tmp_path / "tokenizer.json").write_bytes(damaged(TOKENIZER, damage, kept))

    def read() -> None:
        processor = make_processor(load_tokenizer(tmp_path), worded_config(), tmp_path)
        read_or_refused(lambda: processor.decode(processor.encode_prefix("caption en")))

    read_or_refused(read)


@FEW
@given(
    part=st.sampled_from(
        "added_tokens normalizer pre_tokenizer post_processor decoder model padding version".split()
    ),
    value=JSON,
)
def test_parts_of_tokenizers(tmp_path: Path, part: str, value: Any) -> None:
    write_json(tmp_path / "tokenizer.json", json.loads(TOKENIZER) | {part: value})
    read_or_refused(
        lambda: make_processor(load_tokenizer(tmp_path), worded_config(), tmp_path).encode_prefix(
            "a"
        )
    )


@FEW
@given(text=st.text(max_size=80) | JSON.map(json.dumps))
def test_runs_settings(tmp_path: Path, text: str) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "config.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    read_or_refused(lambda: read_settings(tmp_path / "config.yaml"))


@FEW
@given(name=st.text(max_size=20), base=st.text(max_size=20), value=JSON)
def test_cards_stay_one_document(name: str, base: str, value: Any) -> None:
    yaml = pytest.importorskip("yaml")
    card = model_card(name, worded_config(), base, base or None, {name: value})
    head = card.removeprefix("---\n").partition("\n---\n")[0]
    front = yaml.safe_load(head)
    assert front["pipeline_tag"] == "image-text-to-text"
    assert front.get("license") == (base or None)
    assert set(front) <= {"license", "base_model", "library_name", "pipeline_tag", "tags"}
    if isinstance(value, dict):
        read_or_refused(lambda: model_card("a", worded_config(), scores=value))


# Weights

WEIGHTS_FILE = save({"a": torch.ones(3, 2), "b": torch.ones(2).bfloat16()}, {"format": "pt"})


@FEW
@given(damage=DAMAGE, kept=st.floats(0, 1))
def test_safetensors(tmp_path: Path, damage: list[tuple[float, int]], kept: float) -> None:
    (tmp_path / "model.safetensors").write_bytes(damaged(WEIGHTS_FILE, damage, kept))
    read_or_refused(lambda: tensor_sizes(tmp_path))
    read_or_refused(lambda: list(read_tensors(tmp_path)))


@FEW
@given(
    header=st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__", ""]),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(
                    ["F32", "BF16", "F8_E4M3", "F4", "BOOL", "I64", "C64", "U16", "X", 3]
                ),
                "shape": st.lists(st.integers(-1, 5) | st.just(2**62), max_size=3) | JSON,
                "data_offsets": st.tuples(st.integers(0, 64), st.integers(0, 64)) | JSON,
            }
        )
        | JSON,
        max_size=3,
    )
)
def test_headers_of_safetensors(tmp_path: Path, header: dict[str, Any]) -> None:
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(64)
    (tmp_path / "model.safetensors").write_bytes(data)
    read_or_refused(lambda: tensor_sizes(tmp_path))
    read_or_refused(lambda: list(read_tensors(tmp_path)))
    read_or_refused(lambda: Index.load(tmp_path / "model.safetensors"))
    read_or_refused(lambda: load_mask_codec(tmp_path / "model.safetensors"))


@FEW
@given(index=changed({"weight_map": {"a": "model.safetensors"}, "metadata": {}}))
def test_indexes_of_shards(tmp_path: Path, index: Any) -> None:
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS_FILE)
    write_json(tmp_path / INDEX, index)
    read_or_refused(lambda: list(read_tensors(tmp_path)))


INDEX_DATA = {"model": "m", "names": ["a"], "stamps": [[1, 2]], "words": ["w"]}


@FEW
@given(
    about=changed(INDEX_DATA),
    shapes=st.tuples(*[st.lists(st.integers(0, 3), max_size=3)] * 2),
    value=st.floats(width=32),
)
def test_indexes_of_pictures(
    tmp_path: Path, about: Any, shapes: tuple[list[int], list[int]], value: float
) -> None:
    images, texts = (torch.full(shape, value) for shape in shapes)
    metadata = {"index": json.dumps(about)}
    save_file({"images": images, "texts": texts}, tmp_path / "index", metadata)

    def search() -> None:
        Index.load(tmp_path / "index", "m", 3).search(torch.ones(3), 5)

    read_or_refused(search)


CODEC = MaskCodec(MaskCodecConfig(width=8, embedding_dim=2, num_codes=4))


@FEW
@given(
    damage=DAMAGE,
    kept=st.floats(0, 1),
    sizes=changed({"width": 8, "embedding_dim": 2, "num_codes": 4}),
)
def test_mask_codecs(
    tmp_path: Path, damage: list[tuple[float, int]], kept: float, sizes: Any
) -> None:
    save_mask_codec(CODEC, tmp_path / "codec")
    data = (tmp_path / "codec").read_bytes()
    (tmp_path / "codec").write_bytes(damaged(data, damage, kept))
    read_or_refused(lambda: load_mask_codec(tmp_path / "codec"))
    save_mask_codec(CODEC, tmp_path / "codec", metadata={"config": json.dumps(sizes)})
    read_or_refused(lambda: load_mask_codec(tmp_path / "codec"))


# .npz

buffer = io.BytesIO()
np.savez(buffer, **{"params/llm/final_norm/scale": np.ones(4), "params/a": np.ones((2, 3), "V2")})
NPZ = buffer.getvalue()


@FEW
@given(damage=DAMAGE, kept=st.floats(0, 1), at_end=st.booleans())
def test_npz(tmp_path: Path, damage: list[tuple[float, int]], kept: float, at_end: bool) -> None:
    data = damaged(NPZ[::-1], damage, 1)[::-1] if at_end else damaged(NPZ, damage, kept)
    (tmp_path / "a.npz").write_bytes(data)
    read_or_refused(lambda: read_big_vision_config(tmp_path / "a.npz"))
    read_or_refused(lambda: load_mask_codec(tmp_path / "a.npz"))


@FEW
@given(
    description=st.sampled_from(["<f4", "|O", "V2", "<M8[D]", "<U4", "bogus", "[('a', '<f4')]"])
    | st.text(max_size=6),
    shape=st.lists(st.integers(-2, 4) | st.just(2**40), max_size=3).map(tuple) | JSON,
    more=st.sampled_from(["", ", 'x': 1", "}" * 50, "(" * 2000]),
)
def test_headers_of_arrays(tmp_path: Path, description: str, shape: Any, more: str) -> None:
    header = f"{{'descr': {description!r}, 'fortran_order': False, 'shape': {shape!r}{more}}}\n"
    raw = header.encode("utf-8", "replace")
    member = b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + bytes(16)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("params/llm/final_norm/scale.npy", member)
    read_or_refused(lambda: read_big_vision_config(tmp_path / "a.npz"))
    read_or_refused(lambda: load_mask_codec(tmp_path / "a.npz"))


@FEW
@given(data=st.data())
def test_shapes_of_arrays(data: st.DataObject) -> None:
    good = {
        "img/embedding/kernel": (14, 14, 3, 32),
        "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel": (2, 32, 4, 8),
        "img/pos_embedding": (1, 16, 32),
        "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel": (2, 32, 64),
        "llm/embedder/input_embedding": (320, 48),
        "llm/layers/attn/attn_vec_einsum/w": (3, 4, 16, 48),
        "llm/layers/attn/kv_einsum/w": (3, 2, 1, 48, 16),
        "llm/layers/mlp/linear": (3, 96, 48),
    }
    infer_config(good, "here")
    key = data.draw(st.sampled_from(sorted(good)))
    shape = data.draw(st.lists(st.integers(0, 5) | st.just(10**9), max_size=5))
    read_or_refused(lambda: infer_config(good | {key: tuple(shape)}, "here"))
    with contextlib.suppress(KeyError):
        del good[key]
    read_or_refused(lambda: infer_config(good, "here"))


@FEW
@given(processor=changed({"pad_token": "<pad>", "eos_token": "<eos>", "tokenizer_class": "x"}))
def test_settings_of_tokenizers_do_not_matter_to_a_paligemma(
    good_folder: Path, processor: Any
) -> None:
    write_json(good_folder / "tokenizer_config.json", processor)
    config = read_config(good_folder)
    read_or_refused(lambda: load_processor(good_folder, config))
