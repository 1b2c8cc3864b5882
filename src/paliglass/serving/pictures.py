"""A picture's address → what the model needs of it: capped before it is unpacked, off the loop.

    data:image/png;base64,…   always
    https://HOST/…            where `--allow-media-domain HOST` opts in; see `paliglass.fetching`
    file:///…                 where `--media-path DIR` opts in, and inside of that folder alone

Threads decode, resize and hash; others fetch, so that a slow host keeps no picture waiting.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from PIL import Image

from paliglass.errors import PictureError
from paliglass.fetching import fetch_picture
from paliglass.lru_cache import LRUCache
from paliglass.pictures import PreparedPicture
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.serving.errors import ApiError
from paliglass.serving.settings import Settings

__all__ = ["FORMATS", "PictureReader", "is_address"]

T = TypeVar("T")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")  # Pillow's names of what clients may send
THREADS = 4  # at most, of each kind


def is_address(text: str) -> bool:
    """Whether a text is a picture's address, to be read by `PictureReader`."""
    return text[:5].lower() in ("data:", "https", "file:")


class PictureReader:
    """Opens pictures for requests, in threads of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._prepared: LRUCache[bytes, PreparedPicture] = LRUCache(settings.picture_cache)
        self._lock = threading.Lock()
        count = min(os.cpu_count() or 1, THREADS)
        self._workers = ThreadPoolExecutor(count, "picture")
        self._fetchers = ThreadPoolExecutor(THREADS, "fetch")

    def close(self) -> None:
        for pool in (self._workers, self._fetchers):
            pool.shutdown(wait=False, cancel_futures=True)

    async def work(self, function: Callable[[], T]) -> T:
        """Runs something that takes long in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, function)

    async def prepare(
        self, processor: PaliGemmaProcessor, addresses: Sequence[str]
    ) -> list[PreparedPicture]:
        """Raises PictureError, ApiError."""
        return [await self._prepare(processor, address) for address in addresses]

    async def read(self, address: str) -> bytes:
        """The bytes of a picture's file, whose format and size are known to be allowed."""
        scheme = address[:8].partition(":")[0].lower()
        if scheme == "https":
            fetching = asyncio.get_running_loop().run_in_executor(
                self._fetchers, self._fetch, address
            )
            data = await fetching
        elif scheme == "file":
            data = await self.work(lambda: self._open(address))
        elif scheme == "data":
            data = await self.work(lambda: self._decode(address))
        else:
            raise PictureError("a picture's address begins with data:")
        await self.work(lambda: self._check(data))
        return data

    async def _prepare(self, processor: PaliGemmaProcessor, address: str) -> PreparedPicture:
        data = await self.read(address)
        return await self.work(lambda: self._prepare_bytes(processor, data))

    def _prepare_bytes(self, processor: PaliGemmaProcessor, data: bytes) -> PreparedPicture:
        key = hashlib.blake2b(data, digest_size=16).digest()
        with self._lock:
            if key in self._prepared:
                return self._prepared[key]
        picture = processor.prepare(data)
        _ = picture.digest  # worked out here, not in the model's thread
        with self._lock:
            self._prepared.put(key, picture, picture.pixels.nbytes)
            self._prepared.trim()
        return picture

    def _decode(self, address: str) -> bytes:
        head, comma, body = address.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise PictureError("a data: address reads data:image/png;base64,…")
        if len(body) * 3 // 4 > self.settings.max_picture:
            raise self._too_long()
        try:
            return base64.b64decode(body.strip(), validate=True)
        except (binascii.Error, ValueError):
            raise PictureError("the picture's data is not base64") from None

    def _open(self, address: str) -> bytes:
        folder = self.settings.media_path
        if folder is None:
            raise PictureError("local pictures are not opened; start with --media-path to allow it")
        # The same words for what is missing and for what lies outside: neither is to be told.
        missing = PictureError("there is no such picture")
        try:
            parts = urlsplit(address)
            path = Path(unquote(parts.path)).resolve(strict=True)
            if parts.netloc not in ("", "localhost") or not path.is_relative_to(folder.resolve()):
                raise missing
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise missing
                if status.st_size > self.settings.max_picture:
                    raise self._too_long()
                return file.read(self.settings.max_picture)
        except (OSError, ValueError, RuntimeError):
            raise missing from None

    def _fetch(self, address: str) -> bytes:
        domains = self.settings.media_domains
        if not domains:
            raise PictureError(
                "pictures are not fetched; send a data: address, or start the server with "
                "--allow-media-domain"
            )
        return fetch_picture(address, domains, max_bytes=self.settings.max_picture)

    def _check(self, data: bytes) -> None:
        """Reads the header alone: what would be unpacked, and how large it would be."""
        if len(data) > self.settings.max_picture:
            raise self._too_long()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                    width, height = image.size
        except Image.DecompressionBombError:
            raise PictureError("the picture has too many pixels; scale it down first") from None
        except Exception:  # decoders raise all kinds on broken files
            raise PictureError(
                f"the picture is none that can be read; send {', '.join(FORMATS[:3])} or such"
            ) from None
        if width * height > self.settings.max_pixels:
            raise PictureError(
                f"the picture has {width} × {height} pixels; at most "
                f"{self.settings.max_pixels:,} are taken: scale it down first"
            )

    def _too_long(self) -> ApiError:
        return ApiError(
            413, f"a picture's file may have {self.settings.max_picture:,} bytes", param="image"
        )
