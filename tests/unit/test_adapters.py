"""An adapter is merged as peft would, or refused by the name of what stands in the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_config, tiny_model
from torch import Tensor

from paliglass.checkpoints.adapters import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    base_model,
    with_adapter,
    with_base,
)
from paliglass.checkpoints.folder import read_config
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.layouts import HEAD, transformers_name
from paliglass.errors import CheckpointError

MODEL = tiny_model(tiny_config())
QUERY = "language_model.model.layers.1.self_attn.q_proj"
RANK = 2


def tensors(dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, str, Tensor]]:
    for name, tensor in MODEL.state_dict().items():
        if name != HEAD:
            yield name, name, tensor.to(dtype)


def layers(ending: str) -> list[str]:
    return [n for n, _ in MODEL.named_modules() if n.endswith(ending)]


def adapter(
    folder: Path,
    names: list[str],
    name_of: Callable[[str], str] = transformers_name,
    **config: Any,
) -> Path:
    """An adapter of some layers, whose B is not 0, in peft's format."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name in names:
        rows, columns = MODEL.get_parameter(f"{name}.weight").shape
        key = f"{PREFIX}{name_of(name)}"
        state[f"{key}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator)
        state[f"{key}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator)
    save_file(state, folder / WEIGHTS)
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / CONFIG).write_text(json.dumps(about | config))
    return folder


def merged(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: tensor for name, _, tensor in with_adapter(tensors(dtype), folder)}


def refusal(folder: Path, dtype: torch.dtype = torch.float32) -> str:
    with pytest.raises(CheckpointError) as error:
        merged(folder, dtype)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_named_layers_change_and_no_others(tmp_path: Path) -> None:
    names = layers("q_proj")
    found = merged(adapter(tmp_path / "a", names))
    state = load_file(tmp_path / "a" / WEIGHTS)
    for name, _, tensor in tensors():
        layer = name.removesuffix(".weight")
        expected = tensor
        if layer in names:
            key = f"{PREFIX}{transformers_name(layer)}"
            up, down = state[f"{key}.lora_B.weight"], state[f"{key}.lora_A.weight"]
            expected = tensor + 4 / RANK * up @ down
        assert torch.allclose(found[name], expected, atol=1e-6), name


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "EVA", "orthogonal", "mica"])
def test_starts_that_leave_the_base_alone_are_merged(tmp_path: Path, start: Any) -> None:
    merged(adapter(tmp_path / "a", layers("q_proj"), init_lora_weights=start))


@pytest.mark.parametrize(
    "start",
    ["pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga", "tomorrows", 1, {}],
)
def test_starts_that_change_the_base_are_refused_by_name(tmp_path: Path, start: Any) -> None:
    """B·A is then not all that was learned: a part of W has moved into it."""
    message = refusal(adapter(tmp_path / "a", layers("q_proj"), init_lora_weights=start))
    assert f"init_lora_weights is {start!r}" in message


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_dora", True),
        ("bias", "lora_only"),
        ("modules_to_save", ["embed_tokens"]),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("layer_replication", [[0, 2]]),
        ("lora_bias", True),
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
        ("kasa_config", {"beta": 1}),
        ("monteclora_config", {"samples": 2}),
        ("arrow_config", {"top_k": 1}),
        ("target_parameters", ["weight"]),
        ("fan_in_fan_out", True),
        ("a_setting_of_tomorrow", 3),
    ],
)
def test_what_would_make_another_sum_is_refused_by_name(
    tmp_path: Path, setting: str, value: Any
) -> None:
    message = refusal(adapter(tmp_path / "a", layers("q_proj"), **{setting: value}))
    assert f"{setting} is {value!r}" in message


def test_peft_writes_nothing_that_is_refused_without_reason(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=RANK, lora_alpha=4, target_modules=["q_proj"]).to_dict()
    plain = {k: v for k, v in settings.items() if k != "target_modules" and v is not None}
    merged(adapter(tmp_path / "a", layers("q_proj"), **plain))


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    assert "holds no tensors" in refusal(adapter(tmp_path / "a", []))


