"""Draw a topology: a lane for each plane, a row for each switch level.

A machine of thousands of links is drawn by level: chips as squares, and all links of a
plane between two levels as one band, as wide as their rates together.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx

from ubfabric.errors import TopologyError
from ubfabric.topology import check_topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe and Ito's palette, told apart by readers with any kind of colour vision.
COLOURS = {
    "die": "#0072B2",
    "cpu": "#E69F00",
    "l1": "#009E73",
    "l2": "#D55E00",
    "l3": "#CC79A7",
    "rdma": "#56B4E9",
    "vpc": "#999999",
}
_NAMES = {"die": "die", "cpu": "CPU", "l1": "L1 chip", "l2": "L2 chip", "l3": "L3 chip"}
_MOST_SQUARES = 64

# The drawing's own unit is the width of a lane.
_GAP = 0.10
_BAR = 0.34
_BOX = 0.86
_RISE = 1.05
_FOOT = 0.25


@dataclass
class _Lane:
    """What one plane holds: chips by level, and links by their two levels."""

    name: str
    network: str
    chips: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    ports: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    #: (lower level, upper level, kind of the lower end) to number of links by rate.
    bands: dict[tuple[int, int, str], Counter[int]] = field(
        default_factory=lambda: defaultdict(Counter)
    )


def draw_topology(graph: nx.Graph, path: str | Path) -> None:
    """Draw the planes and levels of a topology to a file.

    Parameters
    ----------
    graph : networkx.Graph or networkx.MultiGraph
        Any valid graph.
    path : str or Path
        Ending ``.png``, ``.pdf`` or ``.svg``.

    Raises
    ------
    TopologyError
        If the graph is not valid or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise TopologyError(f"{path}: found ending {path.suffix!r}; allowed: .png, .pdf, .svg")
    check_topology(graph, str(graph.graph.get("name", "topology")))
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lanes, endpoints, direct = _lanes(graph)
    levels = max((level for lane in lanes for level in lane.chips), default=0)
    width = len(lanes) * (1 + _GAP) + 0.75
    height = _level_bottom(levels, endpoints) + _BOX + 1.35
    figure = Figure(figsize=(max(1.45 * width, 7.0), 1.45 * height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-0.70, len(lanes) * (1 + _GAP) + 0.05)
    axes.set_ylim(-_FOOT - 0.1, height - _FOOT - 0.1)

    most = max((_total(rates) for lane in lanes for rates in lane.bands.values()), default=1)
    for number, lane in enumerate(lanes):
        _draw_lane(axes, lane, number * (1 + _GAP), levels, endpoints, most)
    _draw_endpoints(axes, graph, lanes, endpoints, direct)
    _draw_words(axes, graph, lanes, levels, endpoints)

    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    # Without dates and random ids the same graph gives the same bytes.
    metadata: dict[str, dict[str, Any]] = {
        ".pdf": {"CreationDate": None},
        ".svg": {"Date": None},
    }
    try:
        with rc_context({"svg.hashsalt": "ubfabric"}):
            figure.savefig(temporary, dpi=150, metadata=metadata.get(path.suffix, {}))
        os.replace(temporary, path)
    except OSError as error:
        raise TopologyError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _lanes(graph: nx.Graph) -> tuple[list[_Lane], list[str], dict[str, Counter[tuple[str, int]]]]:
    """Return lanes of planes with switches, kinds of endpoint, and direct links by plane."""
    node, degrees = graph.nodes, dict(graph.degree())
    lanes: dict[str, _Lane] = {}
    direct: dict[str, Counter[tuple[str, int]]] = {}
    for u, v, data in graph.edges(data=True):
        low, high = sorted((u, v), key=lambda name: node[name]["level"])
        below, above = node[low]["level"], node[high]["level"]
        rate = int(data["bandwidth_bytes_per_s"])
        if above == 0:
            kinds = "-".join(sorted((node[u]["kind"], node[v]["kind"])))
            direct.setdefault(data["plane"], Counter())[kinds, rate] += 1
            continue
        lane = lanes.setdefault(data["plane"], _Lane(data["plane"], data["network"]))
        lane.bands[below, above, node[low]["kind"]][rate] += 1
    for name, data in graph.nodes(data=True):
        if data["role"] == "switch" and data["plane"] in lanes:
            lanes[data["plane"]].chips[data["level"]][data["kind"]] += 1
            lanes[data["plane"]].ports[data["level"]].append((degrees[name], data["n_ports"]))
    endpoints = (data["kind"] for _, data in graph.nodes(data=True) if data["level"] == 0)
    return list(lanes.values()), list(dict.fromkeys(endpoints)), direct


def _total(rates: Counter[int]) -> int:
    return sum(rate * count for rate, count in rates.items())


def _bar_bottom(index: int, endpoints: list[str]) -> float:
    """Return where the bar of an endpoint kind begins; the first kind is on top."""
    return (len(endpoints) - 1 - index) * (_BAR + 0.12)


def _level_bottom(level: int, endpoints: list[str]) -> float:
    return _bar_bottom(0, endpoints) + _BAR + _RISE + (level - 1) * (_BOX + _RISE)


def _rate(rate: float) -> str:
    return f"{rate / 1e9:,.2f}".rstrip("0").rstrip(".") + " GB/s"


def _plural(count: int, kind: str) -> str:
    noun = _NAMES.get(kind, f"{kind.upper()} switch")
    ending = "" if count == 1 else "es" if noun.endswith("ch") else "s"
    return f"{count:,} {noun}{ending}"


def _links_text(rates: Counter[int]) -> str:
    count = sum(rates.values())
    if len(rates) == 1:
        return f"{count:,} ×\n{_rate(next(iter(rates)))}"
    return f"{count:,} × {_rate(min(rates))}\nto {_rate(max(rates))}"


def _draw_lane(
    axes: Axes, lane: _Lane, left: float, levels: int, endpoints: list[str], most: int
) -> None:
    from matplotlib.patches import Polygon, Rectangle

    top = max(lane.chips)
    bottom = _bar_bottom(0, endpoints) + _BAR
    axes.add_patch(
        Rectangle(
            (left, bottom),
            1,
            _level_bottom(top, endpoints) + _BOX - bottom + 0.06,
            facecolor="#F2F2F2",
            edgecolor="none",
            zorder=0,
        )
    )
    axes.text(
        left + 0.5,
        _level_bottom(top, endpoints) + _BOX + 0.13,
        lane.name if lane.name.startswith(lane.network) else f"{lane.name} ({lane.network})",
        ha="center",
        va="bottom",
        fontsize=11,
        weight="bold",
    )
    for level in lane.chips:
        _draw_chips(axes, lane, level, left, _level_bottom(level, endpoints))
    places: dict[tuple[int, int], list[str]] = defaultdict(list)
    for below, above, kind in lane.bands:
        places[below, above].append(kind)
    for (below, above, kind), rates in lane.bands.items():
        side = places[below, above]
        if below == above:
            axes.text(
                left + 0.5,
                _level_bottom(above, endpoints) - 0.03,
                f"in the level: {_links_text(rates)}".replace("\n", " "),
                ha="center",
                va="top",
                fontsize=6.5,
            )
            continue
        index = side.index(kind)
        x = left + (0.5 if len(side) == 1 else 0.32 + 0.44 * index / (len(side) - 1))
        low = (
            _level_bottom(below, endpoints) + _BOX
            if below
            else _bar_bottom(endpoints.index(kind), endpoints) + _BAR / 2
        )
        high = _level_bottom(above, endpoints)
        half = max(0.24 * _total(rates) / most, 0.008)
        axes.add_patch(
            Polygon(
                [(x - half, low), (x + half, low), (x + half, high), (x - half, high)],
                facecolor=COLOURS.get(kind, "#999999"),
                edgecolor="none",
                alpha=0.55,
                zorder=1,
            )
        )
        # Where a die's and a CPU's band stand side by side, their labels stand one above
        # the other.
        start = max(low, bottom)
        middle = start + (high - start) * (
            0.5 if len(side) == 1 else 0.73 - 0.46 * index / (len(side) - 1)
        )
        axes.text(
            x,
            middle,
            _links_text(rates),
            ha="center",
            va="center",
            fontsize=7.5,
            zorder=5,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "#BBBBBB"},
        )


