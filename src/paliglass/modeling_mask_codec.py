"""The VQ-VAE behind the `<seg>` tokens: a 64×64 mask <-> 16 codes out of 128.

    64×64 --encoder--> 4×4 vectors --nearest of the codebook--> 16 codes --decoder--> 64×64

The encoder halves the side four times, the decoder doubles it back; two residual blocks stand at
4×4 in both. The quantizer is that of arXiv 1711.00937, the use in PaliGemma that of 2407.07726
(section 3.2), the official weights those of arXiv 2301.02229. Module names are the official
file's, so that its keys are ours.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from paliglass.errors import CheckpointError, ConfigError

__all__ = ["MASK_SIDE", "MaskCodec", "MaskCodecConfig"]

MASK_SIDE = 64
GRID = 4
MAX_SIZE = 2**14


@dataclass(frozen=True)
class MaskCodecConfig:
    """Sizes of the codec; the defaults are the published ones.

    width: channels at 4×4, half as many at each doubling of the side; a multiple of 8.
    embedding_dim: length of a codebook vector. num_codes: how many there are.
    """

    width: int = 128
    embedding_dim: int = 512
    num_codes: int = 128

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if type(value) is not int or not 1 <= value <= MAX_SIZE:
                raise ConfigError(
                    f"mask codec: {name} is {value!r}; it must be an int from 1 to {MAX_SIZE}"
                )
        if self.width % 8:
            raise ConfigError(f"mask codec: width is {self.width}; it must be a multiple of 8")


class ResidualBlock(nn.Module):
    """x + conv1×1(relu(conv3×3(relu(conv3×3(x)))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class MaskCodec(nn.Module):
    """Masks to codes and back; `checkpoints.load_mask_codec` reads one."""

    def __init__(self, config: MaskCodecConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MaskCodecConfig()
        width, dim = config.width, config.embedding_dim
        down = [1, width // 8, width // 4, width // 2, width]
        encoder: list[nn.Module] = []
        for inside, outside in pairwise(down):
            encoder += [nn.Conv2d(inside, outside, 4, stride=2, padding=1), nn.ReLU()]
        encoder += [ResidualBlock(width), ResidualBlock(width), nn.Conv2d(width, dim, 1)]
        up = [width, width, width // 2, width // 4, width // 8]
        decoder = [nn.Conv2d(dim, width, 1), nn.ReLU(), ResidualBlock(width), ResidualBlock(width)]
        for inside, outside in pairwise(up):
            decoder += [nn.ConvTranspose2d(inside, outside, 4, stride=2, padding=1), nn.ReLU()]
        decoder += [nn.Conv2d(up[-1], 1, 1)]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder)
        self.codebook = nn.Parameter(torch.empty(config.num_codes, dim))
        if not self.codebook.is_meta:  # there it would import torch's compiler: a second
            nn.init.normal_(self.codebook, std=dim**-0.5)

    def embed(self, masks: Tensor) -> Tensor:
        """Masks B × 64 × 64 in [0, 1] → vectors B × 4 × 4 × D, before the quantizer."""
        vectors: Tensor = self.encoder(2 * masks[:, None].to(self.codebook.dtype) - 1)
        return vectors.permute(0, 2, 3, 1)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Vectors … × D → for each the code whose vector is nearest: int64, argmin ‖v − e‖²."""
        # ‖v‖² is the same for all codes, and is left out.
        distances = self.codebook.square().sum(1) - 2 * vectors @ self.codebook.T
        return distances.argmin(-1)

    def reconstruct(self, vectors: Tensor) -> Tensor:
        """Quantized vectors B × 4 × 4 × D → masks B × 64 × 64 in about [−1, 1]."""
        return self.decoder(vectors.permute(0, 3, 1, 2))[:, 0]

    @torch.no_grad()
    def encode(self, masks: Tensor) -> Tensor:
        """Masks B × 64 × 64 in [0, 1] → codes B × 16, int64, row by row of the 4×4 grid."""
        return self.nearest(self.embed(masks)).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes B × 16 → masks B × 64 × 64 in about [−1, 1]: inside where above 0.

        Raises CheckpointError for a code that the codebook has no vector for.
        """
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.num_codes:
            raise CheckpointError(
                f"the mask codec has {self.config.num_codes} codes, and is asked for another "
                f"({int(codes.min())} … {int(codes.max())}): it is not this model's"
            )
        return self.reconstruct(self.codebook[codes.reshape(-1, GRID, GRID)])
