"""Servers in a thread, pictures as data: addresses, models whose steps can be held."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from tests.tiny import noise_picture, tiny_model, tiny_processor, worded_config

from paliglass.model import PaliGemma, load
from paliglass.serving import Engine, Settings, create_app
from paliglass.serving.dual import Dual
from paliglass.serving.server import make_server

ASSETS = Path(__file__).parents[2] / "assets"
SCENE = ASSETS / "scene.png"
GUARD_SECONDS = 120  # nothing here waits for time to pass; this ends what hangs


@cache
def mini() -> PaliGemma:
    return load("mini", device="cpu", dtype="float32")


def tiny(eos: int | None = None) -> PaliGemma:
    """A small random model that, by default, never ends an answer by itself."""
    processor = tiny_processor()
    end = processor.image_token_id if eos is None else eos
    return PaliGemma(tiny_model(worded_config(eos_token_id=end), std=0.3), processor)


def data_address(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def noise_address(seed: int = 0) -> str:
    return data_address(png(noise_picture(64, 64, seed)))


def scene_address() -> str:
    return data_address(SCENE.read_bytes())


def chat(text: str, *addresses: str, **fields: Any) -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in addresses]
    content = [{"type": "text", "text": text}, *pictures]
    return {"model": "mini", "messages": [{"role": "user", "content": content}], **fields}


@dataclass
class Running:
    """A server that runs. url: its address."""

    url: str
    engine: Engine
    client: httpx.Client

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)


@contextmanager
def running(
    engine: Engine,
    settings: Settings | None = None,
    with_dual: bool = False,
    send_buffer: int | None = None,
) -> Iterator[Running]:
    """Serves in a thread until the block ends."""
    dual = Dual("mini-dual", "cpu") if with_dual else None
    if dual is not None:
        dual.load()
    settings = settings or Settings(embedding_name="mini-dual" if with_dual else None)
    app = create_app(engine, settings, dual)
    listening = socket.create_server(("127.0.0.1", 0))
    if send_buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = make_server(app, engine, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with httpx.Client(base_url=url, timeout=GUARD_SECONDS, trust_env=False) as client:
        assert engine.has_loaded.wait(GUARD_SECONDS)
        client.get("/health")  # waits until the socket is being served
        yield Running(url, engine, client)
    server.should_exit = True
    thread.join(GUARD_SECONDS)
    assert not thread.is_alive()


class Held:
    """A model that stops before each step of the decoder until it is let on."""

    def __init__(self, model: PaliGemma) -> None:
        self.model = model
        self.arrived, self._go = threading.Semaphore(0), threading.Semaphore(0)
        self._is_free = False
        self._hook = model.model.language_model.model.layers[0].register_forward_hook(self._wait)

    def _wait(self, *_: Any) -> None:
        if not self._is_free:
            self.arrived.release()
            assert self._go.acquire(timeout=GUARD_SECONDS)

    def until_held(self) -> None:
        assert self.arrived.acquire(timeout=GUARD_SECONDS)

    def let_on(self) -> None:
        self._go.release()

    def free(self) -> None:
        self._is_free = True
        self._go.release()


def until(condition: Callable[[], Any]) -> None:
    """Waits for something that other threads bring about."""
    while not condition():
        time.sleep(0.002)


def in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    """What each call returns or raises, all at once."""
    results: list[Any] = [None] * len(calls)

    def work(i: int) -> None:
        try:
            results[i] = calls[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD_SECONDS)
        assert not thread.is_alive()
    return results
