"""Simon Willison's `llm`, unmodified, with the server as one of its models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.serving.helpers import GUARD_SECONDS, SCENE, Running

from paliglass.model import PaliGemma

pytest.importorskip("llm")


@pytest.mark.parametrize("option", [[], ["--no-stream"]], ids=["stream", "whole"])
def test_llm_asks_about_a_picture(
    server: Running, model: PaliGemma, tmp_path: Path, option: list[str]
) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        "- model_id: mini\n  model_name: mini\n  vision: true\n"
        f"  api_base: {server.url}/v1\n  api_key_name: none\n",
        "utf-8",
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "llm", "-m", "mini", "--key", "none", *option),
            *("-a", str(SCENE), "what colour is the star?"),
        ],
        env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=GUARD_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == model.ask(SCENE, "what colour is the star?")
