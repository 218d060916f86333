"""Draws the picture of README.md: what smaller networks cost in accuracy, and what becomes of each layer of one.

The left side shows the records of `experiments/compress_cifar10.py`. The right side is `ja.explain` of MobileNetV2 in
static int8 on a CPU, its first layers.

python docs/first_page.py
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.models.adapter import as_model, inference

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "experiments" / "results" / "compress_cifar10.json"
PICTURE = Path(__file__).parent / "pictures" / "first_page.png"
SHOWN = {
    "deep compression": ("ResNet-56: prune, share values", "#6741d9"),
    "half the channels' work": ("ResNet-56: half the channels' work, int8", "#1971c2"),
    "int8": ("ResNet-20: int8", "#2f9e44"),
    "2:4 sparse": ("ResNet-20: 2 of 4 zero, int8", "#e8590c"),
    "80% sparse": ("ResNet-20: 80% zero, int8", "#c2255c"),
}
"""Pipelines of the record, what to call them, and their colors."""
LINES = 16
"""Layers in the table."""
INK, INT8, FLOAT = "#343a40", "#2b8a3e", "#d9480f"


def draw_pipelines(axes: Axes) -> None:
    """Draws accuracy against packed bytes, from the published network to the end of each pipeline."""
    rows = json.loads(RECORD.read_text())["rows"]
    for name, (label, color) in SHOWN.items():
        receipts = rows[name]["receipts"]
        first, last = receipts[0], receipts[-1]
        x = [row["packed_bytes"] / 1000 for row in (first, last)]
        y = [100 * row["scores"]["accuracy"] for row in (first, last)]
        arrow = {"arrowstyle": "-|>", "color": color, "lw": 1.8, "alpha": 0.85}
        axes.annotate("", (x[1], y[1]), (x[0], y[0]), arrowprops=arrow)
        gain = f"{x[0] / x[1]:.1f}× smaller, {y[1] - y[0]:+.1f} points"
        axes.plot(x[1], y[1], "o", color=color, ms=8, label=f"{label}  {gain}")
    for depth in (20, 56):
        origin = next(row for row in rows.values() if row["depth"] == depth)["receipts"][0]
        place = origin["packed_bytes"] / 1000, 100 * origin["scores"]["accuracy"]
        axes.plot(*place, "s", color=INK, ms=8)
        label = f"ResNet-{depth}\nas published"
        axes.annotate(label, place, (0, 9), textcoords="offset points", ha="center", color=INK)
    axes.set(xscale="log", xlim=(50, 5500), ylim=(85, 95.2))
    axes.set(xlabel="kilobytes, packed", ylabel="CIFAR-10 test accuracy, %")
    axes.set_xticks([100, 300, 1000, 3000], ["100", "300", "1,000", "3,000"])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.set_title("Each step has a receipt: accuracy against bytes", loc="left", weight="bold", color=INK)


def explain_mobilenet() -> list[dict[str, Any]]:
    """Gives the rows of `ja.explain` for MobileNetV2 in static int8, folded."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    model = as_model(models.mobilenet_v2, {"classes": 1000}, (image,))
    params, state = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), image.shape)
    f, folded = ja.fold(inference(model), {"params": params, "model_state": state}, x)
    ranges = ja.calibrate(f, folded, [x])
    quantized = ja.quantize(folded, where="**/kernel")
    found = json.loads(ja.explain(ja.int8(f, calibration=ranges), quantized, x).to_json())
    return [row for row in found if row["transformation"] == "int8"]


def draw_table(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the first rows as a table, green where integers are multiplied."""
    axes.axis("off")
    axes.set_title("ja.explain says what became of each layer, and why", loc="left", weight="bold", color=INK)
    total, step = sum(row["flops"] for row in rows), 1 / (LINES + 2)

    def write(line: int, texts: Sequence[str], color: str, weight: str = "normal") -> None:
        for place, text in zip((0.0, 0.27, 0.35), texts, strict=True):
            shown = color if place else INK
            axes.text(
                place,
                1 - (line + 0.5) * step,
                text,
                family="monospace",
                color=shown,
                weight=weight,
                fontsize=9,
            )

    write(0, ("MobileNetV2", "FLOPs", "lowering on this CPU"), INK, "bold")
    for line, row in enumerate(rows[:LINES], start=1):
        site = row["site"].removeprefix("params/").removesuffix("/kernel")
        color = INT8 if "int8 x int8" in row["lowering"] else FLOAT
        said = f"{row['lowering']}: {row['reason']}" if row["reason"] else row["lowering"]
        write(line, (site, f"{row['flops'] / total:.1%}", said), color)
    write(LINES + 1, (f"and {len(rows) - LINES} more", "", ""), INK)


def main() -> None:
    """Draws the picture."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(15, 5.2), width_ratios=(1, 1.15), layout="constrained"
    )
    draw_pipelines(left)
    draw_table(right, explain_mobilenet())
    for side in ("top", "right"):
        left.spines[side].set_visible(False)
    figure.savefig(PICTURE, dpi=120)
    print(f"written to {PICTURE}")


if __name__ == "__main__":
    main()
