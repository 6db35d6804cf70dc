"""Pictures show the numbers of the run, with units, and are whole or absent."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from matplotlib.colors import to_hex
from synthetic_run import US, Synthetic, write_run

from ubfabric import plot as plots
from ubfabric.errors import ResultError
from ubfabric.results import FLOW_SCHEMA, LINK_SCHEMA, TASK_SCHEMA, RunWriter
from ubfabric.tokens import SHARES, rebuild_tokens

PAPER_ROW = {"batch_per_npu": 96, "tpot_ps": 49_400_000_000, "strength": "secondary"}
METADATA = {
    "n_moe_layers_total": 58,
    "batch_per_npu": 96,
    "mtp": {"tokens": 1, "acceptance": 0.7},
    "paper_row": PAPER_ROW,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    spec = Synthetic(n_ranks=18, skew=0.4, jitter=0.05, metadata=METADATA)
    return write_run(tmp_path_factory.mktemp("plot") / "run", spec)


@pytest.fixture
def figure(monkeypatch):
    """Catch the figure instead of writing it."""
    caught = []
    monkeypatch.setattr(plots, "_save", lambda figure, path, dpi: caught.append(figure))
    return lambda: caught[-1]


def texts(figure) -> str:
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return "\n".join(artist.get_text() for artist in found)


@pytest.mark.parametrize("kind", plots.PLOTS)
@pytest.mark.parametrize(("ending", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_every_plot_writes_png_and_pdf_and_nothing_else(run, tmp_path, kind, ending, magic):
    target = tmp_path / f"picture{ending}"
    assert plots.plot(run, kind, target, dpi=50) == target
    assert target.read_bytes().startswith(magic)
    assert os.listdir(tmp_path) == [target.name]


@pytest.mark.parametrize(("kind", "ending"), [("links", ".png"), ("links", ".PDF")])
def test_same_run_gives_the_same_bytes(run, tmp_path, kind, ending):
    first = plots.plot(run, kind, tmp_path / f"a{ending}", dpi=50).read_bytes()
    assert plots.plot(run, kind, tmp_path / f"b{ending}", dpi=50).read_bytes() == first


def test_fct_curves_are_the_cumulative_distribution(tmp_path, figure):
    """Flow i of 0..7 takes 0.1 * (i + 1) + 2 us; flow 0 is local and left out."""
    run = write_run(tmp_path / "run", Synthetic())
    plots.plot_fct(run, "x.png")
    left, right = figure().axes
    for line in left.lines:
        x, y = line.get_data()
        assert x == pytest.approx([2.2, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7, 2.8])  # up from nothing
        assert y == pytest.approx(np.arange(8) / 7)
    assert right.lines[0].get_ydata() == pytest.approx(np.arange(7, 0, -1) / 7)
    assert left.get_xscale() == right.get_xscale() == right.get_yscale() == "log"
    text = texts(figure())
    assert "dispatch: median 2.5, p99 2.8 µs, 336 flows" in text
    assert "(µs)" in left.get_xlabel()
    assert "3 layers" in text
    plots.plot_fct(run, "x.png", layers=[4])
    assert "1 layer" in texts(figure()) and "112 flows" in texts(figure())


def test_fct_curves_differ_in_line_style_not_only_in_colour(run, figure):
    plots.plot_fct(run, "x.png")
    left, _ = figure().axes
    assert len(left.lines) == 2
    assert len({line.get_linestyle() for line in left.lines}) == 2
    assert len({line.get_color() for line in left.lines}) == 2


def test_lines_of_any_number_of_phases_differ_in_two_ways_and_in_print():
    looks = [plots._line(number) for number in range(49)]
    for one, other in itertools.combinations(looks, 2):
        assert sum(a != b for a, b in zip(one, other, strict=True)) >= 2
        assert one[1:] != other[1:]  # colour does not show in grey


@pytest.fixture
def with_flows(run, monkeypatch):
    """Give the run one layer of flows: completion times in us by phase."""

    def call(times_us):
        rows = [(phase, round(us * US)) for phase, all_us in times_us.items() for us in all_us]
        flows = pd.DataFrame(rows, columns=["phase", "fct_ps"]).assign(layer=3, src=0, dst=1)
        flows["phase"] = flows["phase"].astype("category")
        flows["network"] = pd.Categorical(["ub"] * len(flows))
        monkeypatch.setattr(run, "flow_batches", lambda columns: iter([flows]))
        return run

    return call


def test_curves_of_many_phases_differ_in_what_is_drawn(with_flows, figure):
    plots.plot_fct(with_flows({f"phase{n}": [n + 1, n + 2] for n in range(16)}), "x.png")
    for axes in figure().axes:
        looks = {
            (line.get_color(), str(line._dash_pattern), line.get_marker()) for line in axes.lines
        }
        assert len(looks) == 16
        assert len({look[1:] for look in looks}) == 16


def test_curves_of_few_flows_start_at_nothing_and_show_in_the_tail(with_flows, figure):
    plots.plot_fct(with_flows({"many": [1, 2, 3], "alike": [5, 5, 5], "one": [7]}), "x.png")
    left, right = figure().axes
    curves = {line.get_label().partition(":")[0]: line for line in left.lines}
    assert curves["many"].get_xydata().tolist() == [
        [1, 0], [1, pytest.approx(1 / 3)], [2, pytest.approx(2 / 3)], [3, 1]
    ]  # fmt: skip
    assert curves["alike"].get_xydata().tolist() == [[5, 0], [5, 1]]
    assert curves["one"].get_xydata().tolist() == [[7, 0], [7, 1]]
    points = [line for line in right.lines if len(line.get_xdata()) == 1]
    assert len(points) == 2
    assert all(line.get_marker() == "o" and line.get_markevery() is None for line in points)


@pytest.mark.parametrize("n_phases", [1, 2, 8, 16])
def test_labels_of_completion_times_are_no_longer_than_their_axes(with_flows, figure, n_phases):
    plots.plot_fct(with_flows({f"phase{n}": [n + 1, n + 2] for n in range(n_phases)}), "x.png")
    drawn = figure()
    drawn.draw_without_rendering()
    for axes in drawn.axes:
        label = axes.yaxis.label.get_window_extent()
        assert axes.bbox.y0 <= label.y0 and label.y1 <= axes.bbox.y1
    (legend,) = drawn.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == n_phases
    assert box.x0 >= 0 and box.x1 <= drawn.bbox.x1 and box.y0 >= 0


@pytest.mark.parametrize("dpi", [50, 150])
@pytest.mark.parametrize("name", ["k", "kind", "projection of all heads"])
def test_the_legend_of_many_kinds_of_tasks_is_within_the_picture(
    run, figure, monkeypatch, name, dpi
):
    tasks = run.step_tasks()
    tasks["kind"] = [f"{name}{number % 14}" for number in range(len(tasks))]
    monkeypatch.setattr(run, "step_tasks", tasks.copy)
    plots.plot_timeline(run, "x.png")
    drawn = figure()
    drawn.set_dpi(dpi)
    drawn.draw_without_rendering()
    (legend,) = drawn.legends
    assert len(legend.get_texts()) == 15
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= drawn.bbox.x1
    assert box.y0 >= 0 and box.y1 <= drawn.axes[0].bbox.y0


def test_timeline_bars_are_the_tasks(tmp_path, figure):
    run = write_run(tmp_path / "run", Synthetic())
    plots.plot_timeline(run, "x.png", ranks=[5], layers=[3])
    (axes,) = figure().axes
    assert "(µs)" in axes.get_xlabel()
    bars = {}
    for collection in axes.collections:
        colour = to_hex(collection.get_facecolor()[0])
        for path in collection.get_paths():
            box = path.get_extents()
            bars.setdefault(colour.upper(), []).append((round(box.x0, 6), round(box.x1, 6)))
    assert bars[plots._BLUE] == [(0, 100), (100, 200)]  # attention
    assert bars[plots._GREEN] == [(117.8, 167.8), (217.8, 267.8)]  # expert
    assert bars[plots._ORANGE] == [(110, 115), (210, 215)]  # dispatch, computing
    assert bars[to_hex(plots._pale(plots._ORANGE)).upper()] == [(115, 117.8), (215, 217.8)]
    text = texts(figure())
    for part in ("rank 5", "die-0-5", "stream 0", "stream 1", "in layer 3", "combine"):
        assert part in text


def test_ranks_have_bars_of_their_own_streams_only(run, figure, monkeypatch):
    """As where some dies attend and others hold experts, whose streams are numbered on."""
    tasks = run.step_tasks()
    tasks.loc[tasks["rank"] >= 9, "stream"] += 2
    monkeypatch.setattr(run, "step_tasks", lambda: tasks.copy(), raising=True)
    plots.plot_timeline(run, "x.png", ranks=[3, 12], layers=[3])
    labels = [label.get_text() for label in figure().axes[0].get_yticklabels()]
    assert labels == ["stream 0", "stream 1", "stream 2", "stream 3"]
    tokens = rebuild_tokens(run)
    plots.plot_tokens(tokens, "x.png")
    streams = figure().axes[3]
    ends = [bar.get_x() + bar.get_width() for bar in streams.patches]
    assert ends.count(pytest.approx(100.0)) == 4 and max(ends) == pytest.approx(100.0)


def test_timeline_shows_first_middle_and_last_rank_by_default(run, figure):
    plots.plot_timeline(run, "x.png")
    tasks = run.tasks()
    tasks = tasks[tasks["layer"].isin([4, 5])]
    finish = tasks.groupby("rank")["finish_ps"].max()
    text = texts(figure())
    assert f"rank {finish.idxmin()}\n" in text and "first to finish" in text
    assert f"rank {finish.idxmax()}\n" in text and "last to finish" in text
    assert "in layers 4, 5" in text


def test_links_are_drawn_by_level_in_the_order_a_packet_meets_them(run, figure):
    plots.plot_links(run, "x.png")
    links = run.links()
    axes = figure().axes
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    numbers = {"die-l1": 126, "l1-l2": 224, "l2-l1": 224, "l1-die": 126}
    assert labels == [f"{level}: {n} of {n}" for level, n in numbers.items()]
    assert axes[0].get_ylim()[0] > axes[0].get_ylim()[1]  # the first level on top
    for panel, column, scale in (
        (axes[0], "bytes", 1e6),
        (axes[1], "busy_ps", run.summary["simulated_ps"] / 100),
        (axes[2], "max_queue_bytes", 1024),
        (axes[3], "no_credit_ps", run.summary["simulated_ps"] / 100),
    ):
        assert "(" in panel.get_xlabel()  # a unit
        for row, level in enumerate(("die-l1", "l1-l2", "l2-l1", "l1-die")):
            values = links.loc[links["level"] == level, column] / scale
            whisker = panel.lines[2 * row].get_xdata()
            assert whisker == pytest.approx([values.min(), values.max()])


def test_idle_links_are_counted_but_not_drawn(run, figure, monkeypatch):
    links = run.links()
    idle = links["level"].isin(["l1-l2", "l2-l1"]) | (links["link"] % 4 == 0)
    links.loc[idle, ["packets", "bytes", "busy_ps", "max_queue_bytes", "no_credit_ps"]] = 0
    monkeypatch.setattr(type(run), "links", lambda self: links)
    plots.plot_links(run, "x.png")
    axes = figure().axes[0]
    drawn = {
        level: int((links.loc[~idle, "level"] == level).sum()) for level in ("die-l1", "l1-die")
    }
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"{level}: {n} of 126" for level, n in drawn.items()]
    assert 0 < drawn["die-l1"] < 126
    assert axes.lines[0].get_xdata()[0] > 0
    assert "Idle: l1-l2, l2-l1" in texts(figure())
    links.loc[:, ["packets", "no_credit_ps"]] = 0
    with pytest.raises(ResultError, match="no link carried anything"):
        plots.plot_links(run, "x.png")


@pytest.mark.parametrize(
    ("level", "up"),
    [("die-l1", True), ("l1-die", False), ("l2-l3", True), ("l3-l2", False), ("die-die", True),
     ("cpu-vpc", True), ("rdma-die", False)],
)  # fmt: skip
def test_direction_of_a_level(level, up):
    assert plots._is_up(level) is up


def test_token_shares_are_stacked_to_the_whole(run, figure):
    tokens = rebuild_tokens(run)
    plots.plot_tokens(tokens, "x.png")
    tpot, latency, shares, streams = figure().axes
    ends = [bar.get_x() + bar.get_width() for bar in streams.patches]
    assert max(ends) == pytest.approx(100.0) and ends.count(pytest.approx(100.0)) == 2
    attention = tokens.streams[tokens.streams["kind"] == "attention"]["share"].mean()
    assert streams.patches[0].get_width() == pytest.approx(100 * attention)
    top = shares.patches[-1].get_data().values
    assert top == pytest.approx([100.0] * 18)
    assert shares.patches[0].get_data().values == pytest.approx(100 * tokens.shares["attention"])
    assert tpot.lines[0].get_ydata() == pytest.approx(tokens.ranks["tpot_ps"] / 1e9)
    assert latency.lines[0].get_ydata() == pytest.approx(tokens.ranks["dispatch_p50_ps"] / 1e6)
    text = texts(figure())
    assert "extrapolated from 3 of 58 layers" in text
    assert "paper: 49.4 ms (secondary)" in text
    assert "TPOT (ms)" in text and "operator latency (µs)" in text
    low, high = tpot.get_ylim()
    assert low < tokens.summary["tpot_ms"] < high and low < 49.4 < high


def test_comparison_shows_both_values_and_the_difference(run, figure, tmp_path):
    tokens = rebuild_tokens(run)
    plots.plot_comparison({"one": tokens}, "x.png")
    (axes,) = figure().axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([tokens.summary["tpot_ms"], 49.4])
    percent = 100 * (tokens.summary["tpot_ms"] - 49.4) / 49.4
    assert f"{percent:+.1f} %" in texts(figure())
    assert "paper (secondary)" in texts(figure())
    plain = rebuild_tokens(write_run(tmp_path / "run", Synthetic()))
    with pytest.raises(ResultError, match="no run has a row of the paper"):
        plots.plot_comparison({"plain": plain}, "x.png")


def test_looks_differ_without_colour():
    hatches = [hatch for _, hatch in plots._KINDS.values()]
    assert len(set(hatches)) == len(hatches)
    assert set(plots._SHARES) == set(SHARES)
    hatches = [hatch for name, (_, hatch) in plots._SHARES.items() if name != "idle"]
    assert len(set(hatches)) == len(hatches)


def test_kinds_of_a_users_own_trace_get_looks_of_their_own():
    looks = plots._looks(["attention", "prefetch", "audit"])
    assert list(looks) == ["attention", "audit", "prefetch"]
    assert len(set(looks.values())) == 3


@pytest.mark.parametrize(
    ("kind", "name", "options", "message"),
    [
        ("fct", "a.gif", {}, r"found ending '.gif', allowed .png or .pdf"),
        ("fct", "none/a.png", {}, "cannot be written: No such file"),
        ("fct", "a.png", {"layers": [9]}, "unknown layer 9; the run has 3 to 5"),
        ("timeline", "a.png", {"ranks": [18]}, "unknown rank 18; the run has 0 to 17"),
        ("timeline", "a.png", {"layers": []}, "no layer given"),
        ("pie", "a.png", {}, "unknown plot 'pie'; allowed: fct, timeline, links, tokens"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_and_no_file(run, tmp_path, kind, name, options, message):
    with pytest.raises(ResultError, match=message) as info:
        plots.plot(run, kind, tmp_path / name, **options)
    assert "\n" not in str(info.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", plots.PLOTS)
def test_an_empty_run_is_an_error(tmp_path, kind):
    with RunWriter(tmp_path / "run") as writer:
        for write, schema in (
            (lambda table: writer.write_flows(0, table), FLOW_SCHEMA),
            (writer.write_tasks, TASK_SCHEMA),
            (writer.write_links, LINK_SCHEMA),
        ):
            write(pa.table({field.name: pa.array([], field.type) for field in schema}))
        run = writer.finish({})
    with pytest.raises(ResultError):
        plots.plot(run, kind, tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["run"]


def test_matplotlib_is_loaded_by_the_plots_alone():
    code = "import sys, ubfabric, ubfabric.tokens; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_rank_and_one_layer_can_be_drawn(tmp_path):
    spec = Synthetic(n_ranks=2, layers=(3,), n_microbatches=1, attention_ps=US, two_streams=False)
    run = write_run(tmp_path / "run", spec)
    for kind in plots.PLOTS:
        assert plots.plot(run, kind, tmp_path / f"{kind}.png", dpi=50).stat().st_size > 1000
