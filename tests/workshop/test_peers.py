"""The comparison with peers: what it makes of its figures, and of engines that fail."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from tests.tiny import GEMMA2, tiny_config, tiny_model
from tests.workshop.conftest import Command
from workshop.peers import __main__ as module
from workshop.peers.chart import to_svg
from workshop.peers.compare import (
    ENGINES,
    Ratio,
    busy_loops,
    compare,
    python_between_tokens,
    ratios,
    shares,
)
from workshop.peers.engines import load_engine
from workshop.peers.gguf_file import gguf_name, write_gguf

from paliglass import load
from paliglass.checkpoints.folder import read_tensors
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.saving import save_folder
from paliglass.errors import PaliglassError
from paliglass.fast import available_methods
from paliglass.inspect.bench import Measured

OURS, OURS_4, PLAIN, THEIRS, LLAMA, LLAMA_4, OPENVINO = ENGINES
LIMITS = {"read_gb_per_s": 10.0, "bf16_gop_per_s": 50.0, "fp32_gop_per_s": 40.0}


ONCE = """
import os, signal, threading
class Llama:
    def __init__(self, *_, **__): pass
    def reset(self): pass
    def eval(self, tokens): pass
    def sample(self, temp):
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        return 1
"""


def measured(first: float, each: float, load: float = 1.0, memory: int = 3_000_000_000) -> Measured:
    found = Measured(load=load, memory=memory)
    for noise in (1.0, 5.0, 1.0):  # the median leaves the odd round out
        found.add([noise * (first + each * place) for place in range(5)])
    found.batch_each_token.append(2 * each)
    return found


def test_ratios_by_hand() -> None:
    found = {
        OURS: measured(1.0, 0.1),
        OURS_4: measured(1.5, 0.05, memory=2_000_000_000),
        PLAIN: measured(3.0, 0.2, load=0.5),
        THEIRS: measured(4.0, 0.4),
        LLAMA: measured(2.0, 0.125),
        LLAMA_4: measured(2.0, 0.1),
    }
    reached = {OURS: {"token_share": 0.95}, OURS_4: {"token_share": 0.85}}
    values = {name: ratio.value for name, ratio in ratios(found, reached).items()}
    assert values == pytest.approx(
        {
            "first token, int8 / transformers": 0.25,
            "first token, int4 / transformers": 0.375,
            "first token, bf16 / transformers": 0.75,
            "tokens/s, int8 / transformers": 4,
            "tokens/s, int4 / transformers": 8,
            "tokens/s, bf16 / transformers": 2,
            "tokens/s, int8 / llama.cpp Q8_0": 1.25,
            "tokens/s, int4 / llama.cpp Q4_0": 2,
            "one answer, int8 / transformers": 1.4 / 5.6,
            "load, bf16 / transformers": 0.5,
            "tokens/s, batch of 8 / one at a time, int8": 4,
            "a token, int8, of the limit": 0.95,
            "load, int8": 1,
            "memory, int8": 3,
            "tokens/s, batch of 8 / one at a time, int4": 4,
            "a token, int4, of the limit": 0.85,
            "load, int4": 1,
            "memory, int4": 2,
        },
        rel=1e-3,
    )
    missed = {name for name, ratio in ratios(found, reached).items() if not ratio.met}
    assert missed == {f"tokens/s, batch of 8 / one at a time, int{bits}" for bits in (8, 4)}
    assert not Ratio(3.7, 3.6, at_most=True).met
    assert ratios({PLAIN: found[PLAIN]}, {}) == {}


def test_an_engine_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(PaliglassError, match=r"paliglass ended: .*config\.json"):
        compare(tmp_path, ["paliglass"], rounds=1, tokens=2, threads=1)


def test_a_peer_that_dies_is_told_of_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_folder(tiny_model(), tmp_path / "model")
    monkeypatch.setattr("workshop.peers.compare._llamas_file", lambda folder, *_: folder)
    # One dies as it loads, one after its first answer.
    llama = tmp_path / "llama_cpp.py"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    last_words = "import os, signal, sys; print('alas', file=sys.stderr)"
    for dies in (f"{last_words}; os.kill(os.getpid(), signal.SIGILL)", ONCE):
        llama.write_text(dies)
        found, missing = compare(tmp_path / "model", [LLAMA, PLAIN], rounds=2, tokens=2, threads=1)
        assert list(found) == [PLAIN]
        assert missing == {LLAMA: "ended: SIGILL, alas" if dies != ONCE else "ended: SIGKILL"}


def test_shares_of_the_machines_limits_by_hand(tmp_path: Path) -> None:
    model = tiny_model()
    save_folder(model, tmp_path / "model")
    decoder = sum(p.numel() for p in model.language_model.parameters())
    others = sum(p.numel() for p in model.parameters()) - decoder
    table = model.language_model.lm_head.weight.numel()
    patches = model.config.num_image_tokens
    model = model.bfloat16()
    save_folder(model, tmp_path / "half")
    first = 2 * (table + (decoder - table) * (patches + 8) + others * patches) / 1e9 / 7
    prompts = Measured()
    prompts.add([1.0])
    found = {PLAIN: measured(4 * first, 0.1), LLAMA: measured(1, 0.1), OPENVINO: prompts}
    found[LLAMA_4] = found[LLAMA]
    limits = {
        "read_gb_per_s": decoder * 2 / 1e9 / 0.05,
        "bf16_gop_per_s": 7,
        "fp32_gop_per_s": 3.5,
    }
    reached = shares(found, tmp_path / "half", limits)
    assert reached[PLAIN]["token_share"] == pytest.approx(0.5)
    assert reached[PLAIN]["first_token_share"] == pytest.approx(0.25, abs=0.01)
    assert reached[LLAMA] == {"token_share": pytest.approx(0.5 * 8.5 / 16, abs=1e-3)}
    bytes_4 = (table * 34 + (decoder - table) * 18) / 32 / decoder
    assert reached[LLAMA_4]["token_share"] == pytest.approx(0.5 * bytes_4 / 2, abs=1e-3)
    assert reached[OPENVINO] == {}
    in_float32 = shares(found, tmp_path / "model", limits)[PLAIN]
    assert in_float32["token_share"] == pytest.approx(1.0)
    assert in_float32["first_token_share"] == pytest.approx(0.5, abs=0.01)
    limits["fp32_gop_per_s"] = 14  # no instructions for bfloat16
    assert shares(found, tmp_path / "half", limits)[PLAIN]["first_token_share"] == pytest.approx(
        0.125, abs=0.01
    )


def test_an_engine_that_is_not_installed_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    found, missing = compare(tmp_path, [LLAMA], rounds=1, tokens=2, threads=1)
    assert found == {}
    assert missing == {LLAMA: "pip install llama-cpp-python gguf"}


def test_an_engine_that_cannot_be_imported_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_folder(tiny_model(), tmp_path / "model")
    monkeypatch.setattr("workshop.peers.compare._llamas_file", lambda folder, *_: folder)
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('no llama here')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    found, missing = compare(tmp_path / "model", [LLAMA], rounds=1, tokens=2, threads=1)
    assert found == {}
    assert missing == {LLAMA: "no llama here"}


def test_a_peers_file_that_cannot_be_written_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workshop.peers.compare.find_spec", lambda name: name)
    monkeypatch.setattr("workshop.peers.compare.write_gguf", full)
    found, missing = compare(tmp_path, [LLAMA], rounds=1, tokens=2, threads=1)
    assert found == {}
    assert "No space left" in missing[LLAMA]


def test_llamas_engine_wants_its_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GGUF"):
        load_engine(LLAMA, tmp_path, 1)


def test_openvino_computes_the_decoder(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    from workshop.peers.openvino_decoder import decoder, read_weights

    model = tiny_model(tiny_config(num_key_value_heads=1), std=0.1)
    save_folder(model, tmp_path / "model")
    text = model.config.text_config
    x = torch.randn(1, 7, text.hidden_size)
    graph = decoder(text, read_weights(tmp_path / "model"), 7)
    # In float32, so that rounding activations does not count.
    compiled = openvino.Core().compile_model(graph, "CPU", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})
    found = torch.from_numpy(compiled([x.numpy()])[0])
    language = model.language_model
    with torch.inference_mode():
        mask = torch.ones(1, 1, 7, 7, dtype=torch.bool)
        hidden = language.model(x, torch.arange(7)[None], mask)
        expected = language.logits(hidden[:, -1])
    assert (found - expected).norm() < 0.03 * expected.norm()
    with pytest.raises(ValueError, match="one key head"):
        decoder(tiny_config(**GEMMA2).text_config, {}, 7)


@pytest.mark.parametrize(("form", "most"), [("Q8_0", 250), ("Q4_0", 12)])
def test_the_decoder_is_written_as_gguf(tmp_path: Path, form: str, most: int) -> None:
    gguf = pytest.importorskip("gguf")
    model = load("mini", device="cpu", dtype="float32").model
    write_gguf(locate("mini"), tmp_path / "it.gguf", form)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "it.gguf").tensors}
    decoder = model.language_model.model
    assert len(read) == len(dict(decoder.named_parameters()))
    table = gguf.quants.dequantize(read["token_embd.weight"].data, 8)  # Q8_0
    expected = decoder.embed_tokens.weight.detach().numpy()
    assert abs(table - expected).max() <= abs(expected).max() / 250
    gate = decoder.layers[1].mlp.gate_proj.weight.detach().numpy()
    stored = read["blk.1.ffn_gate.weight"]
    assert stored.tensor_type.name == form
    back = gguf.quants.dequantize(stored.data, stored.tensor_type)
    assert abs(back - gate).max() <= abs(gate).max() / most
    norm = decoder.norm.weight.detach().numpy()
    assert read["output_norm.weight"].data == pytest.approx(1 + norm)
    assert {path.name for path in tmp_path.iterdir()} == {"it.gguf"}


def test_every_tensor_of_a_gemma_decoder_has_a_name_in_gguf(tmp_path: Path) -> None:
    save_folder(tiny_model(), tmp_path / "model")
    decoder = "language_model.model."
    names = [name for name, _, _ in read_tensors(tmp_path / "model") if name.startswith(decoder)]
    found = {gguf_name(name.removeprefix(decoder)) for name in names}
    assert len(found) == len(names)
    assert {"token_embd.weight", "output_norm.weight", "blk.1.ffn_gate.weight"} <= found
    with pytest.raises(PaliglassError, match="only Gemma 1"):
        gguf_name("layers.0.post_feedforward_layernorm.weight")


def test_figures_are_drawn() -> None:
    prompts = Measured()
    prompts.add([1.0])
    drawing = to_svg("a <model>", {OURS: measured(1, 0.1), OPENVINO: prompts})
    assert "a &lt;model&gt;" in drawing
    assert drawing.count('class="ours"') == 3
    assert drawing.count('class="bar"') == 2  # no tokens a second


@pytest.mark.slow
def test_pythons_share_of_a_token_is_measured() -> None:
    found = python_between_tokens(2)
    assert all(math.isfinite(ratio.value) and ratio.unit == "ms" for ratio in found.values())
    assert len(found) == ("int4" in available_methods())


def test_busy_loops_end() -> None:
    with busy_loops(2) as loops:
        assert all(loop.poll() is None for loop in loops)
    assert all(loop.poll() is not None for loop in loops)


def test_the_command_compares_what_is_asked_for(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "machine_limits", lambda threads: LIMITS)
    monkeypatch.setattr(module, "start_up", lambda: {"cold": Ratio(0.5, 1.0, True, "s")})
    monkeypatch.setattr(module, "python_between_tokens", dict)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    save_folder(tiny_model(), tmp_path / "model")
    given = ["model", "--rounds", "1", "--tokens", "3", "--threads", "1", "--engine", PLAIN]
    result = command(module.peers, *given, "--engine", THEIRS, "--json", "--chart", "chart.svg")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert list(found["engines"]) == [PLAIN, THEIRS]
    ratio = found["ratios"]["tokens/s, bf16 / transformers"]
    assert ratio.keys() == {"value", "target", "met"}
    assert found["machine"] == LIMITS
    assert "paliglass" in Path("chart.svg").read_text()
    table = command(module.peers, *given, "--markdown")
    assert "| cold | 0.50 s | ≤ 1.0 s | yes |" in table.out
    wrong = command(module.peers, "--engine", "nonsense")
    assert "1 threads, 0 busy loops" in table.out
    assert (wrong.code, "'nonsense' is none of paliglass int8" in wrong.err) == (2, True)
