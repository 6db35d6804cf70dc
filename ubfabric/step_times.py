"""How long steps and transfers take: simulated packet by packet at some points, and between them.

A serving system (:mod:`ubfabric.serving`) asks for the time of a shape: so many requests a die
with so many KV tokens, so many tokens to fill. :func:`measure_step_times` simulates the shapes of
a grid, each as ``generate_trace -> replay -> rebuild_tokens``, and transfers as open-loop traces of
their own; a :class:`TimeTable` is linear between the points.

**Remembered.** What was simulated stays in a folder, one small file a point, named by a hash of all
that decides it: topology, workload and settings after their checks, content of files that they
name, version of ubfabric. Files appear whole, so processes may share the folder, and a run that was
stopped goes on.

**Error.** Each inner point of an axis is also predicted from its two neighbours, and the relative
differences are reported (:meth:`TimeTable.errors`). Neighbours are twice as far apart as points
are, so of a smooth curve this is about four times the error halfway between points: an upper
figure, which costs no further simulation. Axes of fewer than three points have no such figure.

**Beyond the grid** the time of its edge is taken, never an extrapolation; how often is counted, and
:func:`ubfabric.serve` warns of it where it matters. Below the first point the edge is an upper
figure: a batch smaller than the smallest one is as if padded to it.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import networkx as nx
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ubfabric.cluster import check_cluster, connected, one_at_a_time
from ubfabric.errors import ResultError, SimulationError, SpecError, UbfabricError, UbfabricWarning
from ubfabric.replay import check_replay, replay
from ubfabric.serving_spec import ServingSystem, flatten
from ubfabric.sweep import (
    Simulation,
    SweepPoint,
    SweepSpec,
    digest,
    plan_points,
    simulate,
    topology_content,
)
from ubfabric.topology import load_topology
from ubfabric.trace import FLOW_SCHEMA, TRACE_SCHEMA, Trace, TraceChunk, empty_table

#: Version of the remembered files; it changes when one of their keys changes its meaning.
TIMES_SCHEMA = 1


# --------------------------------------------------------------------------- between points


class TimeTable:
    """Times at the points of a rectangular grid, linear between them.

    Parameters
    ----------
    name : str
        What is timed, for messages and reports.
    axes : mapping of str to sequence of float
        Name to its points, ascending; at least one each.
    times_ps : array_like of int, shape (len(axis) for each axis), picoseconds

    Attributes
    ----------
    axes : dict of str to tuple of float
    times_ps : ndarray of int64
    asked : int
        How often a time was asked for.
    below, above : dict of str to int
        How often an axis was left on either side.
    """

    def __init__(
        self, name: str, axes: Mapping[str, Sequence[float]], times_ps: np.ndarray
    ) -> None:
        self.name = name
        self.axes = {axis: tuple(float(p) for p in points) for axis, points in axes.items()}
        self.times_ps = np.asarray(times_ps, np.int64)
        shape = tuple(len(points) for points in self.axes.values())
        if self.times_ps.shape != shape:
            raise ValueError(f"{name}: found times of shape {self.times_ps.shape}, axes {shape}")
        self._flat: list[int] = self.times_ps.ravel().tolist()
        strides = [int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))]
        self._along = list(zip(self.axes, self.axes.values(), strides, strict=True))
        self.asked = 0
        self.below = dict.fromkeys(self.axes, 0)
        self.above = dict.fromkeys(self.axes, 0)

    def time_ps(self, *at: float) -> int:
        """Return the time at a place between points, in picoseconds.

        Parameters
        ----------
        *at : float
            One coordinate an axis, in their order.
        """
        self.asked += 1
        corners = [(0, 1.0)]
        for (axis, points, stride), value in zip(self._along, at, strict=True):
            if value <= points[0]:
                if value < points[0]:
                    self.below[axis] += 1
                continue
            last = len(points) - 1
            if value >= points[last]:
                if value > points[last]:
                    self.above[axis] += 1
                corners = [(place + last * stride, weight) for place, weight in corners]
                continue
            low = bisect_right(points, value) - 1
            share = (value - points[low]) / (points[low + 1] - points[low])
            place = low * stride
            if share == 0.0:
                corners = [(at_ + place, weight) for at_, weight in corners]
            else:
                corners = [
                    pair
                    for at_, weight in corners
                    for pair in (
                        (at_ + place, weight * (1 - share)),
                        (at_ + place + stride, weight * share),
                    )
                ]
        flat = self._flat
        return round(sum(flat[place] * weight for place, weight in corners))

    def errors(self) -> dict[str, list[float]]:
        """Return what a point is predicted at from its neighbours, relative to its time, less 1.

        Returns
        -------
        dict of str to list of float
            One number an inner point of an axis, for each point of the other axes.
        """
        found: dict[str, list[float]] = {}
        for number, (axis, points) in enumerate(self.axes.items()):
            times = np.moveaxis(self.times_ps, number, 0).reshape(len(points), -1)
            found[axis] = []
            for at in range(1, len(points) - 1):
                share = (points[at] - points[at - 1]) / (points[at + 1] - points[at - 1])
                predicted = (1 - share) * times[at - 1] + share * times[at + 1]
                found[axis] += (predicted / times[at] - 1).tolist()
        return found

    def report(self) -> dict[str, Any]:
        """Return points, times, errors and how often the grid was left, JSON-able."""
        errors = self.errors()
        every = [abs(error) for of_axis in errors.values() for error in of_axis]
        return {
            "axes": {axis: list(points) for axis, points in self.axes.items()},
            "times_ps": self.times_ps.tolist(),
            "leave_one_out": {
                "points": len(every),
                "mean": float(np.mean(every)) if every else None,
                "max": max(every, default=None),
                "max_by_axis": {
                    axis: max(map(abs, of_axis), default=None) for axis, of_axis in errors.items()
                },
            },
            "asked": self.asked,
            "below": self.below,
            "above": self.above,
        }


class TransferTimes(Protocol):
    """How long it takes to move the tokens of a request."""

    def transfer_ps(self, tokens: int, concurrent: int) -> int:
        """Return the time of one of several transfers that begin together, in picoseconds.

        Parameters
        ----------
        tokens : int
            Tokens whose KV cache moves; 0 takes no time.
        concurrent : int
            Transfers under way at the same time, this one included.
        """

    def report(self) -> dict[str, Any]:
        """Return what is known of the times, JSON-able."""


class MeasuredTransfers:
    """Transfers of a table with the axes ``tokens`` and ``concurrent``.

    One of more tokens than the table has goes in pieces of its last point, one after another.

    Parameters
    ----------
    table : TimeTable
    """

    def __init__(self, table: TimeTable) -> None:
        self.table = table
        self._most = int(table.axes["tokens"][-1])

    def transfer_ps(self, tokens: int, concurrent: int) -> int:
        """Return the time; see :meth:`TransferTimes.transfer_ps`."""
        pieces, rest = divmod(tokens, self._most)
        time = self.table.time_ps(rest, concurrent) if rest else 0
        return time + (pieces * self.table.time_ps(self._most, concurrent) if pieces else 0)

    def report(self) -> dict[str, Any]:
        """Return what is known of the times; see :meth:`TimeTable.report`."""
        return self.table.report()


@dataclass(frozen=True)
class StepTimes:
    """All times that a serving system asks for.

    Attributes
    ----------
    decode : TimeTable
        Of a step, by ``batch_per_die`` (requests of the fullest die) and ``kv_tokens`` (mean of
        its requests).
    prefill : TimeTable
        Of a batch, by ``tokens`` (to compute), ``prompt_tokens`` and ``cached_share``.
    kv_transfer, cache_read, cache_write : TransferTimes
        Of the tokens of a request.
    """

    decode: TimeTable
    prefill: TimeTable
    kv_transfer: TransferTimes
    cache_read: TransferTimes
    cache_write: TransferTimes

    def report(self) -> dict[str, Any]:
        """Return what is known of each, JSON-able."""
        names = ("decode", "prefill", "kv_transfer", "cache_read", "cache_write")
        return {name: getattr(self, name).report() for name in names}


# --------------------------------------------------------------------------- remembered


def default_cache() -> Path:
    """Return the folder of remembered times: ``ubfabric`` in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    return base / "ubfabric" / "step-times"


