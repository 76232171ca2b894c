"""The recover network: a self-generated map and a prompt in, the recovered image out.

It never sees the test image.  The map says where things are, coarsely; the prompt, a similar normal image, says what
normal looks like there.  Attention from the map's cells to the prompt's cells fetches normal appearance for each
place, which also aligns a part that lies differently.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PromptFeatures(NamedTuple):
    """What is kept of a prompt image: `key` `(N, D, cells)` and `value` `(N, cells, V)`.

    It does not depend on the test image, so a station computes it never: the bank holds it.
    """

    key: Tensor
    value: Tensor


class PromptShapes(NamedTuple):
    """Shapes of one prompt's `PromptFeatures`, without the batch."""

    key: tuple[int, int]
    value: tuple[int, int]


def conv_norm(inside: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inside, out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions around an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(channels, channels),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape is kept."""
        return torch.relu(x + self.body(x))


class Upsample(nn.Module):
    """Twice the size by sub-pixel convolution: a 1x1 convolution at the low size, then a shuffle."""

    def __init__(self, inside: int, out: int, factor: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, out * factor * factor, 1, bias=False), nn.BatchNorm2d(out * factor * factor)
        )
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, inside, h, w)` to `(N, out, f h, f w)`."""
        return torch.relu(F.pixel_shuffle(self.body(x), self.factor))


class MapEncoder(nn.Module):
    """From a map `(N, 9, h, w)` to one token per cell, with the place of the cell beside it."""

    def __init__(self, map_channels: int, width: int, height_cells: int, width_cells: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm(map_channels + 2, width), conv_norm(width, width))
        ys = torch.linspace(-1, 1, height_cells)[:, None].expand(height_cells, width_cells)
        xs = torch.linspace(-1, 1, width_cells)[None, :].expand(height_cells, width_cells)
        self.place: Tensor
        self.register_buffer("place", torch.stack([ys, xs])[None], persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """Return `(N, width, h, w)`."""
        tokens: Tensor = self.body(torch.cat([h, self.place.expand(h.shape[0], -1, -1, -1)], 1))
        return tokens


def unit(x: Tensor) -> Tensor:
    """Scale `(N, D, cells)` to unit length over `D`, in float32 whatever the precision around it."""
    return F.normalize(x.float(), dim=1).to(x.dtype)


class Recover(nn.Module):
    """Map and prompt to recovered image.

    Args:
        map_channels: channels of the self-generated map.
        cell: pixels per map cell, both ways.
        cells: `(rows, columns)` of the map.
        width: channels of tokens, keys and queries.
        value_width: channels of a prompt cell's value.
        prompted: False for a network that has the map alone; its prompts are empty.
    """

    def __init__(
        self,
        map_channels: int,
        cell: int,
        cells: tuple[int, int],
        width: int = 64,
        value_width: int = 96,
        prompted: bool = True,
    ) -> None:
        super().__init__()
        self.cell = cell
        self.prompted = prompted
        self.prompt_shapes = PromptShapes((width, cells[0] * cells[1]), (cells[0] * cells[1], value_width))
        self.encoder = MapEncoder(map_channels, width, *cells)
        if prompted:
            self.query = nn.Conv2d(width, width, 1)
            self.key = nn.Conv2d(width, width, 1)
            self.value = nn.Sequential(
                conv_norm(3 * cell * cell, 2 * value_width, 1), nn.Conv2d(2 * value_width, value_width, 3, 1, 1)
            )
            self.sharpness = nn.Parameter(torch.tensor(8.0))
        self.fuse = nn.Sequential(conv_norm(width + value_width if prompted else width, 96), Residual(96))
        self.decode = nn.Sequential(Upsample(96, 48), Residual(48))
        self.to_image = nn.Sequential(nn.Conv2d(48, 3 * 16, 3, 1, 1), nn.PixelShuffle(4), nn.Conv2d(3, 3, 3, 1, 1))
        if cell != 8:
            raise ValueError("the decoder is laid out for cells of 8 pixels")

    def prompt(self, image: Tensor, h: Tensor) -> PromptFeatures:
        """Encode prompt images `(N, 3, H, W)` with their maps `h`."""
        if not self.prompted:
            return PromptFeatures(h.new_zeros(len(h), 0, 0), h.new_zeros(len(h), 0, 0))
        key = unit(self.key(self.encoder(h)).flatten(2))
        value = self.value(F.pixel_unshuffle(image, self.cell)).flatten(2).transpose(1, 2)
        return PromptFeatures(key, value)

    def forward(self, h: Tensor, prompt: PromptFeatures | None) -> Tensor:
        """Recover the image `(N, 3, H, W)`, normalised like `X`, from its map and an encoded prompt (None: without)."""
        tokens = self.encoder(h)
        if self.prompted and prompt is not None:
            tokens = torch.cat([tokens, self._fetched(tokens, prompt)], 1)
        image: Tensor = self.to_image(self.decode(self.fuse(tokens)))
        return image

    def _fetched(self, tokens: Tensor, prompt: PromptFeatures) -> Tensor:
        """Normal appearance for each cell, `(N, V, h, w)`: attention from the map's cells to the prompt's."""
        query = unit(self.query(tokens).flatten(2)).transpose(1, 2) * self.sharpness
        similarity = torch.bmm(query, prompt.key.to(query.dtype)).float()
        attention = torch.softmax(similarity, dim=2).to(tokens.dtype)
        fetched = torch.bmm(attention, prompt.value.to(tokens.dtype)).transpose(1, 2)
        return fetched.reshape(len(tokens), -1, *tokens.shape[2:])
