"""Many runs: a grid or a list of changes to one experiment, spread over processes.

A sweep is a YAML file: a base topology, a base workload and settings of the run, and the keys
that vary::

    topology: two-nodes
    workload: decode-ep32-sample
    run: {layers: 2}
    grid:                                        # every combination
      workload.serving.batch_per_npu: [16, 32, 48]
      topology.switching.speedup: [1, 2]
    list:                                        # each of these, with every combination
      - {run.path_policy: round-robin}
      - {run.path_policy: flow-hash, run.plane_policy: flow-hash}

A key begins with ``topology.``, ``workload.`` or ``run.``; the words ``topology`` and ``workload``
alone replace the whole base. Paths are relative to the file.

:func:`run_sweep` checks every point, then has each simulated in a process of a
``dask.distributed`` cluster and fills a folder::

    sweeps/demo/
        points/*.parquet    the data set: pandas.read_parquet("sweeps/demo/points"), a row a point
        failures.parquet    points that could not be simulated and why; missing if there are none
        log.jsonl           wall time and worker of each point; the only thing that varies
        sweep.json          what the data set belongs to
        runs/<point>/       the run folder of each point; only with `keep_runs: true`

Each file appears under its name when it is whole, so a sweep may be killed at any time; the same
command goes on with the points that are missing. Failed points are tried again.

A *point* is a hash of all that decides its result: the checked topology, workload and settings,
the content of files they name, and the version of ubfabric. Two combinations that come to the
same point are simulated once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ubfabric.attributes import credit_warnings
from ubfabric.cluster import check_cluster, connected, fork_server, one_at_a_time
from ubfabric.decode import generate_trace
from ubfabric.distribution import QUANTILES
from ubfabric.errors import (
    ResultError,
    SimulationError,
    SpecError,
    UbfabricError,
    UbfabricWarning,
)
from ubfabric.faults import load_faults
from ubfabric.gate import FileGate
from ubfabric.quantities import Count, Picoseconds, unwrap
from ubfabric.replay import check_replay, replay
from ubfabric.results import RunResult
from ubfabric.specs import Spec, load_yaml, validate_spec
from ubfabric.tokens import SHARES, Tokens, rebuild_tokens
from ubfabric.topology import SAVED_GRAPHS, load_topology, load_topology_spec
from ubfabric.trace import Trace
from ubfabric.workload import PoolSpec, Workload, load_workload

if TYPE_CHECKING:
    from distributed import Client, Future

#: Version of the folder; it changes when a column changes its name, type or meaning.
SWEEP_SCHEMA = 1
#: Most points of a sweep: each is a message of some 10 kB that the scheduler holds.
MAXPOINTS = 10_000

_PARTS = ("topology", "workload", "run")
_PHASES = ("dispatch", "combine")
_STATISTICS = ("mean", *QUANTILES, "max")
#: Names in the folder of a sweep.
POINTS, FAILURES = "points", "failures.parquet"
_LOG, _ABOUT, _RUNS = "log.jsonl", "sweep.json", "runs"


class SweepRunSpec(Spec):
    """Settings of a run; words and defaults are those of :func:`ubfabric.replay`."""

    layers: Annotated[Count, Field(ge=1)] | None = None
    seed: Annotated[Count, Field(ge=0)] | None = None
    payload_bytes: Count | None = None
    plane_policy: str = "round-robin"
    path_policy: str = "round-robin"
    n_virtual_lanes: Count | None = None
    faults: str | dict[str, Any] | None = None
    account: bool = False
    sample_interval: Picoseconds | None = None
    #: A worker has one core, as a rule; no result depends on it.
    threads: Annotated[Count, Field(ge=1, le=256)] = 1

    def replay_settings(self) -> dict[str, Any]:
        """Return the keywords of :func:`ubfabric.replay`."""
        settings = self.model_dump(exclude={"layers", "seed", "sample_interval"})
        return settings | {"sample_interval_ps": self.sample_interval}


class SweepSpec(Spec):
    """A sweep as it stands in YAML."""

    topology: str | dict[str, Any]
    workload: str | dict[str, Any]
    run: SweepRunSpec = SweepRunSpec()
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    points: Annotated[list[dict[str, Any]], Field(alias="list", min_length=1)] = [{}]  # noqa: RUF012
    keep_runs: bool = False

    @model_validator(mode="after")
    def _check(self) -> SweepSpec:
        if not self.keys:
            raise ValueError("found neither a key in 'grid' nor one in 'list'; give one to vary")
        for key in self.keys:
            part, dot, rest = key.partition(".")
            if part not in _PARTS or (dot and not rest) or key == "run":
                raise ValueError(
                    f"found key {key!r}, allowed topology.KEY, workload.KEY, run.KEY, topology "
                    "and workload"
                )
        both = [key for key in self.grid if any(key in point for point in self.points)]
        if both:
            raise ValueError(f"found key {both[0]!r} in 'grid' and in 'list', allowed in one")
        count = len(self.points) * math.prod(len(values) for values in self.grid.values())
        if count > MAXPOINTS:
            raise ValueError(f"found {count:,} points, allowed up to {MAXPOINTS:,}")
        return self

    @property
    def keys(self) -> list[str]:
        """Keys that vary, those of the list first."""
        listed = (key for point in self.points for key in point)
        return list(dict.fromkeys([*listed, *self.grid]))

    def combinations(self) -> list[dict[str, Any]]:
        """Return the changes of each point: the list outside, the grid's last key inside."""
        return [
            point | dict(zip(self.grid, values, strict=True))
            for point in self.points
            for values in itertools.product(*self.grid.values())
        ]


