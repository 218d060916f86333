"""Names beside the points of a picture, none of which covers another."""

import itertools
from collections.abc import Sequence
from typing import Any

NEAR_OFFSETS = (8.0, -14.0)
"""Heights above and below a point, in typographic points, at which a name needs no line to its point."""
FAR_OFFSETS = tuple(sign * height for height in range(20, 140, 12) for sign in (1, -1))
SIDES = ((7.0, "left"), (-7.0, "right"))
"""Offsets from the point, in typographic points, of a name that begins or ends there."""


def name_points(
    axis: Any,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    color: str,
    line: str,
    radius: float = 6.0,
) -> None:
    """Writes each name near its point, with a line between where it is not next to it.

    It measures: the axis' limits and the picture's layout must be final, as after `figure.draw_without_rendering()`.

    Args:
      axis: of the picture.
      points: in data coordinates.
      names: one a point.
      color: of the names.
      line: color of the lines.
      radius: of a point's mark, in pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(axis.figure).get_renderer()
    inside = axis.get_window_extent(renderer)
    centers = axis.transData.transform(points)
    taken = [Bbox.from_extents(x - radius, y - radius, x + radius, y + radius) for x, y in centers]
    taken += [text.get_window_extent(renderer) for text in axis.texts]
    places = [(dx, dy, side) for dy, (dx, side) in itertools.product((*NEAR_OFFSETS, *FAR_OFFSETS), SIDES)]
    for point, name in zip(points, names, strict=True):
        text = axis.annotate(name, point, xytext=(0, 0), textcoords="offset points", fontsize=8, color=color)
        text.set_in_layout(False)
        boxes = [_moved(text, place, renderer) for place in places]
        costs = [_cost(box, taken, inside) for box in boxes]
        best = costs.index(min(costs))
        taken.append(_moved(text, places[best], renderer))
        dx, dy, _ = places[best]
        if dy not in NEAR_OFFSETS:
            axis.annotate(
                "", point, xytext=(dx, dy + 4), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": line, "lw": 0.6, "shrinkA": 0, "shrinkB": 5},
            ).set_in_layout(False)  # fmt: skip


def _moved(text: Any, place: tuple[float, float, str], renderer: Any) -> Any:
    dx, dy, side = place
    text.set_position((dx, dy))
    text.set_horizontalalignment(side)
    return text.get_window_extent(renderer)


def _cost(box: Any, taken: Sequence[Any], inside: Any) -> float:
    """Pixels of `box` that cover what is taken, or that lie outside."""
    from matplotlib.transforms import Bbox

    covered = [Bbox.intersection(box, other) for other in taken]
    area = box.width * box.height
    within = Bbox.intersection(box, inside)
    out = area - (within.width * within.height if within else 0)
    return out + sum(part.width * part.height for part in covered if part)
