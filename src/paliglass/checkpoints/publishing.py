"""A model for others: the card that says what it is and how to use it, and the way to the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paliglass.checkpoints.hub import is_hub_id
from paliglass.config import PaliGemmaConfig
from paliglass.errors import CheckpointError, PaliglassError
from paliglass.files import reason, require_readable

__all__ = ["CARD", "model_card", "push", "read_settings"]

CARD = "README.md"

_USE = """\
## Use

With [transformers](https://huggingface.co/docs/transformers/model_doc/paligemma):

```python
from PIL import Image
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

model = PaliGemmaForConditionalGeneration.from_pretrained("{name}", dtype="auto")
processor = AutoProcessor.from_pretrained("{name}")
inputs = processor(images=Image.open("picture.jpg"), text="<image>caption en", return_tensors="pt")
ids = model.generate(**inputs.to(model.dtype), max_new_tokens=64)
print(processor.decode(ids[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

With [paliglass](https://pypi.org/project/paliglass):

```sh
paliglass caption picture.jpg --model {name}
```

With [vLLM](https://docs.vllm.ai): `vllm serve {name}`.
"""


def model_card(
    name: str,
    config: PaliGemmaConfig,
    base: str | None = None,
    licence: str | None = None,
    settings: Mapping[str, Any] | None = None,
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> str:
    """The card, Markdown with the hub's front matter.

    What others have written, such as an adapter's base, stays on its line and in its cell.

    Args:
        name: the repository's or folder's.
        base: the model that it was made from.
        licence: the hub's word for it, such as "gemma" or "apache-2.0".
        settings: of its fine-tuning.
        scores: what `paliglass eval --json` printed.
    """
    text, vision = config.text_config, config.vision_config
    front = {
        "license": licence,
        "base_model": base if base and is_hub_id(base) and not Path(base).exists() else None,
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
    }
    family = "PaliGemma 2" if text.model_type == "gemma2" else "PaliGemma"
    lines = [
        "---",
        *(f"{key}: {_scalar(value)}" for key, value in front.items() if value is not None),
        f"tags:\n- {family.lower().replace(' ', '')}\n---",
        f"\n# {_inline(name.rpartition('/')[2])}\n",
        f"A {family} for pictures of {vision.image_size} × {vision.image_size} pixels "
        f"({config.num_image_tokens} tokens), with a decoder of {text.num_hidden_layers} layers of "
        f"width {text.hidden_size}" + (f", made from `{_inline(base)}`.\n" if base else ".\n"),
        _USE.format(name=_inline(name)),
    ]
    if settings:
        lines.append("## How it was fine-tuned\n\n| setting | |\n|---|---|")
        lines += [
            f"| {_cell(str(key).replace('_', ' '))} | {_cell(value)} |"
            for key, value in settings.items()
        ]
        lines.append("")
    if scores:
        try:
            lines += _score_table(scores)
        except (TypeError, KeyError, AttributeError):
            raise PaliglassError("the scores are not what `paliglass eval --json` prints") from None
    return "\n".join(lines)


def _score_table(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    lines = ["## Scores\n"]
    for split, tasks in scores.items():
        lines.append(f"| {_cell(split)} | score | n |\n|---|---|---|")
        lines += [
            f"| {_cell(task)} | {_cell(row['score'])} | {_cell(row['n'])} |"
            for task, row in tasks.items()
        ]
        lines.append("")
    return lines


def _scalar(text: str) -> str:
    """A string in YAML: plain where nothing in it means anything there, else in quotes."""
    plain = re.fullmatch(r"[A-Za-z][\w./-]*", text, re.ASCII)
    words = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
    if plain and text.lower() not in words:
        return text
    safe = (c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(safe)}"'


def _inline(text: object) -> str:
    """Text of one line that ends no quotation around it."""
    return re.sub(r"[`\"]", "'", " ".join(str(text).split()))


def _cell(text: object) -> str:
    return re.sub(r"([|<\\])", r"\\\1", " ".join(str(text).split()))


def push(folder: Path, repository: str, private: bool) -> str:
    """Uploads a folder to the hub, made if it is not there; returns its address.

    Raises CheckpointError where the hub refuses: not logged in, no right to, no such place.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        found = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=found.repo_id, folder_path=folder)
    except LocalTokenNotFoundError:
        raise CheckpointError(
            f"{repository}: not logged in; `hf auth login`, or set HF_TOKEN, then "
            f"`hf upload {repository} {folder}`"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{repository}: the hub did not take it ({reason}); {folder} is complete, and "
            f"`hf upload {repository} {folder}` tries again"
        ) from None
    return str(found)


def read_settings(path: Path) -> dict[str, Any]:
    """A run's config.yaml. Raises PaliglassError where it is none."""
    import yaml

    require_readable(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PaliglassError(f"{path}: is not YAML ({reason(error)})") from None
    if not isinstance(found, dict):
        raise PaliglassError(f"{path}: is no list of settings")
    return {key: value for key, value in found.items() if not str(value).startswith("/")}
