"""info, convert, verify."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.helpers import Result, picture
from tests.tiny import tiny_processor, tiny_tokenizer
from tests.tiny_dual import CONFIGS, dual_model
from tests.unit.test_adapters import adapter, layers

from paliglass import PRESETS, load
from paliglass.checkpoints import load_big_vision
from paliglass.checkpoints.config_json import paligemma_to_json
from paliglass.checkpoints.folder import read_config
from paliglass.checkpoints.hub import locate
from paliglass.contrastive.folders import save_contrastive
from paliglass.fast import available_methods
from paliglass.fast.matrix import is_available
from paliglass.fast.onednn import has_kernel, knows_layout
from paliglass.inspect.info import describe
from paliglass.layers.attention import MOST_SCORES

BIG_VISION = Path(__file__).parents[1] / "fixtures" / "big_vision"


class TestInfo:
    def test_known_figures_of_paligemma_3b(self, cli):
        [info] = cli("info", "paligemma-3b-224", "--json").records()
        assert info["parameters"]["total"] == 2_923_466_480
        assert sum(info["parameters"].values()) == 2 * info["parameters"]["total"]
        assert info["image_tokens"] == 256
        assert info["cache_bytes_per_token"]["bfloat16"] == 18 * 1024
        assert info["memory_bytes"]["bfloat16"] == 2 * info["parameters"]["total"]

    @pytest.mark.parametrize("preset", PRESETS)
    def test_int8_takes_about_half_of_bfloat16(self, preset):
        memory = describe(PRESETS[preset]).memory
        if preset != "tiny":  # there, the scales of the rows weigh more
            assert 0.5 < memory["int8"] / memory["bfloat16"] < 0.51
            assert 0.5 < memory["int4"] / memory["int8"] < 0.8
        assert memory["bfloat16"] * 2 == memory["float32"]

    def test_a_folder_without_weights(self, cli, model_folder):
        folder = Path("only_config")
        folder.mkdir()
        shutil.copy(model_folder / "config.json", folder)
        [info] = cli("info", folder, "--json").records()
        loaded = load(model_folder).model
        assert info["parameters"]["total"] == sum(p.numel() for p in loaded.parameters())
        assert info["config"] == paligemma_to_json(loaded.config)

    def test_a_big_vision_file(self, cli):
        path = BIG_VISION / "pg2_ckpt.npz"
        [info] = cli("info", path, "--json").records()
        model = load_big_vision(path)
        assert info["parameters"]["total"] == sum(p.numel() for p in model.parameters())

    def test_the_table_has_the_sizes(self, cli):
        text = cli("info", "paligemma2-28b-896").out
        for figure in ("46 layers", "32 query, 16 key/value, of 128", "4096 tokens", "55.3 GB"):
            assert figure in text

    def test_of_a_small_model_a_picture_takes_kilobytes(self, cli):
        tokens = read_config(locate("mini")).num_image_tokens
        told = f"768 bytes a token, {768 * tokens / 1000:.1f} kB a picture"
        assert told in cli("info", "mini").out

    @pytest.mark.parametrize("kind", ["siglip", "resnet-cbow-clip", "vit-transformer-clip"])
    def test_a_dual_encoder(self, cli, kind):
        model = dual_model(CONFIGS[kind])
        save_contrastive(model, "dual", tiny_tokenizer())
        [info] = cli("info", "dual", "--json").records()
        assert info["parameters"]["total"] == sum(p.numel() for p in model.parameters())
        state = model.state_dict().values()
        assert info["memory_bytes"]["float32"] == 4 * sum(t.numel() for t in state)
        assert info["config"] == model.config.to_dict()
        text = cli("info", "dual").out
        assert f"parameters, all\t{info['parameters']['total']:,}" in text
        assert ("ResNet" if "resnet" in kind else "ViT") in text
        assert cli("info", "dual", "--training").code == 2

    def test_what_is_not_a_model(self, cli):
        result = cli("info", "no-such-model")
        assert result.code == 1
        assert result.err.startswith("error: no-such-model: no such folder")


class TestConvert:
    def test_a_folder_comes_back_equal_and_narrower(self, cli, model_folder):
        assert cli("convert", model_folder, "new/same").code == 0
        assert cli("convert", model_folder, "new/half", "--dtype", "bfloat16").code == 0
        source = load_file(model_folder / "model.safetensors")
        same = load_file("new/same/model.safetensors")
        half = load_file("new/half/model.safetensors")
        assert same.keys() == half.keys() == source.keys()
        for name, tensor in source.items():
            assert torch.equal(same[name], tensor)
            assert torch.equal(half[name], tensor.bfloat16())
        picture("a.png")
        for folder in (model_folder, "new/same"):
            answer = load(model_folder).caption("a.png", max_new_tokens=6)
            assert cli("caption", "a.png", "--model", folder).out == answer + "\n"

    def test_a_big_vision_file_with_what_its_arrays_do_not_tell(self, cli):
        processor = tiny_processor()
        Path("words").mkdir()
        processor.tokenizer.save("words/tokenizer.json")
        source = BIG_VISION / "pg2_ckpt.npz"
        settings = {"attn_logit_softcapping": 5, "query_pre_attn_scalar": 12}
        flags = [f"--set={name}={value}" for name, value in settings.items()]
        image_token = processor.image_token_id
        flags += ["--set", "final_logit_softcapping=none"]
        flags += ["--set", f"image_token_index={image_token}", "--tokenizer", "words"]
        assert cli("convert", source, "new", *flags).code == 0
        config = json.loads(Path("new/config.json").read_text())
        assert config["text_config"].items() >= settings.items()
        assert config["text_config"]["final_logit_softcapping"] is None
        expected = load_big_vision(
            source, **settings, final_logit_softcapping=None, image_token_index=image_token
        )
        converted = load("new").model
        assert converted.config == expected.config
        for name, tensor in expected.state_dict().items():
            assert torch.equal(converted.state_dict()[name], tensor)

    def test_nothing_is_overwritten(self, cli, model_folder):
        Path("taken").mkdir()
        Path("taken/file").write_text("mine")
        result = cli("convert", model_folder, "taken")
        assert (result.code, result.out) == (1, "")
        assert result.err == "error: taken: exists already; choose a new folder\n"
        assert [path.name for path in Path("taken").iterdir()] == ["file"]

    def test_a_failure_leaves_no_folder(self, cli, model_folder, monkeypatch):
        def fails(*_, **__):
            raise OSError(28, "No space left on device", "new")

        monkeypatch.setattr("paliglass.checkpoints.saving.save_file", fails)
        result = cli("convert", model_folder, "new")
        assert (result.code, result.err) == (1, "error: new: No space left on device\n")
        assert list(Path().iterdir()) == []

    def test_an_npz_needs_a_tokenizer(self, cli):
        shutil.copy(BIG_VISION / "pg1_ckpt.npz", ".")
        result = cli("convert", "pg1_ckpt.npz", "new")
        assert result.code == 1
        assert "tokenizer.json" in result.err

    def test_settings_must_be_known(self, cli, model_folder):
        assert cli("convert", model_folder, "new", "--set", "rope_thetta=1").code == 1
        np.savez("not_a_model.npz", x=np.zeros(3))
        assert cli("convert", "not_a_model.npz", "new").code == 1
        for wrong in ("rope_theta", "=3", "rope_theta=ten"):
            assert cli("convert", model_folder, "new", "--set", wrong).code == 2
        assert not Path("new").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("verify", "tuned"),
        ("verify", "MODEL", "--against", "tuned"),
        ("info", "tuned"),
        ("lab", "--model", "tuned", "--out", "page.html"),
        ("lab", "--model", "tuned", "--out", "page"),
    ],
    ids=" ".join,
)
def test_where_an_adapter_is_no_model_it_is_named_with_its_base(cli, model_folder, command):
    adapter(Path("tuned"), layers("q_proj"), base_model_name_or_path="some/base")
    result = cli(*(str(model_folder) if word == "MODEL" else word for word in command))
    assert (result.code, result.out) == (1, "")
    assert "tuned: is an adapter of some/base, not a model" in result.err
    assert not any(map(Path.exists, map(Path, ("page", "page.html"))))


class TestVerify:
    @pytest.fixture(autouse=True)
    def needs_transformers(self):
        pytest.importorskip("transformers")

    def test_a_good_folder(self, cli, model_folder):
        result = cli("verify", model_folder)
        assert result.code == 0
        assert "language_model.lm_head" in result.out
        assert "verified" in result.out
        assert "DIFFERS" not in result.out
        [report] = cli("verify", model_folder, "--json").records()
        assert report["ok"]

    def test_an_altered_weight_is_loud(self, cli, model_folder):
        shutil.copytree(model_folder, "altered")
        weights = load_file("altered/model.safetensors")
        name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
        weights[name] = weights[name].roll(1, 0)
        save_file(weights, "altered/model.safetensors", {"format": "pt"})
        alone = cli("verify", "altered")
        assert alone.code == 1
        assert f"{name}: is not what checksums.json records" in alone.out
        assert "NOT VERIFIED" in alone.err
        compared = cli("verify", "altered", "--against", model_folder)
        assert compared.code == 1
        assert "DIFFERS" in compared.out
        compared = cli("verify", "altered", "--against", model_folder, "--json")
        assert compared.code == 1
        assert not compared.records()[0]["ok"]

    def test_without_transformers_it_says_what_to_install(self, cli, model_folder, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "transformers", None)
        result = cli("verify", model_folder)
        assert result.code == 1
        assert "pip install transformers" in result.err


def test_info_plans_the_memory_of_training(cli: Callable[..., Result]) -> None:
    result = cli("info", "paligemma2-28b-896", "--training", "--json")
    plans = json.loads(result.out)["training_bytes"]
    whole = plans["all"]
    assert set(whole) == {"1", "2", "4", "8"}
    assert whole["1"]["total"] > 400e9  # float32 weights, gradients and two moments of 28 billion
    assert whole["8"]["total"] < 80e9
    assert plans["LoRA, rank 16"]["1"]["total"] < 80e9
    table = cli("info", "paligemma-3b-224", "--training", "--rows", "2")
    assert "2 rows a GPU" in table.out
    assert "training_bytes" not in cli("info", "paligemma-3b-224", "--json").out


@pytest.mark.parametrize("method", available_methods())
def test_a_quantized_folder_keeps_what_belongs_to_the_model(
    cli: Callable[..., Result], method: str
) -> None:
    result = cli("convert", "mini", "small", "--quantize", method)
    assert result.code == 0, result.err
    kept = {path.name for path in Path("small").iterdir()}
    assert {"mask_codec.safetensors", "calibration.json"} <= kept
    picture("a.png")
    arguments = ("detect", "a.png", "red square", "--json", "--model")
    answers = [
        cli(*arguments, *how).records() for how in (["small"], ["mini", f"--quantize={method}"])
    ]
    assert answers[0][0]["detections"] == answers[1][0]["detections"]
    about = json.loads(Path("small/config.json").read_text())["quantization_config"]
    assert ("layout" in about) == (is_available() or (has_kernel() and knows_layout()))
    again = cli("convert", "small", "again")
    assert (again.code, "verify" in again.out) == (0, False), again.err
    files = [Path(folder, "model.safetensors").read_bytes() for folder in ("small", "again")]
    assert files[0] == files[1]
    refused = cli("export", "small", "others")
    assert (refused.code, f"is in {method}, which others do not read" in refused.err) == (1, True)


def test_the_memory_of_capped_scores_is_counted_and_bounded():
    def scores(preset: str) -> int:
        return describe(PRESETS[preset]).scores

    assert scores("paligemma-3b-896") == 0  # torch's fused kernel writes none
    assert scores("paligemma2-3b-224") == 12 * 8 * 8 * 256**2
    assert scores("paligemma2-3b-896") == scores("paligemma2-10b-896") == 12 * MOST_SCORES
