"""Receipts: rates that agree with their ratios, changes that are none, and pictures that can be read."""

import itertools
import math
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxaccel.compression import receipts
from jaxaccel.compression.plot import describe_gains, draw_pareto, estimate_chain_noise, score_limits
from jaxaccel.compression.plot_labels import name_points
from jaxaccel.compression.receipts import Receipt, decode_receipts, time_beside
from jaxaccel.compression.report import gain_text, list_notes, receipt_line, receipt_tables
from jaxaccel.core.timing import Times
from jaxaccel.tasks.metrics import Headline

ERROR = Headline("mae", "lower")


def row(step="step", score=0.9, gain=None, noise=None, metric="accuracy", kilobytes=100):
    return Receipt(
        step, {metric: score}, 1000, 900, 10**6, 10**6, kilobytes * 1000, 0.1, 0.001, 1.0, gain, 1000.0, gain, 128,
        None, 1.0, noise, noise,
    )  # fmt: skip


def test_a_gain_is_told_unless_that_is_noise():
    assert gain_text(1.01, 0.05) == "within noise, ±5%"
    assert gain_text(1.01, 0.005) == "1.01x faster" and gain_text(0.5, 0.1) == "2.00x slower"


def test_calls_are_timed_beside_those_of_the_step_before():
    called = []
    times = time_beside("one", lambda: called.append("now"), lambda: called.append("before"))
    assert [len(rounds) for rounds in times.rounds.values()] == [15, 15] and {"now", "before"} == set(called)
    assert list(times.rounds) == ["one", "one_before"]
    assert list(time_beside("batch", lambda: None, None).rounds) == ["batch"]


def test_rows_agree_with_their_ratios_however_busy_the_machine_was(monkeypatch):
    """The origin was timed on an idle machine, the step after it on one that was three times as slow."""

    def beside(name, now):
        return Times({name: [now] * 3, f"{name}_before": [now * ratio for ratio in (0.96, 1.01, 1.05)]})

    times = iter([
        Times({"one": [1.0]}), Times({"batch": [128 / 119_862]}), beside("one", 3.0), beside("batch", 128 / 35_089),
    ])  # fmt: skip
    monkeypatch.setattr(receipts, "time_beside", lambda name, now, before: next(times))
    monkeypatch.setattr(receipts, "compile_stage", lambda stage, setting: receipts.Compiled(None, None, None))
    monkeypatch.setattr(receipts, "evaluate_stage", lambda *_: {"accuracy": 0.5})
    monkeypatch.setattr(receipts, "count_multiply_adds", lambda *_: {})
    stage, setting = _stage(), _setting()
    first = receipts.make_receipt("origin", stage, setting, None, None, 0.0)
    second = receipts.make_receipt("fold", stage, setting, stage, first, 0.0)
    assert first.throughput == pytest.approx(119_862) and first.latency_ms == 1000
    assert second.throughput / first.throughput == pytest.approx(second.throughput_gain)
    assert first.latency_ms / second.latency_ms == pytest.approx(second.latency_gain)
    assert second.latency_gain == pytest.approx(1.01) and second.latency_noise == pytest.approx(0.05)
    assert second.measured["batch"] == pytest.approx(128 / 35_089) and "batch_before" not in first.measured
    assert "(within noise, ±5%)" in receipt_line(second, [first, second])


def _stage():
    return type("Stage", (), {"file": Path(__file__), "variables": {"params": {}}, "call": None})()


def _setting():
    return type("Setting", (), {"batch": 128, "inputs": lambda self, n: ()})()


def test_a_slower_step_is_told_unless_that_is_noise():
    assert list_notes([row(), row("a", gain=0.7, noise=0.4), row("b", gain=0.7, noise=0.1)])[-1].endswith(
        "before: b."
    )
    rows = [row(), row(gain=1.1, noise=0.08), row(gain=1.1, noise=0.06)]
    assert estimate_chain_noise(rows) == pytest.approx(1.21 * math.hypot(0.08, 0.06) / 1.1)
    assert describe_gains(rows, Headline()) == "1.0x smaller, 1.21x faster, accuracy 0.9000 to 0.9000"
    assert "speed within noise, ±10%" in describe_gains([row(), row(gain=1.02, noise=0.1)], Headline())


def test_receipts_of_any_metric(tmp_path):
    for headline, scores in ((ERROR, (3.0, math.nan, 2.0)), (Headline("bleu"), (28.0, 27.0, 30.0))):
        rows = [row(f"step {i}", x, 1.2 if i else None, metric=headline.name) for i, x in enumerate(scores)]
        draw_pareto(tmp_path / "p.png", rows, headline)
        assert (tmp_path / "p.png").stat().st_size > 5000
        much, _ = receipt_tables(rows, headline)
        cells = list(much.columns[1].cells)
        assert cells[0] in ("3.0000", "28.0000") and ("lower is better" in str(much.title)) == (
            headline is ERROR
        )
    written = {**vars(rows[0]), "scores": {"bleu": None}}
    assert math.isnan(decode_receipts(written).scores["bleu"])
    older = {name: x for name, x in written.items() if not name.endswith("_noise") and name != "measured"}
    assert decode_receipts(older).latency_noise is None


@pytest.mark.parametrize(
    "scores, low, high",
    [([1.0, 0.98, 0.99], 0.95, 1.0), ([0.5, 0.5], 0.4, 0.6), ([-3.0, -2.0], -4, -1), ([0.01, 0.0], 0.0, 0.1),
     ([28.0, 30.0], 25, 33)],
)  # fmt: skip
def test_the_axis_of_the_metric(scores, low, high):
    below, above = score_limits(scores)
    assert low <= below <= min(scores) and max(scores) <= above <= high
    assert above - below >= 0.01


@pytest.mark.parametrize("gap", [0.0, 1e-4, 0.02])
def test_names_of_close_points_do_not_cover_each_other(gap):
    names = ["origin", "remove_channels", "low_rank", "prune", "fine_tune", "fold", "int8", "fine_tune_again"]
    figure = Figure(figsize=(5, 4), dpi=120)
    axis = figure.subplots()
    axis.set(xlim=(0, 1), ylim=(0.9, 1.0))
    points = [(0.8 + gap * i, 1.0 - gap * i / 10) for i in range(len(names))]
    figure.draw_without_rendering()
    name_points(axis, points, names, "black", "gray")
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in axis.texts if text.get_text()}
    assert list(boxes) == names
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not a.overlaps(b), f"{one} covers {other}"
    inside = axis.get_window_extent(renderer)
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 and box.y1 <= inside.y1 for box in boxes.values())
