"""For every test: no network, and no deadline for a slow machine to miss."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"

# In CI the same examples every time: what failed there fails again here.
settings.register_profile("paliglass", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("paliglass")
