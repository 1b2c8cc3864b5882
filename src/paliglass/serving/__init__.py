"""The server: PaliGemma over HTTP, exact and batching; see docs/serving.md.

engine.py jobs.py   the scheduler: one thread, one running batch, a bounded line
calls.py       a request's way to it and back
pictures.py    addresses → pictures, capped, in threads
prompts.py structured.py bodies.py   what clients send → tasks
openai.py moondream.py   the two interfaces
http.py errors.py server.py   the guard, the stream, the end
"""

from __future__ import annotations

from paliglass.serving.app import create_app
from paliglass.serving.dual import Dual
from paliglass.serving.engine import Engine
from paliglass.serving.settings import Settings

__all__ = ["Dual", "Engine", "Settings", "create_app"]