@dataclass(frozen=True)
class Simulation:
    """What a worker needs to simulate a point.

    Attributes
    ----------
    topology : str or dict
        Content of a specification, or the path of a saved graph.
    workload : Workload
        With its changes.
    layers : int or None
        MoE layers to simulate.
    settings : dict
        Keywords of :func:`ubfabric.replay`.
    version : str
        Of the package that planned the sweep.
    """

    topology: str | dict[str, Any]
    workload: Workload
    layers: int | None
    settings: dict[str, Any]
    version: str

    def trace(self) -> Trace:
        """Return the trace of the point; nothing is routed yet."""
        return generate_trace(self.workload, layers=self.layers)


@dataclass(frozen=True)
class SweepPoint:
    """One point, checked.

    Attributes
    ----------
    values : dict
        Key to value, bare if it was given with a source; a key that a point of the list does
        not have is missing.
    point : str
        Hash of all that decides the result.
    simulation : Simulation
    length : float
        About how long it takes to simulate, beside other points of the sweep.
    """

    values: dict[str, Any]
    point: str
    simulation: Simulation
    length: float

    @property
    def file_name(self) -> str:
        """Name of the point's row in the data set; two rows may share a simulation."""
        return f"{self.point}-{digest(self.values)[:8]}.parquet"

    def __str__(self) -> str:
        return ", ".join(f"{key}={_text(value)}" for key, value in self.values.items())


def load_sweep(source: str | Path | Mapping[str, Any]) -> tuple[SweepSpec, str, Path]:
    """Read a sweep.

    Parameters
    ----------
    source : str, Path or mapping
        A YAML file or its content.

    Returns
    -------
    spec : SweepSpec
    label : str
        How a message about it begins.
    folder : Path
        Where relative file names start.

    Raises
    ------
    SpecError
        One line with file, key, what was found and what is allowed.
    """
    if isinstance(source, Mapping):
        return validate_spec(SweepSpec, dict(source), "sweep"), "sweep", Path()
    if not str(source).endswith((".yaml", ".yml")):
        raise SpecError(f"{source}: found no .yaml ending; expected the path of a YAML file")
    label, raw = load_yaml(source, "traffic")
    return validate_spec(SweepSpec, raw, label), label, Path(source).parent


