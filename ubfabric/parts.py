"""An open-loop trace replayed in parts: alike ones once, the others in many processes.

Layers of a trace with start times are cut where all of one has started before the next starts.
Each part is replayed from rest: by an engine of its own, with the seed of the run, from the
start of its first flow; afterwards its times are moved to where they belong.

**What is exact.** A part's result depends on its flows, their starts from the part's first on,
fabric, settings and seed, and on nothing else. So parts that are alike in these are simulated
once, and the number of processes does not matter: the same bytes come out for any of both.

**What it is not.** One replay carries three things over from a layer to the next, and parts do
not: whose turn it is (round robin over planes, paths, inputs, lanes and engines, counters of
the load-balance factor), what is still under way, and what a congestion control has learned.
Turns only decide who goes first where packets meet, so a part without such a meeting has the
times of the one replay, and so has the first part in any case; else some packets change places.
A layer still under way when the next one starts would be wrong, so it is refused, and so are
congestion control, bit errors, random choices (alike parts would have the same luck), faults
and samples (which happen at a time of the whole run), and tasks (whose streams lead from layer
to layer).
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pyarrow as pa

from ubfabric.attributes import credit_warnings
from ubfabric.cluster import check_cluster, connected, one_at_a_time
from ubfabric.errors import SimulationError, SpecError, TraceError, UbfabricWarning
from ubfabric.fabric_settings import transports, used_settings
from ubfabric.replay import CheckedReplay, check_replay, replay
from ubfabric.results import RunResult, RunWriter, check_run_target
from ubfabric.trace import Trace, TraceChunk

#: Columns of links that add up over parts; of the others the most counts or all are alike.
_SUMMED = ("packets", "bytes", "busy_ps", "no_credit_ps", "retries")
_TIMES = ("start_ps", "first_byte_ps", "finish_ps")
_COUNTED = (
    "packets",
    "packet_hops",
    "packets_lost",
    "fabric_events",
    "bytes_sent",
    "bytes_delivered",
)
#: What a run says of its own folder.
_OWN = ("schema", "rows")


@dataclass(frozen=True)
class Part:
    """Layers that are replayed together.

    Attributes
    ----------
    layers : list of int
        Their numbers.
    start_ps : int
        Start of the first flow.
    last_ps : int
        Start of the last flow.
    content : str
        Hash of the flows and of their starts from ``start_ps`` on.
    """

    layers: list[int]
    start_ps: int
    last_ps: int
    content: str


def replay_in_parts(
    graph: nx.Graph,
    trace: Trace,
    out: str | Path,
    *,
    spread: int | None = None,
    scheduler: str | None = None,
    reuse: bool = True,
    overwrite: bool = False,
    **settings: Any,
) -> RunResult:
    """Replay an open-loop trace part by part and write one run folder.

    Parameters
    ----------
    graph : networkx.Graph
        The fabric.
    trace : Trace
        Flows with start times and no tasks.
    out : path
        Run folder to write.
    spread : int, optional
        Processes to simulate in; this one by default.
    scheduler : str, optional
        Address of a Dask scheduler whose workers are taken instead; they need the file system of
        ``out``.
    reuse : bool
        Whether parts that are alike are simulated once.
    overwrite : bool
        Whether a complete run folder of that name may be replaced.
    **settings
        ``payload_bytes``, ``plane_policy``, ``path_policy``, ``n_virtual_lanes``, ``seed``,
        ``account``, ``watchdog_ps``, ``threads`` as in :func:`ubfabric.replay`, but that
        processes of their own take one thread each if ``threads`` does not say more.

    Returns
    -------
    RunResult
        As of :func:`ubfabric.replay`; ``summary["parts"]`` says which layers each part has and how
        many were simulated. Links have the sums over the parts (``busy_ps`` rounded once a part),
        and the highest queue.

    Raises
    ------
    SpecError
        If a setting, or one of the fabric, is among those that the module text excludes.
    TraceError
        If flows have no start times, there are tasks, or a layer is still under way when the next
        one starts.
    ResultError, SimulationError, TopologyError
        As :func:`ubfabric.replay`.
    """
    check_cluster(spread, scheduler)
    target = check_run_target(out, overwrite=overwrite)
    checked = check_replay(graph, trace, **settings)
    _check_settings(graph, checked, settings)
    if spread not in (None, 1) or scheduler is not None:
        settings = {"threads": 1} | {k: v for k, v in settings.items() if v is not None}
    parts = _parts(trace)
    if not parts:
        raise TraceError("the trace has no flows, so there are no parts")
    for line in credit_warnings(graph, checked.arrays, checked.config.payload_bytes):
        warnings.warn(line, UbfabricWarning, stacklevel=2)
    started = time.perf_counter()
    # the first of the parts that are alike stands for all of them
    first: dict[str, int] = {}
    stands = [first.setdefault(p.content, n) if reuse else n for n, p in enumerate(parts)]
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.parts-", dir=target.parent))
    try:
        folders = {n: str(scratch / str(n)) for n in sorted(set(stands))}
        wanted = {folder: parts[n] for n, folder in folders.items()}
        _simulate(graph, trace, wanted, settings, spread, scheduler)
        opened = {n: RunResult(folder) for n, folder in folders.items()}
        runs = [opened[n] for n in stands]
        _check_rest(parts, runs, checked)
        with RunWriter(out, overwrite=overwrite) as writer:
            for part, n in zip(parts, stands, strict=True):
                _copy(writer, part, parts[n], opened[n], account=checked.config.account)
            writer.write_links(_links([run.links() for run in runs]))
            wall_s = time.perf_counter() - started
            return writer.finish(_summary(trace, parts, runs, len(folders), wall_s))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_settings(graph: nx.Graph, checked: CheckedReplay, settings: Mapping[str, Any]) -> None:
    """Refuse what connects parts, or would give alike ones the same luck."""
    config = checked.config
    for name in ("plane_policy", "path_policy"):
        if getattr(config, name) == "random":
            raise SpecError(f"{name}: found random; parts allow choices that are not drawn")
    if checked.faults is not None or config.sample_interval_ps:
        raise SpecError("found faults or samples, which happen at a time of the whole run")
    if checked.arrays.link_bit_error_rate.any():
        raise SpecError("bit_error_rate: found links with bit errors; parts allow none")
    for network, one in transports(graph).items():
        control = used_settings(one).get("congestion_control", "none")
        if control != "none":
            raise SpecError(
                f"transports.{network}.congestion_control: found {control}, which learns from "
                "layer to layer; parts allow none"
            )


def _parts(trace: Trace) -> list[Part]:
    """Cut a trace where all flows of a layer have started before the next layer's."""
    parts: list[Part] = []
    group: list[TraceChunk] = []
    last_ps = -1
    for chunk in trace.chunks():
        if chunk.tasks.num_rows:
            raise TraceError(
                f"{chunk.tasks_file}: layer {chunk.layer} has tasks, whose streams lead from layer "
                "to layer; only flows with start times can be replayed in parts"
            )
        if not chunk.flows.num_rows:
            continue
        starts = chunk.flows["start_ps"].to_numpy()
        if starts.min() < 0:
            raise TraceError(
                f"{chunk.flows_file}: layer {chunk.layer} has flows without start_ps; only flows "
                "with start times can be replayed in parts"
            )
        if group and starts.min() <= last_ps:
            group.append(chunk)
        else:
            if group:
                parts.append(_part(group))
            group = [chunk]
        last_ps = max(last_ps, int(starts.max()))
    if group:
        parts.append(_part(group))
    return parts


