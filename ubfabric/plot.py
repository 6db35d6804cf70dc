"""Pictures of a run: completion times, timelines, link load, tokens.

Each function takes a run (or its tokens), writes one PNG or PDF and returns the path.
Colours are those of Okabe and Ito, told apart with any kind of colour vision; line
styles and hatches tell the same things apart in grey. This is the only module beside
``plot_topology`` that imports matplotlib, and ``import ubfabric`` does not load it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ubfabric.distribution import Distribution
from ubfabric.errors import ResultError
from ubfabric.results import RunResult
from ubfabric.serving_results import ServingResult
from ubfabric.tokens import SHARES, Tokens, rebuild_tokens

_PS_PER_US = 1e6
_PS_PER_MS = 1e9
_FORMATS = ("png", "pdf")

_BLACK, _ORANGE, _SKY, _GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
_YELLOW, _BLUE, _VERMILION, _PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
_GREY = "#BBBBBB"

#: Colour and hatch of each kind of task.
_KINDS = {
    "down": (_SKY, "++"),
    "prologue": (_SKY, "--"),
    "attention": (_BLUE, ""),
    "heads": (_BLUE, "||"),
    "output": (_PURPLE, "xx"),
    "gate": (_SKY, "\\\\\\\\"),
    "dispatch": (_ORANGE, "...."),
    "expert": (_GREEN, "////"),
    "combine": (_VERMILION, "xxxx"),
    "ffn": (_PURPLE, "++++"),
    "head": (_YELLOW, "oo"),
}
_SPARE_KINDS = [(_PURPLE, "||||"), (_YELLOW, "----"), (_ORANGE, "**"), (_GREY, "\\\\//")]

#: Colour and hatch of each share of a rank's step.
_SHARES = {
    "attention": (_BLUE, ""),
    "expert": (_GREEN, "////"),
    "other_compute": (_SKY, "\\\\\\\\"),
    "operator_compute": (_YELLOW, "----"),
    "dispatch_wait": (_ORANGE, "...."),
    "combine_wait": (_VERMILION, "xxxx"),
    "other_wait": (_PURPLE, "++++"),
    "idle": ("#FFFFFF", ""),
}
#: Colour and style of each line; no two styles are alike in print.
_LINES = [
    (_BLUE, "-"),
    (_VERMILION, "--"),
    (_GREEN, "-."),
    (_ORANGE, ":"),
    (_PURPLE, (0, (5, 1, 1, 1, 1, 1))),
    (_SKY, (0, (2, 4))),
    (_BLACK, (0, (10, 2))),
]
#: Markers of further lines, a round of ``_LINES`` each.
_MARKERS = ("", "o", "s", "^", "D", "v", "x")
#: Levels as a packet meets them; others follow in alphabetical order.
_LEVELS = ("die-l1", "cpu-l1", "l1-l2", "l2-l3", "l3-l2", "l2-l1", "l1-die", "l1-cpu", "die-die")
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}

PathLike = str | os.PathLike[str]


def plot_fct(
    result: RunResult, path: PathLike, *, layers: Iterable[int] | None = None, dpi: int = 150
) -> Path:
    """Draw the distribution of flow completion times by phase and network.

    Left the fraction of flows that are complete, right the fraction still under way on a
    logarithmic scale, where the tail shows. Local copies (source = destination) are left
    out, since they cross no link.

    Parameters
    ----------
    result : RunResult
        A run with flows; they are read layer by layer.
    path : path
        Picture to write; ``.png`` or ``.pdf``.
    layers : iterable of int, optional
        Layers to count; all by default.
    dpi : int
        Pixels an inch of a PNG.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ResultError
        If there are no flows, a layer is unknown, or the picture cannot be written.
    """
    wanted = _known("layer", layers, result.layers)
    times: dict[tuple[str, str], Distribution] = {}
    columns = ["phase", "network", "layer", "src", "dst", "fct_ps"]
    for flows in result.flow_batches(columns):
        if wanted is not None and int(flows["layer"].iloc[0]) not in wanted:
            continue
        crosses = flows["src"].to_numpy() != flows["dst"].to_numpy()
        fct = flows["fct_ps"].to_numpy()
        phase, network = flows["phase"].cat, flows["network"].cat
        code = phase.codes.to_numpy(np.int64) * len(network.categories) + network.codes.to_numpy()
        for number, names in enumerate(itertools.product(phase.categories, network.categories)):
            found = fct[crosses & (code == number)]
            if len(found):
                of_phase, over = map(str, names)
                times.setdefault((of_phase, over), Distribution()).add(found)
    if not times:
        raise ResultError(f"{result.path}: no flow crosses the fabric, so there is nothing to draw")

    order = ["dispatch", "combine"]
    keys = sorted(
        times,
        key=lambda key: (key[0] not in order, order.index(key[0]) if key[0] in order else 0, key),
    )
    networks = {network for _, network in keys}
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 2.9 + 0.22 * len(keys)), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True)
        smallest = 1.0
        for number, key in enumerate(keys):
            colour, style, marker = _line(number)
            values, fractions = times[key].cdf()
            label = key[0] if len(networks) == 1 else f"{key[0]}, {key[1]}"
            median, p99 = (times[key].quantile(q) / _PS_PER_US for q in (0.5, 0.99))
            label += f": median {_short(median)}, p99 {_short(p99)} µs, {times[key].total:,} flows"
            x = values / _PS_PER_US
            line = {"color": colour, "linestyle": style, "linewidth": 1.6, "marker": marker}
            # Markers stand apart on the paper, since a curve may have thousands of points.
            line |= {"markersize": 4.5, "markerfacecolor": "none", "markevery": 0.12}
            # None is complete before the first one is, however many complete with it.
            rising = np.concatenate([x[:1], x]), np.concatenate([[0.0], fractions])
            left.step(*rising, where="post", label=label, **line)
            # Before the last value completes, one flow is still under way.
            left_over = 1 - np.concatenate([[0.0], fractions[:-1]])
            if len(x) == 1:  # no line joins one point to itself
                line |= {"marker": marker or "o", "markevery": None}
            right.step(x, left_over, where="pre", **line)
            smallest = min(smallest, float(left_over[-1]))
        left.set(xscale="log", xlabel="flow completion time (µs)", ylim=(0, 1.02))
        left.set(ylabel="fraction of flows complete", title="All flows")
        right.set(yscale="log", xlabel="flow completion time (µs)", ylim=(smallest / 1.5, 1.5))
        right.set(ylabel="fraction of flows\nat least that slow", title="The tail")
        _plain_log(left)
        n_layers = len(result.layers if wanted is None else wanted)
        figure.suptitle(f"Flow completion times, {_count(n_layers, 'layer')}", x=0.01, ha="left")
        figure.legend(loc="outside lower left", ncols=1, handlelength=4.5)  # shows a pattern twice
        return _save(figure, path, dpi)


def plot_timeline(
    result: RunResult,
    path: PathLike,
    *,
    ranks: Iterable[int] | None = None,
    layers: Iterable[int] | None = None,
    dpi: int = 150,
) -> Path:
    """Draw what the streams of some ranks do over time.

    One row a rank, one bar a stream. A task that sends or waits is dark while it computes
    and pale while it issues its messages or waits for those of others. A number in a bar is
    its microbatch.

    Parameters
    ----------
    result : RunResult
        A run with tasks.
    path : path
        Picture to write; ``.png`` or ``.pdf``.
    ranks : iterable of int, optional
        Rows, from the top; by default the ranks that finish first, in the middle and last.
    layers : iterable of int, optional
        Layers whose tasks are drawn; by default two in the middle of the MoE layers.
    dpi : int
        Pixels an inch of a PNG.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ResultError
        If there are no tasks, a rank or layer is unknown, or the picture cannot be written.
    """
    tasks = result.step_tasks()
    if tasks.empty:
        raise ResultError(f"{result.path}: the run has no tasks (open loop), so no timeline")
    # the stages of an operator, such as dispatch-copy, look like the operator
    tasks["kind"] = tasks["kind"].astype(str).str.partition("-")[0]
    all_layers = sorted(int(layer) for layer in tasks["layer"].unique())
    shown_layers = _known("layer", layers, all_layers)
    if shown_layers is None:
        combining = sorted(int(x) for x in tasks.loc[tasks["kind"] == "combine", "layer"].unique())
        choice = combining or all_layers
        first = max(0, (len(choice) - 1) // 2)
        shown_layers = choice[first : first + 2]
    tasks = tasks[tasks["layer"].isin(shown_layers)]
    known_ranks = sorted(int(rank) for rank in tasks["rank"].unique())
    finish = tasks.groupby("rank")["finish_ps"].max().sort_values(kind="stable")
    notes: dict[int, str] = {}
    shown_ranks = _known("rank", ranks, known_ranks)
    if shown_ranks is None:
        places = {"first": 0, "median": (len(finish) - 1) // 2, "last": len(finish) - 1}
        for name, place in places.items():
            notes.setdefault(
                int(finish.index[place]),
                f"{name} to finish" if name != "median" else "in the middle",
            )
        shown_ranks = list(notes)
    nodes = result.summary.get("rank_nodes")

    begin = int(tasks["start_ps"].min())
    end = int(tasks["finish_ps"].max())
    scale, unit = (_PS_PER_US, "µs") if end - begin < 5 * _PS_PER_MS else (_PS_PER_MS, "ms")
    looks = _looks(tasks["kind"].unique())
    # dies that attend and dies with experts have streams of their own
    streams = {rank: sorted(of.unique()) for rank, of in tasks.groupby("rank")["stream"]}
    most = max(len(streams[rank]) for rank in shown_ranks)
    with mpl.rc_context(_STYLE):
        rows_inches = max(0.55 * most * len(shown_ranks), 1.2)
        figure = Figure(figsize=(11.0, 1.9 + rows_inches), layout="constrained")
        axes = figure.subplots()
        ticks, labels, lanes, lane_labels = [], [], [], []
        for row, rank in enumerate(shown_ranks):
            of_rank = tasks[tasks["rank"] == rank]
            height = 0.8 / len(streams[rank])
            for lane, stream in enumerate(streams[rank]):
                bottom = row - 0.4 + lane * height
                lanes.append(bottom + height / 2)
                lane_labels.append(f"stream {stream}")
                part = of_rank[of_rank["stream"] == stream]
                _bars(axes, part, bottom, 0.92 * height, begin, scale, looks, (end - begin) / scale)
            ticks.append(float(row))
            node = f"\n{nodes[rank]}" if isinstance(nodes, list) and rank < len(nodes) else ""
            note = f"\n{notes[rank]}" if rank in notes else ""
            labels.append(f"rank {rank}{node}{note}")
        axes.set_yticks(lanes, lane_labels, fontsize=7)
        axes.tick_params(axis="y", length=0)
        for tick, label in zip(ticks, labels, strict=True):
            axes.annotate(
                label,
                (0, tick),
                xycoords=("axes fraction", "data"),
                xytext=(-48, 0),
                textcoords="offset points",
                ha="right",
                va="center",
            )
        for row in range(1, len(shown_ranks)):
            axes.axhline(row - 0.5, color=_GREY, linewidth=0.6)
        axes.set(ylim=(len(shown_ranks) - 0.5, -0.5), xlim=(0, 1.005 * (end - begin) / scale))
        axes.set(xlabel=f"time since the first task shown ({unit})")
        axes.grid(visible=False, axis="y")
        which = ", ".join(str(layer) for layer in shown_layers)
        word = "layer" if len(shown_layers) == 1 else "layers"
        axes.set_title(f"Tasks of {_count(len(shown_ranks), 'rank')} in {word} {which}")
        handles = [
            Patch(facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.4, label=kind)
            for kind, (colour, hatch) in looks.items()
        ]
        handles.append(
            Patch(
                facecolor="white",
                edgecolor="black",
                linewidth=0.4,
                label="pale: sending or waiting",
            )
        )
        _legend_below(figure, handles)
        return _save(figure, path, dpi)


def _bars(
    axes: Axes,
    tasks: pd.DataFrame,
    bottom: float,
    height: float,
    begin: int,
    scale: float,
    looks: dict[str, tuple[str, str]],
    width: float,
) -> None:
    """Draw the tasks of one stream as bars, waiting parts pale, and their microbatches."""
    for kind, part in tasks.groupby("kind", sort=False):
        colour, hatch = looks[str(kind)]
        start = (part["start_ps"].to_numpy() - begin) / scale
        finish = (part["finish_ps"].to_numpy() - begin) / scale
        communicates = ((part["issued_ps"] >= 0) | (part["arrived_ps"] >= 0)).to_numpy()
        computed = np.where(communicates, start + part["duration_ps"].to_numpy() / scale, finish)
        dark = np.column_stack([start, computed - start])
        pale = np.column_stack([computed, finish - computed])
        for spans, face in ((dark, colour), (pale, _pale(colour))):
            spans = spans[spans[:, 1] > 0]
            if len(spans):
                axes.broken_barh(
                    [tuple(span) for span in spans],
                    (bottom, height),
                    facecolors=face,
                    edgecolor="black",
                    linewidth=0.4,
                    hatch=hatch,
                )
        # The number stands in the longer of the two parts.
        long = np.where((computed - start > finish - computed)[:, None], dark, pale)
        for (x, length), microbatch in zip(long, part["microbatch"], strict=True):
            if length > 0.015 * width and microbatch >= 0:
                axes.text(
                    x + length / 2,
                    bottom + height / 2,
                    str(microbatch),
                    ha="center",
                    va="center_baseline",
                    fontsize=7,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
                )


def plot_links(result: RunResult, path: PathLike, *, dpi: int = 150) -> Path:
    """Draw the load of the links by level.

    For each level (kinds of the two ends of a one-way link): bytes, utilisation (busy time
    over the simulated time), highest queue, and share of the simulated time in which a link
    had something to send and no credit. A box spans the middle half of the links with its
    median, whiskers reach from the least to the most loaded link. Links that carried nothing
    are left out; the labels say how many carried something.

    Parameters
    ----------
    result : RunResult
        A run with links.
    path : path
        Picture to write; ``.png`` or ``.pdf``.
    dpi : int
        Pixels an inch of a PNG.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ResultError
        If there are no links or the picture cannot be written.
    """
    links = result.links()
    if links.empty:
        raise ResultError(f"{result.path}: the run has no links, so there is nothing to draw")
    links["level"] = links["level"].astype(str)
    counts = links["level"].value_counts()
    links = links[(links["packets"] > 0) | (links["no_credit_ps"] > 0)].copy()
    if links.empty:
        raise ResultError(f"{result.path}: no link carried anything, so there is nothing to draw")
    used = links["level"].value_counts()
    idle = sorted(set(counts.index) - set(used.index))
    duration = int(result.summary.get("simulated_ps") or links["busy_ps"].max() or 1)
    links["megabytes"] = links["bytes"] / 1e6
    links["utilisation"] = 100 * links["busy_ps"] / duration
    links["queue"] = links["max_queue_bytes"] / 1024
    links["no_credit"] = 100 * links["no_credit_ps"] / duration
    found = set(links["level"])
    levels = [level for level in _LEVELS if level in found] + sorted(found - set(_LEVELS))
    panels = {
        "megabytes": "sent (MB)",
        "utilisation": "busy (% of the run)",
        "queue": "highest queue (KiB)",
        "no_credit": "without credit (% of the run)",
    }
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11.0, 1.6 + 0.42 * len(levels)), layout="constrained")
        for axes, (column, label) in zip(
            figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True
        ):
            groups = [links.loc[links["level"] == level, column].to_numpy() for level in levels]
            positions = np.arange(len(levels))
            for position, level, group in zip(positions, levels, groups, strict=True):
                low, lower, median, upper, high = np.quantile(group, [0, 0.25, 0.5, 0.75, 1])
                up = _is_up(level)
                axes.plot([low, high], [position] * 2, color=_BLACK, linewidth=0.8)
                axes.plot([low, high], [position] * 2, color=_BLACK, marker="|", linestyle="")
                axes.broken_barh(
                    [(lower, upper - lower)],
                    (position - 0.28, 0.56),
                    facecolors=_SKY if up else _ORANGE,
                    edgecolor="black",
                    hatch="" if up else "///",
                    linewidth=0.7,
                    zorder=3,
                )
                axes.vlines(
                    median, position - 0.28, position + 0.28, _BLACK, linewidth=1.8, zorder=4
                )
            axes.set(xlabel=label, ylim=(len(levels) - 0.5, -0.5))
            # A little room left of zero, where marks may stand.
            most = max(float(group.max()) for group in groups) or 1.0
            axes.set_xlim(-0.03 * most, 1.05 * most)
            axes.locator_params(axis="x", nbins=4)  # or numbers of neighbours meet
            axes.grid(visible=False, axis="y")
            axes.set_yticks(
                positions, [f"{level}: {used[level]:,} of {counts[level]:,}" for level in levels]
            )
        handles = [
            Patch(facecolor=_SKY, edgecolor="black", label="towards the spine, or between dies"),
            Patch(facecolor=_ORANGE, hatch="///", edgecolor="black", label="towards the endpoints"),
        ]
        figure.legend(handles=handles, loc="outside lower right", ncols=2)
        title = (
            f"Load of the {len(links):,} one-way links that carried something, by level, in "
            f"{_time(duration)}: median, middle half, least to most"
        )
        if idle:
            title += f"\nIdle: {', '.join(idle)}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        return _save(figure, path, dpi)


def plot_tokens(tokens: Tokens | RunResult, path: PathLike, *, dpi: int = 150) -> Path:
    """Draw TPOT, operator latency and the shares of the step by rank.

    Below, as a mean over ranks, what each stream is busy with, whether or not another stream
    hides it; that part is not extrapolated.

    Parameters
    ----------
    tokens : Tokens or RunResult
        What :func:`ubfabric.tokens.rebuild_tokens` returned, or a run to rebuild from.
    path : path
        Picture to write; ``.png`` or ``.pdf``.
    dpi : int
        Pixels an inch of a PNG.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ResultError
        If the run has no tasks or the picture cannot be written.
    """
    if isinstance(tokens, RunResult):
        tokens = rebuild_tokens(tokens)
    summary, ranks = tokens.summary, tokens.ranks
    rank = ranks["rank"].to_numpy()
    phases = [kind for kind in summary["rank_latency_us"] if f"{kind}_p50_ps" in ranks]
    with mpl.rc_context(_STYLE):
        n_streams = tokens.streams["stream"].nunique()
        low = 0.85 + 0.3 * n_streams
        figure = Figure(figsize=(11.0, 6.8 + low), layout="constrained")
        rows: Any = figure.subfigures(3, 1, height_ratios=[3.2, 3.6, low])
        first, axes = rows[0].subplots(1, 2)
        _draw_tpot(first, rank, ranks, tokens)
        looks = [(_ORANGE, "o"), (_VERMILION, "s"), (_PURPLE, "^"), (_SKY, "D")]
        for phase, (colour, marker) in zip(phases, _cycle(looks), strict=False):
            for name, line in (("p50", "-"), ("max", ":")):
                axes.plot(
                    rank,
                    ranks[f"{phase}_{name}_ps"] / _PS_PER_US,
                    color=colour,
                    linestyle=line,
                    linewidth=1.1,
                    marker=marker,
                    markevery=max(1, len(rank) // 12),
                    markersize=4,
                    label=f"{phase}, {'median' if name == 'p50' else 'longest'}",
                )
        axes.set(
            xlabel="rank", ylabel="operator latency (µs)", title="Dispatch and combine by rank"
        )
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        if phases:
            # Above the curves, so that the legend hides none of them.
            axes.set_ylim(top=1.35 * axes.get_ylim()[1])
            axes.legend(loc="upper left", ncols=2, fontsize=8)

        axes = rows[1].subplots()
        bottom = np.zeros(len(tokens.shares))
        position = tokens.shares["rank"].to_numpy()
        edges = np.append(position - 0.5, position[-1] + 0.5)
        for name in SHARES:
            value = 100 * tokens.shares[name].to_numpy()
            if not value.any():
                continue
            colour, hatch = _SHARES[name]
            axes.stairs(
                bottom + value,
                edges,
                baseline=bottom,
                fill=True,
                facecolor=colour,
                hatch=hatch,
                edgecolor="black",
                linewidth=0.4,
                label=f"{name.replace('_', ' ')} {value.mean():.1f} %",
            )
            bottom = bottom + value
        axes.set(xlabel="rank", ylabel="share of the step (%)", ylim=(0, 100))
        axes.set(xlim=(edges[0], edges[-1]))
        axes.set_title("Where the step goes; communication only where no computation hides it")
        axes.grid(visible=False)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5))
        _draw_streams(rows[2].subplots(), tokens)
        title = f"{_count(len(ranks), 'rank')}: TPOT {summary['tpot_ms']:.2f} ms"
        if summary["tokens_per_s_per_npu"] is not None:
            title += f", {summary['tokens_per_s_per_npu']:,.0f} tokens/s per NPU"
        if summary["extrapolated"]:
            title += (
                f", extrapolated from {summary['moe_layers_simulated']} of "
                f"{summary['moe_layers_total']} layers"
            )
        figure.suptitle(title, x=0.01, ha="left")
        return _save(figure, path, dpi)


def _draw_streams(axes: Axes, tokens: Tokens) -> None:
    """Draw what each stream is busy with, hidden or not, as a mean over ranks that have it."""
    streams = tokens.streams
    n_ranks = streams.groupby("stream")["rank"].nunique()
    mean = 100 * streams.groupby(["stream", "kind"])["share"].sum() / n_ranks
    looks = _looks(set(streams["kind"]) - {"idle"}) | {"idle": ("#FFFFFF", "")}
    places = sorted(int(stream) for stream in streams["stream"].unique())
    for place, stream in enumerate(places):
        of_stream = mean.loc[stream]
        left = 0.0
        for kind in (kind for kind in looks if kind in of_stream):
            colour, hatch = looks[kind]
            width = float(of_stream[kind])
            axes.barh(
                place,
                width,
                0.75,
                left=left,
                color=colour,
                hatch=hatch,
                edgecolor="black",
                linewidth=0.4,
            )
            if width > 5:
                axes.text(
                    left + width / 2,
                    place,
                    f"{kind} {width:.0f} %",
                    ha="center",
                    va="center_baseline",
                    fontsize=8,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
                )
            left += width
    axes.set_yticks(range(len(places)), [f"stream {stream}" for stream in places])
    axes.set(xlim=(0, 100), ylim=(len(places) - 0.5, -0.5))
    axes.set(xlabel="share of the simulated part (%), mean over ranks")
    axes.set_title("What each stream is busy with, hidden or not")
    axes.grid(visible=False)


def _tpot_reach_ms(summary: dict[str, Any]) -> float:
    """Return how far the interval of TPOT reaches to each side, 0 without one."""
    interval = summary["tpot_interval_ms"]
    return 0.0 if interval is None else float(summary["tpot_ms"] - interval[0])


def _draw_tpot(axes: Axes, rank: np.ndarray, ranks: pd.DataFrame, tokens: Tokens) -> None:
    """Draw TPOT by rank, the uncertainty of the extrapolation and the paper's value."""
    summary = tokens.summary
    values = ranks["tpot_ps"].to_numpy() / _PS_PER_MS
    lows, highs = [values.min()], [values.max()]
    axes.plot(rank, values, color=_BLUE, linewidth=1.2, label="simulated")
    if summary["extrapolated"] and summary["tpot_interval_ms"]:
        low, high = summary["tpot_interval_ms"]
        axes.axhspan(
            low,
            high,
            facecolor=_SKY,
            alpha=0.35,
            hatch="///",
            edgecolor=_BLUE,
            linewidth=0,
            label=f"{100 * summary['confidence']:g} % interval of the extrapolation",
        )
        lows.append(low)
        highs.append(high)
    paper = tokens.paper[tokens.paper["quantity"] == "TPOT"]
    if len(paper):
        value = float(paper["paper"].iloc[0])
        label = f"paper: {value:g} ms ({paper['strength'].iloc[0]})"
        axes.axhline(value, color=_VERMILION, linestyle="--", linewidth=1.4, label=label)
        lows.append(value)
        highs.append(value)
    low, high = min(lows), max(highs)
    # A hair's breadth of difference must not look like a cliff: at least 5 % are in view.
    room = max(high - low, 0.05 * high) or 1.0
    axes.set_ylim(low - 0.25 * room, high + 0.9 * room)
    axes.margins(x=0.01)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set(xlabel="rank", ylabel="TPOT (ms)", title="Time per output token by rank (axis cut)")
    axes.legend(loc="upper left", fontsize=8)


