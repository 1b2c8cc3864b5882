"""Imports go one way, stay light, and hand out the promised names."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import paliglass
from paliglass import fast

SOURCE = Path(paliglass.__file__).parent
NEEDS_RAY = ("paliglass.scale.pipeline", "paliglass.serving.ray")
WORKSHOP = Path(__file__).parents[2] / "workshop"

# Every module and package, from the ground up: each imports from those above it in this list, and
# from itself. The README's tree is printed from it.
ORDER = {
    "errors": "what a user can cause is one line: the cause and the mend",
    "files": "JSON read with an error that names the file; anything written whole or not",
    "tensors": "safetensors files, their numbers checked",
    "config": "the shapes: SigLipConfig, GemmaConfig, PaliGemmaConfig, PRESETS",
    "lru_cache": "as much as fits of what may be asked for again",
    "colours": "what Pillow has opened -> 8-bit sRGB, upright, over white",
    "pictures": "whatever you call a picture -> upright RGB",
    "fetching": "a picture behind an https address, for who opts in",
    "layers": "attention, rotary positions, masks, norms, the cache, the loss",
    "modeling_siglip": "patches -> contextual patch embeddings",
    "modeling_gemma": "the decoder, Gemma and Gemma 2",
    "modeling_paligemma": "the projector, the merge of picture and words, the whole model",
    "modeling_mask_codec": "a mask <-> 16 <seg> tokens",
    "processing_paligemma": "pictures + prompts -> pixel_values, input_ids, masks (, labels)",
    "sampling": "logits -> the next token",
    "constrained": "what an answer may say",
    "generation": "the loop: a running batch that requests join and leave",
    "formats": "COCO, YOLO, CSV, run lengths: reading and writing",
    "checkpoints": "transformers folders, the hub, big_vision .npz; strict, never a pickle",
    "drawing": "boxes and masks drawn onto a picture",
    "tasks": "prompts, grammars, scores, typed results",
    "fast": "what is put in the place of plain modules: int8, int4, compiled decoding",
    "parallel": "a model in several processes: a part of every matrix in each",
    "model": "all of it behind one friendly object; load()",
    "data": "pictures with prompts and answers, in every form they come in",
    "evaluation": "how right a model is",
    "training": "fine-tuning, LoRA, sharding; one loop",
    "contrastive": "dual encoders: CLIP, SigLIP, zero-shot, search",
    "retrieval": "ColPali: pages of documents, found by late interaction",
    "inspect": "what a checkpoint needs, whether it is right, what a run computed; the lessons",
    "lab": "mini in a web page, every part there to be looked at and broken",
    "serving": "the model over HTTP: one batch, OpenAI's and Moondream's interfaces",
    "scale": "past one machine: rows of pictures without number, on Ray Data",
    "cli": "the command line",
}
MODELS = sorted(p for p in SOURCE.glob("modeling_*.py") if "mask_codec" not in p.name)
MODELS += sorted((SOURCE / "layers").glob("*.py"))
TOP = ("__init__", "__main__")  # which hand out the names
INNER = ("fast", "lab")  # packages with a door: what stands behind it is their own


def place_of(module: str) -> tuple[str, int] | None:
    """(name, place) in ORDER of `paliglass.NAME…`; None for what is outside it."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 and parts[0] == "paliglass" else ""
    return (name, list(ORDER).index(name)) if name in ORDER else None


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = node.module or ""
            found.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
    return found


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    """Imports inside functions count too."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    if parts[0] in TOP:
        return
    own = place_of(".".join(("paliglass", *parts)))
    assert own is not None, f"{parts[0]} is missing in ORDER"
    for module in imports(path):
        other = place_of(module)
        if other is not None:
            assert other[0] == own[0] or other[1] < own[1], f"{path.name} imports {module}"
        assert not module.startswith("workshop"), f"{path.name} imports {module}"


@cache
def modules(folder: Path) -> dict[str, Path]:
    """Every module's file by its name, that of a package too."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imported_names(path: Path) -> set[tuple[str, str]]:
    """(module, name) of every `from module import name` in a file; of `import module`, no name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.update((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update((alias.name, "") for alias in node.names)
    return found


@pytest.mark.parametrize("folder", [SOURCE, WORKSHOP], ids=lambda p: p.name)
def test_no_files_import_each_other_in_a_circle(folder: Path) -> None:
    """Imports for a type checker alone, and inside functions, count too."""
    known = modules(folder)
    assert len(known) > 20
    graph = {}
    for own, path in known.items():
        # Of `from package import module` the module, not what the package hands out.
        full = {(module, f"{module}.{name}") for module, name in imported_names(path)}
        graph[own] = {name if name in known else module for module, name in full} & known.keys()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def public_modules() -> list[str]:
    """Those that define something, save what stands behind a package's door."""
    return [
        name
        for name, path in modules(SOURCE).items()
        if path.stem != "__main__"
        and not any(name.startswith(f"paliglass.{package}.") for package in INNER)
        and any(
            isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign)
            for node in ast.parse(path.read_text(encoding="utf-8")).body
        )
    ]


