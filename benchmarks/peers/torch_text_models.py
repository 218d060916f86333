"""The classifiers of texts of `jaxaccel.models` in PyTorch, as its users write them, and how they take our weights.

Padding is the token 0. Weights come as {path: array}, with the paths of jaxaccel's models.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]
from torch.nn.utils import rnn  # pyright: ignore[reportMissingImports]

from benchmarks.texts import CLASSES, DROPOUT, VOCABULARY, Sizes

Weights = Mapping[str, np.ndarray]


class TextCnn(nn.Module):
    """`jaxaccel.models.text_cnn`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, sizes.width, padding_idx=0)
        self.convs = nn.ModuleList(
            nn.Conv1d(sizes.width, sizes.filters, window, padding="same") for window in sizes.windows
        )
        self.dropout = nn.Dropout(DROPOUT["text_cnn"])
        self.head = nn.Linear(sizes.filters * len(sizes.windows), CLASSES)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens).transpose(1, 2)
        padding = (tokens == 0)[:, None]
        found = [conv(x).masked_fill(padding, -torch.inf).amax(2) for conv in self.convs]
        return self.head(self.dropout(functional.relu(torch.cat(found, 1))))

    def take(self, weights: Weights) -> None:
        """Takes weights."""
        _take_embedding(self.embed, weights)
        for number, conv in enumerate(self.convs):
            _set(conv.weight, weights[f"convs/{number}/kernel"].transpose(2, 1, 0))
            _set(conv.bias, weights[f"convs/{number}/bias"])
        _take_linear(self.head, weights, "head")


class BiLstm(nn.Module):
    """`jaxaccel.models.bilstm` of packed sequences. PyTorch's second bias stays 0 at the start."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, sizes.width, padding_idx=0)
        self.rnn = nn.LSTM(sizes.width, sizes.features, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(DROPOUT["bilstm"])
        self.head = nn.Linear(2 * sizes.features, CLASSES)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.embed(tokens))
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = rnn.pad_packed_sequence(
            self.rnn(packed)[0], batch_first=True, padding_value=-float("inf")
        )
        return self.head(self.dropout(outputs.amax(1)))

    def take(self, weights: Weights) -> None:
        """Takes weights."""
        _take_embedding(self.embed, weights)
        for direction, suffix in (("forward", "l0"), ("backward", "l0_reverse")):
            _set(getattr(self.rnn, f"weight_ih_{suffix}"), weights[f"{direction}/0/input/kernel"].T)
            _set(getattr(self.rnn, f"weight_hh_{suffix}"), weights[f"{direction}/0/recurrent/kernel"].T)
            bias = weights[f"{direction}/0/input/bias"]
            _set(getattr(self.rnn, f"bias_ih_{suffix}"), bias)
            _set(getattr(self.rnn, f"bias_hh_{suffix}"), np.zeros_like(bias))
        _take_linear(self.head, weights, "head")


class Block(nn.Module):
    """`jaxaccel.models.layers.transformer.Block`: queries, keys and values are one product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.all, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(DROPOUT["text_encoder"])

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        batch, length, width = x.shape
        split = self.all(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(
            rotate(query, *turns), rotate(key, *turns), value, attn_mask=mask
        )
        x = x + self.dropout(self.out(seen.transpose(1, 2).reshape(batch, length, width)))
        hidden = self.dropout(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return x + self.dropout(self.down(hidden))

    def take(self, weights: Weights, at: str) -> None:
        """Takes weights of the block that stands `at` a path."""
        for name in ("norm1", "norm2"):
            _take_norm(getattr(self, name), weights, f"{at}/{name}")
        width = len(weights[f"{at}/attention/query/kernel"])
        kernels = [
            weights[f"{at}/attention/{name}/kernel"].reshape(width, -1).T
            for name in ("query", "key", "value")
        ]
        biases = [weights[f"{at}/attention/{name}/bias"].reshape(-1) for name in ("query", "key", "value")]
        _set(self.all.weight, np.concatenate(kernels))
        _set(self.all.bias, np.concatenate(biases))
        _set(self.out.weight, weights[f"{at}/attention/out/kernel"].reshape(-1, width).T)
        _set(self.out.bias, weights[f"{at}/attention/out/bias"])
        for name in ("up", "down"):
            _take_linear(getattr(self, name), weights, f"{at}/mlp/{name}")


class TextEncoder(nn.Module):
    """`jaxaccel.models.TextEncoder`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.half = sizes.width // sizes.heads // 2
        self.embed = nn.Embedding(VOCABULARY, sizes.width, padding_idx=0)
        self.dropout = nn.Dropout(DROPOUT["text_encoder"])
        self.blocks = nn.ModuleList(Block(sizes.width, sizes.heads) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)
        self.head = nn.Linear(sizes.width, CLASSES)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        mask = tokens != 0
        speeds = 10_000.0 ** (-torch.arange(self.half, device=tokens.device) / self.half)
        angles = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * speeds
        turns = angles.cos(), angles.sin()
        x = self.dropout(self.embed(tokens))
        for block in self.blocks:
            x = block(x, mask[:, None, None], turns)
        there = mask[..., None]
        pooled = (self.norm(x) * there).sum(1) / there.sum(1)
        return self.head(pooled)

    def take(self, weights: Weights) -> None:
        """Takes weights."""
        _take_embedding(self.embed, weights)
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            block.take(weights, f"blocks/{number}")
        _take_norm(self.norm, weights, "norm")
        _take_linear(self.head, weights, "head")


MODELS: Mapping[str, Callable[[Sizes], nn.Module]] = {
    "text_cnn": TextCnn,
    "text_encoder": TextEncoder,
    "bilstm": BiLstm,
}


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates pairs of features (B, N, T, H), as `jaxaccel.models.layers.rotary.rotate`."""
    one, other = x.chunk(2, -1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)


def _take_embedding(embed: nn.Embedding, weights: Weights) -> None:
    table = weights["embed/embedding"].copy()
    table[0] = 0  # what padding is read as; jaxaccel's models do not look
    _set(embed.weight, table)


def _take_linear(linear: nn.Linear, weights: Weights, at: str) -> None:
    _set(linear.weight, weights[f"{at}/kernel"].T)
    _set(linear.bias, weights[f"{at}/bias"])


def _take_norm(norm: nn.LayerNorm, weights: Weights, at: str) -> None:
    _set(norm.weight, weights[f"{at}/scale"])
    _set(norm.bias, weights[f"{at}/bias"])


def _set(parameter: torch.Tensor, value: np.ndarray) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