def plot_comparison(runs: Mapping[str, Tokens], path: PathLike, *, dpi: int = 150) -> Path:
    """Draw simulated quantities beside the paper's, one group of bars a run.

    Parameters
    ----------
    runs : mapping of str to Tokens
        Label of a run to its tokens; runs for which the paper has no row are left out.
    path : path
        Picture to write; ``.png`` or ``.pdf``.
    dpi : int
        Pixels an inch of a PNG.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ResultError
        If no run has a row of the paper, or the picture cannot be written.
    """
    tables = [tokens.paper.assign(run=label) for label, tokens in runs.items()]
    tables = [table.dropna(subset=["simulated"]) for table in tables if len(table)]
    tables = [table for table in tables if len(table)]
    if not tables:
        raise ResultError("no run has a row of the paper at its point, so there is nothing to draw")
    rows = pd.concat(tables, ignore_index=True)
    quantities = list(dict.fromkeys(rows["quantity"]))
    with mpl.rc_context(_STYLE):
        height = 1.3 + 0.6 * rows["run"].nunique()
        figure = Figure(figsize=(4.6 * len(quantities), height), layout="constrained")
        for axes, quantity in zip(
            figure.subplots(1, len(quantities), squeeze=False)[0], quantities, strict=True
        ):
            part = rows[rows["quantity"] == quantity].reset_index(drop=True)
            position = np.arange(len(part))
            unit = str(part["unit"].iloc[0])
            for shift, column, colour, hatch in (
                (-0.19, "simulated", _BLUE, ""),
                (0.19, "paper", _ORANGE, "///"),
            ):
                axes.barh(
                    position + shift,
                    part[column].astype(float),
                    0.34,
                    color=colour,
                    hatch=hatch,
                    edgecolor="black",
                    linewidth=0.5,
                    label=column,
                )
            error = [
                _tpot_reach_ms(runs[run].summary) if quantity == "TPOT" else 0.0
                for run in part["run"]
            ]
            if any(error):
                axes.errorbar(
                    part["simulated"].astype(float),
                    position - 0.19,
                    xerr=error,
                    fmt="none",
                    ecolor=_BLACK,
                    capsize=3,
                )
            most = float(part[["simulated", "paper"]].astype(float).to_numpy().max())
            for place, row in zip(position, part.to_dict("records"), strict=True):
                axes.annotate(
                    f"{row['difference_percent']:+.1f} %",
                    (max(row["simulated"], row["paper"]), place),
                    xytext=(6, 0),
                    textcoords="offset points",
                    va="center",
                )
            axes.set_yticks(position, list(part["run"]))
            axes.set(xlim=(0, 1.25 * most), ylim=(len(part) - 0.5, -0.5))
            axes.set(xlabel=f"{quantity} ({unit})" if unit != "1/s" else quantity)
            axes.grid(visible=False, axis="y")
        handles, labels = axes.get_legend_handles_labels()
        strengths = ", ".join(sorted({str(value) for value in rows["strength"] if value}))
        labels = [f"paper ({strengths})" if text == "paper" else text for text in labels]
        figure.legend(handles, labels, loc="outside lower left", ncols=2)
        figure.suptitle("Simulated beside the paper; in % the difference", x=0.01, ha="left")
        return _save(figure, path, dpi)