def _part(chunks: list[TraceChunk]) -> Part:
    starts = np.concatenate([chunk.flows["start_ps"].to_numpy() for chunk in chunks])
    start_ps = int(starts.min())
    state = hashlib.sha256()
    for chunk in chunks:
        for name in chunk.flows.column_names:
            column = chunk.flows[name]
            if name == "layer":
                continue
            if pa.types.is_integer(column.type):
                shift = start_ps if name == "start_ps" else 0
                values = column.to_numpy().astype("<i8") - shift
                state.update(values.tobytes())
            else:
                state.update("\0".join(column.cast(pa.string()).to_pylist()).encode())
            state.update(f"|{name}|".encode())
        state.update(b"|layer|")
    layers = [chunk.layer for chunk in chunks]
    return Part(layers, start_ps, int(starts.max()), state.hexdigest())


def _cut(trace: Trace, part: Part) -> list[TraceChunk]:
    """Return the layers of a part, which begins at time 0."""
    wanted = set(part.layers)
    chunks = []
    for chunk in trace.chunks():
        if chunk.layer in wanted:
            at = chunk.flows.column_names.index("start_ps")
            moved = pa.array(chunk.flows["start_ps"].to_numpy() - part.start_ps)
            flows = chunk.flows.set_column(at, chunk.flows.schema.field(at), moved)
            chunks.append(replace(chunk, flows=flows))
    return chunks


