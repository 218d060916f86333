"""Which layer of a file is which layer of a model."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from jaxaccel.errors import UserError
from jaxaccel.models.pretrained.layouts import Layer, fits_layer, split_fused_attention
from jaxaccel.models.pretrained.names import differs_by_number, rank_numbers, similarity

NAMES_WEIGH = 3.0
"""How much more names that agree say than an order that agrees."""
MARGIN = 0.25
"""By how much a pairing must be better than the next one; below it is a guess."""
Order = Literal["all", "counted", "none"]
"""``counted`` where names were sorted: then only what numbers tell apart is in order, ``layer1.0`` and ``layer1.1``."""
MAX_ROUNDS = 5
"""In which pairs and what their siblings say of them come to agree; where they do not, it is a guess."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A layer of the model and the layer of the file that it is."""

    target: Layer
    source: Layer
    by: str
    """``shape`` where no other layer fits, ``name``, ``order``, ``siblings``, or ``told``."""


def match_layers(
    sources: Sequence[Layer], targets: Sequence[Layer], told: Mapping[str, str], *, order: Order = "all"
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
      order: which of the sources are in the order of making.

    Raises:
      UserError: two pairings are as good; or `told` names what is not there, or does not fit.
    """
    sources = _taken_apart(sources, targets)
    known = _told(sources, targets, told)
    free_sources = [s for s in sources if s.name not in known]
    free_targets = [t for t in targets if t.name not in known.values()]
    possible = np.array([[fits_layer(s, t) for s in free_sources] for t in free_targets], bool)
    possible = possible.reshape(len(free_targets), len(free_sources))
    names = _names(free_sources, free_targets)
    score = NAMES_WEIGH * names + _order(free_sources, free_targets, possible, order)
    told_pairs = [(_named(targets, t), _named(sources, s)) for s, t in known.items()]
    unclear = _doubtful(_assigned(possible, score), possible, score)
    made, score = _settled(possible, score, free_sources, free_targets, told_pairs)
    for i, j, other in _guesses(made, possible, score):
        raise UserError(_question(free_targets[i], free_sources[j], free_sources[other]))
    found = [Pair(target, source, "told") for target, source in told_pairs]
    for i, j in made:
        only = possible[i].sum() == 1 and possible[:, j].sum() == 1
        by = "shape" if only else "name" if names[i, j] > names[i, possible[i]].mean() else "order"
        found.append(Pair(free_targets[i], free_sources[j], "siblings" if i in unclear else by))
    left_targets = [t for i, t in enumerate(free_targets) if i not in dict(made)]
    left_sources = [s for j, s in enumerate(free_sources) if j not in {j for _, j in made}]
    return sorted(found, key=lambda pair: pair.target.order), left_targets, left_sources


def _taken_apart(sources: Sequence[Layer], targets: Sequence[Layer]) -> list[Layer]:
    whole = [s for s in sources if any(fits_layer(s, t) for t in targets)]
    return [part for s in sources for part in ([s] if s in whole else split_fused_attention(s) or [s])]


def _told(sources: Sequence[Layer], targets: Sequence[Layer], told: Mapping[str, str]) -> dict[str, str]:
    known = {source.replace("/", "."): target.replace("/", ".") for source, target in told.items()}
    for source, target in known.items():
        one, other = _named(sources, source, "the file"), _named(targets, target, "the model")
        if not fits_layer(one, other):
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
    theirs, ours = rank_numbers([s.name for s in sources]), rank_numbers([t.name for t in targets])
    scores = [[similarity(theirs[s.name], ours[t.name]) for s in sources] for t in targets]
    return np.array(scores, float).reshape(len(targets), len(sources)) / 2


def _order(
    sources: Sequence[Layer], targets: Sequence[Layer], possible: np.ndarray, order: Order
) -> np.ndarray:
    """1 where a target is the nth of those that fit the same sources, and the source can be the nth of those."""
    agree = np.zeros(possible.shape)
    groups: dict[bytes, list[int]] = collections.defaultdict(list)
    for i, row in enumerate(possible):
        groups[row.tobytes()].append(i)
    for members in groups.values() if order != "none" else ():
        columns = np.flatnonzero(possible[members[0]]).tolist()
        if len(columns) == len(members):
            members = sorted(members, key=lambda i: targets[i].order)
            for j in columns:
                others = [sources[k] for k in columns if k != j and _in_order(sources[j], sources[k], order)]
                first = sum(other.order < sources[j].order for other in others)
                last = len(columns) - sum(other.order > sources[j].order for other in others)
                agree[members[first:last], j] = 1
    return agree


def _in_order(one: Layer, other: Layer, order: Order) -> bool:
    return order == "all" or differs_by_number(one.name, other.name)


def check_order(made: Sequence[Pair]) -> None:
    """Checks that of layers which could be exchanged the one that counts first is used first.

    Where names are the same, they alone decide.

    Raises:
      UserError: one is not; it names two layers of which that holds.
    """
    made = [pair for pair in made if pair.by != "told" and similarity(pair.source.name, pair.target.name) < 2]
    for n, one in enumerate(made):
        for other in made[n + 1 :]:
            if not differs_by_number(one.source.name, other.source.name):
                continue
            crossed = (one.source.order < other.source.order) != (one.target.order < other.target.order)
            if crossed and fits_layer(one.source, other.target) and fits_layer(other.source, one.target):
                raise UserError(_question(one.target, one.source, other.source))


def check_head(head: Layer, made: Sequence[Pair]) -> None:
    """Checks that no layer of the file, given to another one, could as well be that of `head`, which got none.

    Raises:
      UserError: one could.
    """
    for pair in made:
        nearer = similarity(pair.source.name, pair.target.name) > similarity(pair.source.name, head.name)
        if pair.by not in ("told", "shape") and not nearer and fits_layer(pair.source, head):
            raise UserError(
                f"{pair.source.name} of the file could be {pair.target.name} or {head.name} ({head.shapes}): "
                f"say which, names={{'{pair.source.name}': '{pair.target.name}'}}"
            )


def _settled(
    possible: np.ndarray,
    score: np.ndarray,
    sources: Sequence[Layer],
    targets: Sequence[Layer],
    told: Sequence[tuple[Layer, Layer]],
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Pairs that agree with what clear ones say of their siblings, and the score with that."""
    alone, made = score, _assigned(possible, score)
    changed: list[tuple[int, int, int]] = []
    for _ in range(MAX_ROUNDS):
        doubtful = _doubtful(made, possible, score)
        clear = [(targets[i], sources[j]) for i, j in made if i not in doubtful]
        score = alone + NAMES_WEIGH * _siblings([*told, *clear], sources, targets)
        before, made = dict(made), _assigned(possible, score)
        changed = [(i, j, before[i]) for i, j in made if before.get(i, j) != j]
        if not changed:
            return made, score
    i, j, other = changed[0]
    raise UserError(_question(targets[i], sources[j], sources[other]))


def _doubtful(made: Sequence[tuple[int, int]], possible: np.ndarray, score: np.ndarray) -> set[int]:
    """The targets of guesses."""
    return {i for i, _, _ in _guesses(made, possible, score)}


def _assigned(possible: np.ndarray, score: np.ndarray) -> list[tuple[int, int]]:
    # What cannot be costs more than any pairing could gain, so that as many as possible are made.
    from scipy.optimize import linear_sum_assignment  # half a second, for those alone who load a file

    rows, columns = linear_sum_assignment(np.where(possible, -score, 1e6))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if possible[i, j]]