def plan_sweep(source: str | Path | Mapping[str, Any]) -> list[SweepPoint]:
    """Check all points of a sweep; nothing is simulated or written.

    Parameters
    ----------
    source : str, Path or mapping
        A YAML file or its content.

    Returns
    -------
    list of SweepPoint
        In the order of the specification.

    Raises
    ------
    SpecError
        One line with the point, the key, what was found and what is allowed.
    """
    return plan_points(*load_sweep(source))


def plan_points(spec: SweepSpec, label: str, folder: Path) -> list[SweepPoint]:
    """Check all points of a loaded sweep; errors as of :func:`plan_sweep`, label before them."""
    combinations = spec.combinations()
    resolved: list[tuple[Simulation, dict[str, Any]]] = []
    for number, values in enumerate(combinations, start=1):
        with _naming(label, number, values):
            resolved.append(_resolve(spec, values, folder))
    # Graphs and their arrays are large, so one is held at a time.
    by_fabric: dict[str, list[int]] = {}
    for index, (_, content) in enumerate(resolved):
        by_fabric.setdefault(digest(content["topology"]), []).append(index)
    points: dict[int, SweepPoint] = {}
    warned: set[str] = set()
    for indices in by_fabric.values():
        graph, checked = None, None
        for index in indices:
            values = combinations[index]
            simulation, content = resolved[index]
            with _naming(label, index + 1, values):
                if graph is None:
                    graph = load_topology(simulation.topology)
                trace = simulation.trace()
                checked = check_replay(graph, trace, **simulation.settings, same_fabric=checked)
                content["layers"] = trace.metadata["layers"]
                content["settings"] = asdict(checked.config) | {"threads": None}
                bare = {key: unwrap(values[key]) for key in spec.keys if key in values}
            length = _length(trace, checked.config.payload_bytes)
            points[index] = SweepPoint(bare, digest(content)[:24], simulation, length)
            for line in credit_warnings(graph, checked.arrays, checked.config.payload_bytes):
                if line not in warned:
                    warned.add(line)
                    warnings.warn(f"point {index + 1}: {line}", UbfabricWarning, stacklevel=4)
    return [points[index] for index in range(len(points))]


def _length(trace: Trace, payload_bytes: int) -> float:
    """Return about how many packets a step sends, for each expert that a token visits."""
    facts = trace.metadata
    exchanging = (row for row in facts["layers"] if row["label"] in ("moe", "mtp"))
    tokens = facts["microbatches"] * sum(row["tokens_per_microbatch"] for row in exchanging)
    packets = sum(math.ceil(size / payload_bytes) for size in facts["message_bytes"].values())
    return float(facts["n_ranks"] * tokens * packets)


@contextlib.contextmanager
def _naming(label: str, number: int, values: Mapping[str, Any]) -> Iterator[None]:
    """Say in an error which point it is about."""
    try:
        yield
    except (UbfabricError, ValueError, OSError) as error:
        shown = ", ".join(f"{key}={_text(value)}" for key, value in values.items())
        raise SpecError(f"{label}: point {number} ({shown}): {error}") from None


def _resolve(
    spec: SweepSpec, values: Mapping[str, Any], folder: Path
) -> tuple[Simulation, dict[str, Any]]:
    """Return what a worker needs for a point, and what decides its result but for the replay."""
    base: dict[str, Any] = {"topology": spec.topology, "workload": spec.workload}
    changes: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    for key in sorted(values, key=lambda key: key.count(".")):  # a whole before its parts
        part, _, rest = key.partition(".")
        if rest:
            changes[part][rest] = values[key]
        else:
            base[part] = values[key]
    raw_run = spec.run.model_dump(mode="json", exclude_defaults=True) | changes["run"]
    run = validate_spec(SweepRunSpec, raw_run, "run")
    if not spec.keep_runs and (run.account or run.sample_interval is not None):
        raise SpecError("run: found account or sample_interval, allowed with keep_runs: true")
    if isinstance(run.faults, str):
        load_faults(folder / run.faults)
        faults = load_yaml(folder / run.faults, "topologies")[1]
        run = run.model_copy(update={"faults": faults})
    if run.seed is not None:
        changes["workload"]["seed"] = run.seed
    topology, fabric = topology_content(base["topology"], changes["topology"], folder)
    workload = load_workload(_placed(base["workload"], folder), changes["workload"])
    simulation = Simulation(
        topology,
        Workload(workload.spec, workload.raw, workload.label, workload.folder.absolute()),
        run.layers,
        run.replay_settings(),
        metadata.version("ubfabric"),
    )
    content = {
        "version": simulation.version,
        "topology": fabric,
        "workload": _workload_content(workload),
        "faults": run.faults,
    }
    return simulation, content