@pytest.mark.parametrize(
    ("targets", "lacking"),
    [
        (["q_proj", "v_proj"], "v_proj"),
        (["q_proj", "lm_head"], "lm_head"),
        (["q_proj", "embed_tokens"], "embed_tokens"),
        (["q_proj", "multi_modal_projector.linear"], "multi_modal_projector.linear"),
        (r".*\.(q_proj|gate_proj)", "gate_proj"),
        ("all-linear", "mlp.down_proj"),
    ],
)
def test_a_layer_that_the_configuration_names_and_the_file_lacks_is_named(
    tmp_path: Path, targets: Any, lacking: str
) -> None:
    message = refusal(adapter(tmp_path / "a", layers("q_proj"), target_modules=targets))
    assert lacking in message
    assert "which target_modules" in message


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["k_proj", "v_proj"]},
        {"target_modules": []},
        {"layers_to_transform": [1]},
        {"exclude_modules": ["q_proj"]},
    ],
)
def test_a_layer_that_the_file_has_and_the_configuration_leaves_out_is_named(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    """peft would pass it over, and give other numbers."""
    message = refusal(adapter(tmp_path / "a", layers("q_proj"), **config))
    assert "self_attn.q_proj, which target_modules" in message


def test_the_last_layers_may_not_be_missing(tmp_path: Path) -> None:
    names = [name for name in layers("q_proj") if name != QUERY]
    assert f"lacks {QUERY}," in refusal(adapter(tmp_path / "a", names))


@pytest.mark.parametrize(
    ("names", "config"),
    [
        ([QUERY], {"layers_to_transform": [1], "exclude_modules": r"vision_tower.*"}),
        ([QUERY], {"layers_to_transform": 1, "exclude_modules": r".*vision_model.*"}),
        ([QUERY], {"target_modules": r".*language_model\.(model\.)?layers\.1\.self_attn\.q_proj"}),
        ([QUERY], {"target_modules": [QUERY]}),
        ([QUERY], {"target_modules": [transformers_name(QUERY)]}),
        (layers("q_proj"), {"target_modules": ["q_proj", "c_attn", "query_key_value"]}),
        (layers("o_proj"), {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["q_proj"]}),
    ],
)
def test_layers_that_the_configuration_leaves_out_are_not_missed(
    tmp_path: Path, names: list[str], config: dict[str, Any]
) -> None:
    merged(adapter(tmp_path / "a", names, **config))


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(.*)*x", ".*.*.*.*.*.*x", "((a|b)*c?)*d", "(", "a" * 5000, "(?:.*a){9}"]
)
def test_an_expression_that_takes_for_ever_is_not_tried(tmp_path: Path, pattern: str) -> None:
    merged(adapter(tmp_path / "a", layers("q_proj"), target_modules=pattern))


def edited(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_none_are_refused_with_their_tensor(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    key = f"{PREFIX}{transformers_name(QUERY)}.lora_B.weight"

    def spoil(state: dict[str, Tensor]) -> None:
        state[key] = state[key].to(dtype)
        state[key][1, 1] = value

    message = refusal(edited(adapter(tmp_path / "a", layers("q_proj")), spoil))
    assert key in message
    assert "holds" in message


def test_a_sum_that_overflows_is_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", layers("q_proj"), lora_alpha=1e6)
    assert "overflows torch.float16" in refusal(folder, torch.float16)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 0), (0,), (5, 7)])
@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_tensors_of_another_shape_are_named(
    tmp_path: Path, shape: tuple[int, ...], part: str
) -> None:
    key = f"{PREFIX}{transformers_name(QUERY)}.{part}.weight"
    folder = adapter(tmp_path / "a", layers("q_proj"))
    message = refusal(edited(folder, lambda state: state.update({key: torch.zeros(shape)})))
    assert QUERY in message


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": True}, "r is True"),
        ({"r": 0}, "r is 0"),
        ({"r": "8"}, "r is '8'"),
        ({"r": 2.5}, "r is 2.5"),
        ({"r": 3}, "is of rank 2"),
        ({"r": 10**400}, "is of rank 2"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"lora_alpha": [1]}, "lora_alpha [1]"),
        ({"lora_alpha": 10**400}, "too large"),
        ({"target_modules": [1]}, "target_modules is [1]"),
        ({"target_modules": {"q": 1}}, "target_modules is"),
        ({"exclude_modules": 3}, "exclude_modules is 3"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"peft_type": None}, "peft_type is None"),
    ],
)
def test_settings_of_another_type_are_named(
    tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    assert said in refusal(adapter(tmp_path / "a", layers("q_proj"), **config))


@pytest.mark.parametrize("text", ["[1]", "3", "", "{", '{"r": NaN}', '{"lora_alpha": 1e400}'])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    folder = adapter(tmp_path / "a", layers("q_proj"))
    (folder / CONFIG).write_text(text)
    assert CONFIG in refusal(folder)


@pytest.mark.parametrize("name", ["google/paligemma", "../base", "ünïcode"])
def test_an_adapter_names_its_base(tmp_path: Path, name: str) -> None:
    folder = adapter(tmp_path / "a", [], base_model_name_or_path=name)
    assert base_model(folder) == name
    with pytest.raises(CheckpointError, match=r"is an adapter of .*, not a model"):
        read_config(folder)


def test_an_adapter_in_the_place_of_a_model_stands_for_both(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", [], base_model_name_or_path="mini")
    assert with_base(folder) == (locate("mini"), folder)
    assert with_base(locate("mini")) == (locate("mini"), None)
    assert with_base(locate("mini"), folder) == (locate("mini"), folder)
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        with_base(folder, folder)
    second = adapter(tmp_path / "b", [], base_model_name_or_path=str(folder))
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        with_base(second)
    lost = adapter(tmp_path / "c", [], base_model_name_or_path="/gone/away")
    with pytest.raises(CheckpointError, match=r"is an adapter of /gone/away; .*no such folder"):
        with_base(lost)


@pytest.mark.parametrize("name", [None, "", 3, ["a"], {"a": 1}])
def test_a_base_that_is_no_name_is_told(tmp_path: Path, name: Any) -> None:
    folder = adapter(tmp_path / "a", [], base_model_name_or_path=name)
    with pytest.raises(CheckpointError, match="base_model_name_or_path is"):
        base_model(folder)
