"""Small matrix products of a loop's body that are parts of a larger one.

The gates of a recurrent network multiply one state by several matrices that the loop does not change: one product with
the matrices side by side, cut into its parts. The gradient of that state is a sum of products with these matrices: one
product of the cotangents side by side with the matrices one below the other (Appleyard et al. 2016, arXiv:1604.01946).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jcore

from jaxaccel.core.interpret.bilinear import bilinear, bilinear_p
from jaxaccel.core.interpret.jaxprs import read_meaning


def is_product(eqn: Any) -> bool:
    """Whether it is a matrix product of two floating-point operands, narrowed element by element or not at all."""
    if read_meaning(eqn)[0] != "dot_general" or len(eqn.invars) != 2:
        return False
    if eqn.primitive is bilinear_p and not getattr(eqn.params["compute"], "elementwise", False):
        return False
    return all(jnp.issubdtype(atom.aval.dtype, jnp.floating) for atom in eqn.invars)


def multiply_merged(eqn: Any, lhs: Any, rhs: Any, numbers: Any = None) -> Any:
    """The product of an equation on other operands, perhaps along other axes."""
    params = read_meaning(eqn)[1]
    changed = params if numbers is None else {**params, "dimension_numbers": numbers}
    with eqn.ctx.manager:
        if eqn.primitive is bilinear_p:
            return bilinear(eqn.params["product"], changed, eqn.params["compute"], lhs, rhs)
        return eqn.primitive.bind(lhs, rhs, **changed)


def count_rows(eqn: Any, constant: Callable[[Any], bool]) -> int:
    """Rows of the operand of a product that the loop changes; 0 where there is not just one."""
    fixed = [constant(atom) for atom in eqn.invars]
    if sum(fixed) != 1:
        return 0
    side = fixed.index(False)
    sums, batch = read_meaning(eqn)[1]["dimension_numbers"]
    shape = eqn.invars[side].aval.shape
    return math.prod(n for axis, n in enumerate(shape) if axis not in (*sums[side], *batch[side]))


@dataclasses.dataclass(frozen=True)
class Merged:
    """Products that are computed as one, in place of the equation number `at`."""

    at: int
    members: tuple[int, ...]
    """Numbers of all equations that it stands for."""
    products: tuple[Any, ...]
    """Their equations, those of the sums left out."""
    side: int
    """Which operand the loop does not change."""
    axis: int
    """Of that operand: along which the matrices are joined."""
    outs: tuple[Any, ...]
    """One variable a product, or the one that holds their sum."""
    others: tuple[Any, ...] = ()
    """What else the sum has."""

    def matrix(self, env: Mapping[Any, Any]) -> Any:
        """The matrices joined, to be computed once, outside the loop, where a transposition costs nothing."""
        joined = jnp.concatenate([env[eqn.invars[self.side]] for eqn in self.products], self.axis)
        (summed,) = self._numbers[0][self.side]
        return joined if summed == 1 - self.side else joined.T

    @property
    def _numbers(self) -> Any:
        return read_meaning(self.products[0])[1]["dimension_numbers"]

    def run(self, matrix: Any, env: dict[Any, Any]) -> None:
        """Adds the results to `env`."""
        first, summed = self.products[0], len(self.outs) == 1
        x = env[first.invars[1 - self.side]]
        (axis,) = self._numbers[0][1 - self.side]
        if summed:
            x = jnp.concatenate([env[eqn.invars[1 - self.side]] for eqn in self.products], axis)
        # Rows times columns: (rows, sum) x (sum, columns).
        pair, sums = ((matrix, x), ((1,), (axis,))) if self.side == 0 else ((x, matrix), ((axis,), (0,)))
        out = multiply_merged(first, *pair, (sums, ((), ())))
        if summed:
            env[self.outs[0]] = sum((env[atom] for atom in self.others), start=out)
            return
        along = 0 if self.side == 0 else out.ndim - 1
        start = 0
        for var in self.outs:
            env[var] = jax.lax.slice_in_dim(out, start, start + var.aval.shape[along], axis=along)
            start += var.aval.shape[along]


def merge(
    eqns: Sequence[tuple[int, Any]], constant: Callable[[Any], bool], uses: Mapping[Any, int]
) -> list[Merged]:
    """What can be merged among numbered equations; `constant` says which operands the loop does not change."""
    eligible = {i: eqn for i, eqn in eqns if is_product(eqn) and _matrix(eqn, constant) is not None}
    sums = _sums(dict(eqns), eligible, uses, constant)
    taken = {i for one in sums for i in one.members}
    groups: dict[Any, list[int]] = {}
    for i, eqn in eligible.items():
        if i not in taken:
            side = _matrix(eqn, constant)
            groups.setdefault((side, eqn.invars[1 - side], merge_key(eqn)), []).append(i)  # type: ignore[operator]
    found = list(sums)
    for (side, _, _), numbers in groups.items():
        if len(numbers) > 1:
            ((summed,),) = (read_meaning(eligible[numbers[0]])[1]["dimension_numbers"][0][side],)
            products = tuple(eligible[i] for i in numbers)
            outs = tuple(eqn.outvars[0] for eqn in products)
            found.append(Merged(numbers[0], tuple(numbers), products, side, 1 - summed, outs))
    return found


def _matrix(eqn: Any, constant: Callable[[Any], bool]) -> int | None:
    """Which operand is a matrix that the loop does not change, in a plain product with something that it does."""
    sums, batch = read_meaning(eqn)[1]["dimension_numbers"]
    fixed = [constant(atom) for atom in eqn.invars]
    if sum(fixed) != 1 or batch[0] or len(sums[0]) != 1:
        return None
    side = fixed.index(True)
    return side if eqn.invars[side].aval.ndim == 2 else None


def merge_key(eqn: Any) -> Any:
    """What must be equal of products that are merged."""
    name, params, _ = read_meaning(eqn)
    dtypes = tuple(atom.aval.dtype for atom in eqn.invars)
    options = tuple(sorted(params.items(), key=lambda item: item[0]))
    return name, options, eqn.params.get("compute"), dtypes


def _sums(
    eqns: Mapping[int, Any],
    eligible: Mapping[int, Any],
    uses: Mapping[Any, int],
    constant: Callable[[Any], bool],
) -> list[Merged]:
    """Sums of products, each of which is used for nothing else."""
    made_by = {v: i for i, eqn in eqns.items() for v in eqn.outvars}
    inner: set[int] = set()
    found = []
    for root in sorted(eqns, reverse=True):
        if root in inner or eqns[root].primitive.name not in ("add", "add_any"):
            continue
        leaves, others, sums, waiting = [], [], [root], list(eqns[root].invars)
        while waiting:
            atom = waiting.pop()
            i = None if isinstance(atom, jcore.Literal) or uses[atom] != 1 else made_by.get(atom)
            if i is not None and eqns[i].primitive.name in ("add", "add_any"):
                sums.append(i)
                waiting += eqns[i].invars
            elif i is not None and i in eligible:
                leaves.append(i)
            else:
                others.append(atom)
        # An addition may broadcast: only results of one shape are one product.
        kinds = {
            (_matrix(eligible[i], constant), merge_key(eligible[i]), eligible[i].outvars[0].aval.shape)
            for i in leaves
        }
        literals = any(isinstance(atom, jcore.Literal) for atom in others)
        if len(leaves) > 1 and len(kinds) == 1 and not literals:
            ((side, *_),) = kinds
            (summed,) = read_meaning(eligible[leaves[0]])[1]["dimension_numbers"][0][side]
            products = tuple(eligible[i] for i in sorted(leaves))
            members, outs = (*sorted(leaves), *sums), (eqns[root].outvars[0],)
            found.append(Merged(root, members, products, side, summed, outs, tuple(others)))  # type: ignore[arg-type]
            inner.update(members)
    return found
