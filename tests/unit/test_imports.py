"""Imports go one way, stay light, and hand out the promised names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import paliglass

SOURCE = Path(paliglass.__file__).parent

# A module may import from its own stage and from those above it in this list.
STAGES = [
    ("errors",),
    ("config", "ops", "pictures"),
    ("modeling_siglip", "modeling_gemma"),
    ("modeling_paligemma",),
    ("processing_paligemma", "sampling", "checkpoints"),
    ("generation",),
    ("tasks", "info", "verify"),
    ("model",),
    ("tracing", "report", "lesson"),
    ("cli",),
]
# Inference works with these deleted.
LEAVES = ("benchmark", "contrastive", "evaluation", "training", "world")
MODELS = sorted(p for p in SOURCE.glob("modeling_*.py")) + sorted((SOURCE / "ops").glob("*.py"))


def stage_of(module: str) -> int | None:
    """The place in STAGES of `paliglass.NAME…`; None for what is outside the chain."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else ""
    return next((i for i, names in enumerate(STAGES) if name in names), None)


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
    own = stage_of(".".join(("paliglass", *path.relative_to(SOURCE).with_suffix("").parts)))
    if own is None:
        return
    for module in imports(path):
        other = stage_of(module)
        if module.startswith("paliglass.") and other is not None:
            assert other <= own, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_needs_a_leaf_but_itself_and_the_command_line(path: Path) -> None:
    top = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if top in (*LEAVES, "cli"):
        return
    needed = {module.split(".")[1] for module in imports(path) if module.count(".")}
    assert not needed & set(LEAVES), path


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.name)
def test_a_model_is_torch_and_nothing_else(path: Path) -> None:
    """No tokenizer, no picture, no command line, no hub."""
    roots = {module.split(".")[0] for module in imports(path)}
    assert roots - sys.stdlib_module_names <= {"paliglass", "torch"}


def test_every_stage_exists() -> None:
    for name in (name for names in STAGES for name in names):
        assert (SOURCE / f"{name}.py").is_file() or (SOURCE / name / "__init__.py").is_file(), name


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_paliglass_pulls_in_no_heavy_library() -> None:
    heavy = {"huggingface_hub", "numpy", "rich", "safetensors", "tokenizers", "torch"}
    assert not modules_after("import paliglass") & (heavy | {"PIL", "transformers", "typer"})


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