def _placed(source: Any, folder: Path) -> Any:
    """Return a name as it stands, a file's path as seen from here, or content."""
    if isinstance(source, str) and source.endswith((".yaml", ".yml", *SAVED_GRAPHS)):
        return str((folder / source).absolute())
    if not isinstance(source, (str, Mapping)):
        raise SpecError(f"found {source!r}, allowed a name, a file or a mapping of keys")
    return source


def topology_content(
    source: Any, changes: Mapping[str, Any], folder: Path
) -> tuple[str | dict[str, Any], Any]:
    """Return a topology for a worker, and what stands for it in the hash of a point."""
    placed = _placed(source, folder)
    if isinstance(placed, str) and placed.endswith(SAVED_GRAPHS):
        if changes:
            raise SpecError(
                f"topology.{min(changes)}: {source} is a saved graph; give a name or a .yaml file"
            )
        return placed, hashlib.sha256(Path(placed).read_bytes()).hexdigest()
    spec, raw = load_topology_spec(placed, changes)
    return raw, spec.model_dump(mode="json")


def _workload_content(workload: Workload) -> dict[str, Any]:
    """Return what stands for a workload in the hash of a point."""
    content = workload.spec.model_dump(mode="json")
    gate = workload.spec.gate
    if isinstance(gate, FileGate):
        measured = (workload.folder / gate.file).read_bytes()
        step = content["step"] if isinstance(workload.spec, PoolSpec) else content
        step["gate"]["file"] = hashlib.sha256(measured).hexdigest()
    return content


def _base_digest(spec: SweepSpec, label: str, folder: Path) -> str:
    """Return a hash of what all points have in common, file contents included."""
    try:
        fabric = topology_content(spec.topology, {}, folder)[1]
        workload = _workload_content(load_workload(_placed(spec.workload, folder)))
    except (UbfabricError, OSError) as error:
        raise SpecError(f"{label}: base: {error}") from None
    return digest([fabric, workload, spec.run.model_dump(mode="json", exclude={"threads"})])


