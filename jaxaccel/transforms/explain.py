"""What a transformation did, site by site: `explain`."""

import dataclasses
import importlib
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxaccel.core import hlo, sites
from jaxaccel.core.compile_ahead import compile_on
from jaxaccel.core.interpret import is_compressed
from jaxaccel.core.options import checked
from jaxaccel.core.unattached import find_devices
from jaxaccel.errors import UserError

COLUMNS = (
    *("transformation", "site", "operation", "path", "shapes", "flops", "share", "before", "after"),
    *("lowering", "reason", "compiled"),
)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A table of every matrix product, convolution and lookup, in the order of the program.

    Where transformations are nested, that of the inner one comes first. Print it; in a notebook it shows itself.
    """

    rows: tuple[dict[str, Any], ...]
    """By `COLUMNS`: `flops` is that of the whole program, None inside a ``while``; `share` of the transformation's sum.
    `compiled` lists what the optimized HLO has for the site, where it was compiled."""
    empty: tuple[str, ...] = ()
    """Transformations that met nothing to explain."""

    def to_json(self) -> str:
        """The rows as JSON."""
        return json.dumps(list(self.rows), indent=1)

    def to_dataframe(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
          UserError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise UserError("to_dataframe needs pandas: pip install pandas") from error
        return pandas.DataFrame(list(self.rows), columns=list(COLUMNS))

    def __str__(self) -> str:
        """The tables as text, as wide as they need to be."""
        text = io.StringIO()
        console = Console(file=text, width=200, color_system=None)
        self._print(console)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __rich_console__(self, console: Console, options: Any) -> Iterator[Any]:
        """For `rich.print`."""
        yield from self._tables()

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), record=True, width=180)
        self._print(console)
        return console.export_html(
            inline_styles=True, code_format="<pre style='line-height:1.2'>{code}</pre>"
        )

    def _print(self, console: Console) -> None:
        for table in self._tables():
            console.print(table)

    def _tables(self) -> Iterator[Table | Text]:
        names = list(dict.fromkeys(row["transformation"] for row in self.rows))
        for name in names:
            yield _table(name, [row for row in self.rows if row["transformation"] == name])
        for name in self.empty:
            yield Text(f"{name}: f has no matrix product, convolution or lookup")


@checked
def explain(
    f: Callable[..., Any],
    *args: Any,
    compiled: bool | None = None,
    devices: str | None = None,
    **kwargs: Any,
) -> Explanation:
    """What the transformations in `f` do to its matrix products and convolutions, and why not more.

        print(ja.explain(ja.int8(f), q, x))
        print(ja.explain(ja.int8(f), q, x, devices="h100"))  # as compiled for a GPU that is not attached

    The column `compiled` says with which types each site is computed, and by what: ``s8 x s8 -> s32 in __ynn_fusion``,
    ``bf16 x bf16 -> f32 by Triton``. Where it is ``-``, the compiled program has no product by the name of the site:
    GPUs and TPUs multiply a matrix by a vector as a multiplication and a sum, lookups are copies, and XLA may have
    merged the product with another one, computed it ahead, or renamed it together with a transposition.

    Args:
      f: a transformed function, or one that calls transformed functions; not one that was jitted and called inside.
      *args: what it is called with: arrays, or `jax.ShapeDtypeStruct`s. Nothing is computed.
      **kwargs: keywords that it is called with.
      compiled: compile it for this backend, or for `devices`, and read from the optimized HLO what really became of
        each site.
      devices: compile it for one device that need not be attached, such as ``h100`` or ``v5e``
        (`jaxaccel.core.unattached.NAMES`); transformations choose for it. Its compiler has to be installed.

    Raises:
      UserError: no transformation of ours is traced when `f` is; or there is no such device, its compiler is not
        installed, or it cannot compile f.
    """
    if devices is not None and compiled is False:
        raise UserError("explain: devices= compiles for them: leave compiled=False out")
    mesh = _mesh_of_one(devices) if devices is not None else None
    function: Callable[..., Any] = (
        getattr(f, "__wrapped__", f) if hasattr(f, "lower") else f
    )  # not a cached trace
    leaves, treedef = jax.tree.flatten((args, kwargs))
    held = [i for i, x in enumerate(leaves) if isinstance(x, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))]

    def call(*arrays: Any) -> Any:
        now = list(leaves)
        for i, array in zip(held, arrays, strict=True):
            now[i] = array
        args, kwargs = jax.tree.unflatten(treedef, now)
        return jax.tree.map(lambda x: x if _is_array(x) else None, function(*args, **kwargs))

    arrays = [leaves[i] for i in held]
    text = None
    with sites.record_runs() as runs:
        if devices is not None and mesh is not None:
            whole = NamedSharding(mesh, PartitionSpec())
            text = compile_on(mesh, devices, call, *arrays, in_shardings=whole).as_text()
        elif compiled:
            text = jax.jit(call).lower(*arrays).compile().as_text()
        else:
            jax.eval_shape(call, *arrays)
    if not runs:
        raise UserError(
            "nothing to explain: f traces no transformation such as ja.int8(f); one that is jitted inside f may have"
            " been traced before"
        )
    operations = None if text is None else hlo.operations(text)
    rows = [row for run in runs for row in _rows(run, operations)]
    empty = [run.transformation for run in runs if not run.records]
    return Explanation(tuple(rows), tuple(dict.fromkeys(empty)))


def _mesh_of_one(devices: str) -> Mesh:
    """A mesh of one device that is not attached."""
    if ":" in devices:
        raise UserError(f"explain compiles for one device: write {devices.partition(':')[0]}, not {devices}")
    return Mesh(np.array(find_devices(devices)), ("data",))


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray)) or is_compressed(x)


def _rows(run: sites.Run, operations: list[hlo.Operation] | None) -> Iterator[dict[str, Any]]:
    total = sum(r.flops * (r.trips or 1) for r in run.records)
    for r in run.records:
        whole = r.flops * (r.trips or 1)
        yield {
            "transformation": run.transformation,
            "site": r.name,
            "operation": r.primitive,
            "path": r.path,
            "shapes": [list(shape) for shape in r.shapes],
            "flops": None if r.trips is None else whole,
            "share": whole / total if total else 0.0,
            "before": r.before,
            "after": r.after,
            "lowering": r.lowering,
            "reason": r.reason,
            "compiled": None if operations is None else _landed(run.transformation, r, operations),
        }


def _landed(transformation: str, record: sites.Record, operations: list[hlo.Operation]) -> list[str]:
    """What the compiled program has for a site: ``s8 x s8 -> f32 by cuDNN``."""
    if record.kind != "site":
        return []
    scope = re.compile(re.escape(f"{transformation}:{record.name}") + r"(?![\w\[#/]*:)(?=[/)]|$)")
    found = [hlo.describe_operation(operation) for operation in operations if scope.search(operation.op_name)]
    return list(dict.fromkeys(found))


def _table(name: str, rows: list[dict[str, Any]]) -> Table:
    compiled = any(row["compiled"] is not None for row in rows)
    table = Table(title=f"{name}: {_summary(rows)}", title_justify="left", header_style="bold")
    for header in ("site", "shapes", "FLOPs", "share", "dtype", "lowering"):
        table.add_column(header, justify="right" if header in ("FLOPs", "share") else "left", overflow="fold")
    if compiled:
        table.add_column("compiled", overflow="fold")
    for row in rows:
        *operands, out = ["x".join(map(str, shape)) or "()" for shape in row["shapes"]] or [""]
        shapes = " * ".join(operands) + (" -> " if operands else "") + out
        dtype = row["before"] if row["before"] == row["after"] else f"{row['before']} -> {row['after']}"
        lowering = ": ".join(x for x in (row["lowering"], row["reason"]) if x and x != "-")
        untouched = row["lowering"] in ("-", "dequantized")
        cells = [
            row["site"],
            shapes,
            "?" if row["flops"] is None else _short(row["flops"]),
            f"{row['share']:.1%}",
            dtype,
            lowering,
        ]
        if compiled:
            cells.append("; ".join(row["compiled"] or []) or "-")
        table.add_row(*cells, style="yellow" if untouched else None)
    return table


def _summary(rows: list[dict[str, Any]]) -> str:
    done = [row for row in rows if row["lowering"] not in ("-", "dequantized")]
    problems = sum(1 for row in rows if not row["before"])
    share = sum(row["share"] for row in done)
    text = f"{len(done)} of {len(rows) - problems} sites, {share:.1%} of the FLOPs"
    return text + (f", {problems} problems" if problems else "")


def _short(count: int) -> str:
    """1234567 -> 1.23M."""
    for unit in ("", "k", "M", "G", "T"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.3g}P"
