"""The Transformer of `jaxaccel.models.Translator` in PyTorch: `nn.Transformer`, and the same decoder with a cache."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from benchmarks.peers.torch_layers import Weights, set_values, take_linear, take_norm
from benchmarks.sentences import DROPOUT, VOCABULARY, Sizes

MAX_POSITIONS = 512


class KeyValue(NamedTuple):
    """Keys and values, (B, N, S, H) each."""

    key: torch.Tensor
    value: torch.Tensor


class Translator(nn.Module):
    """`nn.Transformer` between a table that serves both languages, and the logits by that table."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.width = sizes.width
        self.embed = nn.Embedding(VOCABULARY, sizes.width)
        self.dropout = nn.Dropout(DROPOUT)
        self.transformer = nn.Transformer(
            sizes.width, sizes.heads, sizes.depth, sizes.depth, sizes.hidden, DROPOUT, batch_first=True,
            norm_first=True, layer_norm_eps=1e-6,
        )  # fmt: skip
        for layer in (*self.transformer.encoder.layers, *self.transformer.decoder.layers):
            drop_residuals_alone(layer)
        self.register_buffer("positions", make_sinusoids(MAX_POSITIONS, sizes.width), persistent=False)

    def forward(self, source: torch.Tensor, padding: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, vocabulary); `padding` (B, S) is True where `source` has no tokens."""
        return self.find_logits(self.decode(previous, self.encode(source, padding), padding))

    def encode(self, source: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """What the decoder reads, (B, S, width)."""
        return self.transformer.encoder(self.place(source), src_key_padding_mask=padding)

    def decode(self, previous: torch.Tensor, memory: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """The features (B, T, width) of all positions."""
        mask = nn.Transformer.generate_square_subsequent_mask(previous.shape[1], device=previous.device)
        return self.transformer.decoder(
            self.place(previous), memory, tgt_mask=mask, tgt_is_causal=True, memory_key_padding_mask=padding
        )

    def place(self, tokens: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Embeddings (B, T, width) of tokens of which the first stands at a position."""
        positions = self.positions[first : first + tokens.shape[1]]
        return self.dropout(self.embed(tokens) * math.sqrt(self.width) + positions)

    def find_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocabulary) of features (..., width)."""
        return functional.linear(features, self.embed.weight)

    def take(self, weights: Weights) -> None:
        """Takes weights."""
        set_values(self.embed.weight, weights["embed/embedding"])
        encoder, decoder = self.transformer.encoder, self.transformer.decoder
        for number, layer in enumerate(encoder.layers):
            take_layer(layer, weights, f"encoder/{number}", ("norm1", "norm2"))
        for number, layer in enumerate(decoder.layers):
            at = f"decoder/{number}"
            take_layer(layer, weights, at, ("norm1", "norm2", "norm3"))
            take_attention(layer.multihead_attn, weights, f"{at}/cross_attention")
        take_norm(encoder.norm, weights, "encoder_norm")
        take_norm(decoder.norm, weights, "decoder_norm")


class CachedDecoder:
    """The decoder of a `Translator` in inference, a token at a time, which keeps keys and values of those before.

    Args:
      model: of which it takes the layers.
      memory: (B, S, width), what the encoder made of the sources.
      padding: (B, S), True where there are no tokens.
      length: positions at most.
      beam: hypotheses of each row, which stand side by side; they share what they see of the source.
    """

    def __init__(
        self, model: Translator, memory: torch.Tensor, padding: torch.Tensor, length: int, beam: int = 1
    ) -> None:
        self._model, self._layers = model, model.transformer.decoder.layers
        self._beam, self._position = beam, 0
        self._there = ~padding[:, None, None]
        self._memory = [project_memory(layer.multihead_attn, memory) for layer in self._layers]
        rows = len(memory) * beam
        self._before = [
            KeyValue(*(x.new_zeros(rows, x.shape[1], length, x.shape[3]) for x in seen))
            for seen in self._memory
        ]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B * beam, vocabulary) of what follows `tokens` (B * beam,)."""
        x = self._model.place(tokens[:, None], self._position)
        for layer, before, memory in zip(self._layers, self._before, self._memory, strict=True):
            x = x + self._attend_before(layer.self_attn, layer.norm1(x), before)
            x = x + self._attend_memory(layer.multihead_attn, layer.norm2(x), memory)
            x = x + layer.linear2(functional.relu(layer.linear1(layer.norm3(x))))
        self._position += 1
        return self._model.find_logits(self._model.transformer.decoder.norm(x)[:, 0])

    def follow(self, parents: torch.Tensor) -> None:
        """Goes on with other hypotheses: those at `parents` (B * beam,)."""
        for before in self._before:
            for kept in before:
                kept[:, :, : self._position] = kept[parents, :, : self._position]

    def _attend_before(
        self, attention: nn.MultiheadAttention, x: torch.Tensor, before: KeyValue
    ) -> torch.Tensor:
        rows, _, width = x.shape
        heads, end = attention.num_heads, self._position + 1
        split = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = split.view(rows, 3, heads, 1, width // heads).unbind(1)
        before.key[:, :, end - 1 : end] = key
        before.value[:, :, end - 1 : end] = value
        seen = functional.scaled_dot_product_attention(
            query, before.key[:, :, :end], before.value[:, :, :end]
        )
        return attention.out_proj(seen.view(rows, 1, width))

    def _attend_memory(
        self, attention: nn.MultiheadAttention, x: torch.Tensor, memory: KeyValue
    ) -> torch.Tensor:
        rows, _, width = x.shape
        heads = attention.num_heads
        weight, bias = attention.in_proj_weight[:width], attention.in_proj_bias[:width]
        # The hypotheses of a row are queries side by side: they look at the same source.
        query = functional.linear(x, weight, bias).view(-1, self._beam, heads, width // heads)
        seen = functional.scaled_dot_product_attention(query.transpose(1, 2), *memory, attn_mask=self._there)
        return attention.out_proj(seen.transpose(1, 2).reshape(rows, 1, width))


def drop_residuals_alone(layer: nn.Module) -> None:
    """Leaves dropout where `jaxaccel.models.Translator` has it: not in attention, nor between the dense layers."""
    layer.dropout = nn.Identity()
    for attention in layer.children():
        if isinstance(attention, nn.MultiheadAttention):
            attention.dropout = 0.0


def project_memory(attention: nn.MultiheadAttention, memory: torch.Tensor) -> KeyValue:
    """Keys and values of the source, which are the same for all positions that look."""
    batch, length, width = memory.shape
    both = functional.linear(memory, attention.in_proj_weight[width:], attention.in_proj_bias[width:])
    split = both.view(batch, length, 2, attention.num_heads, width // attention.num_heads)
    return KeyValue(*(x.contiguous() for x in split.permute(2, 0, 3, 1, 4).unbind(0)))


def make_sinusoids(length: int, width: int) -> torch.Tensor:
    """Computes `jaxaccel.models.layers.decoder.sinusoids` (length, width)."""
    half = width // 2
    angles = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    return torch.cat([angles.sin(), angles.cos()], 1)


def take_layer(layer: nn.Module, weights: Weights, at: str, norms: Sequence[str]) -> None:
    """Takes what layers of the encoder and of the decoder have in common, and the norms of these names."""
    take_attention(layer.self_attn, weights, f"{at}/attention")
    take_linear(layer.linear1, weights, f"{at}/mlp/up")
    take_linear(layer.linear2, weights, f"{at}/mlp/down")
    for name in norms:
        take_norm(getattr(layer, name), weights, f"{at}/{name}")


def take_attention(attention: nn.MultiheadAttention, weights: Weights, at: str) -> None:
    """Takes the weights of an attention, of which queries, keys and values are one array in PyTorch."""
    width, names = attention.embed_dim, ("query", "key", "value")
    kernels = [torch.from_numpy(weights[f"{at}/{name}/kernel"]).reshape(width, -1).T for name in names]
    biases = [torch.from_numpy(weights[f"{at}/{name}/bias"]).reshape(-1) for name in names]
    set_values(attention.in_proj_weight, torch.cat(kernels).numpy())
    set_values(attention.in_proj_bias, torch.cat(biases).numpy())
    set_values(attention.out_proj.weight, weights[f"{at}/out/kernel"].reshape(-1, width).T)
    set_values(attention.out_proj.bias, weights[f"{at}/out/bias"])
