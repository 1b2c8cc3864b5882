"""Exit codes and messages: one line that names the cause, whatever goes wrong."""

from __future__ import annotations

import os

import pytest
import torch
from tests.cli.helpers import picture

from paliglass import PaliglassError, __version__
from paliglass.cli import main
from paliglass.model import PaliGemma

WRONG = {
    "no such command": ["paint", "a.png"],
    "no such option": ["caption", "a.png", "--colour"],
    "no picture": ["caption"],
    "no question": ["ask", "a.png"],
    "a file for a question": ["ask", "a.png", "a.png"],
    "nothing to find": ["detect", "a.png"],
    "no prompt": ["generate", "a.png"],
    "dtype": ["caption", "a.png", "--dtype", "float8"],
    "batch size": ["caption", "a.png", "--batch-size", "0"],
    "number of tokens": ["caption", "a.png", "--max-new-tokens", "many"],
    "temperature": ["caption", "a.png", "--temperature", "-1"],
    "top-p of 0": ["caption", "a.png", "--temperature", "1", "--top-p", "0"],
    "top-p without temperature": ["caption", "a.png", "--top-p", "0.9"],
    "top-k without temperature": ["caption", "a.png", "--top-k", "5"],
    "resume without a folder": ["caption", "a.png", "--resume"],
    "out is a file": ["caption", "a.png", "--out", "a.png"],
    "language": ["caption", "a.png", "--lang", "xx"],
    "language of a question": ["ask", "a.png", "what?", "--lang", "xx"],
    "empty choice": ["ask", "a.png", "what?", "--choice", ""],
    "device": ["caption", "a.png", "--device", "gpu"],
    "device of an encoder": ["embed", "a.png", "--out", "x", "--device", "cuda:"],
    "empty label": ["detect", "a.png", ""],
    "label of separators": ["segment", "a.png", "--label", " ; "],
    "no task": ["annotate", ".", "--out", "x", "--task", " "],
    "task without a label": ["annotate", ".", "--out", "x", "--task", "detect"],
    "nothing to search": ["search", ".", " "],
    "no lesson": ["learn", "nonsense"],
    "exercise of no lesson": ["learn", "--exercise"],
    "adapters where there are none": [
        *("train", "finetune", "--data", ".", "--out", "x", "--steps", "1"),
        *("--lora", "2", "--train", "projector"),
    ],
    "convert to nowhere": ["convert", "mini"],
    "no such tokenizer": ["convert", "x.npz", "new", "--tokenizer", "nowhere"],
    "info of nothing": ["info"],
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG.keys())
def test_bad_usage_ends_with_2_before_any_model_is_loaded(cli, monkeypatch, arguments):
    monkeypatch.setattr("paliglass.model.load", None)
    picture("a.png")
    result = cli(*arguments)
    assert (result.code, result.out) == (2, "")
    [line] = result.err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(" --help)")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--port", "99999"], "--port is 99999; it must be 65535 or less"),
        (["caption", "a.png", "--batch-size", "0"], "--batch-size is 0; it must be 1 or more"),
        (["caption", "a.png", "--batch-size", "x"], "--batch-size is x; it must be a whole number"),
        (["caption", "a.png", "--max-new-tokens", "1.5"], "is 1.5; it must be a whole number"),
        (["detect", "a.png", "x", "--min-score", "2"], "--min-score is 2; it must be 1 or less"),
        (["caption", "a.png", "--dtype", "f8"], "--dtype: 'f8' is not one of 'auto', "),
        (["train", "finetune", "--lora-dropout", "x"], "--lora-dropout is x; it must be a number"),
    ],
)
def test_values_are_told_in_our_words(cli, arguments, said):
    picture("a.png")
    result = cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert "nput should" not in result.err


def test_help_and_version(cli):
    assert cli("--version") == (0, f"paliglass {__version__}\n", "")
    for command in (
        "caption",
        "ask",
        "read",
        "detect",
        "segment",
        "generate",
        "info",
        "convert",
        "verify",
    ):
        assert command in cli("--help").out
        assert "--debug" in cli(command, "--help").out