def digest(content: Any) -> str:
    """Return a hash of JSON-able content that does not depend on the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


# --------------------------------------------------------------------------- the data set


def _declared() -> dict[str, tuple[pa.DataType, tuple[str | int, ...]]]:
    """Return the figures of the data set: type, and where a run has them (:func:`_figures`)."""
    whole, real = pa.int64(), pa.float64()
    columns: dict[str, tuple[pa.DataType, tuple[str | int, ...]]] = {}
    for name in ("n_ranks", "moe_layers_simulated", "moe_layers_total"):
        columns[name] = (whole, ("tokens", name))
    for name in ("step_ps", "simulated_step_ps"):
        columns[name] = (whole, ("longest", name))
    for name in (
        "step_ms",
        "step_standard_error_ms",
        "layer_us",
        "layer_standard_deviation_us",
        "tpot_ms",
        "tpot_standard_error_ms",
        "tokens_per_step",
        "tokens_per_s_per_npu",
    ):
        columns[name] = (real, ("tokens", name))
    for name in ("tpot", "tokens_per_s_per_npu"):
        unit = "_ms" if name == "tpot" else ""
        for at, end in enumerate(("low", "high")):
            columns[f"{name}_{end}{unit}"] = (real, ("tokens", f"{name}_interval{unit}", at))
    for phase, kind, name in itertools.product(_PHASES, ("message", "rank"), _STATISTICS):
        place = ("tokens", f"{kind}_latency_us", phase, name)
        columns[f"{phase}_{kind}_latency_{name}_us"] = (real, place)
    for name in SHARES:
        columns[f"share_{name}"] = (real, ("tokens", "shares", name))
    for name in (
        "exposed_communication",
        "step_straggler_spread",
        "layer_straggler_spread_mean",
        "layer_straggler_spread_max",
    ):
        columns[name] = (real, ("tokens", name))
    for name in ("packets", "packet_hops", "packets_lost", "bytes_sent", "simulated_ps"):
        columns[name] = (whole, ("run", name))
    return columns


#: Figures of the data set; the module text of :mod:`ubfabric.tokens` defines them.
_RESULTS = _declared()


def _figures(result: RunResult, tokens: Tokens) -> dict[str, Any]:
    """Return the figures of a run; None where it has none."""
    longest = {name: int(tokens.ranks[name].max()) for name in ("step_ps", "simulated_step_ps")}
    sources = {"run": result.summary, "tokens": tokens.summary, "longest": longest}
    row = {}
    for column, (_, place) in _RESULTS.items():
        value: Any = sources
        for name in place:
            if value is not None:
                value = value.get(name) if isinstance(value, dict) else value[name]
        row[column] = value
    return row


def _value_type(values: Iterable[Any]) -> pa.DataType:
    """Return the type of a column that holds the values of a key."""
    given = [value for value in values if value is not None]
    if given and all(isinstance(value, bool) for value in given):
        return pa.bool_()
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in given):
        return pa.string()
    if not all(isinstance(value, int) for value in given):
        return pa.float64()
    return pa.int64() if all(-(2**63) <= value < 2**63 for value in given) else pa.string()


def _cell(value: Any, kind: pa.DataType) -> Any:
    """Return a value of a key as a column of its type holds it."""
    if value is None:
        return None
    if pa.types.is_string(kind):
        return _text(value)
    return float(value) if pa.types.is_floating(kind) else value


def _write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file that appears under its name when it is whole."""
    try:
        pq.write_table(table, _partial(path), compression="zstd", compression_level=1)
        os.replace(_partial(path), path)
    except OSError as error:
        raise ResultError(f"{path}: cannot be written: {error.strerror or error}") from None


def _partial(path: Path) -> Path:
    """Return the name of a file until it is whole; readers of a data set pass over it."""
    return path.with_name(f".{path.name}.partial")


