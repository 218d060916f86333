"""Large grids of cases: a fixed part of each runs by default, the rest is marked slow."""

import itertools

import pytest


def slow_but(quick, cases):
    """The parameters of a test: `cases`, all slow but those in `quick`. A tuple is several parameters."""
    cases = list(cases)
    assert all(case in cases for case in quick), "a quick case is none of the cases"
    return [pytest.param(*_arguments(case), marks=_marks(case in quick)) for case in cases]


def thinned(every, *axes):
    """The parameters of a test: the product of `axes`, all slow but one in `every`. A tuple is several parameters.

    A case is quick if the positions of its values on their axes sum to a multiple of `every`: diagonals, as in a
    Latin square. Each value of an axis has a quick case if another axis has at least `every` values.
    """
    cases = (zip(*case, strict=True) for case in itertools.product(*map(enumerate, axes)))
    return [
        pytest.param(*itertools.chain(*map(_arguments, values)), marks=_marks(sum(positions) % every == 0))
        for positions, values in cases
    ]


def _arguments(value):
    return value if isinstance(value, tuple) else (value,)


def _marks(quick):
    return () if quick else pytest.mark.slow