class TimeStore:
    """A folder of remembered times, which processes may share.

    Parameters
    ----------
    folder : path
        Made when the first time is put in.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what is remembered under a key, or None.

        Raises
        ------
        ResultError
            If there is a file that is not what was put in.
        """
        file = self._file(key)
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ResultError(f"{file}: cannot be read: {error}; delete it") from None
        is_ours = isinstance(found, dict) and found.get("schema") == TIMES_SCHEMA
        if not is_ours or not isinstance(found.get("time_ps"), int) or found["time_ps"] < 0:
            raise ResultError(f"{file}: not a time that ubfabric remembers; delete it")
        return dict(found)

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        """Remember under a key; the file appears when it is whole.

        Raises
        ------
        ResultError
            If it cannot be written.
        """
        file = self._file(key)
        text = json.dumps({"schema": TIMES_SCHEMA, **record}, indent=1, sort_keys=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(prefix=f".{key}.", dir=self.folder)
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text + "\n")
            os.replace(partial, file)
        except OSError as error:
            raise ResultError(f"{file}: cannot be written: {error.strerror or error}") from None


# --------------------------------------------------------------------------- transfers


@dataclass(frozen=True)
class Leg:
    """Flows over one network that begin together.

    Attributes
    ----------
    network : str
    operation : str
        One of :data:`ubfabric.trace.OPERATIONS`.
    message_bytes : int
    flows : tuple of (str, str, int)
        Node that writes or reads, the other node, and messages.
    """

    network: str
    operation: str
    message_bytes: int
    flows: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class TransferPoint:
    """What a worker needs to simulate transfers that begin together.

    Attributes
    ----------
    topology : str or dict
        Content of a specification, or the path of a saved graph.
    legs : tuple of Leg
        One after another; a leg begins when all of the one before has arrived.
    settings : dict
        Keywords of :func:`ubfabric.replay`.
    version : str
        Of the package that planned it.
    """

    topology: str | dict[str, Any]
    legs: tuple[Leg, ...]
    settings: dict[str, Any]
    version: str

    def traces(self) -> list[Trace]:
        """Return one open-loop trace a leg."""
        return [_leg_trace(leg) for leg in self.legs]


