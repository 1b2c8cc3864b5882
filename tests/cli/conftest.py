"""A tiny random model in a folder, pictures, and the command line called in this process."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from paliglass.checkpoints import save_folder
from paliglass.cli import main
from paliglass.config import PRESETS
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.processing_paligemma import (
    IMAGE_TOKEN,
    LOCATION_TOKENS,
    SEGMENT_TOKENS,
    PaliGemmaProcessor,
)
from tests.cli.helpers import Result


def tiny_tokenizer() -> Tokenizer:
    """Characters and bytes, then PaliGemma's special tokens; `<image>` is the last id."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    letters = ["\n", "▁", *map(chr, range(33, 127))]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t in (*LOCATION_TOKENS, *SEGMENT_TOKENS)]
    )
    tokenizer.add_special_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)])
    return tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights: what it says means nothing, but is always the same."""
    tokenizer = tiny_tokenizer()
    image_token = tokenizer.token_to_id(IMAGE_TOKEN)
    tiny = PRESETS["tiny"]
    text = dataclasses.replace(tiny.text_config, vocab_size=image_token + 1)
    config = dataclasses.replace(tiny, text_config=text, image_token_index=image_token)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PaliGemmaForConditionalGeneration(config)
        for parameter in model.parameters():  # large enough for the picture to matter
            torch.nn.init.normal_(parameter, std=0.3)
    processor = PaliGemmaProcessor(
        tokenizer, config.num_image_tokens, config.vision_config.image_size
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_folder(model, folder, processor)
    return folder


@pytest.fixture(autouse=True)
def surroundings(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every test runs in a folder of its own, with the tiny model as the default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALIGLASS_MODEL", str(model_folder))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """`cli("caption", "a.png", stdin=…, terminal=…)` runs a command line, short answers only."""

    def run(*arguments: object, stdin: bytes = b"", terminal: bool = False) -> Result:
        words = [str(argument) for argument in arguments]
        if words[:1] and words[0] in ("caption", "ask", "read", "detect", "generate"):
            words += ["--max-new-tokens", "6"]
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ending:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            for stream in (sys.stdout, sys.stderr):
                patch.setattr(stream, "isatty", lambda: terminal)
            main(words)
        out, err = capsys.readouterr()
        return Result(int(ending.value.code or 0), out, err)

    return run