def _draw_chips(axes: Axes, lane: _Lane, level: int, left: float, bottom: float) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import FancyBboxPatch, Rectangle

    counts = lane.chips[level]
    total = sum(counts.values())
    kind = counts.most_common(1)[0][0]
    colour = COLOURS.get(kind, "#999999")
    axes.add_patch(
        FancyBboxPatch(
            (left + 0.05, bottom),
            0.90,
            _BOX,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor="white",
            edgecolor=colour,
            linewidth=1.4,
            zorder=3,
        )
    )
    each = -(-total // _MOST_SQUARES)
    squares = -(-total // each)
    columns = min(squares, 8 if squares <= 16 else 12)
    rows = -(-squares // columns)
    step = min(0.82 / columns, 0.44 / rows, 0.11 if squares > 1 else 0.22)
    start_x = left + 0.5 - columns * step / 2
    start_y = bottom + 0.36 + (0.46 + rows * step) / 2
    patches = [
        Rectangle(
            (start_x + (i % columns) * step, start_y - (i // columns + 1) * step),
            step * 0.78,
            step * 0.78,
        )
        for i in range(squares)
    ]
    axes.add_collection(PatchCollection(patches, facecolor=colour, edgecolor="none", zorder=4))
    label = " + ".join(_plural(count, name) for name, count in sorted(counts.items()))
    used = max(port[0] for port in lane.ports[level])
    ports = max(port[1] for port in lane.ports[level])
    detail = f"ports: {used:,} of {ports:,}"
    if each > 1:
        detail += f"\na square: {each} chips"
    axes.text(left + 0.5, bottom + 0.29, label, ha="center", va="center", fontsize=8.5, zorder=5)
    axes.text(left + 0.5, bottom + 0.20, detail, ha="center", va="top", fontsize=6.5, zorder=5)


def _draw_endpoints(
    axes: Axes,
    graph: nx.Graph,
    lanes: list[_Lane],
    endpoints: list[str],
    direct: dict[str, Counter[tuple[str, int]]],
) -> None:
    from matplotlib.patches import FancyBboxPatch

    counts = Counter(data["kind"] for _, data in graph.nodes(data=True) if data["level"] == 0)
    npus = len({data["npu"] for _, data in graph.nodes(data=True)} - {-1})
    for index, kind in enumerate(endpoints):
        reached = [
            number
            for number, lane in enumerate(lanes)
            if any(below == 0 and low == kind for below, _, low in lane.bands)
        ] or [0]
        left = min(reached) * (1 + _GAP)
        right = max(reached) * (1 + _GAP) + 1
        bottom = _bar_bottom(index, endpoints)
        axes.add_patch(
            FancyBboxPatch(
                (left, bottom),
                right - left,
                _BAR,
                boxstyle="round,pad=0,rounding_size=0.05",
                facecolor=COLOURS.get(kind, "#999999"),
                edgecolor="white",
                zorder=3,
            )
        )
        text = _plural(counts[kind], kind)
        if kind == "die" and npus:
            text += f" on {npus:,} NPUs"
        for plane, links in direct.items():
            for (ends, rate), count in links.items():
                if kind in ends.split("-"):
                    noun = "link" if count == 1 else "links"
                    text += f"      {plane}: {count:,} {ends} {noun} × {_rate(rate)}"
        axes.text(
            (left + right) / 2,
            bottom + _BAR / 2,
            text,
            ha="center",
            va="center",
            fontsize=10 if right - left > 2 else 7,
            color="white" if kind == "die" else "black",
            weight="bold",
            zorder=5,
        )


def _draw_words(
    axes: Axes, graph: nx.Graph, lanes: list[_Lane], levels: int, endpoints: list[str]
) -> None:
    servers = len({data["server"] for _, data in graph.nodes(data=True)} - {-1})
    for level in range(1, levels + 1):
        axes.text(
            -0.08,
            _level_bottom(level, endpoints) + _BOX / 2,
            f"Switch\nlevel {level}",
            ha="right",
            va="center",
            fontsize=10,
        )
    axes.text(
        -0.08,
        (_bar_bottom(0, endpoints) + _BAR) / 2,
        f"{servers:,}\nserver{'' if servers == 1 else 's'}" if servers else "Endpoints",
        ha="right",
        va="center",
        fontsize=10,
    )
    top = _level_bottom(levels, endpoints) + _BOX
    axes.text(-0.62, top + 0.72, graph.graph["name"], fontsize=15, weight="bold")
    counts = Counter(kind for _, kind in graph.nodes(data="kind"))
    words = [_plural(count, kind) for kind, count in counts.items()]
    words.append(f"{graph.number_of_edges():,} links")
    axes.text(-0.62, top + 0.50, ", ".join(words), fontsize=10)
    axes.text(
        -0.62,
        -_FOOT + 0.03,
        "A band is all links of a plane between two levels, as wide as their rates together. "
        "Rates are for one direction.",
        ha="left",
        va="center",
        fontsize=8,
        color="#444444",
    )