def _leg_trace(leg: Leg) -> Trace:
    nodes = list(dict.fromkeys(node for src, dst, _ in leg.flows for node in (src, dst)))
    rank = {node: number for number, node in enumerate(nodes)}
    sums: dict[tuple[int, int], int] = {}
    for src, dst, messages in leg.flows:
        pair = rank[src], rank[dst]
        sums[pair] = sums.get(pair, 0) + messages
    alike = {"phase": "transfer", "layer": 0, "microbatch": 0, "message_bytes": leg.message_bytes}
    alike |= {"network": leg.network, "operation": leg.operation}
    alike |= {"service_level": 0, "start_ps": 0}
    rows = [
        alike | {"src": src, "dst": dst, "messages": messages}
        for (src, dst), messages in sums.items()
        if messages
    ]
    flows = pa.Table.from_pylist(rows, schema=FLOW_SCHEMA)
    about = {
        "schema": TRACE_SCHEMA,
        "n_ranks": len(nodes),
        "name": "transfer",
        "spec": None,
        "seed": 1,
        "rank_nodes": nodes,
        "rank_placement": None,
    }
    chunk = TraceChunk(0, "", flows, empty_table("tasks"))
    return Trace(about, 1, lambda: iter([chunk]))


def simulate_transfer(point: TransferPoint, keep: str | None = None) -> dict[str, Any]:
    """Simulate transfers; as :func:`ubfabric.sweep.simulate`, this is what a worker runs.

    Parameters
    ----------
    point : TransferPoint
    keep : str, optional
        Not used.

    Returns
    -------
    dict
        ``row`` with ``step_ps``, or ``error`` and ``message``.
    """
    try:
        version = metadata.version("ubfabric")
        if version != point.version:
            raise SpecError(f"the worker has ubfabric {version}, and {point.version} asks")
        graph = load_topology(point.topology)
        time_ps = 0
        with one_at_a_time, tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", UbfabricWarning)
            for number, trace in enumerate(point.traces()):
                out = Path(folder) / str(number)
                result = replay(graph, trace, out, compress=False, progress=False, **point.settings)
                time_ps += int(result.flows()["finish_ps"].max())
    except Exception as error:  # whatever it is, other points are remembered
        message = " ".join(str(error).split())
        return {"error": type(error).__name__, "message": message}
    return {"row": {"step_ps": time_ps, "step_standard_error_ms": None}}


