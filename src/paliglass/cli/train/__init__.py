"""train …: models from data, a module for each command."""

from __future__ import annotations

from importlib import import_module

for _name in ("contrastive", "finetune"):  # as help lists them
    import_module(f"{__name__}.{_name}")