def _siblings(
    clear: Sequence[tuple[Layer, Layer]], sources: Sequence[Layer], targets: Sequence[Layer]
) -> np.ndarray:
    """1 where a clear pair of another kind has the same parents: a norm whose convolution is known already.

    And 1 more where one has the same sequences for parents: a branch's other layers.
    """
    found = np.zeros((len(targets), len(sources)))
    for ancestor in (_parent, _sequence):
        families: dict[tuple[str, str], list[Layer]] = collections.defaultdict(list)
        for target, source in clear:
            families[ancestor(target), ancestor(source)].append(target)
        for i, t in enumerate(targets):
            for j, s in enumerate(sources):
                family = families.get((ancestor(t), ancestor(s)), ())
                found[i, j] += any(not fits_layer(s, other) for other in family)
    return found


def _parent(layer: Layer) -> str:
    return layer.name.rpartition(".")[0]


def _sequence(layer: Layer) -> str:
    """The parent without the number that it has in its sequence: ``branch7x7_2.bn`` is of ``branch7x7``."""
    return re.sub(r"[._]?\d+$", "", _parent(layer))


def _guesses(
    made: Sequence[tuple[int, int]], possible: np.ndarray, score: np.ndarray
) -> Iterator[tuple[int, int, int]]:
    """(target, its source, another source): where the target can have the other at next to no loss over all pairs."""
    count, taken = len(possible), {x for _, x in made}
    links = np.zeros((sum(possible.shape),) * 2, bool)
    links[:count, count:] = possible
    from scipy.sparse.csgraph import connected_components

    groups = connected_components(links, directed=False)[1]
    for group in np.unique(groups[:count]).tolist():
        pairs = [(a, x) for a, x in made if groups[a] == group]
        left = [y for y in np.flatnonzero(groups[count:] == group).tolist() if y not in taken]
        columns = [x for _, x in pairs] + left
        # What it costs that a pair's target takes another's source; that one is left over is for nothing.
        loss = np.zeros((len(columns),) * 2)
        for p, (a, x) in enumerate(pairs):
            loss[p] = np.where(possible[a, columns], score[a, x] - score[a, columns], np.inf)
        np.fill_diagonal(loss, np.inf)
        rest = _cheapest(loss)
        for p, (a, x) in enumerate(pairs):
            for q in np.flatnonzero(loss[p] + rest[:, p] < MARGIN).tolist():
                yield a, x, columns[q]


def _cheapest(costs: np.ndarray) -> np.ndarray:
    """The cost of the cheapest way between any two nodes (Floyd-Warshall); no cycle may cost less than nothing."""
    for k in range(len(costs)):
        costs = np.minimum(costs, costs[:, k, None] + costs[k])
    return costs


def _question(target: Layer, source: Layer, other: Layer) -> str:
    return (
        f"{target.name} could be {source.name} or {other.name} of the file ({target.shapes}): "
        f"say which, names={{'{source.name}': '{target.name}'}}"
    )