def imported_of(module: str) -> set[str]:
    """What other modules, the workshop's too, import of a module by name."""
    paths = [*modules(SOURCE).values(), *modules(WORKSHOP).values()]
    found = {name for path in paths for m, name in imported_names(path) if m == module and name}
    return {name for name in found if f"{module}.{name}" not in modules(SOURCE)}


@pytest.mark.parametrize("module", public_modules())
def test_a_module_says_what_it_hands_out(module: str) -> None:
    """`__all__` names what is there, each once, and all that any other module imports of it."""
    if module in NEEDS_RAY:
        pytest.importorskip("ray", reason="ray is not installed: pip install 'paliglass[ray]'")
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None)
    assert names is not None, f"{module} has no __all__"
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(loaded, name)] == []
    assert imported_of(module) <= set(names)


def test_what_is_fast_has_one_door() -> None:
    """Nobody but its own modules looks behind what it hands out."""
    for path in files():
        if path.relative_to(SOURCE).parts[0] != "fast":
            behind = {m for m in imports(path) if m.startswith("paliglass.fast.")}
            doors = {f"paliglass.fast.{name}" for name in fast.__all__}
            assert behind <= doors, path


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.name)
def test_a_model_is_torch_and_nothing_else(path: Path) -> None:
    """No tokenizer, no picture, no command line, no hub."""
    roots = {module.split(".")[0] for module in imports(path)}
    assert roots - sys.stdlib_module_names <= {"paliglass", "torch"}


def test_the_order_names_all_there_is_and_nothing_else() -> None:
    there = {p.stem for p in SOURCE.glob("*.py")} - set(TOP)
    there |= {p.parent.name for p in SOURCE.glob("*/__init__.py")}
    assert there == set(ORDER)


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_paliglass_pulls_in_no_heavy_library() -> None:
    heavy = {"huggingface_hub", "numpy", "rich", "safetensors", "tokenizers", "torch"}
    assert not modules_after("import paliglass") & (heavy | {"PIL", "transformers", "typer"})


gnu_openmp = pytest.mark.skipif(sys.platform != "linux", reason="torch has another OpenMP there")


@gnu_openmp
@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_waiting_threads_of_openmp_soon_give_up_their_cores(
    own: dict[str, str], expected: str
) -> None:
    assert spins_after("import paliglass.model", own) == expected


@gnu_openmp
def test_peers_threads_wait_as_peers_have_them() -> None:
    peer = """
import sys
from workshop.peers import engines
sys.argv = ["", "llama.cpp Q8_0", ".", "1"]
engines.serve = lambda load: __import__("torch")
engines.main()
"""
    assert spins_after(peer, {}) == spins_after("import torch", {}) != "2000"


def spins_after(code: str, own: dict[str, str]) -> str:
    """How often a waiting thread of torch's OpenMP looks before it sleeps, in its own words."""
    settings = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
    inherited = {name: value for name, value in os.environ.items() if name not in settings}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=WORKSHOP.parent,
        env=inherited | own | {"OMP_DISPLAY_ENV": "VERBOSE"},
    )
    [line] = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    return line.split("'")[1]


def test_loading_pulls_in_neither_transformers_nor_the_command_line() -> None:
    assert not modules_after("from paliglass import PaliGemma, load, load_hf_model") & {
        *("transformers", "typer", "rich", "click", "huggingface_hub", "resvg_py"),
    }


def test_the_command_line_does_not_wait_for_torch() -> None:
    assert not modules_after("import paliglass.cli") & {"torch", "transformers", "tokenizers"}


def test_exported_names() -> None:
    promised = {"PaliGemma", "PaliGemmaProcessor", "load", "load_hf_model", "__version__"}
    promised |= {"PaliGemmaForConditionalGeneration", "PaliGemmaConfig", "SigLipConfig"}
    promised |= {"GemmaConfig", "PRESETS", "Detection", "PaliglassError", "load_big_vision"}
    assert promised <= set(paliglass.__all__)
    for name in paliglass.__all__:
        assert getattr(paliglass, name) is not None
        assert name in dir(paliglass)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = paliglass.nonsense


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("modeling_siglip", "Embeddings Encoder EncoderLayer Transformer Model"),
        ("modeling_gemma", "Attention MLP DecoderLayer Model ForCausalLM"),
        ("modeling_paligemma", "MultiModalProjector ForConditionalGeneration"),
    ],
)
def test_modules_carry_the_fields_names(module: str, names: str) -> None:
    prefixes = {"modeling_siglip": "SigLipVision", "modeling_gemma": "Gemma"}
    prefix = prefixes.get(module, "PaliGemma")
    loaded = __import__(f"paliglass.{module}", fromlist=["_"])
    for name in names.split():
        assert hasattr(loaded, prefix + name), prefix + name
    if module == "modeling_siglip":
        assert hasattr(loaded, "SigLipAttention")
        assert hasattr(loaded, "SigLipMLP")


def test_the_version_is_the_packages() -> None:
    import tomllib

    project = SOURCE.parents[1] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == paliglass.__version__
