"""Faults by schedule: links, lanes, chips and dies that fail, degrade and come back.

A schedule is a YAML file::

    detection_time: 50 us
    faults:
      - {at: 100 us, element: {link: [l1-0-3, l2-3-5]}, event: down}
      - {at: 200 us, element: {link: [die-0-1, l1-0-0]}, event: degrade, lanes: 1}
      - {at: 250 us, element: {link: [die-0-2, l1-0-0]}, event: noise, bit_error_rate: 1.0e-9}
      - {at: 300 us, element: {switch: l2-4-7}, event: down}
      - {at: 400 us, element: {link: [l1-0-3, l2-3-5]}, event: up}

:func:`plan_faults` turns it into what the simulator takes: changes of directed links, chips
whose contents are lost, and new routes from the time at which a change has been detected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PlainValidator, model_validator

from ubfabric.deadlock import check_routes_deadlock_free
from ubfabric.errors import SpecError
from ubfabric.quantities import Count, Fraction, Picoseconds
from ubfabric.routing import FabricArrays, reroute, unreachable_pairs
from ubfabric.specs import Spec, load_yaml, validate_spec

#: Time from a change until routes take account of it, if a schedule does not say.
DEFAULT_DETECTION_TIME = {
    "value": "50 us",
    "source": "no public figure",
    "strength": "assumed",
    "note": "a few trainings of a link of 10 us and the way of the news to all switches",
}


def _link(value: Any) -> tuple[str, str, str | None, int | None]:
    parts = list(value) if isinstance(value, (list, tuple)) else []
    kinds: tuple[type, ...] = (str, str, str, int)
    if not 2 <= len(parts) <= 4 or any(
        type(part) is not kind for part, kind in zip(parts, kinds, strict=False)
    ):
        raise ValueError(
            f"found {value!r}; allowed: [node, node], [node, node, plane] or "
            "[node, node, plane, number of the cable from 0]"
        )
    u, v, plane, number = [*parts, None, None][:4]
    return u, v, plane, number


class ElementSpec(Spec):
    """What fails: cables between two nodes, a switch chip, or an endpoint."""

    link: Annotated[tuple[str, str, str | None, int | None], PlainValidator(_link)] | None = None
    switch: str | None = None
    die: str | None = None

    @model_validator(mode="after")
    def _one(self) -> ElementSpec:
        given = [name for name in ("link", "switch", "die") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"found {' and '.join(given) or 'nothing'}; allowed: one of link, switch, die"
            )
        return self


class FaultSpec(Spec):
    """One event of one element."""

    at: Picoseconds
    element: ElementSpec
    event: Literal["down", "degrade", "noise", "up"]
    lanes: Annotated[Count, Field(ge=1)] | None = None
    bit_error_rate: Annotated[Fraction, Field(ge=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _keys_fit(self) -> FaultSpec:
        for key, event in (("lanes", "degrade"), ("bit_error_rate", "noise")):
            if (getattr(self, key) is not None) != (self.event == event):
                found = "no " if getattr(self, key) is None else ""
                raise ValueError(
                    f"found {found}{key} with event {self.event}; {event} needs it, others "
                    "do not take it"
                )
        return self


class FaultsSpec(Spec):
    """A schedule of faults."""

    faults: list[FaultSpec]
    detection_time: Picoseconds = Field(default=DEFAULT_DETECTION_TIME, validate_default=True)


@dataclass(frozen=True)
class Fault:
    """One event of a schedule, as it hit a fabric.

    Attributes
    ----------
    time_ps : int
    text : str
        What happened, such as ``link l1-0-3 - l2-3-5 (ub3) down``.
    n_cables : int
        Cables that the element has.
    """

    time_ps: int
    text: str
    n_cables: int


@dataclass(frozen=True, eq=False)
class FaultPlan:
    """A schedule of faults in the numbers of one fabric.

    Attributes
    ----------
    fabric : FabricArrays
        The fabric without faults.
    faults : list of Fault
        In order of time; those of one time in the order of the schedule.
    detection_ps : int
        Time from a change until routes take account of it, at least 1.
    time_ps : int64[n_events]
        When a directed link changes, ascending; links of one time ascending. A chip that fails
        changes all its links, both directions.
    link : uint32[n_events]
    rate_bytes_per_s : uint64[n_events]
        Rate from then on, 0 for down.
    bit_error_rate : float64[n_events]
        Bit error rate from then on.
    node_time_ps : int64[n_node_events]
        When a chip or an endpoint dies or comes back, ascending.
    node : uint32[n_node_events]
    node_is_dead : uint8[n_node_events]
        1 if it dies then; what it holds is lost.
    routes : list of (int, FabricArrays)
        From when on which routes hold, ascending.
    route_dead_links : list of list of int
        Directed links that the routes of each version avoid.
    """

    fabric: FabricArrays
    faults: list[Fault]
    detection_ps: int
    time_ps: np.ndarray
    link: np.ndarray
    rate_bytes_per_s: np.ndarray
    bit_error_rate: np.ndarray
    node_time_ps: np.ndarray
    node: np.ndarray
    node_is_dead: np.ndarray
    routes: list[tuple[int, FabricArrays]]
    route_dead_links: list[list[int]]

    def describe(self) -> list[str]:
        """Return one line a fault: when, what, how many cables, and when routes follow."""
        changes = {time for time, _ in self.routes}
        lines = []
        for fault in self.faults:
            cables = f"{fault.n_cables} cable{'' if fault.n_cables == 1 else 's'}"
            line = f"at {_time(fault.time_ps)}: {fault.text}, {cables}"
            seen = fault.time_ps + self.detection_ps
            lines.append(line + (f"; new routes at {_time(seen)}" if seen in changes else ""))
        return lines

    def check_deadlock_free(self, label: str = "faults") -> None:
        """Check the routes of every version; see :mod:`ubfabric.deadlock`.

        Raises
        ------
        TopologyError
            One line with the circle of links and the fault whose routes have it.
        """
        for (time_ps, _), dead in zip(self.routes, self.route_dead_links, strict=True):
            what = self._causes(time_ps)
            check_routes_deadlock_free(self.fabric, dead, f"{label}: after {what}")

    def cut_off(
        self, network: str, src: np.ndarray, dst: np.ndarray, time_ps: int | None = None
    ) -> str | None:
        """Say which pair a fault cuts off, and which fault.

        Parameters
        ----------
        network : {'ub', 'rdma', 'vpc'}
        src, dst : ndarray of int, shape (n_pairs,)
            Node ids of endpoints.
        time_ps : int, optional
            Time at which to look; by default all versions of the routes are looked at.

        Returns
        -------
        str or None
            One line that names the first pair without a way in the first such version, and
            since which fault; None if there is none.
        """
        src, dst = np.asarray(src, np.int64), np.asarray(dst, np.int64)
        since = np.full(len(src), -1, np.int64)
        for at, (start, arrays) in enumerate(self.routes):
            if time_ps is not None and start > time_ps:
                break
            apart = unreachable_pairs(arrays, network, src, dst)
            since[~apart] = -1
            since[apart & (since < 0)] = at
            if time_ps is None and apart.any():
                break
        pairs = np.flatnonzero(since >= 0)
        if not pairs.size:
            return None
        pair = pairs[0]
        start = self.routes[since[pair]][0]
        names = self.fabric.node_names
        return (
            f"no way from {names[src[pair]]} to {names[dst[pair]]} in network {network} from "
            f"{_time(start)} on, after {self._causes(start)}"
        )

    def _causes(self, route_time_ps: int) -> str:
        """Return the faults that made a version of the routes."""
        when = route_time_ps - self.detection_ps
        return " and ".join(
            f"{fault.text} at {_time(when)}" for fault in self.faults if fault.time_ps == when
        )


def load_faults(source: str | Path | Mapping[str, Any]) -> tuple[FaultsSpec, str]:
    """Read a schedule of faults.

    Parameters
    ----------
    source : str, Path or mapping
        Path of a YAML file, or the content of one.

    Returns
    -------
    spec : FaultsSpec
    label : str
        How errors about it begin.

    Raises
    ------
    SpecError
        One line with file, key, what was found and what is allowed.
    """
    if isinstance(source, Mapping):
        label, raw = "faults", dict(source)
    else:
        if not str(source).endswith((".yaml", ".yml")):
            raise SpecError(f"{source}: found no .yaml ending; expected the path of a YAML file")
        label, raw = load_yaml(source, "topologies")
    return validate_spec(FaultsSpec, raw, label), label


def plan_faults(
    fabric: FabricArrays, source: str | Path | Mapping[str, Any] | FaultsSpec
) -> FaultPlan:
    """Turn a schedule of faults into changes of one fabric.

    Parameters
    ----------
    fabric : FabricArrays
        The fabric without faults.
    source : str, Path, mapping or FaultsSpec
        As in :func:`load_faults`, or a checked schedule.

    Returns
    -------
    FaultPlan

    Raises
    ------
    SpecError
        If the schedule is wrong, or does not fit the fabric: one line with the fault, what was
        found and what is allowed. Elements that do not exist, more lanes than a link has, and
        events that an element cannot have in its state are wrong.

    Notes
    -----
    A link is down while it is down itself or a node at an end of it is. ``up`` gives a link
    all its lanes again and revives a node; it leaves noise as it is, which only another
    ``noise`` changes. ``degrade`` and ``noise`` of a node are those of all its links. Events of
    one time take effect together.
    """
    if isinstance(source, FaultsSpec):
        spec, label = source, "faults"
    else:
        spec, label = load_faults(source)
    state = _State(fabric)
    faults: list[Fault] = []
    rows: list[tuple[int, int, int, float]] = []
    node_rows: list[tuple[int, int, bool]] = []
    routes: list[tuple[int, FabricArrays]] = []
    route_dead: list[list[int]] = []
    # New routes come before whatever else happens at their time: with no time at all they would
    # come before the fault, and leave packets behind on a link that is about to be down.
    detection_ps = max(1, spec.detection_time)
    order = sorted(range(len(spec.faults)), key=lambda at: spec.faults[at].at)
    begin = 0
    while begin < len(order):
        time_ps = spec.faults[order[begin]].at
        end = begin
        touched: set[int] = set()
        dead_before = set(state.dead)
        while end < len(order) and spec.faults[order[end]].at == time_ps:
            where = f"{label}: faults[{order[end]}]"
            fault, cables = state.apply(spec.faults[order[end]], where)
            faults.append(fault)
            touched.update(cables)
            end += 1
        begin = end
        node_rows += [(time_ps, node, True) for node in sorted(state.dead - dead_before)]
        node_rows += [(time_ps, node, False) for node in sorted(dead_before - state.dead)]
        changed, are_rates_changed = state.changed_links(touched)
        rows += [(time_ps, link, state.rates[link], state.noise[link]) for link in changed]
        if are_rates_changed:
            dead, slow = state.for_routes()
            routes.append((time_ps + detection_ps, reroute(fabric, dead, slow)))
            route_dead.append(dead)
    columns = list(zip(*rows, strict=True)) or [()] * 4
    node_columns = list(zip(*node_rows, strict=True)) or [()] * 3
    return FaultPlan(
        fabric,
        faults,
        detection_ps,
        np.array(columns[0], np.int64),
        np.array(columns[1], np.uint32),
        np.array(columns[2], np.uint64),
        np.array(columns[3], np.float64),
        np.array(node_columns[0], np.int64),
        np.array(node_columns[1], np.uint32),
        np.array(node_columns[2], np.uint8),
        routes,
        route_dead,
    )


class _State:
    """What is broken at one time; cables have the numbers of the graph's edges."""

    def __init__(self, fabric: FabricArrays) -> None:
        self.fabric = fabric
        self.number = {name: node for node, name in enumerate(fabric.node_names)}
        self.full_rates: list[int] = fabric.link_rate_bytes_per_s.tolist()
        self.rates = list(self.full_rates)  # of directed links, as last reported
        self.noise: list[float] = fabric.link_bit_error_rate.tolist()
        self.down: set[int] = set()  # cables that are down themselves
        self.lanes: dict[int, int] = {}  # lanes left of degraded cables
        self.dead: set[int] = set()  # nodes
        self.coming_noise: dict[int, float] = {}

    def apply(self, fault: FaultSpec, where: str) -> tuple[Fault, list[int]]:
        """Carry out an event; return what happened and the cables it touches."""
        element = fault.element
        node = None
        if element.link is not None:
            cables, name = self._cables(*element.link, f"{where}: element.link")
        else:
            kind = "switch" if element.switch is not None else "die"
            node = self._node(element.switch or element.die or "", kind, f"{where}: element")
            ends = self.fabric.link_src == node
            cables = sorted({int(link) >> 1 for link in np.flatnonzero(ends)})
            name = f"{kind} {self.fabric.node_names[node]}"
        text = f"{name} {fault.event}"
        where = f"{where}: {name}"
        if fault.event == "noise":
            assert fault.bit_error_rate is not None
            self.coming_noise |= dict.fromkeys(cables, fault.bit_error_rate)
            text = f"{name} noise, bit error rate {fault.bit_error_rate:g}"
        elif fault.event == "degrade":
            assert fault.lanes is not None
            self._degrade(cables, node, fault.lanes, where)
            text = f"{name} degrade to {fault.lanes} lane{'' if fault.lanes == 1 else 's'}"
        elif fault.event == "down":
            self._take_down(cables, node, where)
        else:
            self._bring_up(cables, node, where)
        return Fault(fault.at, text, len(cables)), cables

    def _degrade(self, cables: list[int], node: int | None, lanes: int, where: str) -> None:
        if node in self.dead or self.down.intersection(cables):
            raise SpecError(f"{where}: found event degrade while it is down; expected up before it")
        for cable in cables:
            highest = int(self.fabric.link_lanes[2 * cable]) - 1
            if lanes > highest:
                what = f"lanes: 1 to {highest}" if highest else "down, as it has a single lane"
                raise SpecError(
                    f"{where}: found {lanes} lanes left of link {self._ends(cable)}; allowed {what}"
                )
            self.lanes[cable] = lanes

    def _take_down(self, cables: list[int], node: int | None, where: str) -> None:
        if node in self.dead or (node is None and self.down.intersection(cables)):
            raise SpecError(f"{where}: found event down while it is down; expected up before it")
        if node is None:
            self.down.update(cables)
        else:
            self.dead.add(node)

    def _bring_up(self, cables: list[int], node: int | None, where: str) -> None:
        if node in self.dead:
            self.dead.remove(node)
            return
        broken = set() if node is not None else self.down.intersection(cables)
        if not broken and not all(cable in self.lanes for cable in cables):
            raise SpecError(
                f"{where}: found event up while it is neither down nor degraded; expected down or "
                "degrade before it"
            )
        for cable in cables:
            self.down.difference_update(broken)
            self.lanes.pop(cable, None)

    def _node(self, name: str, kind: str, where: str) -> int:
        is_endpoint = self.fabric.node_is_endpoint
        node = self.number.get(name)
        if node is None or bool(is_endpoint[node]) != (kind == "die"):
            names = [
                other
                for other, is_end in zip(self.fabric.node_names, is_endpoint, strict=True)
                if bool(is_end) == (kind == "die")
            ]
            raise SpecError(f"{where}.{kind}: found {name!r}; {_near(name, names)}")
        return node

    def _cables(
        self, u: str, v: str, plane: str | None, number: int | None, where: str
    ) -> tuple[list[int], str]:
        """Return the cables between two nodes and what to call them."""
        fabric = self.fabric
        for name in (u, v):
            if name not in self.number:
                raise SpecError(f"{where}: found {name!r}; {_near(name, fabric.node_names)}")
        ends = self.number[u], self.number[v]
        at_u = fabric.link_src == ends[0]
        cables = sorted(
            {int(link) >> 1 for link in np.flatnonzero(at_u & (fabric.link_dst == ends[1]))}
        )
        if not cables:
            others = [fabric.node_names[node] for node in np.unique(fabric.link_dst[at_u])]
            raise SpecError(f"{where}: found no link of {u} to {v}; {_near(v, others)}")
        if plane is not None:
            planes = [fabric.plane_names[fabric.link_plane[2 * cable]] for cable in cables]
            if plane not in planes:
                raise SpecError(
                    f"{where}: found plane {plane!r}; allowed: {', '.join(sorted(set(planes)))}"
                )
            cables = [cable for cable, own in zip(cables, planes, strict=True) if own == plane]
        if number is not None:
            if not 0 <= number < len(cables):
                raise SpecError(f"{where}: found cable {number}; allowed 0 to {len(cables) - 1}")
            cables = [cables[number]]
        name = f"link {u} - {v}"
        if number is not None:
            name += f", cable {number}"
        planes = sorted({fabric.plane_names[fabric.link_plane[2 * cable]] for cable in cables})
        return cables, f"{name} ({', '.join(planes)})"

    def _ends(self, cable: int) -> str:
        link = 2 * cable
        return " - ".join(
            self.fabric.node_names[end]
            for end in (self.fabric.link_src[link], self.fabric.link_dst[link])
        )

    def changed_links(self, cables: Iterable[int]) -> tuple[list[int], bool]:
        """Take note of what the cables have become.

        Returns
        -------
        links : list of int
            Directed links whose rate or noise is another one, ascending.
        are_rates_changed : bool
        """
        links, are_rates_changed = [], False
        for cable in sorted(cables):
            for link in (2 * cable, 2 * cable + 1):
                rate = self._rate(link)
                noise = self.coming_noise.get(cable, self.noise[link])
                if (rate, noise) != (self.rates[link], self.noise[link]):
                    are_rates_changed |= rate != self.rates[link]
                    self.rates[link], self.noise[link] = rate, noise
                    links.append(link)
        self.coming_noise.clear()
        return links, are_rates_changed

    def _rate(self, link: int) -> int:
        cable, fabric = link >> 1, self.fabric
        if (
            cable in self.down
            or {int(fabric.link_src[link]), int(fabric.link_dst[link])} & self.dead
        ):
            return 0
        lanes = self.lanes.get(cable)
        if lanes is None:
            return self.full_rates[link]
        return max(1, self.full_rates[link] * lanes // int(fabric.link_lanes[link]))

    def for_routes(self) -> tuple[list[int], dict[int, int]]:
        """Return dead links, and rates of links that lost lanes."""
        dead = [link for link, rate in enumerate(self.rates) if rate == 0]
        slow = {
            link: self.rates[link]
            for cable in self.lanes
            for link in (2 * cable, 2 * cable + 1)
            if self.rates[link]
        }
        return dead, slow


def _near(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=3, cutoff=0.0)
    return f"allowed: a node of the fabric, such as {', '.join(near)}"


def _time(ps: int) -> str:
    return f"{ps / 10**6:.12g} us"