def plot_serving(result: ServingResult, path: PathLike, *, dpi: int = 150) -> Path:
    """Draw a run of requests: latencies with their objectives, and the pools over time.

    Above the share of requests whose TTFT and whose TPOT does not exceed a time. Below, over time,
    the requests that wait for prefill and for decode, and those that are under way, summed over
    the instances of a pool.

    Parameters
    ----------
    result : ServingResult
    path : path
        Picture to write; ``.png`` or ``.pdf``.
    dpi : int
        Pixels an inch of a PNG.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ResultError
        If a table or the picture cannot be read or written.
    """
    requests, pools = result.requests(), result.pools()
    objectives = result.summary["objectives"]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 6), layout="constrained")
        (ttft, tpot), (queue, running) = figure.subplots(2, 2)
        for axes, name in ((ttft, "ttft"), (tpot, "tpot")):
            times = np.sort(requests[f"{name}_ps"].dropna().to_numpy(np.float64)) / _PS_PER_MS
            if len(times):
                share = np.arange(1, len(times) + 1) / len(times)
                axes.step(times, share, where="post", color=_BLUE)
            bound = objectives.get(f"{name}_ps")
            if bound is not None:
                axes.axvline(bound / _PS_PER_MS, color=_VERMILION, linestyle="--")
                within = result.summary["within_objectives"][name]
                axes.annotate(
                    f"objective {_time(bound)}: {within:.1%}",
                    (bound / _PS_PER_MS, 0.03),
                    xytext=(-4, 0),
                    textcoords="offset points",
                    ha="right",
                    rotation=90,
                    color=_VERMILION,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
                )
            axes.set(ylim=(0, 1.02), xlabel=f"{name.upper()}, ms", ylabel="share of requests")
            axes.set_title(f"{name.upper()} of {len(times):,} requests")
        sums = pools.groupby(["pool", "time_ps"], observed=True)[
            ["queued_requests", "running_requests"]
        ].sum()
        for (name, style), colour in zip(
            (("prefill", "-"), ("decode", "--")), (_GREEN, _ORANGE), strict=True
        ):
            of_pool = sums.loc[name]
            seconds = of_pool.index.to_numpy() / 1e12
            for axes, column in ((queue, "queued_requests"), (running, "running_requests")):
                axes.step(
                    seconds,
                    of_pool[column],
                    where="post",
                    color=colour,
                    linestyle=style,
                    label=name,
                )
        for axes, title in ((queue, "Requests that wait"), (running, "Requests under way")):
            axes.set(xlabel="time, s", ylim=(0, None))
            axes.set_title(title)
            axes.legend()
        figure.suptitle(str(result.summary["name"]), x=0.01, ha="left")
        return _save(figure, path, dpi)


