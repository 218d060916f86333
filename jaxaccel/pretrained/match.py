"""Which layer of a file is which layer of a model."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxaccel.errors import UserError
from jaxaccel.pretrained.layouts import Layer, fits, thirds
from jaxaccel.pretrained.names import counted, similarity

NAMES_WEIGH = 3.0
"""How much more names that agree say than an order that agrees."""
MARGIN = 0.25
"""By how much a pairing must be better than the next one; below it is a guess."""
ROUNDS = 5
"""In which pairs and what their siblings say of them come to agree; where they do not, it is a guess."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A layer of the model and the layer of the file that it is."""

    target: Layer
    source: Layer
    by: str
    """``shape`` where no other layer fits, ``name``, ``order``, ``siblings``, or ``told``."""


def pairs(
    sources: Sequence[Layer], targets: Sequence[Layer], told: Mapping[str, str], *, order: float = 1.0
) -> tuple[list[Pair], list[Layer], list[Layer]]:
    """Each target with its source: (pairs, targets that are left, sources that are left).

    Only layers with the same arrays, up to the order of axes, can be a pair. Among those the sum of two witnesses
    decides: how alike the names are, and whether both are the same in order; where that leaves a doubt, the siblings of
    layers that are clear belong together, such as a convolution's norm. Layers of fused queries, keys and values are
    taken apart where nothing takes them whole.

    Args:
      sources: of the file, in its order.
      targets: of the model, in the order in which it uses them.
      told: by name of a source: that of its target.
      order: how far the orders are to be trusted: 1 where they are those of making and of use, 0 not at all.

    Raises:
      UserError: two pairings are as good; or `told` names what is not there, or does not fit.
    """
    sources = _taken_apart(sources, targets)
    known = _told(sources, targets, told)
    free_sources = [s for s in sources if s.name not in known]
    free_targets = [t for t in targets if t.name not in known.values()]
    possible = np.array([[fits(s, t) for s in free_sources] for t in free_targets], bool)
    possible = possible.reshape(len(free_targets), len(free_sources))
    names = _names(free_sources, free_targets)
    score = NAMES_WEIGH * names + order * _order(free_sources, free_targets, possible)
    told_pairs = [(_named(targets, t), _named(sources, s)) for s, t in known.items()]
    unclear = _doubtful(_assigned(possible, score), possible, score)
    made, score = _settled(possible, score, free_sources, free_targets, told_pairs)
    for guess in _guesses(made, possible, score):
        raise UserError(_question(guess, free_sources, free_targets))
    found = [Pair(target, source, "told") for target, source in told_pairs]
    for i, j in made:
        only = possible[i].sum() == 1 and possible[:, j].sum() == 1
        by = "shape" if only else "name" if names[i, j] > names[i, possible[i]].mean() else "order"
        found.append(Pair(free_targets[i], free_sources[j], "siblings" if i in unclear else by))
    left_targets = [t for i, t in enumerate(free_targets) if i not in dict(made)]
    left_sources = [s for j, s in enumerate(free_sources) if j not in {j for _, j in made}]
    return sorted(found, key=lambda pair: pair.target.order), left_targets, left_sources


def _taken_apart(sources: Sequence[Layer], targets: Sequence[Layer]) -> list[Layer]:
    whole = [s for s in sources if any(fits(s, t) for t in targets)]
    return [part for s in sources for part in ([s] if s in whole else thirds(s) or [s])]


def _told(sources: Sequence[Layer], targets: Sequence[Layer], told: Mapping[str, str]) -> dict[str, str]:
    known = {source.replace("/", "."): target.replace("/", ".") for source, target in told.items()}
    for source, target in known.items():
        one, other = _named(sources, source, "the file"), _named(targets, target, "the model")
        if not fits(one, other):
            raise UserError(f"{source} has {one.shapes} and cannot be {target} with {other.shapes}")
    return known


def _named(layers: Sequence[Layer], name: str, where: str = "") -> Layer:
    for layer in layers:
        if layer.name == name:
            return layer
    near = sorted(layers, key=lambda layer: -similarity(layer.name, name))[:3]
    raise UserError(
        f"there is no layer {name} in {where}; nearest: {', '.join(layer.name for layer in near)}"
    )


def _names(sources: Sequence[Layer], targets: Sequence[Layer]) -> np.ndarray:
    theirs, ours = counted([s.name for s in sources]), counted([t.name for t in targets])
    scores = [[similarity(theirs[s.name], ours[t.name]) for s in sources] for t in targets]
    return np.array(scores, float).reshape(len(targets), len(sources)) / 2


