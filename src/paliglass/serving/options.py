"""What a server is made of: plain values, which a configuration file may hold too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paliglass.checkpoints.assembly import DtypeName
from paliglass.errors import PaliglassError
from paliglass.fast import Method
from paliglass.model import PaliGemma, load
from paliglass.serving.dual import Dual
from paliglass.serving.engine import Engine
from paliglass.serving.settings import Settings

__all__ = ["ServerOptions"]


@dataclass(frozen=True)
class ServerOptions:
    """As the options of `paliglass serve`; cache in MiB, timeout in seconds.

    is_local: see `Settings`.
    """

    model: str = "mini"
    adapter: str | None = None
    device: str = "auto"
    dtype: DtypeName = "auto"
    quantize: Method | None = None
    mask_codec: str | None = None
    name: str | None = None
    api_key_file: str | None = None
    max_queue: int = 64
    max_batch: int = 8
    timeout: float = 120.0
    cache: int = 256
    embedding_model: str | None = None
    allow_media_domain: Sequence[str] = ()
    media_path: str | None = None
    ignore_system: bool = False
    is_local: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        """Raises PaliglassError for a file without any."""
        if self.api_key_file is None:
            return ()
        keys = tuple(Path(self.api_key_file).read_text("utf-8-sig").split())
        if not keys:
            raise PaliglassError(f"{self.api_key_file}: holds no key; write one a line")
        return keys

    @property
    def settings(self) -> Settings:
        dual = self._dual_name
        return Settings(
            name=self.name or _last_part(self.model),
            embedding_name=None if dual is None else _last_part(dual),
            timeout=self.timeout,
            keys=self.keys,
            media_domains=tuple(self.allow_media_domain),
            media_path=None if self.media_path is None else Path(self.media_path),
            ignore_system=self.ignore_system,
            is_local=self.is_local,
        )

    def create(self) -> tuple[Engine, Settings, Dual | None]:
        """What `create_app` takes; the models are loaded once the engine is started."""
        dual = None if self._dual_name is None else Dual(self._dual_name, self.device)

        def load_models() -> PaliGemma:
            if dual is not None:
                dual.load()
            return load(
                self.model,
                device=self.device,
                dtype=self.dtype,
                adapter=self.adapter,
                quantize=self.quantize,
                mask_codec=self.mask_codec,
            )

        engine = Engine(
            load_models,
            max_batch=self.max_batch,
            max_queue=self.max_queue,
            feature_bytes=self.cache << 20,
            prefix_bytes=self.cache << 20,
        )
        return engine, self.settings, dual

    @property
    def _dual_name(self) -> str | None:
        return self.embedding_model or ("mini-dual" if self.model == "mini" else None)


def _last_part(model: str) -> str:
    """No path of this machine: clients are told it. A hub id stays as it is."""
    path = Path(model)
    return path.resolve().name if path.exists() or path.is_absolute() else model
