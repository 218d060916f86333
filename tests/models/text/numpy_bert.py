"""BERT in NumPy and float64, from the arrays of a file in PyTorch's names and layout."""

import numpy as np
from scipy.special import erf


def encode(arrays, tokens, heads, before=""):
    """The last layer (L, width) of one text, without padding."""
    w = {name.removeprefix(before): np.asarray(x, np.float64) for name, x in arrays.items()}

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x + w["embeddings.position_embeddings.weight"][: len(tokens)], "embeddings.LayerNorm")
    i = 0
    while f"encoder.layer.{i}.output.dense.bias" in w:
        layer = f"encoder.layer.{i}"
        query, key, value = (
            dense(x, f"{layer}.attention.self.{part}").reshape(len(x), heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ value
        mixed = dense(mixed.swapaxes(0, 1).reshape(x.shape), f"{layer}.attention.output.dense")
        x = norm(x + mixed, f"{layer}.attention.output.LayerNorm")
        hidden = dense(x, f"{layer}.intermediate.dense")
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        x = norm(x + dense(hidden, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        i += 1
    return x


def normalize(x):
    return x / np.linalg.norm(x)


def draw_arrays(layers, width, inner, vocabulary, longest, before="", pooler=True):
    """Random arrays of a BERT, by PyTorch's names."""
    rng = np.random.default_rng(0)
    names = {
        "embeddings.word_embeddings.weight": (vocabulary, width),
        "embeddings.position_embeddings.weight": (longest, width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    norms, matrices = ["embeddings.LayerNorm"], {"pooler.dense": (width, width)} if pooler else {}
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        parts = (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
        )
        matrices |= {f"{layer}.{part}": (width, width) for part in parts}
        matrices |= {f"{layer}.intermediate.dense": (inner, width), f"{layer}.output.dense": (width, inner)}
    arrays = {name: rng.normal(0, 1, shape) for name, shape in names.items()}
    for name in norms:
        arrays |= {f"{name}.weight": rng.uniform(0.5, 1.5, width), f"{name}.bias": rng.normal(0, 0.2, width)}
    for name, shape in matrices.items():
        arrays |= {f"{name}.weight": rng.normal(0, 0.3, shape), f"{name}.bias": rng.normal(0, 0.2, shape[0])}
    return {before + name: x.astype(np.float32) for name, x in arrays.items()}