def _order(sources: Sequence[Layer], targets: Sequence[Layer], possible: np.ndarray) -> np.ndarray:
    """1 where a target is the nth of those that fit the same sources, and the source the nth of those."""
    agree = np.zeros(possible.shape)
    groups: dict[bytes, list[int]] = collections.defaultdict(list)
    for i, row in enumerate(possible):
        groups[row.tobytes()].append(i)
    for members in groups.values():
        columns = np.flatnonzero(possible[members[0]]).tolist()
        if len(columns) == len(members):
            by_order = sorted(columns, key=lambda j: sources[j].order)
            for i, j in zip(sorted(members, key=lambda i: targets[i].order), by_order, strict=True):
                agree[i, j] = 1
    return agree


def check_agree(one: Sequence[Pair], other: Sequence[Pair]) -> None:
    """Checks that two ways to weigh the witnesses lead to the same pairs, but for sources that words tell apart.

    Raises:
      UserError: they do not; it names a layer of which that holds.
    """
    sources = {pair.target.name: pair.source.name for pair in other}
    for pair in one:
        second = sources.get(pair.target.name, pair.source.name)
        if second != pair.source.name and _words(second) == _words(pair.source.name):
            raise UserError(
                f"{pair.source.name} and {second} of the file could each be {pair.target.name} "
                f"({pair.target.shapes}): say which, names={{'{pair.source.name}': '{pair.target.name}'}}, or give a "
                "file in the order of the model, such as PyTorch's own"
            )


def _words(name: str) -> str:
    return re.sub(r"\d+", "", name)


def _settled(
    possible: np.ndarray,
    score: np.ndarray,
    sources: Sequence[Layer],
    targets: Sequence[Layer],
    told: Sequence[tuple[Layer, Layer]],
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Pairs that agree with what clear ones say of their siblings, and the score with that."""
    alone, made = score, _assigned(possible, score)
    changed: list[tuple[int, ...]] = []
    for _ in range(ROUNDS):
        doubtful = _doubtful(made, possible, score)
        clear = [(targets[i], sources[j]) for i, j in made if i not in doubtful]
        score = alone + NAMES_WEIGH * _siblings([*told, *clear], sources, targets)
        before, made = dict(made), _assigned(possible, score)
        changed = [(i, j, -1, before[i]) for i, j in made if before.get(i, j) != j]
        if not changed:
            return made, score
    raise UserError(_question(changed[0], sources, targets))


def _doubtful(made: Sequence[tuple[int, int]], possible: np.ndarray, score: np.ndarray) -> set[int]:
    """The targets of guesses."""
    return {i for guess in _guesses(made, possible, score) for i in guess[::2]}


def _assigned(possible: np.ndarray, score: np.ndarray) -> list[tuple[int, int]]:
    # What cannot be costs more than any pairing could gain, so that as many as possible are made.
    rows, columns = linear_sum_assignment(np.where(possible, -score, 1e6))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if possible[i, j]]


def _siblings(
    clear: Sequence[tuple[Layer, Layer]], sources: Sequence[Layer], targets: Sequence[Layer]
) -> np.ndarray:
    """1 where a clear pair of another kind has the same parents: a norm whose convolution is known already."""
    families: dict[tuple[str, str], list[Layer]] = collections.defaultdict(list)
    for target, source in clear:
        families[_parent(target), _parent(source)].append(target)
    found = [
        [any(not fits(s, other) for other in families.get((_parent(t), _parent(s)), ())) for s in sources]
        for t in targets
    ]
    return np.array(found, float).reshape(len(targets), len(sources))


def _parent(layer: Layer) -> str:
    return layer.name.rpartition(".")[0]


def _guesses(
    made: Sequence[tuple[int, int]], possible: np.ndarray, score: np.ndarray
) -> Iterator[tuple[int, ...]]:
    """Pairs that could be exchanged, or one that could be made otherwise, at next to no loss.

    Yields (target, source, target, source), or (target, source, -1, source) with a source that is left.
    """
    for n, (a, x) in enumerate(made):
        for b, y in made[n + 1 :]:
            if possible[a, y] and possible[b, x]:
                loss = score[a, x] + score[b, y] - score[a, y] - score[b, x]
                if loss < MARGIN:
                    yield a, x, b, y
    taken = {j for _, j in made}
    for a, x in made:
        for y in np.flatnonzero(possible[a]).tolist():
            if y not in taken and score[a, x] - score[a, y] < MARGIN:
                yield a, x, -1, y


def _question(guess: tuple[int, ...], sources: Sequence[Layer], targets: Sequence[Layer]) -> str:
    a, x, b, y = guess
    told = f"say which, names={{'{sources[x].name}': '{targets[a].name}'}}"
    if b < 0:
        return (
            f"{targets[a].name} could be {sources[x].name} or {sources[y].name} of the file "
            f"({targets[a].shapes}): {told}"
        )
    return (
        f"{sources[x].name} and {sources[y].name} of the file could each be {targets[a].name} or "
        f"{targets[b].name} ({targets[a].shapes}): {told}"
    )
