"""What a person reads of a pipeline."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from jaxaccel.compression.receipts import Receipt
from jaxaccel.tasks.metrics import Headline, score_text


def receipt_line(row: Receipt, rows: Sequence[Receipt]) -> str:
    """One receipt, after its step."""
    first = rows[0]
    scores = ", ".join(f"{name} {score_text(value)}" for name, value in row.scores.items())
    gain = "" if row.latency_gain is None else f" ({gain_text(row.latency_gain, row.latency_noise)})"
    return (
        f"  {scores}; {row.nonzeros:,} of {row.parameters:,} numbers not 0, packed {size_text(row.packed_bytes)} "
        f"({first.packed_bytes / row.packed_bytes:.1f}x smaller), {row.latency_ms:.2f} ms{gain}"
    )


def receipt_tables(rows: Sequence[Receipt], headline: Headline) -> list[Table]:
    """All receipts: how much there is, and how fast it is."""
    much = _table(
        "" if headline.better == "higher" else metric_text(headline), headline.name, "numbers", "not 0", "MFLOPs",
        "in memory", "packed", "at 10 Mbit/s", "at 1 Gbit/s",
    )  # fmt: skip
    fast = _table(
        "against the step before", "one example", "", f"batch of {rows[0].batch}", "", "peak", "step took"
    )
    for row in rows:
        much.add_row(
            row.step, score_text(row.scores[headline.name]), f"{row.parameters:,}", f"{row.nonzeros:,}",
            f"{row.flops / 1e6:,.1f}", size_text(row.bytes), size_text(row.packed_bytes),
            f"{row.seconds_at_10_mbit:.2f} s", f"{1000 * row.seconds_at_1_gbit:.1f} ms",
        )  # fmt: skip
        fast.add_row(
            row.step, f"{row.latency_ms:.2f} ms", _gain(row.latency_gain, row.latency_noise),
            f"{row.throughput:,.0f}/s", _gain(row.throughput_gain, row.throughput_noise),
            "-" if row.peak_bytes is None else size_text(row.peak_bytes), f"{row.seconds:,.0f} s",
        )  # fmt: skip
    return [much, fast]


def _table(title: str, *heads: str) -> Table:
    made = Table(title=title or None, title_justify="left")
    made.add_column("step", no_wrap=True)
    for head in heads:
        made.add_column(head, justify="right", no_wrap=True)
    return made


def list_notes(rows: Sequence[Receipt]) -> list[str]:
    """What the figures alone might leave unsaid."""
    said = []
    if any(row.nonzeros < 0.7 * row.parameters for row in rows):
        said.append(
            "Zeros save bytes in the packed file, not time: no backend of XLA multiplies sparse weights faster than "
            "dense ones. For time, remove channels."
        )
    slower = [row for row in rows if row.latency_gain and row.latency_gain < 0.95]
    if worse := [row.step for row in slower if is_change(row.latency_gain or 1, row.latency_noise)]:
        said.append(f"Slower on this device than the step before: {', '.join(worse)}.")
    return said


def is_change(gain: float, noise: float | None) -> bool:
    """Whether a ratio of times is further from 1 than measuring it is from the truth."""
    return abs(gain - 1) > (noise or 0)


def gain_text(gain: float, noise: float | None) -> str:
    """A ratio of times as people say it."""
    if not is_change(gain, noise):
        return f"within noise, ±{noise or 0:.0%}"
    return f"{gain:.2f}x faster" if gain >= 1 else f"{1 / gain:.2f}x slower"


def metric_text(headline: Headline) -> str:
    """The metric, and that lower values of it are better where they are."""
    return headline.name if headline.better == "higher" else f"{headline.name} (lower is better)"


def size_text(count: int) -> str:
    """Bytes with a fitting unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _gain(gain: float | None, noise: float | None) -> Text:
    if gain is None:
        return Text("")
    color = "red" if gain < 0.95 else "green" if gain > 1.05 else ""
    return Text(gain_text(gain, noise), style=color if is_change(gain, noise) else "")
