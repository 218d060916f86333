"""Layers that several models in PyTorch share, as its users write them, and how they take our weights.

Weights come as {path: array}, with the paths of jaxaccel's models.
"""

from collections.abc import Mapping

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

Weights = Mapping[str, np.ndarray]
Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the angles by which positions turn, (T, head size / 2) each."""


class Attention(nn.Module):
    """`jaxaccel.models.layers.attention.Attention` with rotary positions: queries, keys and values are one product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.all, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        batch, length, width = x.shape
        split = self.all(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(
            rotate(query, *rotation), rotate(key, *rotation), value, attn_mask=mask[:, None, None]
        )
        return self.out(seen.transpose(1, 2).reshape(batch, length, width))

    def take(self, weights: Weights, at: str) -> None:
        """Takes weights that stand `at` a path."""
        width, names = len(weights[f"{at}/query/kernel"]), ("query", "key", "value")
        set_values(
            self.all.weight,
            np.concatenate([weights[f"{at}/{name}/kernel"].reshape(width, -1).T for name in names]),
        )
        set_values(
            self.all.bias, np.concatenate([weights[f"{at}/{name}/bias"].reshape(-1) for name in names])
        )
        set_values(self.out.weight, weights[f"{at}/out/kernel"].reshape(-1, width).T)
        set_values(self.out.bias, weights[f"{at}/out/bias"])


def make_norm(width: int) -> nn.LayerNorm:
    """Makes a LayerNorm as jaxaccel's models have it."""
    return nn.LayerNorm(width, eps=1e-6)


def make_rotation(length: int, half: int, device: torch.device) -> Rotation:
    """Computes by how much so many positions turn heads of 2 * `half` features."""
    speeds = 10_000.0 ** (-torch.arange(half, device=device) / half)
    angles = torch.arange(length, device=device)[:, None] * speeds
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates pairs of features (B, N, T, H), as `jaxaccel.models.layers.rotary.rotate`."""
    one, other = x.chunk(2, -1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)


def take_linear(linear: nn.Linear, weights: Weights, at: str) -> None:
    """Takes the weights of a dense layer."""
    set_values(linear.weight, weights[f"{at}/kernel"].T)
    set_values(linear.bias, weights[f"{at}/bias"])


def take_norm(norm: nn.LayerNorm, weights: Weights, at: str) -> None:
    """Takes the weights of a LayerNorm."""
    set_values(norm.weight, weights[f"{at}/scale"])
    set_values(norm.bias, weights[f"{at}/bias"])


def take_conv(conv: nn.Conv1d | nn.Conv2d, weights: Weights, at: str) -> None:
    """Takes the weights of a convolution over one axis or two."""
    kernel = weights[f"{at}/kernel"]
    set_values(conv.weight, np.moveaxis(kernel, (-1, -2), (0, 1)))
    set_values(conv.bias, weights[f"{at}/bias"])


def take_lstm(rnn: nn.LSTM, weights: Weights) -> None:
    """Takes the weights of all layers, at ``forward`` and ``backward``. PyTorch's second bias starts at 0."""
    directions = {"forward": "", "backward": "_reverse"} if rnn.bidirectional else {"forward": ""}
    for layer in range(rnn.num_layers):
        for direction, ending in directions.items():
            at, suffix = f"{direction}/{layer}", f"l{layer}{ending}"
            set_values(getattr(rnn, f"weight_ih_{suffix}"), weights[f"{at}/input/kernel"].T)
            set_values(getattr(rnn, f"weight_hh_{suffix}"), weights[f"{at}/recurrent/kernel"].T)
            bias = weights[f"{at}/input/bias"]
            set_values(getattr(rnn, f"bias_ih_{suffix}"), bias)
            set_values(getattr(rnn, f"bias_hh_{suffix}"), np.zeros_like(bias))


def set_values(parameter: torch.Tensor | None, value: np.ndarray) -> None:
    """Gives a parameter its values."""
    assert parameter is not None
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