def _replay_part(
    graph: nx.Graph,
    chunks: list[TraceChunk],
    facts: dict[str, Any],
    folder: str,
    settings: dict[str, Any],
) -> None:
    """Replay one part into a folder; this is what a worker does."""
    trace = Trace(facts, len(chunks), lambda: iter(chunks))
    with one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore", UbfabricWarning)  # said once, for the whole trace
        replay(graph, trace, folder, overwrite=True, progress=False, **settings)


def _simulate(
    graph: nx.Graph,
    trace: Trace,
    parts: Mapping[str, Part],
    settings: dict[str, Any],
    spread: int | None,
    scheduler: str | None,
) -> None:
    """Replay parts into the folders given, here or in other processes."""

    def asked(folder: str) -> tuple[Any, ...]:
        return graph, _cut(trace, parts[folder]), trace.metadata, folder, settings

    if spread in (None, 1) and scheduler is None:
        for folder, part in parts.items():
            with _naming(part):
                _replay_part(*asked(folder))
        return
    from distributed import KilledWorker

    with connected(spread, scheduler) as client:
        futures = {
            folder: client.submit(_replay_part, *asked(folder), pure=False) for folder in parts
        }
        for folder, part in parts.items():
            with _naming(part):
                try:
                    futures.pop(folder).result()
                except KilledWorker:
                    raise SimulationError("the worker's process died each time") from None


@contextlib.contextmanager
def _naming(part: Part) -> Iterator[None]:
    """Say in an error of the simulation which layers it is about."""
    try:
        yield
    except SimulationError as error:
        raise SimulationError(f"layer {_shown(part)}: {error}") from None


def _shown(part: Part) -> str:
    first, last = part.layers[0], part.layers[-1]
    return str(first) if first == last else f"{first} to {last}"


def _check_rest(parts: list[Part], runs: list[RunResult], checked: CheckedReplay) -> None:
    """Refuse parts of which one is still under way when the next one starts."""
    delays = checked.arrays.link_delay_ps
    credits_ps = 2 * int(delays.max()) if len(delays) else 0  # until the last credit is back
    for part, following, run in zip(parts, parts[1:], runs, strict=False):
        end_ps = part.start_ps + int(run.summary["simulated_ps"]) + credits_ps
        if end_ps > following.start_ps:
            raise TraceError(
                f"layer {_shown(part)} is under way until {end_ps / 1e6:g} us, and layer "
                f"{_shown(following)} starts at {following.start_ps / 1e6:g} us; parts must not "
                "overlap: replay the trace as one"
            )


def _copy(writer: RunWriter, part: Part, source: Part, run: RunResult, *, account: bool) -> None:
    """Write the tables of a part's run at the part's layers and times."""
    number = dict(zip(source.layers, part.layers, strict=True))
    for layer, flows in zip(run.layers, run.flow_batches(), strict=True):
        flows["layer"] = np.int16(number[layer])
        for name in _TIMES:
            flows[name] += part.start_ps
        writer.write_flows(number[layer], pa.Table.from_pandas(flows, preserve_index=False))
    if account:
        table = run.account()
        table["layer"] = table["layer"].map(number).astype(np.int16)
        writer.write_account(pa.Table.from_pandas(table, preserve_index=False))


def _links(graph_links: list[pd.DataFrame]) -> pa.Table:
    """Return the links with the sums over the parts."""
    total = graph_links[0].copy()
    for links in graph_links[1:]:
        for name in _SUMMED:
            total[name] += links[name]
        total["max_queue_bytes"] = np.maximum(total["max_queue_bytes"], links["max_queue_bytes"])
    return pa.Table.from_pandas(total, preserve_index=False)


def _summary(
    trace: Trace, parts: list[Part], runs: list[RunResult], n_simulated: int, wall_s: float
) -> dict[str, Any]:
    """Return the summary of the whole, whose packets are those of all parts."""
    kept = {name: runs[0].summary[name] for name in runs[0].summary if name not in _OWN}
    counted = {name: sum(int(run.summary[name]) for run in runs) for name in _COUNTED}
    return (
        kept
        | counted
        | {
            "trace": trace.metadata,
            "simulated_ps": max(
                part.start_ps + int(run.summary["simulated_ps"])
                for part, run in zip(parts, runs, strict=True)
            ),
            "wall_s": wall_s,
            "packet_hops_per_s": counted["packet_hops"] / max(wall_s, 1e-9),
            "parts": {"layers": [part.layers for part in parts], "simulated": n_simulated},
        }
    )