class _Folder:
    """The folder of a sweep, held by one process at a time."""

    def __init__(self, path: str | Path, about: Mapping[str, Any], keys: Mapping[str, pa.DataType]):
        self.path = Path(path)
        self.keys = dict(keys)
        columns = [*self.keys.items(), ("point", pa.string()), ("ubfabric", pa.string())]
        self.schema = pa.schema([*columns, *((name, kind) for name, (kind, _) in _RESULTS.items())])
        self.failure_schema = pa.schema(
            [*columns, ("error", pa.string()), ("message", pa.string())]
        )
        self.failures: list[dict[str, Any]] = []
        self._lock: Any = None
        try:
            self._open(about)
        except OSError as error:
            self.close()
            raise ResultError(f"{path}: cannot be written: {error.strerror or error}") from None
        except ResultError:
            self.close()
            raise

    def _open(self, about: Mapping[str, Any]) -> None:
        if self.path.is_dir() and not (self.path / _ABOUT).is_file():
            # sweep.json comes first, so other content is not a sweep's
            ours = {".lock", _partial(self.path / _ABOUT).name}
            foreign = sorted({item.name for item in self.path.iterdir()} - ours)
            if foreign:
                raise ResultError(
                    f"{self.path}: the folder holds {foreign[0]!r} and is not that of a sweep; "
                    "give a new or an empty folder"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResultError(f"{self.path}: another sweep is at work in this folder") from None
        self._check(about)
        (self.path / POINTS).mkdir(exist_ok=True)
        for partial in self.path.glob("**/.*.partial*"):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)
        if (self.path / FAILURES).is_file():
            self.failures = pq.read_table(self.path / FAILURES).to_pylist()

    def _check(self, about: Mapping[str, Any]) -> None:
        """Refuse a folder that belongs to another sweep, and say in what they differ."""
        file = self.path / _ABOUT
        if not file.is_file():
            _partial(file).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            os.replace(_partial(file), file)
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ResultError(f"{file}: not valid JSON: {error}") from None
        for name, value in about.items():
            if found.get(name) != value:
                shown = {"base": "another base topology, workload or run"}.get(
                    name, f"{name} {_text(found.get(name))}, and this one has {_text(value)}"
                )
                raise ResultError(f"{self.path}: holds a sweep with {shown}; give another folder")

    def close(self) -> None:
        """Let another process in."""
        if self._lock is not None:
            self._lock.close()

    def file(self, point: SweepPoint) -> Path:
        """Return where the row of a point stands, if it is done."""
        return self.path / POINTS / point.file_name

    def _cells(self, point: SweepPoint) -> dict[str, Any]:
        cells = {key: _cell(point.values.get(key), kind) for key, kind in self.keys.items()}
        return cells | {"point": point.point, "ubfabric": point.simulation.version}

    def add(self, point: SweepPoint, row: Mapping[str, Any]) -> None:
        """Add the row of a point to the data set."""
        cells = self._cells(point) | dict(row)
        _write_table(pa.Table.from_pylist([cells], schema=self.schema), self.file(point))

    def missing(self, points: Iterable[SweepPoint]) -> list[SweepPoint]:
        """Return the points without a row, after another row of the same point was copied."""
        rows = {file.name.split("-")[0]: file for file in (self.path / POINTS).glob("*.parquet")}
        missing = []
        for point in points:
            if self.file(point).is_file():
                continue
            if point.point in rows:
                row = pq.read_table(rows[point.point]).to_pylist()[0]
                self.add(point, {name: row[name] for name in _RESULTS})
            else:
                missing.append(point)
        return missing

    def forget_failures(self, points: Iterable[SweepPoint]) -> None:
        """Take points off the failed ones, since they are tried again."""
        tried = {point.point for point in points}
        self._write_failures([row for row in self.failures if row["point"] not in tried])

    def add_failure(self, point: SweepPoint, error: str, message: str) -> None:
        """Note that a point cannot be simulated."""
        row = self._cells(point) | {"error": error, "message": message}
        self._write_failures([*self.failures, row])

    def _write_failures(self, rows: list[dict[str, Any]]) -> None:
        self.failures = rows
        if rows:
            table = pa.Table.from_pylist(rows, schema=self.failure_schema)
            _write_table(table, self.path / FAILURES)
        else:
            (self.path / FAILURES).unlink(missing_ok=True)

    def log(self, line: Mapping[str, Any]) -> None:
        """Note what varies from run to run."""
        with (self.path / _LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read(self, points: Iterable[SweepPoint]) -> pd.DataFrame:
        """Return the rows of the points that are done, in their order."""
        tables = [pq.read_table(file) for p in points if (file := self.file(p)).is_file()]
        return pa.concat_tables([self.schema.empty_table(), *tables]).to_pandas()


# --------------------------------------------------------------------------- at work


def simulate(
    simulation: Simulation, keep: str | None = None, scratch: str | None = None
) -> dict[str, Any]:
    """Simulate one point; this is what a worker runs.

    Parameters
    ----------
    simulation : Simulation
        The point.
    keep : str, optional
        Run folder to keep; a complete one of that name is replaced.
    scratch : str, optional
        Folder for a run that is not kept.

    Returns
    -------
    dict
        ``row``, the figures of the data set; or ``error`` (name of the exception), ``message``
        and ``traceback``. In both cases ``wall_s``.
    """
    started = time.perf_counter()
    try:
        with one_at_a_time:
            outcome: dict[str, Any] = {"row": _row(simulation, keep, scratch)}
    except Exception as error:  # whatever it is, the other points go on
        outcome = {
            "error": type(error).__name__,
            "message": " ".join(str(error).split()),
            "traceback": traceback.format_exc(),
        }
    return outcome | {"wall_s": time.perf_counter() - started}


def _row(simulation: Simulation, keep: str | None, scratch: str | None) -> dict[str, Any]:
    version = metadata.version("ubfabric")
    if version != simulation.version:
        raise SpecError(f"the worker has ubfabric {version}, the sweep {simulation.version}")
    graph = load_topology(simulation.topology)
    with tempfile.TemporaryDirectory(dir=scratch) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UbfabricWarning)  # said when the sweep was planned
        result: RunResult = replay(
            graph,
            simulation.trace(),
            Path(folder) / "run" if keep is None else keep,
            overwrite=True,
            compress=keep is not None,
            progress=False,
            **simulation.settings,
        )
        tokens = rebuild_tokens(result)
        if keep is not None:
            tokens.to_json(result.path / "tokens.json")
        return _figures(result, tokens)