class _Ways:
    """The ways of KV cache through a fabric: which node writes to which."""

    def __init__(self, system: ServingSystem, graph: nx.Graph) -> None:
        self.system = system
        dies = [node for node, kind in graph.nodes(data="kind") if kind == "die"]
        n_decode = system.decode_spec.deployment.ranks
        self.decode = dies[:n_decode]
        self.prefill = dies[n_decode : n_decode + system.prefill_spec.deployment.ranks]
        self.cpus = [node for node, kind in graph.nodes(data="kind") if kind == "cpu"]
        self.server = dict(graph.nodes(data="server"))
        cpus = set(self.cpus)
        #: Messages that a block is moved in, and their mean size.
        self.messages = system.prefill_spec.model.cache_tensors
        block_bytes = system.spec.cache.block_tokens * system.kv_bytes_per_token
        self.piece_bytes = block_bytes // self.messages
        #: CPU of a server that is attached to the VPC plane.
        self.vpc = {
            self.server[node]: node
            for u, v, network in graph.edges(data="network")
            if network == "vpc"
            for node in (u, v)
            if node in cpus
        }
        #: CPUs of each server that hold what came over VPC.
        self.memory: dict[int, list[str]] = {}
        is_spread = system.spec.cache.vpc_memory == "spread"
        for cpu in self.cpus if is_spread else self.vpc.values():
            self.memory.setdefault(self.server[cpu], []).append(cpu)

    def check(self) -> None:
        """Raise SpecError if the fabric lacks what the ways need."""
        spec, label = self.system.spec, self.system.label
        if not self.cpus:
            raise SpecError(
                f"{label}: topology: found {spec.topology} without CPUs, which hold the cache"
            )
        lacking = [n for n in [*self.cpus, *self.prefill] if self.server[n] not in self.vpc]
        if spec.cache.network == "vpc" and lacking:
            raise SpecError(
                f"{label}: cache.network: found 'vpc', which does not reach the server of "
                f"{lacking[0]}"
            )

    def kv_transfer(self, tokens: int, concurrent: int) -> tuple[Leg, ...]:
        """Return flows from another die of prefill to another of decode each, as far as they go."""
        src, dst, how = self.prefill, self.decode, self.system.spec.kv_transfer
        n, size = self.system.kv_messages(tokens)
        flows = tuple((src[i % len(src)], dst[i % len(dst)], n) for i in range(concurrent))
        return (Leg(how.network, how.operation, size, flows),)

    def cache_read(self, tokens: int, concurrent: int) -> tuple[Leg, ...]:
        """Return reads by SDMA: over UB from where blocks lie, or of what came to a server by VPC.

        Every die of the instance reads each block, or one for each transfer does. A block is a
        message a layer and tensor.
        """
        every = self.system.every_die_reads
        reads: list[tuple[str, str, int]] = []
        came: dict[tuple[str, str, int], int] = {}
        for number, (cpu, die) in enumerate(self._blocks(tokens, concurrent)):
            for to in self.prefill if every else [die]:
                source, server = cpu, self.server[to]
                if self.system.spec.cache.network == "vpc":
                    source = self.memory[server][number % len(self.memory[server])]
                    card = self.vpc[self.server[cpu]]
                    came[card, self.vpc[server], number] = self.messages
                reads.append((to, source, self.messages))
        over = tuple((src, dst, n) for (src, dst, _), n in came.items() if src != dst)
        legs = [Leg("vpc", "write", self.piece_bytes, over)] if over else []
        return (*legs, Leg("ub", "sdma-read", self.piece_bytes, tuple(reads)))

    def cache_write(self, tokens: int, concurrent: int) -> tuple[Leg, ...]:
        """Return writes by SDMA: over UB to where blocks lie, or by way of the server's card."""
        blocks, n = self._blocks(tokens, concurrent), self.messages
        if self.system.spec.cache.network == "ub":
            flows = tuple((die, cpu, n) for cpu, die in blocks)
            return (Leg("ub", "sdma-write", self.piece_bytes, flows),)
        near = tuple((die, self.vpc[self.server[die]], n) for _, die in blocks)
        cards = [(self.vpc[self.server[d]], self.vpc[self.server[c]], n) for c, d in blocks]
        far = tuple((src, dst, n) for src, dst, n in cards if src != dst)
        legs = [Leg("ub", "sdma-write", self.piece_bytes, near)]
        return (*legs, Leg("vpc", "write", self.piece_bytes, far)) if far else tuple(legs)

    def _blocks(self, tokens: int, concurrent: int) -> list[tuple[str, str]]:
        """Return CPU and die of each block: CPUs in turn, and dies that have it.

        With staged attention every die does, and they take turns; else a die has a transfer's.
        """
        n_blocks = -(-tokens // self.system.spec.cache.block_tokens)
        is_staged = self.system.prefill_spec.serving.attention == "staged"
        places = [(i, i * n_blocks + j) for i in range(concurrent) for j in range(n_blocks)]
        return [
            (
                self.cpus[number % len(self.cpus)],
                self.prefill[(number if is_staged else transfer) % len(self.prefill)],
            )
            for transfer, number in places
        ]


# --------------------------------------------------------------------------- measured


@dataclass(frozen=True)
class _Job:
    """One point: the key under which it is remembered, and how to simulate it."""

    key: str
    what: dict[str, Any]
    task: Simulation | TransferPoint

    def run(self) -> dict[str, Any]:
        """Simulate; see :func:`ubfabric.sweep.simulate`."""
        if isinstance(self.task, TransferPoint):
            return simulate_transfer(self.task)
        return simulate(self.task)


class _Plan:
    """All points of a serving system, checked."""

    def __init__(self, system: ServingSystem) -> None:
        spec = system.spec
        self.system = system
        changes = flatten(spec.fabric)
        self.topology, content = topology_content(spec.topology, changes, Path())
        graph = load_topology(self.topology)
        system.check_fabric(graph)
        ways = _Ways(system, graph)
        ways.check()
        grid = spec.decode.grid
        self.decode = self._steps(
            "decode",
            {"batch_per_die": grid.batch_per_die, "kv_tokens": grid.kv_tokens},
            system.decode_changes,
        )
        of_prefill = spec.prefill.grid
        self.prefill = self._steps(
            "prefill",
            {
                "tokens": of_prefill.tokens,
                "prompt_tokens": of_prefill.prompt_tokens,
                "cached_share": of_prefill.cached_share,
            },
            system.prefill_changes,
        )
        tokens, concurrent = spec.transfers.tokens, spec.transfers.concurrent
        self.transfers = {}
        for name in ("kv_transfer", "cache_read", "cache_write"):
            # What every die reads comes one after another: the tokens of a batch are one transfer.
            alone = name == "cache_read" and system.every_die_reads
            axes = {"tokens": tokens, "concurrent": [1] if alone else concurrent}
            jobs = self._transfers(name, axes, getattr(ways, name), graph, content)
            self.transfers[name] = axes, jobs

    def _steps(
        self,
        kind: str,
        axes: dict[str, list[Any]],
        changes: Callable[..., dict[str, Any]],
    ) -> tuple[dict[str, list[Any]], list[_Job]]:
        """Return the points of the grid of a step, the last axis inside."""
        pool = getattr(self.system.spec, kind)
        points = list(itertools.product(*axes.values()))
        sweep = SweepSpec.model_validate(
            {
                "topology": self.topology,
                "workload": pool.workload,
                "run": pool.run,
                "list": [
                    {f"workload.{key}": value for key, value in changes(*point).items()}
                    for point in points
                ],
            }
        )
        planned: list[SweepPoint] = plan_points(
            sweep, f"{self.system.label}: {kind}.grid", Path.cwd()
        )
        jobs = [
            _Job(step.point, {"kind": kind} | dict(zip(axes, point, strict=True)), step.simulation)
            for point, step in zip(points, planned, strict=True)
        ]
        return axes, jobs

    def _transfers(
        self,
        name: str,
        axes: dict[str, list[Any]],
        way: Callable[[int, int], tuple[Leg, ...]],
        graph: nx.Graph,
        content: Any,
    ) -> list[_Job]:
        settings = self.system.spec.transfer_run.replay_settings()
        version = metadata.version("ubfabric")
        jobs: list[_Job] = []
        for tokens, concurrent in itertools.product(*axes.values()):
            point = TransferPoint(self.topology, way(tokens, concurrent), settings, version)
            if not jobs:  # what the others need of fabric and settings is the same
                try:
                    for trace in point.traces():
                        check_replay(graph, trace, **settings)
                except UbfabricError as error:
                    raise SpecError(f"{self.system.label}: {name}: {error}") from None
            decides = [content, version, settings | {"threads": None}]
            decides += [astuple(leg) for leg in point.legs]
            what = {"kind": name, "tokens": tokens, "concurrent": concurrent}
            jobs.append(_Job(digest(decides)[:24], what, point))
        return jobs

    def jobs(self) -> list[_Job]:
        """Return all points."""
        transfers = [job for _, jobs in self.transfers.values() for job in jobs]
        return [*self.decode[1], *self.prefill[1], *transfers]


def measure_step_times(
    system: ServingSystem,
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: bool | None = None,
) -> StepTimes:
    """Return the times of a serving system, simulating what is not remembered yet.

    Parameters
    ----------
    system : ServingSystem
    cache : path, optional
        Folder of remembered times; :func:`default_cache` if not given.
    workers : int, optional
        Processes that simulate when more than one point is missing; one a core by default.
    progress : bool, optional
        Show a progress bar; by default if standard error is a terminal.

    Returns
    -------
    StepTimes

    Raises
    ------
    SpecError
        If a point cannot be simulated as specified, before anything is; or if the objective of
        TPOT cannot be met by the smallest batch.
    SimulationError
        If a simulation fails; the other points stay remembered.
    ResultError
        If the folder cannot be read or written.

    Notes
    -----
    Workers are started as new processes, so a script that calls this needs the usual
    ``if __name__ == "__main__":``.
    """
    check_cluster(workers, None)
    plan = _Plan(system)
    store = TimeStore(cache if cache is not None else default_cache())
    smallest = plan.decode[1][0]
    found = _measure([smallest], store, 1, progress)
    _check_objective(system, found[smallest.key])
    found |= _measure(plan.jobs(), store, workers, progress)

    def table(name: str, axes: dict[str, list[Any]], jobs: list[_Job]) -> TimeTable:
        shape = tuple(len(points) for points in axes.values())
        return TimeTable(name, axes, np.array([found[job.key] for job in jobs]).reshape(shape))

    transfers = {name: MeasuredTransfers(table(name, *of)) for name, of in plan.transfers.items()}
    return StepTimes(table("decode", *plan.decode), table("prefill", *plan.prefill), **transfers)


def _check_objective(system: ServingSystem, step_ps: int) -> None:
    """Refuse an objective of TPOT that the smallest batch misses."""
    objective, serving = system.spec.objectives.tpot, system.decode_spec.serving
    if objective is None:
        return
    tpot_ps = step_ps / tokens_per_step(serving.mtp_tokens, serving.mtp_acceptance)
    if tpot_ps > objective:
        grid = system.spec.decode.grid
        raise SpecError(
            f"{system.label}: objectives.tpot: found {objective / 1e9:.6g} ms, which no batch can "
            f"meet: with {grid.batch_per_die[0]} requests a die and {grid.kv_tokens[0]} KV tokens "
            f"a token takes {tpot_ps / 1e9:.6g} ms; allowed that or more"
        )


def tokens_per_step(mtp_tokens: int, acceptance: float) -> float:
    """Return the mean tokens of a request in a step: one, and its guesses up to the first wrong."""
    return float(sum(acceptance**i for i in range(mtp_tokens + 1)))


def _measure(
    jobs: Iterable[_Job], store: TimeStore, workers: int | None, progress: bool | None
) -> dict[str, int]:
    """Return the time of each point in picoseconds by its key."""
    times: dict[str, int] = {}
    missing: dict[str, _Job] = {}
    for job in jobs:
        remembered = store.get(job.key)
        if remembered is None:
            missing[job.key] = job
        else:
            times[job.key] = remembered["time_ps"]
    if not missing:
        return times
    shown = sys.stderr.isatty() if progress is None else progress
    bar = Progress(
        TextColumn("step times"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not shown,
    )
    failed: list[str] = []
    with bar:
        line = bar.add_task("", total=len(missing))
        for job, outcome in _outcomes(missing, workers):
            bar.update(line, advance=1)
            shape = ", ".join(f"{key} {value}" for key, value in job.what.items())
            if "row" not in outcome:
                failed.append(f"{shape}: {outcome['error']}: {outcome['message']}")
                continue
            row = outcome["row"]
            times[job.key] = int(row["step_ps"])
            error_ms = row.get("step_standard_error_ms")
            record = {"time_ps": times[job.key], "what": job.what}
            record["standard_error_ms"] = error_ms
            store.put(job.key, record | {"ubfabric": metadata.version("ubfabric")})
    if failed:
        raise SimulationError(
            f"{len(failed)} of {len(missing)} step times failed; the others are remembered in "
            f"{store.folder}; the first: {min(failed)}"
        )
    return times


def _outcomes(
    missing: Mapping[str, _Job], workers: int | None
) -> Iterator[tuple[_Job, dict[str, Any]]]:
    """Yield points and what came of them, as they become known."""
    if len(missing) == 1 or workers == 1:
        for job in missing.values():
            yield job, job.run()
        return
    from distributed import KilledWorker, as_completed

    with connected(workers) as client:
        futures = {
            client.submit(job.run, key=f"ubfabric-time-{key}"): key for key, job in missing.items()
        }
        for future in as_completed(list(futures)):
            try:
                outcome = future.result()
            except KilledWorker:
                why = "the worker's process died each time, as when memory runs out"
                outcome = {"error": "KilledWorker", "message": why}
            yield missing[futures[future]], outcome
