"""How much two names of a layer have in common, given how the field names layers."""

import collections
import functools
import re
from collections.abc import Sequence

SYNONYMS = (
    ("norm", "bn", "batchnorm", "layernorm", "ln", "downsample.1"),
    ("head", "fc", "linear", "classifier", "logits", "heads"),
    ("shortcut", "downsample", "skip"),
    ("query", "q", "q_proj", "q_lin"),
    ("key", "k", "k_proj", "k_lin"),
    ("value", "v", "v_proj", "v_lin"),
    ("out", "output", "proj", "o_proj", "out_proj", "out_lin"),
    ("up", "fc1", "intermediate", "lin1", "c_fc", "linear1"),
    ("down", "fc2", "output", "lin2", "c_proj", "linear2"),
    ("attention", "attn", "self_attn", "self_attention"),
    ("embed", "patch_embed", "embeddings", "word_embeddings", "tok_embeddings", "wte"),
    ("positions", "pos_embed", "pos_embedding", "position_embeddings", "wpe"),
    ("class_token", "cls_token"),
    ("squeeze", "fc1", "conv_reduce", "reduce"),
    ("excite", "fc2", "conv_expand"),
    ("expand", "conv_pw"),
    ("depthwise", "conv_dw", "dw", "dwconv"),
    ("project", "conv_pwl"),
    ("stem", "conv_stem"),
)
"""Words for the same thing; a word may stand for several."""
PHRASES = (
    ("attention.output.dense", "attention.out"),
    ("attention.output.layer_norm", "norm1"),
    ("intermediate.dense", "mlp.up"),
    ("output.dense", "mlp.down"),
    ("output.layer_norm", "norm2"),
    ("sa_layer_norm", "norm1"),
    ("output_layer_norm", "norm2"),
    ("self_attn_layer_norm", "norm1"),
    ("final_layer_norm", "norm2"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("token_type_embeddings", "types"),
)
"""What layers of encoders are called whose words, each by itself, say something else, and what we call them: BERT and
its kin, DistilBERT, fairseq, and the ViTs of Hugging Face. The first that ends a name counts."""
HEADS = ("cls", "pooler", "lm_head", "head", "classifier", "qa_outputs", "score")
"""What parts are called that lead to the outputs of the task that a file was made for."""
_MEANINGS: dict[str, set[int]] = collections.defaultdict(set)
for _i, _words in enumerate(SYNONYMS):
    for _word in _words:
        _MEANINGS[_word].add(_i)


def similarity(a: str, b: str) -> float:
    """0 to 2: the share of words that two names of layers have in common, and of numbers that are equal.

    Both sides count their numbers from 0 (`rank_numbers`). Later words say more about a layer than earlier ones.
    """
    return _words_alike(_split(a)[0], _split(b)[0]) + _numbers_alike(_split(a)[1], _split(b)[1])


def _words_alike(a: Sequence[str], b: Sequence[str]) -> float:
    if not a or not b:
        return 0.0
    weights = {(True, word): 2.0 ** (i - len(a)) for i, word in enumerate(a)}
    weights |= {(False, word): 2.0 ** (i - len(b)) for i, word in enumerate(b)}
    alike = sum(
        w for (left, word), w in weights.items() if any(_same(word, other) for other in (b if left else a))
    )
    return alike / sum(weights.values())


def _numbers_alike(a: Sequence[int], b: Sequence[int]) -> float:
    if not a and not b:
        return 1.0
    # Read from the end, where a name is most specific; a stem or a stage may add a number in front.
    same = sum(x == y for x, y in zip(reversed(a), reversed(b), strict=False))
    return same / max(len(a), len(b))


@functools.cache
def _same(a: str, b: str) -> bool:
    return a == b or bool(_MEANINGS.get(a, set()) & _MEANINGS.get(b, set()))


@functools.cache
def _split(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The words of a name and its numbers: ``layer1.0.conv2`` -> (layer, conv2, conv), (1, 0, 2)."""
    words: list[str] = []
    for part in re.split(r"[./]", _in_snake_case(_in_our_words(name))):
        stem = re.sub(r"_?\d+$", "", part)
        words += [word for word in dict.fromkeys((part, stem)) if word and not word.isdigit()]
    return tuple(words), tuple(int(match[1]) for match in _numbers(name))


def _in_snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _in_our_words(name: str) -> str:
    snake = _in_snake_case(name)
    for theirs, ours in PHRASES:
        if snake == theirs or snake.endswith(f".{theirs}"):
            return snake[: -len(theirs)] + ours
    return name


def is_of_head(name: str) -> bool:
    """Whether a layer of that name belongs to what a file's model ends in."""
    return any(part in HEADS for part in re.split(r"[./]", name.lower()))


_NUMBER = re.compile(r"(\d+)([a-z](?![a-zA-Z\d]))?")
"""With a letter that counts on: ``inception3a``, ``inception3b``, ``inception4a``."""


def _numbers(name: str) -> list[re.Match[str]]:
    """The numbers of a name, but for those of words such as ``fc2``, which say what a layer is and not which one."""
    found = []
    for match in _NUMBER.finditer(name):
        before, after = name[: match.start()], name[match.end() :]
        word = re.split(r"[./]", before)[-1] + match[0] + re.split(r"[./]", after)[0]
        if word.lower() not in _MEANINGS:
            found.append(match)
    return found


def rank_numbers(names: Sequence[str]) -> dict[str, str]:
    """By name: the same with each number replaced by its rank among those that stand in the same place.

    ``layer1``, ``layer2`` become ``layer0``, ``layer1``, and so do ``layer3a``, ``layer3b``; a number that stands alone
    (a stem's ``conv1``) goes.
    """
    found: dict[str, set[tuple[int, str]]] = collections.defaultdict(set)
    known = {name: _in_our_words(name) for name in names}
    for name in known.values():
        for before, number in _numbered(name):
            found[before].add(number)
    ranks = {before: {n: i for i, n in enumerate(sorted(numbers))} for before, numbers in found.items()}
    return {name: _ranked(ours, ranks) for name, ours in known.items()}


def _numbered(name: str) -> list[tuple[str, tuple[int, str]]]:
    return [(name[: match.start()], _place(match)) for match in _numbers(name)]


def _place(match: re.Match[str]) -> tuple[int, str]:
    return int(match[1]), match[2] or ""


def _ranked(name: str, ranks: dict[str, dict[tuple[int, str], int]]) -> str:
    pieces, at = [], 0
    for match in _numbers(name):
        known = ranks[name[: match.start()]]
        pieces += [name[at : match.start()], str(known[_place(match)]) if len(known) > 1 else ""]
        at = match.end()
    return re.sub(r"\.+", ".", "".join([*pieces, name[at:]])).strip(".")


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts names as people count: ``layer2`` before ``layer10``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def differs_by_number(a: str, b: str) -> bool:
    """Whether what first tells two names apart is a number: ``layer1.0.bn1`` and ``layer1.2.conv1``, ``5b``, ``5c``.

    One within a word does not count: ``branch3x3``, ``branch5x5``.
    """
    both = zip(_pieces(a), _pieces(b), strict=False)
    first = next((pair for pair in both if pair[0] != pair[1]), None)
    return first is not None and all(isinstance(piece, tuple) for piece in first)


@functools.cache
def _pieces(name: str) -> tuple[str | tuple[int, str], ...]:
    """A name cut before and after the numbers that count."""
    pieces, at = [], 0
    for match in _NUMBER.finditer(name):
        within = name[match.end() : match.end() + 1] not in ("", ".", "_")
        if within or re.search(r"\dx$", name[: match.start()]):
            continue
        pieces += [name[at : match.start()], _place(match)]
        at = match.end()
    return (*pieces, name[at:])