#: Name on the command line to function.
PLOTS: dict[str, Callable[..., Path]] = {
    "fct": plot_fct,
    "timeline": plot_timeline,
    "links": plot_links,
    "tokens": plot_tokens,
}


def plot(result: RunResult, kind: str, path: PathLike, **options: Any) -> Path:
    """Draw one of :data:`PLOTS` by its name.

    Raises
    ------
    ResultError
        If the name is unknown, or as the function raises.
    """
    if kind not in PLOTS:
        raise ResultError(f"unknown plot {kind!r}; allowed: {', '.join(PLOTS)}")
    return PLOTS[kind](result, path, **options)


def _known(what: str, wanted: Iterable[int] | None, known: list[int]) -> list[int] | None:
    """Return the wanted numbers without repeats, or say which is unknown."""
    if wanted is None:
        return None
    numbers = list(dict.fromkeys(int(number) for number in wanted))
    for number in numbers:
        if number not in known:
            allowed = f"{known[0]} to {known[-1]}" if known else "none"
            raise ResultError(f"unknown {what} {number}; the run has {allowed}")
    if not numbers:
        raise ResultError(f"no {what} given")
    return numbers


def _looks(kinds: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return colour and hatch of each kind, known kinds first."""
    found = set(kinds)
    looks = {kind: look for kind, look in _KINDS.items() if kind in found}
    for kind, look in zip(sorted(found - set(looks)), _cycle(_SPARE_KINDS), strict=False):
        looks[kind] = look
    return looks


def _line(number: int) -> tuple[str, Any, str]:
    """Return colour, style and marker of a line; of 49 any two differ in two of the three.

    Colours and styles come in the same numbers, so a later round joins a colour to another
    style: lines of a round differ in both, and of those of two rounds, which differ in marker,
    none have both in common. In print, style and marker tell all of them apart.
    """
    rounds, place = divmod(number, len(_LINES))
    style = _LINES[(place + rounds) % len(_LINES)][1]
    return _LINES[place][0], style, _MARKERS[rounds % len(_MARKERS)]


def _legend_below(figure: Figure, handles: list[Patch]) -> None:
    """Put a legend below the axes, in as few rows as the width of the picture allows."""
    # Text is up to 2 % wider at the resolution of the file than at that of the measurement.
    room = 0.96 * figure.bbox.width
    for rows in range(1, len(handles) + 1):
        columns = -(-len(handles) // rows)
        legend = figure.legend(handles=handles, loc="outside lower left", ncols=columns)
        if legend.get_window_extent().width <= room or columns == 1:
            return
        legend.remove()


def _cycle(items: list[Any]) -> Iterable[Any]:
    while True:
        yield from items


def _pale(colour: str) -> tuple[float, float, float]:
    """Mix a colour with white."""
    from matplotlib.colors import to_rgb

    red, green, blue = (0.3 * part + 0.7 for part in to_rgb(colour))
    return red, green, blue


def _is_up(level: str) -> bool:
    """Whether a level such as 'l1-l2' leads away from the endpoints."""
    source, _, target = level.partition("-")

    def height(kind: str) -> int:
        return (
            int(kind[1:]) if kind[:1] == "l" and kind[1:].isdigit() else (0 if kind in _ENDS else 1)
        )

    return height(target) >= height(source)


_ENDS = frozenset(["die", "cpu"])


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def _time(duration_ps: int) -> str:
    for scale, unit in ((1e12, "s"), (1e9, "ms"), (1e6, "µs"), (1e3, "ns")):
        if duration_ps >= scale:
            return f"{duration_ps / scale:.4g} {unit}"
    return f"{duration_ps} ps"


def _plain_log(axes: Axes) -> None:
    """Label a logarithmic time axis 1, 10, 100 rather than with powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    if high / low < 100:  # fewer than two decades: label 2 and 5 as well
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _save(figure: Figure, path: PathLike, dpi: int) -> Path:
    """Write the picture beside the target and rename it; the same run gives the same bytes."""
    target = Path(path)
    suffix = target.suffix.lower().removeprefix(".")
    if suffix not in _FORMATS:
        raise ResultError(f"{path}: found ending {target.suffix!r}, allowed .png or .pdf")
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}}[suffix]
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        figure.savefig(partial, format=suffix, dpi=dpi, metadata=metadata)
        os.replace(partial, target)
    except OSError as error:
        raise ResultError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return target