def test_wrong_models_are_one_line(cli):
    picture("a.png")
    for model in ("nowhere", "a.png", "."):
        result = cli("caption", "a.png", "--model", model)
        assert (result.code, result.out) == (1, "")
        assert len(result.err.splitlines()) == 1
        assert result.err.startswith("error: ")


def test_an_absent_device_is_one_line(cli):
    picture("a.png")
    result = cli("caption", "a.png", "--device", "cuda:99")
    assert result.code == 1
    assert result.err == "error: device cuda:99: this torch sees no such GPU; cpu always works\n"


def test_what_begins_with_a_dash_is_told_how_to_be_a_file_or_words(cli):
    picture("-dash.png")
    picture("a.png")
    result = cli("caption", "-dash.png")
    assert result.code == 2
    assert 'for "-dash.png" write -- before it, or ./-dash.png (see' in result.err
    named, behind = cli("caption", "./-dash.png"), cli("caption", "--", "-dash.png")
    assert (named.code, named.out) == (0, behind.out)
    result = cli("ask", "a.png", "-what is it?")
    assert 'for "-what is it?" write -- before it (see' in result.err
    for words in (["-dash.gif"], ["a.png", "--nonsense", "-- x"]):
        assert "before it" not in cli("caption", *words).err


def test_an_unknown_way_to_preview_is_refused(cli, monkeypatch):
    picture("a.png")
    monkeypatch.setenv("PALIGLASS_PREVIEW", "xx")
    result = cli("detect", "a.png", "dog", "--preview")
    assert (result.code, result.out) == (2, "")
    assert "PALIGLASS_PREVIEW is 'xx'; choose kitty, iterm2, blocks" in result.err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PaliglassError("two\nlines"), "error: two\\nlines\n"),
        (MemoryError(), "error: the memory is full; a smaller --batch-size,"),
        (torch.OutOfMemoryError("CUDA out of memory."), "error: the memory is full;"),
        (RuntimeError("[enforce fail] can't allocate memory: …"), "error: the memory is full;"),
        (PermissionError(13, "Permission denied", "x.png"), "error: x.png: Permission denied\n"),
        (ZeroDivisionError("by 0"), "error: unexpected ZeroDivisionError: by 0 (run again with"),
        (KeyboardInterrupt(), "error: interrupted; 0 of 1 pictures done\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_happens_is_one_line(cli, monkeypatch, error, said):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(PaliGemma, "answer", fails)
    picture("a.png")
    result = cli("caption", "a.png")
    assert result.code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert result.err.startswith(said)
    assert len(result.err.splitlines()) == 1


def test_debug_shows_where_it_happened(monkeypatch):
    def fails(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(PaliGemma, "answer", fails)
    picture("a.png")
    with pytest.raises(ZeroDivisionError):
        main(["caption", "a.png", "--debug"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("caption|", "the name of a picture is empty"),
        ("caption|a.png||", "the name of a picture is empty"),
        ("caption|a.png|--out|", "--out is empty; give a path"),
        ("caption|a.png|--out=", "--out is empty; give a path"),
        ("embed|a.png|-o|", "--out is empty; give a path"),
        ("caption|a.png|--model|", "the name of a model or adapter is empty"),
        ("caption|a.png|--adapter|", "the name of a model or adapter is empty"),
        ("train|finetune|--data|a.png|--out|", "--out is empty; give a path"),
        ("data|check|", "DATA is empty; give a path"),
        ("search||dog", "DOCUMENTS is empty; give a path"),
    ],
)
def test_an_empty_name_is_not_the_folder_one_is_in(cli, arguments, said):
    """`"$NOT_SET"` in a script must not read, or write into, whatever folder it runs in."""
    picture("a.png")
    result = cli(*arguments.split("|"))
    assert result.code in (1, 2)
    assert said in result.err
    assert os.listdir() == ["a.png"]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize(
    "arguments", ["caption a.png --temperature", "train finetune --data . --out x --learning-rate"]
)
def test_numbers_are_finite(cli, arguments, value):
    picture("a.png")
    result = cli(*arguments.split(), value)
    assert result.code == 2
    assert f"{arguments.split()[-1]} is {value}; it must be " in result.err