def simulate_on_worker(simulation: Simulation, keep: str | None) -> dict[str, Any]:
    """Simulate a point on a worker, whose own folder is emptied if it dies."""
    from distributed import get_worker

    worker = get_worker()
    return simulate(simulation, keep, worker.local_directory) | {"worker": worker.address}


def run_sweep(
    spec: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Simulate all points of a sweep that are not done yet.

    Parameters
    ----------
    spec : str, Path or mapping
        A YAML file or its content; see the module text.
    out : path
        Folder to write or to go on with. A sweep goes on with more values of the same keys
        too; with another base, other keys or another version of ubfabric it needs another
        folder.
    workers : int, optional
        Processes of the local cluster; one a core by default.
    scheduler : str, optional
        Address of a running scheduler, such as ``tcp://host:8786``, in place of a local cluster.
        Its workers need this version of ubfabric and, if there is one, the files that the
        specification names; with ``keep_runs`` the folder ``out`` too.
    progress : bool, optional
        Show a progress bar and the link of the dashboard; by default if standard error is a
        terminal.

    Returns
    -------
    DataFrame
        One row a point that is done, in the order of the specification: a column a key (null
        where a point of the list does not change it), ``point``, ``ubfabric`` (version), and
        the figures of the run, with their units in their names. The data set in ``out/points``
        has the same rows in any order.

    Raises
    ------
    SpecError
        If the specification or one of its points is wrong, or the scheduler cannot be reached;
        before anything is simulated.
    ResultError
        If the folder belongs to another sweep or cannot be written.
    SimulationError
        If the scheduler is lost.

    Warns
    -----
    UbfabricWarning
        If points failed; ``out/failures.parquet`` says why.

    Notes
    -----
    Workers are started as new processes, so a script that calls this needs the usual
    ``if __name__ == "__main__":``.

    Examples
    --------
    >>> import ubfabric as ub                                               # doctest: +SKIP
    >>> table = ub.run_sweep("sweep.yaml", "sweeps/demo", workers=2)        # doctest: +SKIP
    >>> table.plot("workload.serving.batch_per_npu", "tpot_ms")             # doctest: +SKIP
    """
    check_cluster(workers, scheduler)
    with fork_server(scheduler):
        loaded, label, place = load_sweep(spec)
        points = plan_points(loaded, label, place)
        keys = {key: _value_type(point.values.get(key) for point in points) for key in loaded.keys}
        about = {
            "schema": SWEEP_SCHEMA,
            "ubfabric": metadata.version("ubfabric"),
            "keys": {key: str(kind) for key, kind in keys.items()},
            "keep_runs": loaded.keep_runs,
            "base": _base_digest(loaded, label, place),
        }
        folder = _Folder(out, about, keys)
        try:
            missing = folder.missing(points)
            folder.forget_failures(missing)
            if missing:
                _simulate_all(
                    folder, points, missing, loaded.keep_runs, workers, scheduler, progress
                )
            return folder.read(points)
        finally:
            folder.close()


def _simulate_all(
    folder: _Folder,
    points: list[SweepPoint],
    missing: list[SweepPoint],
    keep_runs: bool,
    workers: int | None,
    scheduler: str | None,
    progress: bool | None,
) -> None:
    """Have all missing points simulated and write each as it comes."""
    shown = sys.stderr.isatty() if progress is None else progress
    console = Console(stderr=True)
    by_point: dict[str, list[SweepPoint]] = {}
    for point in missing:
        by_point.setdefault(point.point, []).append(point)
    n_failed = 0
    bar = Progress(
        TextColumn("sweep"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("points  {task.fields[failed]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not shown,
    )
    with connected(workers, scheduler, dashboard=shown) as client:
        if shown and client.dashboard_link and importlib.util.find_spec("bokeh"):
            console.print(f"dashboard: {client.dashboard_link}", soft_wrap=True, highlight=False)
        with bar:
            done = len(points) - len(missing)
            line = bar.add_task("", total=len(points), completed=done, failed="")
            for name, outcome in _outcomes(client, by_point, folder, keep_runs):
                same = by_point[name]
                noted = {key: outcome[key] for key in outcome if key not in ("row", "message")}
                folder.log({"point": name, "values": str(same[0]), **noted})
                for point in same:
                    if "row" in outcome:
                        folder.add(point, outcome["row"])
                    else:
                        folder.add_failure(point, outcome["error"], outcome["message"])
                        n_failed += 1
                failed = f"{n_failed} failed" if n_failed else ""
                bar.update(line, advance=len(same), failed=failed)
    if n_failed:
        first = folder.failures[-n_failed]
        warnings.warn(
            f"{n_failed} of {len(points)} points failed, listed in {folder.path / FAILURES}; the "
            f"first: {first['error']}: {first['message']}",
            UbfabricWarning,
            stacklevel=3,
        )


def _outcomes(
    client: Client, by_point: Mapping[str, list[SweepPoint]], folder: _Folder, keep_runs: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield point and outcome in the order in which they become known.

    The longest are begun first, so that no worker has one to do when the others are done; those
    that seem equally long by their hash, since in the order of a grid one worker would get all
    points of one value and the other all of another, which may take longer.

    The scheduler gives up a task whose worker died several times, and with it the tasks that
    were only waiting there. So whatever was given up is begun again, alone.
    """
    from distributed import CancelledError, KilledWorker, as_completed

    def submit(name: str, how: str) -> Future:
        keep = str((folder.path / _RUNS / name).absolute()) if keep_runs else None
        return client.submit(
            simulate_on_worker, by_point[name][0].simulation, keep, key=f"ubfabric-{how}-{name}"
        )

    def outcome(future: Future) -> dict[str, Any] | None:
        """Return what came of a task, None if its worker died each time."""
        try:
            result: dict[str, Any] = future.result()
        except KilledWorker:
            return None
        except (CancelledError, OSError, TimeoutError):
            raise SimulationError(
                f"the scheduler was lost; the same command goes on with {folder.path}"
            ) from None
        finally:
            future.release()
        return result

    by_length = sorted(by_point, key=lambda name: (-by_point[name][0].length, name))
    futures = {submit(name, "any"): name for name in by_length}
    given_up = []
    for future in as_completed(list(futures)):
        name = futures.pop(future)
        found = outcome(future)
        if found is None:
            given_up.append(name)
        else:
            yield name, found
    for name in given_up:
        why = "the worker's process died each time, as when memory runs out or ns-3 ends it"
        yield name, outcome(submit(name, "alone")) or {"error": "KilledWorker", "message": why}
