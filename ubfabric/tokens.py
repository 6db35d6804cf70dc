"""Tokens rebuilt from flow completion times: step, TPOT, throughput, shares, stragglers.

Everything here is an expression in the instants of the flow and task tables of one run;
nothing is simulated again. Times are integer picoseconds, percentiles are values that
really occurred (the smallest one that at least the stated fraction does not exceed).

**Instants** of rank ``r``, layer ``l``, microbatch ``m``

=========== =====================================================================
``s(t)``    start of task ``t``: its stream is free and its dependencies are finished
``c(t)``    end of its computation, ``s(t) + duration``
``f(t)``    finish of task ``t``: computed, own messages issued, awaited flows seen.
            Tasks of kinds such as ``dispatch-flag`` and ``dispatch-copy`` are stages of
            ``dispatch``; the stages of an operator count as one task.
``S(r)``    start of the first task of rank ``r``
``F(r)``    finish of the last task of rank ``r``
``B(p,r)``  send start: first flow of phase ``p`` (of ``l``, ``m``) of source ``r`` is handed
            to its endpoint
``a(x)``    last byte of flow ``x`` seen by its destination rank
``E(l)``    completion of MoE layer ``l``: latest ``f(t)`` of its combine tasks over all
            ranks and microbatches
``D(l)``    all tokens of MoE layer ``l`` are with experts: latest ``f(t)`` of its
            dispatch tasks over all ranks and microbatches; ``E(l)`` if it has none
=========== =====================================================================

**Metrics**

step of a rank
    ``F(r) - S(r)``, plus the extrapolation below. The step of the group is the longest of
    these: all ranks exchange tokens in every layer, none runs ahead of the slowest.
steady layer time
    Mean of the increments ``D(l) - D(previous MoE layer)``. Those of ``E`` would do as well but
    for the last one: no attention of a next layer shares the memory with its experts. The first
    MoE layer has no increment. If no layer runs before it, it fills the pipeline, and its
    successor's is left out as well as soon as two others remain; behind dense layers the pipeline
    is full. With one MoE layer only there is no increment: its own time, ``E(l) - first s(t)`` in
    that layer, stands in and is an upper estimate.
extrapolated step
    Simulated step + (MoE layers of the model - MoE layers simulated) x steady layer time.
intervals
    Of layers that were drawn by the seed, what all layers would give is known with an interval
    (95 %): for the step and what follows from it, the steady layer time, and means and
    percentiles of increments and latencies. :mod:`ubfabric.sampling` says how it is made and
    what it does not cover. Of all layers it has no width; of layers that were not drawn, or of
    too few, there is none.
tokens per step
    ``1 + a + a^2 + ... + a^k`` for ``k`` speculative tokens, each accepted with probability
    ``a`` if those before it were; for ``k = 1`` and ``a = 0.7`` this is the 1.7 of
    arXiv 2506.12708.
TPOT of a rank
    step of the rank / tokens per step. The headline TPOT is that of the group's step.
tokens/s per NPU
    requests per NPU / TPOT.
message latency of a phase
    ``a(x) - B(p, src(x))`` of each flow ``x``, counted once for each of its messages. The flow
    table does not time single messages: each (token, expert) message is seen no later than
    the last one of its flow, so this bounds every message of the flow from above and is exact
    for its last one. Local copies (source = destination) are included. Latencies of all
    layers together are those of the MoE layers; an MTP layer has rows of its own.
rank latency of a phase
    ``f(t) - s(t)`` of each dispatch or combine task: what a token of that rank and microbatch
    waits for the operator, its computing part included. It splits into ``computing``
    (``c(t) - s(t)``), ``senders`` (from ``c(t)`` until the last source of an awaited flow has
    begun to send, ``max B(p, src)``: time lost to slower ranks) and ``network`` (the rest:
    own issue, transfer, queueing).
shares of a rank's step
    Streams overlap, so each instant of ``[S(r), F(r)]`` goes to the first of these that
    happens at that instant on any stream of the rank, and the shares sum to 1:
    ``attention`` (its prologue, itself, its output projection) computes; ``expert`` computes;
    ``other_compute`` (gate, dense FFN, head, ...);
    ``operator_compute`` (a dispatch or combine before its first message, e.g. quantisation);
    ``dispatch_wait``, ``combine_wait``, ``other_wait`` (such an operator issues or waits);
    ``idle`` (no task runs). Waiting therefore counts only where no computation hides it:
    it is *exposed* communication. ``overlapped`` is the share of instants with two or more
    tasks; ``communication`` the share with any operator issuing or waiting, hidden or not.
    Shares are extrapolated like the step: to the simulated times are added those of the
    missing layers, in the proportions between the rank's first start in the second MoE layer
    (the first, of two) and in the last one; of a rank that only holds experts, between the first
    starts of all that attend. From a single MoE layer they are not.
busy time of a stream
    Sum of ``f(t) - s(t)`` by kind, and ``idle`` = the rank's simulated step minus their sum;
    tasks of one stream never overlap, so the shares of one stream sum to 1.
stragglers
    Of a layer, over ranks with ``D(r,l)`` = last finish - first start of the rank's tasks in
    it: ``(max D - median D) / median D``; ``lag`` = max - median of the last finish.
    Of the step: ``(max - median) / median`` of the rank's step.
load
    Messages of the dispatch phase received by a rank in a layer; ``max / mean`` over the ranks
    that hold experts.
groups
    Where some ranks only attend and the others only hold experts, shares are also averaged over
    each of the two. Ranks with experts wait for the next batch from the end of the last one on,
    so what says how long a rank took for a layer, an operator or the step - stragglers, rank
    latency, the first start of a single layer - is that of ranks that attend: of a dispatch the
    time to send it, of a combine all until the results are there.

**Read from the trace's metadata** (``summary.json``, key ``trace``), each optional; without
one the numbers that need it are absent and the text says so

``layers``, a list of ``{layer, label}`` (only label ``moe`` repeats; without labels every
layer with a combine does) · ``n_moe_layers_total`` of the model · ``moe_layers_drawn``, whether
the simulated ones are a random sample of these · ``batch_per_npu`` requests ·
``mtp``: ``{tokens, acceptance}`` · ``attention_ranks``, how many ranks, the first ones, only
attend · ``paper_row``, a mapping, and ``paper_rows``, a list of
such, with results ``tpot_ps``, ``tokens_per_s_per_npu``, ``step_ps``, ``layer_ps`` (one MoE
layer), ``dispatch_ps``, ``combine_ps`` (medians of rank latency), each a number or
``{value, source, strength, note}``; all other keys say at which point they hold, and a row is
compared only where no such key contradicts the metadata · ``spec``: its operator times are
listed as inputs with their sources.

What is not modelled: requests that join or leave within the step, sampling and scheduling
between steps unless the trace has tasks for them.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ubfabric.distribution import QUANTILES, Distribution
from ubfabric.errors import ResultError
from ubfabric.pool import pool_table
from ubfabric.quantities import parse_time_ps, provenance
from ubfabric.results import RunResult
from ubfabric.sampling import (
    CONFIDENCE,
    mean_interval,
    quantile_interval,
    sum_error,
    sum_interval,
)

#: What an instant of a rank's step is attributed to, first match first; see the module text.
SHARES = (
    "attention",
    "expert",
    "other_compute",
    "operator_compute",
    "dispatch_wait",
    "combine_wait",
    "other_wait",
    "idle",
)
#: Kinds of tasks that count as attention.
_ATTENTION = ("prologue", "attention", "output")
_STATISTICS = ("mean", *QUANTILES, "max")
_PS_PER_US = 1e6
_PS_PER_MS = 1e9
_PS_PER_S = 1e12


@dataclass(frozen=True)
class Tokens:
    """What the network did to the tokens; the module text defines every number.

    Attributes
    ----------
    summary : dict
        JSON-able headline numbers; units stand in the names.
    ranks : DataFrame, one row a rank
        ``rank``, ``step_ps`` (extrapolated), ``simulated_step_ps``, ``tpot_ps``,
        ``tokens_per_s_per_npu``, and for its dispatch and combine tasks ``<phase>_mean_ps``,
        ``_p50_ps``, ``_p99_ps``, ``_max_ps`` and, as means that sum to ``_mean_ps``,
        ``_computing_ps``, ``_senders_ps``, ``_network_ps``.
    shares : DataFrame, one row a rank
        ``rank``, the columns :data:`SHARES` (they sum to 1), ``overlapped``,
        ``communication``.
    streams : DataFrame, one row a rank, stream and kind
        ``busy_ps``, ``computing_ps``, ``share`` of the rank's simulated step; kind ``idle``
        completes each stream to 1.
    layers : DataFrame, one row a layer
        ``layer``, ``label``, ``completion_ps`` (E(l), -1 without combine), ``increment_ps``
        (-1 for the first), ``steady`` (the increment counts), ``duration_median_ps``,
        ``duration_max_ps``, ``straggler_spread``, ``lag_ps``, ``load_max_over_mean``.
    latency : DataFrame, one row a layer and phase, layer -1 for all MoE layers
        ``flows``, ``messages``, ``bytes``; message latency ``message_mean_ps``, ``_p50_ps``,
        ``_p90_ps``, ``_p99_ps``, ``_max_ps``; FCT ``fct_mean_ps``, ...; ``queueing_ps``.
    intervals : DataFrame, one row a statistic
        ``quantity`` (``layer``, the increments; ``message``, ``fct``, ``rank``, the latencies),
        ``phase``, ``statistic``, ``value_ps``, and ``low_ps`` and ``high_ps``, NaN where the
        sample gives no bound.
    paper : DataFrame, one row a compared quantity
        ``quantity``, ``unit``, ``simulated``, ``paper``, ``difference``,
        ``difference_percent``, ``point`` (the conditions the paper's row states),
        ``strength``, ``source``, ``note``.
    pool : DataFrame, one row a kind of transfer beside the step
        As :func:`ubfabric.pool.pool_table` returns it; empty without a pool.
    """

    summary: dict[str, Any]
    ranks: pd.DataFrame
    shares: pd.DataFrame
    streams: pd.DataFrame
    layers: pd.DataFrame
    latency: pd.DataFrame
    intervals: pd.DataFrame
    paper: pd.DataFrame
    pool: pd.DataFrame

    def to_text(self, width: int = 100) -> str:
        """Return the summary as plain text of at most ``width`` columns."""
        buffer = io.StringIO()
        Console(file=buffer, width=width, color_system=None, legacy_windows=False).print(self)
        return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the summary as JSON, and write it to ``path`` if one is given.

        Raises
        ------
        ResultError
            If the file cannot be written.
        """
        text = json.dumps(self.summary, indent=1, allow_nan=False) + "\n"
        if path is not None:
            target = Path(path)
            partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
            try:
                partial.write_text(text, encoding="utf-8")
                os.replace(partial, target)
            except OSError as error:
                partial.unlink(missing_ok=True)
                raise ResultError(f"{path}: cannot be written: {error.strerror}") from None
        return text

    def __rich__(self) -> RenderableType:
        return _render(self)


@dataclass(frozen=True)
class _Facts:
    """What the token stage takes from the trace's metadata; None where it says nothing."""

    moe_layers: int | None
    layers_drawn: bool
    batch_per_npu: float | None
    mtp_tokens: int | None
    mtp_acceptance: float | None
    attention_ranks: int
    labels: dict[int, str]
    paper_rows: list[Mapping[str, Any]]
    inputs: list[dict[str, str]]

    def attending(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of ranks that attend: all, unless some only hold experts."""
        return table[table["rank"] < self.attention_ranks] if self.attention_ranks else table

    @property
    def tokens_per_step(self) -> float:
        if not self.mtp_tokens:
            return 1.0
        acceptance = self.mtp_acceptance or 0.0
        return float(sum(acceptance**i for i in range(self.mtp_tokens + 1)))


def rebuild_tokens(result: RunResult) -> Tokens:
    """Rebuild latency and throughput of tokens from a run's flow and task tables.

    Parameters
    ----------
    result : RunResult
        A run with tasks (closed loop). Flows are read layer by layer.

    Returns
    -------
    Tokens
        Tables and summary as defined in the module's text.

    Raises
    ------
    ResultError
        If the run has no tasks, or the trace's metadata are not usable.
    """
    facts = _facts(result)
    tasks = result.step_tasks()
    if tasks.empty:
        raise ResultError(
            f"{result.path}: the run has no tasks (open loop), so there is no step to rebuild; "
            "the flow table alone gives completion times"
        )
    tasks["kind"] = tasks["kind"].astype(str)
    tasks = _join_stages(tasks)
    moe_layers = _moe_layers(tasks, facts)
    latency, loads, senders, by_layer, transfers = _flow_latency(
        result, moe_layers, facts.attention_ranks
    )
    _split_communication(tasks, senders)
    layers = _layer_table(tasks, facts, moe_layers, loads)
    step = _extrapolate(tasks, layers, facts)
    shares = _share_table(tasks, moe_layers, step, facts)
    streams = _stream_table(tasks)
    # Latencies are those of the layers that repeat; a trace without such layers has all alike.
    alike = tasks[tasks["layer"].isin(moe_layers)] if moe_layers else tasks
    ranks = _rank_table(tasks, alike, step["extra_ps"], facts)
    alike = facts.attending(alike)
    summary = _summarise(result, facts, step, ranks, shares, layers, latency, alike)
    intervals = _interval_table(step, layers, latency, alike, by_layer)
    summary["intervals"] = json.loads(intervals.to_json(orient="records"))
    paper, elsewhere = _compare(facts, summary, result.trace_metadata)
    summary["paper_rows_at_other_points"] = elsewhere
    summary["paper"] = json.loads(paper.to_json(orient="records"))
    summary["pool"] = json.loads(transfers.to_json(orient="records"))
    return Tokens(summary, ranks, shares, streams, layers, latency, intervals, paper, transfers)


def _facts(result: RunResult) -> _Facts:
    metadata = result.trace_metadata
    label = f"{result.path}/summary.json: trace"

    def number(key: str, low: float, high: float = math.inf) -> float | None:
        value: Any = metadata
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ResultError(f"{label}: {key}: found {value!r}, expected a number")
        if not low <= value <= high:
            raise ResultError(f"{label}: {key}: found {value}, allowed {low} to {high}")
        return value

    rows = [metadata.get("paper_row"), *(metadata.get("paper_rows") or [])]
    rows = [row for index, row in enumerate(rows) if row is not None and row not in rows[:index]]
    if not all(isinstance(row, Mapping) for row in rows):
        raise ResultError(f"{label}: paper_rows: expected a list of mappings")
    layers = metadata.get("layers")
    labels = {}
    if isinstance(layers, list):
        labels = {
            int(row["layer"]): str(row.get("label", ""))
            for row in layers
            if isinstance(row, Mapping) and "layer" in row
        }
    moe_layers, mtp_tokens = number("n_moe_layers_total", 0), number("mtp.tokens", 0, 16)
    n_ranks = metadata.get("n_ranks")
    most = n_ranks - 1 if isinstance(n_ranks, int) else math.inf
    return _Facts(
        moe_layers=None if moe_layers is None else int(moe_layers),
        layers_drawn=metadata.get("moe_layers_drawn") is True,
        batch_per_npu=number("batch_per_npu", 0),
        mtp_tokens=None if mtp_tokens is None else int(mtp_tokens),
        mtp_acceptance=number("mtp.acceptance", 0, 1),
        attention_ranks=int(number("attention_ranks", 0, most) or 0),
        labels=labels,
        paper_rows=rows,
        inputs=[
            row
            for row in provenance(_step_spec(metadata.get("spec")))
            if row["key"].startswith(("operators.", "machine.")) and _is_time(row["value"])
        ],
    )


def _step_spec(spec: Any) -> Any:
    """Return the specification of the step: a pool's has it inside."""
    is_pool = isinstance(spec, Mapping) and spec.get("kind") == "pool"
    return spec["step"] if is_pool else spec


def _join_stages(tasks: pd.DataFrame) -> pd.DataFrame:
    """Make one task of the stages of an operator, such as dispatch, dispatch-flag, dispatch-copy.

    It computes what its first stage computes; its own issue and arrivals end with the last ones.
    """
    base = tasks["kind"].str.partition("-")[0]
    staged = base.ne(tasks["kind"])
    if not staged.any():
        return tasks
    keys = ["layer", "microbatch", "rank", "stream", "kind"]
    parts = tasks.assign(kind=base).groupby(keys, sort=False, as_index=False)
    how = dict.fromkeys(tasks.columns.difference(keys), "first")
    how |= dict.fromkeys(["issued_ps", "arrived_ps", "finish_ps"], "max")
    joined = parts.agg(how)[tasks.columns.tolist()]
    return joined.sort_values("task", ignore_index=True)


def _is_time(text: str) -> bool:
    try:
        parse_time_ps(text)
    except ValueError:
        return False
    return True


def _moe_layers(tasks: pd.DataFrame, facts: _Facts) -> list[int]:
    """Return the layers that repeat: an MTP layer also combines, but its label is another."""
    combining = sorted(int(x) for x in tasks.loc[tasks["kind"] == "combine", "layer"].unique())
    if facts.labels:
        return [layer for layer in combining if facts.labels.get(layer) == "moe"]
    return combining


#: Columns of the flow table that hold names.
_TEXTS = ("phase", "network")


def _flow_latency(
    result: RunResult, moe_layers: list[int], attention_ranks: int
) -> tuple[
    pd.DataFrame,
    dict[int, float],
    pd.DataFrame,
    dict[tuple[str, str], list[Distribution]],
    pd.DataFrame,
]:
    """Walk the flows once.

    Returns
    -------
    latency : DataFrame
        See :class:`Tokens`.
    loads : dict of int to float
        By layer: max / mean of the dispatch messages that ranks with experts received.
    senders : DataFrame
        ``layer``, ``kind`` (the phase), ``microbatch``, ``rank`` (destination) and
        ``last_sender_ps``: when the last of its sources began to send.
    by_layer : dict of (str, str) to list of Distribution
        By ``message`` or ``fct`` and phase: the latencies of each MoE layer.
    transfers : DataFrame
        See :func:`ubfabric.pool.pool_table`.
    """
    by_layer: dict[tuple[str, str], list[Distribution]] = {}
    rows: list[dict[str, Any]] = []
    totals: dict[str, dict[str, Any]] = {}
    loads: dict[int, float] = {}
    senders: list[pd.DataFrame] = []
    pool = result.trace_metadata.get("pool") or {}
    beside: list[pd.DataFrame] = []
    n_ranks = int(pool.get("step_ranks") or result.trace_metadata.get("n_ranks") or 0)
    wanted = [
        *("phase", "layer", "microbatch", "src", "dst", "messages", "bytes"),
        *("start_ps", "finish_ps", "fct_ps", "queueing_ps"),
        *(["network"] if pool else []),
    ]
    for flows in result.flow_batches(wanted):
        layer = int(flows["layer"].iloc[0])
        if pool:
            is_pool = flows["phase"].isin(pool["phases"])
            if is_pool.any():
                beside.append(flows[is_pool])
            flows = flows[~is_pool]
            if flows.empty:
                continue
        n_ranks = max(n_ranks, int(flows["src"].max()) + 1, int(flows["dst"].max()) + 1)
        # A layer may have a million flows: only what is computed with is taken out of its columns.
        names = flows["phase"].cat.categories
        code = flows["phase"].cat.codes.to_numpy()
        columns = {name: flows[name].to_numpy() for name in wanted if name not in _TEXTS}
        for phase in _phase_order(names):
            at = np.flatnonzero(code == names.get_loc(phase))
            if not len(at):
                continue
            messages, source, microbatch, target = (
                columns[name].take(at).astype(np.int64)
                for name in ("messages", "src", "microbatch", "dst")
            )
            row_of = (microbatch - microbatch.min()) * n_ranks
            key = row_of + source
            start = columns["start_ps"].take(at)
            begin = np.full(int(key.max()) + 1, np.iinfo(np.int64).max)
            np.minimum.at(begin, key, start)
            last_sender = np.full((int(microbatch.max() - microbatch.min()) + 1) * n_ranks, -1)
            np.maximum.at(last_sender, row_of + target, begin[key])
            awaited = np.flatnonzero(last_sender >= 0)
            senders.append(
                pd.DataFrame(
                    {
                        "layer": layer,
                        "kind": phase,
                        "microbatch": awaited // n_ranks + microbatch.min(),
                        "rank": awaited % n_ranks,
                        "last_sender_ps": last_sender[awaited],
                    }
                )
            )
            message_latency, fct = Distribution(), Distribution()
            message_latency.add(columns["finish_ps"].take(at) - begin[key], messages)
            fct.add(columns["fct_ps"].take(at))
            row: dict[str, Any] = {
                "layer": layer,
                "phase": phase,
                "flows": len(at),
                "messages": int(messages.sum()),
                "bytes": int(columns["bytes"].take(at).sum()),
                "queueing_ps": int(columns["queueing_ps"].take(at).sum()),
                "message": message_latency,
                "fct": fct,
            }
            if phase == "dispatch":
                received = np.bincount(target, messages, n_ranks)[attention_ranks:]
                loads[layer] = float(received.max() / received.mean())
            rows.append(row)
            if moe_layers and layer not in moe_layers:
                continue
            total = totals.setdefault(
                phase,
                {"layer": -1, "phase": phase, "message": Distribution(), "fct": Distribution()},
            )
            for name in ("flows", "messages", "bytes", "queueing_ps"):
                total[name] = total.get(name, 0) + row[name]
            for name in ("message", "fct"):
                total[name].update(row[name])
                by_layer.setdefault((name, phase), []).append(row[name])
    records = []
    for row in [*(totals[phase] for phase in _phase_order(totals)), *rows]:
        record = {name: row[name] for name in ("layer", "phase", "flows", "messages", "bytes")}
        for name in ("message", "fct"):
            stats: dict[str, float] = row[name].describe()
            record |= {
                f"{name}_{key}_ps": value if key == "mean" else int(value)
                for key, value in stats.items()
            }
        record["queueing_ps"] = row["queueing_ps"]
        records.append(record)
    empty = pd.DataFrame(columns=["layer", "kind", "microbatch", "rank", "last_sender_ps"])
    first = ["layer", "phase", "flows", "messages", "bytes"]
    measured = [f"{what}_{name}_ps" for what in ("message", "fct") for name in _STATISTICS]
    latency = pd.DataFrame(records, columns=[*first, *measured, "queueing_ps"])
    found = pd.concat(beside) if beside else pd.DataFrame(columns=wanted)
    transfers = pool_table(found, result.trace_metadata)
    return latency, loads, pd.concat(senders) if senders else empty, by_layer, transfers


def _phase_order(phases: Iterable[str]) -> list[str]:
    """Return the phases, dispatch and combine first, as time runs."""
    found = {str(phase) for phase in phases}
    known = [phase for phase in ("dispatch", "combine") if phase in found]
    return known + sorted(found - set(known))


def _split_communication(tasks: pd.DataFrame, senders: pd.DataFrame) -> None:
    """Add computing_ps, senders_ps and network_ps, which sum to a task's time."""
    start, finish = tasks["start_ps"].to_numpy(), tasks["finish_ps"].to_numpy()
    sends, waits = tasks["issued_ps"].to_numpy() >= 0, tasks["arrived_ps"].to_numpy() >= 0
    computed = np.where(sends | waits, start + tasks["duration_ps"].to_numpy(), finish)
    keys = ["layer", "kind", "microbatch", "rank"]
    # The flow table does not say which task waited: the one whose kind is the phase's name.
    last = tasks[keys].merge(senders.astype({"kind": str}), on=keys, how="left")
    # Without any sender the column holds objects, which pandas 2 fills with a warning.
    last_sender = pd.to_numeric(last["last_sender_ps"]).fillna(-1).to_numpy(np.int64)
    began = np.where(waits, np.clip(last_sender, computed, finish), computed)
    tasks["communicates"] = sends | waits
    tasks["computing_ps"] = computed - start
    tasks["senders_ps"] = began - computed
    tasks["network_ps"] = finish - began


def _layer_table(
    tasks: pd.DataFrame, facts: _Facts, moe_layers: list[int], loads: dict[int, float]
) -> pd.DataFrame:
    by_rank = (
        facts.attending(tasks)
        .groupby(["layer", "rank"])
        .agg(start=("start_ps", "min"), finish=("finish_ps", "max"))
    )
    by_rank["duration"] = by_rank["finish"] - by_rank["start"]
    groups = by_rank.groupby("layer")
    median, longest = groups["duration"].median(), groups["duration"].max()
    finish = groups["finish"]
    completion, arrived = (
        tasks[tasks["kind"] == kind].groupby("layer")["finish_ps"].max().reindex(median.index)
        for kind in ("combine", "dispatch")
    )
    marks = arrived.fillna(completion).fillna(-1).to_numpy(np.int64)
    layers = pd.DataFrame(
        {
            "layer": median.index.to_numpy(np.int64),
            "label": [facts.labels.get(int(layer), "") for layer in median.index],
            "completion_ps": completion.fillna(-1).to_numpy(np.int64),
            "duration_median_ps": median.to_numpy(),
            "duration_max_ps": longest.to_numpy(np.int64),
            "straggler_spread": ((longest - median) / median.where(median > 0)).to_numpy(),
            "lag_ps": (finish.max() - finish.median()).to_numpy(),
            "load_max_over_mean": [loads.get(int(layer), math.nan) for layer in median.index],
        }
    )
    moe = layers["layer"].isin(moe_layers).to_numpy()
    layers.insert(2, "moe", moe)
    increments = np.full(len(layers), -1, dtype=np.int64)
    places = np.flatnonzero(moe)
    # Layers may be simulated with gaps; they still run one after another.
    increments[places[1:]] = np.diff(marks[places])
    steady = increments >= 0
    if steady.sum() >= 3 and places[0] == 0:  # the first layer of all fills the pipeline
        steady[places[1]] = False
    layers.insert(4, "increment_ps", increments)
    layers.insert(5, "steady", steady)
    return layers


def _extrapolate(tasks: pd.DataFrame, layers: pd.DataFrame, facts: _Facts) -> dict[str, Any]:
    """Return the time to add to the simulated step for the layers not simulated."""
    simulated = int(layers["moe"].sum())
    total = facts.moe_layers
    missing = 0 if total is None else max(total - simulated, 0)
    increments = layers.loc[layers["steady"], "increment_ps"].to_numpy(np.float64)
    step: dict[str, Any] = {
        "moe_layers_simulated": simulated,
        "moe_layers_total": total,
        "missing": missing,
        "drawn": facts.layers_drawn,
        "known": total is not None and (facts.layers_drawn or not missing),
        "increments": len(increments),
        "layer_ps": None,
        "deviation_ps": None,
        "error_ps": None,
        "reach_ps": None,
        "low_ps": None,
        "high_ps": None,
        "extra_ps": 0,
    }
    if step["known"]:
        step["error_ps"] = sum_error(increments, missing)
        interval = sum_interval(increments, missing)
        step["reach_ps"] = None if interval is None else (interval[1] - interval[0]) / 2
    if len(increments):
        step["layer_ps"] = float(increments.mean())
        step["low_ps"], step["high_ps"] = increments.min(), increments.max()
        if len(increments) > 1:
            step["deviation_ps"] = float(increments.std(ddof=1))
    elif simulated:
        (layer,) = layers.loc[layers["moe"], "layer"]
        (completion,) = layers.loc[layers["moe"], "completion_ps"]
        own = facts.attending(tasks[tasks["layer"] == layer])["start_ps"].min()
        step["layer_ps"] = float(completion - own)
        step["low_ps"] = step["high_ps"] = step["layer_ps"]
    if missing:
        if step["layer_ps"] is None:
            raise ResultError(
                f"trace metadata say {total} MoE layers, but no combine task was simulated, so "
                "there is no layer to extrapolate from; simulate at least one"
            )
        step["extra_ps"] = round(missing * step["layer_ps"])
    return step


def _interval_table(
    step: Mapping[str, Any],
    layers: pd.DataFrame,
    latency: pd.DataFrame,
    alike: pd.DataFrame,
    by_layer: dict[tuple[str, str], list[Distribution]],
) -> pd.DataFrame:
    """Return means and percentiles with what the sample of layers leaves unknown of them."""
    records: list[dict[str, Any]] = []
    total = step["moe_layers_total"]

    def add(
        quantity: str, phase: str, layers: list[Distribution], total: int, stats: dict[str, float]
    ) -> None:
        for name in ("mean", *QUANTILES):
            low: float | None = None
            high: float | None = None
            if step["known"] and name == "mean":
                low, high = mean_interval(layers, total, stats[name])
            elif step["known"]:
                low, high = quantile_interval(layers, QUANTILES[name], total, stats[name])
            records.append(
                {
                    "quantity": quantity,
                    "phase": phase,
                    "statistic": name,
                    "value_ps": stats[name],
                    "low_ps": math.nan if low is None else low,
                    "high_ps": math.nan if high is None else high,
                }
            )

    increments = layers.loc[layers["steady"], "increment_ps"].to_numpy(np.int64)
    if len(increments):
        alone = [Distribution() for _ in increments]
        for one, value in zip(alone, increments, strict=True):
            one.add(np.array([value]))
        add("layer", "", alone, len(alone) + step["missing"], _observed(increments, 1))
    overall = latency[latency["layer"] == -1] if len(latency) else latency
    for row in overall.to_dict("records"):
        for name in ("message", "fct"):
            stats = {key: float(row[f"{name}_{key}_ps"]) for key in ("mean", *QUANTILES)}
            add(name, str(row["phase"]), by_layer[name, str(row["phase"])], total, stats)
    for kind in _phases(alike):
        part = alike[alike["kind"] == kind]
        times = (part["finish_ps"] - part["start_ps"]).to_numpy(np.int64)
        found = []
        for layer in np.unique(part["layer"]):
            found.append(Distribution())
            found[-1].add(times[part["layer"].to_numpy() == layer])
        add("rank", kind, found, total, _observed(times, 1))
    columns = ["quantity", "phase", "statistic", "value_ps", "low_ps", "high_ps"]
    return pd.DataFrame(records, columns=columns)


def _rank_table(
    tasks: pd.DataFrame, alike: pd.DataFrame, extra_ps: int, facts: _Facts
) -> pd.DataFrame:
    spans = tasks.groupby("rank").agg(start=("start_ps", "min"), finish=("finish_ps", "max"))
    simulated = (spans["finish"] - spans["start"]).to_numpy()
    step = simulated + extra_ps
    ranks = pd.DataFrame({"rank": spans.index.to_numpy(np.int64)})
    ranks["step_ps"] = step
    ranks["simulated_step_ps"] = simulated
    ranks["tpot_ps"] = step / facts.tokens_per_step
    if facts.batch_per_npu is not None:
        with np.errstate(divide="ignore"):
            ranks["tokens_per_s_per_npu"] = facts.batch_per_npu * _PS_PER_S / ranks["tpot_ps"]
    for kind in _phases(alike):
        part = alike[alike["kind"] == kind]
        times_ps = part["finish_ps"] - part["start_ps"]
        times = times_ps.groupby(part["rank"])
        ranks[f"{kind}_mean_ps"] = times.mean().reindex(spans.index).to_numpy()
        for name in ("p50", "p99"):
            value = _group_quantile(part["rank"], times_ps, QUANTILES[name])
            ranks[f"{kind}_{name}_ps"] = value.reindex(spans.index).to_numpy()
        ranks[f"{kind}_max_ps"] = times.max().reindex(spans.index).to_numpy()
        for name in ("computing", "senders", "network"):
            mean = part.groupby("rank")[f"{name}_ps"].mean()
            ranks[f"{kind}_{name}_ps"] = mean.reindex(spans.index).to_numpy()
    return ranks


def _group_quantile(group: pd.Series, values: pd.Series, q: float) -> pd.Series:
    """Return by group the smallest value that at least the fraction ``q`` does not exceed."""
    order = np.lexsort((values.to_numpy(), group.to_numpy()))
    labels, first, count = np.unique(group.to_numpy()[order], return_index=True, return_counts=True)
    place = np.maximum(np.ceil(q * count - 1e-9).astype(np.int64), 1) - 1
    return pd.Series(values.to_numpy()[order][first + place], index=labels)


def _phases(tasks: pd.DataFrame) -> list[str]:
    """Return the kinds of the tasks that send or wait, dispatch and combine first."""
    return _phase_order(tasks.loc[tasks["communicates"], "kind"].unique())


def _share_table(
    tasks: pd.DataFrame, moe_layers: list[int], step: Mapping[str, Any], facts: _Facts
) -> pd.DataFrame:
    """Return the shares of each rank's step, extrapolated like the step itself."""
    ranks, rank = np.unique(tasks["rank"].to_numpy(), return_inverse=True)
    rank = rank.reshape(-1)
    spans = tasks.groupby("rank").agg(start=("start_ps", "min"), finish=("finish_ps", "max"))
    times = _sweep(tasks, rank, spans["start"].to_numpy(), spans["finish"].to_numpy())
    if step["missing"] and len(moe_layers) > 1:
        # Between the starts of two layers a rank does the work of whole layers, streams as
        # overlapped as ever: the first layer fills the pipeline and the last one drains it.
        first = moe_layers[min(1, len(moe_layers) - 2)]
        starts = tasks.groupby(["layer", "rank"])["start_ps"].min()
        begin, end = (starts.loc[layer].reindex(ranks) for layer in (first, moe_layers[-1]))
        if facts.attention_ranks:
            # Ranks with experts begin a layer by waiting for it: theirs are the same instants.
            attend = ranks < facts.attention_ranks
            begin, end = (at.where(attend, at[attend].min()) for at in (begin, end))
        steady = (begin < end).to_numpy()
        begin, end = (x.fillna(0).to_numpy(np.int64) for x in (begin, end))
        end = np.where(steady, end, begin)
        one = _sweep(tasks, rank, begin, end) / np.maximum(end - begin, 1)[:, None]
        times += step["extra_ps"] * one
    width = len(SHARES)
    total = times[:, :width].sum(axis=1)
    shares = pd.DataFrame(
        times / np.where(total > 0, total, 1)[:, None],
        columns=[*SHARES, "overlapped", "communication"],
    )
    shares.insert(0, "rank", ranks)
    return shares


def _sweep(tasks: pd.DataFrame, rank: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Attribute every instant between ``low`` and ``high`` of each rank to one of SHARES.

    Returns
    -------
    ndarray of float64, shape (n_ranks, n_shares + 2), picoseconds
        Columns SHARES, then time with two or more tasks, then time with communication.
    """
    kind = tasks["kind"].to_numpy(str)
    start, finish = tasks["start_ps"].to_numpy(), tasks["finish_ps"].to_numpy()
    communicates = tasks["communicates"].to_numpy()
    computed = start + tasks["computing_ps"].to_numpy()
    column = {name: index for index, name in enumerate(SHARES)}
    computing = np.full(len(tasks), column["other_compute"])
    computing[np.isin(kind, _ATTENTION)] = column["attention"]
    computing[kind == "expert"] = column["expert"]
    computing[communicates] = column["operator_compute"]
    waiting = np.full(len(tasks), column["other_wait"])
    waiting[kind == "dispatch"] = column["dispatch_wait"]
    waiting[kind == "combine"] = column["combine_wait"]

    # Each interval is +1 at its start and -1 at its end in the column of what happens.
    of_rank = np.concatenate([rank, rank])
    begin = np.clip(np.concatenate([start, computed]), low[of_rank], high[of_rank])
    end = np.clip(np.concatenate([computed, finish]), low[of_rank], high[of_rank])
    what = np.concatenate([computing, waiting])
    lasts = end > begin
    of_rank, begin, end, what = (values[lasts] for values in (of_rank, begin, end, what))
    at_rank = np.concatenate([of_rank, of_rank])
    at_time = np.concatenate([begin, end])
    change = np.repeat(np.array([1, -1], dtype=np.int8), len(begin))
    what = np.concatenate([what, what])
    order = np.lexsort((at_time, at_rank))
    at_rank, at_time = at_rank[order], at_time[order]
    steps = np.zeros((len(order), len(SHARES)), dtype=np.int8)
    steps[np.arange(len(order)), what[order]] = change[order]
    # All intervals of a rank are closed at its end, so counts start from zero at the next.
    active = np.cumsum(steps, axis=0, dtype=np.int8)
    elapsed = np.diff(at_time, append=0)
    elapsed[np.flatnonzero(np.diff(at_rank, append=-1))] = 0
    running = active.sum(axis=1)
    elapsed[running == 0] = 0
    first = (active > 0).argmax(axis=1)
    waits = [column[name] for name in ("dispatch_wait", "combine_wait", "other_wait")]

    n_ranks = len(low)
    times = np.zeros((n_ranks, len(SHARES) + 2))
    np.add.at(times, (at_rank, first), elapsed)
    times[:, column["idle"]] = high - low - times.sum(axis=1)
    times[:, -2] = np.bincount(at_rank, elapsed * (running > 1), n_ranks)
    times[:, -1] = np.bincount(at_rank, elapsed * active[:, waits].any(axis=1), n_ranks)
    return times


def _stream_table(tasks: pd.DataFrame) -> pd.DataFrame:
    spans = tasks.groupby("rank").agg(start=("start_ps", "min"), finish=("finish_ps", "max"))
    span = spans["finish"] - spans["start"]
    busy = tasks["finish_ps"] - tasks["start_ps"]
    parts = tasks[["rank", "stream", "kind", "computing_ps"]].assign(busy_ps=busy)
    streams = parts.groupby(["rank", "stream", "kind"], as_index=False).sum()
    idle = streams.groupby(["rank", "stream"], as_index=False)["busy_ps"].sum()
    idle["busy_ps"] = idle["rank"].map(span) - idle["busy_ps"]
    idle = idle.assign(kind="idle", computing_ps=0)
    streams = pd.concat([streams, idle], ignore_index=True)
    streams = streams[["rank", "stream", "kind", "busy_ps", "computing_ps"]]
    length = streams["rank"].map(span)
    streams["share"] = streams["busy_ps"] / length.where(length > 0, 1)
    return streams.sort_values(["rank", "stream"], kind="stable", ignore_index=True)


def _observed(values: Any, scale: float) -> dict[str, float]:
    """Describe one value a rank (or a task) as the module text defines percentiles."""
    values = np.asarray(values, dtype=np.float64)
    stats = {"mean": float(values.mean()) / scale}
    for name, q in QUANTILES.items():
        stats[name] = float(np.quantile(values, q, method="inverted_cdf")) / scale
    return stats | {"max": float(values.max()) / scale}


def _summarise(
    result: RunResult,
    facts: _Facts,
    step: dict[str, Any],
    ranks: pd.DataFrame,
    shares: pd.DataFrame,
    layers: pd.DataFrame,
    latency: pd.DataFrame,
    alike: pd.DataFrame,
) -> dict[str, Any]:
    per_step = facts.tokens_per_step
    step_ps = int(ranks["step_ps"].max())
    tpot_ms = step_ps / per_step / _PS_PER_MS

    def per_npu(tpot: float) -> float | None:
        if facts.batch_per_npu is None or tpot <= 0:
            return None
        return facts.batch_per_npu / tpot * 1e3

    def scaled(value: float | None, scale: float) -> float | None:
        return None if value is None else float(value) / scale

    def around(value: float, scale: float) -> list[float] | None:
        """Return the interval of a time that grows with the step."""
        reach = scaled(step["reach_ps"], scale)
        return None if reach is None else [value - reach, value + reach]

    extrapolated = step["missing"] > 0
    tpot = around(tpot_ms, per_step * _PS_PER_MS)
    # A sample that says nothing, not even that the step takes time, bounds no rate.
    rates = None
    if tpot is not None and tpot[0] > 0 and facts.batch_per_npu is not None:
        rates = [per_npu(tpot[1]), per_npu(tpot[0])]
    median = float(facts.attending(ranks)["step_ps"].median())
    spread = (layers[layers["moe"]] if layers["moe"].any() else layers)["straggler_spread"].dropna()
    summary: dict[str, Any] = {
        "schema": 1,
        "run": {
            name: result.summary.get(name)
            for name in ("topology", "seed", "payload_bytes", "plane_policy", "path_policy")
        },
        "n_ranks": len(ranks),
        "moe_layers_simulated": step["moe_layers_simulated"],
        "moe_layers_total": step["moe_layers_total"],
        "moe_layers_drawn": step["drawn"],
        "confidence": CONFIDENCE,
        "extrapolated": extrapolated,
        "extrapolation": _statement(step),
        "simulated_step_ms": float(ranks["simulated_step_ps"].max()) / _PS_PER_MS,
        "step_ms": step_ps / _PS_PER_MS,
        "step_standard_error_ms": scaled(step["error_ps"], _PS_PER_MS),
        "step_interval_ms": around(step_ps / _PS_PER_MS, _PS_PER_MS),
        "layer_us": scaled(step["layer_ps"], _PS_PER_US),
        "layer_standard_deviation_us": scaled(step["deviation_ps"], _PS_PER_US),
        "tokens_per_step": per_step,
        "mtp_tokens": facts.mtp_tokens,
        "mtp_acceptance": facts.mtp_acceptance,
        "batch_per_npu": facts.batch_per_npu,
        "tpot_ms": tpot_ms,
        "tpot_standard_error_ms": scaled(step["error_ps"], per_step * _PS_PER_MS),
        "tpot_interval_ms": tpot,
        "tokens_per_s_per_npu": per_npu(tpot_ms),
        "tokens_per_s_per_npu_interval": rates,
        "rank_tpot_ms": _observed(ranks["tpot_ps"], _PS_PER_MS),
        "message_latency_us": {},
        "rank_latency_us": {},
        "shares": {name: float(shares[name].mean()) for name in SHARES},
        "shares_extrapolated": extrapolated and step["moe_layers_simulated"] > 1,
        "overlapped": float(shares["overlapped"].mean()),
        "communication": float(shares["communication"].mean()),
        "exposed_communication": float(
            shares[["dispatch_wait", "combine_wait", "other_wait"]].sum(axis=1).mean()
        ),
        "step_straggler_spread": (step_ps - median) / median if median else 0.0,
        "layer_straggler_spread_mean": float(spread.mean()) if len(spread) else None,
        "layer_straggler_spread_max": float(spread.max()) if len(spread) else None,
        "inputs": facts.inputs,
    }
    if facts.attention_ranks:
        attends = shares["rank"] < facts.attention_ranks
        summary["shares_by_group"] = {
            group: {name: float(shares.loc[of_group, name].mean()) for name in SHARES}
            for group, of_group in (("attention", attends), ("experts", ~attends))
        }
    for row in latency[latency["layer"] == -1].to_dict("records") if len(latency) else []:
        summary["message_latency_us"][str(row["phase"])] = {
            name: float(row[f"message_{name}_ps"]) / _PS_PER_US for name in _STATISTICS
        }
    for kind in _phases(alike):
        part = alike[alike["kind"] == kind]
        times = part["finish_ps"] - part["start_ps"]
        summary["rank_latency_us"][kind] = _observed(times, _PS_PER_US) | {
            name: float(part[f"{name}_ps"].mean()) / _PS_PER_US
            for name in ("computing", "senders", "network")
        }
    return summary


def _statement(step: dict[str, Any]) -> str:
    """Say in one sentence whether and how the step was extrapolated."""
    simulated, total, missing = (
        step[name] for name in ("moe_layers_simulated", "moe_layers_total", "missing")
    )
    if total is None:
        return (
            f"not extrapolated: the step is the {simulated} MoE layers simulated, because the "
            "trace does not state how many the model has"
        )
    if not missing:
        return f"not extrapolated: all {total} MoE layers were simulated"
    how = ", drawn at random" if step["drawn"] else ""
    text = f"extrapolated from {simulated} of {total} layers{how}: {missing} more at "
    text += f"{step['layer_ps'] / _PS_PER_US:,.1f} us each"
    if not step["increments"]:
        return text + ", the time of the only layer with its pipeline fill (an upper estimate)"
    if step["increments"] == 1:
        return text + ", one increment, so the error is unknown"
    low, high = step["low_ps"] / _PS_PER_US, step["high_ps"] / _PS_PER_US
    text += f", the mean of {step['increments']} increments of {low:,.1f} to {high:,.1f} us; "
    if not step["drawn"]:
        return text + "the layers were not drawn at random, so the error is unknown"
    return text + f"{_confident()} interval of the step +- {step['reach_ps'] / _PS_PER_MS:.2f} ms"


#: Results of a paper row: key, name, unit, scale to it, and the simulated value.
_COMPARED: dict[str, tuple[str, str, float, Callable[[dict[str, Any]], float | None]]] = {
    "tpot_ps": ("TPOT", "ms", _PS_PER_MS, lambda s: s["tpot_ms"]),
    "tokens_per_s_per_npu": ("tokens/s per NPU", "1/s", 1, lambda s: s["tokens_per_s_per_npu"]),
    "step_ps": ("decode step", "ms", _PS_PER_MS, lambda s: s["step_ms"]),
    "layer_ps": ("MoE layer, steady", "us", _PS_PER_US, lambda s: s["layer_us"]),
    "dispatch_ps": (
        "dispatch, rank median",
        "us",
        _PS_PER_US,
        lambda s: s["rank_latency_us"].get("dispatch", {}).get("p50"),
    ),
    "combine_ps": (
        "combine, rank median",
        "us",
        _PS_PER_US,
        lambda s: s["rank_latency_us"].get("combine", {}).get("p50"),
    ),
}


def _compare(
    facts: _Facts, summary: dict[str, Any], metadata: Mapping[str, Any]
) -> tuple[pd.DataFrame, list[str]]:
    """Return the paper's numbers beside the simulated ones, and its rows at other points."""
    records: list[dict[str, Any]] = []
    elsewhere: list[str] = []
    for row in facts.paper_rows:
        known = {*_COMPARED, "source", "strength", "note"}
        point = {
            key: _bare(value)
            for key, value in row.items()
            if key not in known and value not in (None, "")
        }
        where = ", ".join(_condition(key, value) for key, value in point.items())
        here = {key: metadata.get(key, metadata.get(f"n_{key}", point[key])) for key in point}
        if here != point:
            elsewhere.append(where)
            continue
        for key, (name, unit, scale, find) in _COMPARED.items():
            entry = row.get(key)
            if entry is None:
                continue
            entry = entry if isinstance(entry, Mapping) else {"value": entry}
            value = entry.get("value")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise ResultError(
                    f"trace metadata: paper_rows: {key}: found {value!r}, expected a number above 0"
                )
            paper, simulated = value / scale, find(summary)
            difference = None if simulated is None else simulated - paper
            records.append(
                {
                    "quantity": name,
                    "unit": unit,
                    "simulated": simulated,
                    "paper": paper,
                    "difference": difference,
                    "difference_percent": None if difference is None else 100 * difference / paper,
                    "point": where,
                    "strength": str(entry.get("strength") or row.get("strength") or ""),
                    "source": str(entry.get("source") or row.get("source") or ""),
                    "note": str(entry.get("note") or row.get("note") or ""),
                }
            )
    columns = ["quantity", "unit", "simulated", "paper", "difference", "difference_percent"]
    columns += ["point", "strength", "source", "note"]
    return pd.DataFrame(records, columns=columns), elsewhere


def _bare(value: Any) -> Any:
    return value["value"] if isinstance(value, Mapping) and "value" in value else value


def _condition(key: str, value: Any) -> str:
    """Say ``slo_ps: 50000000000`` as ``slo 50 ms``."""
    if key.endswith("_ps") and isinstance(value, (int, float)):
        return f"{key.removesuffix('_ps')} {value / _PS_PER_MS:g} ms"
    return f"{key.replace('_', ' ').replace('npu', 'NPU').replace('kv', 'KV')} {value}"


def _render(tokens: Tokens) -> RenderableType:
    """Return the summary as tables for a terminal."""
    s = tokens.summary
    parts: list[RenderableType] = [Text(s["extrapolation"][0].upper() + s["extrapolation"][1:])]

    def with_interval(value: float, interval: list[float] | None, unit: str, digits: int) -> str:
        text = f"{value:,.{digits}f}"
        if interval is not None and s["extrapolated"]:
            text += f" +- {value - interval[0]:,.{digits}f}"
        return f"{text} {unit}".rstrip()

    def table_of(title: str, *columns: str, left: Iterable[str] = (), header: bool = True) -> Table:
        """Add a table under its title; a Table's own title wraps at the table's width."""
        table = Table(show_header=header)
        for name in columns:
            table.add_column(name, justify="left" if name in left else "right")
        parts.extend([Text(f"\n{title}", style="bold"), table])
        return table

    head = table_of("Tokens", "quantity", "value", "meaning", left=_LEFT, header=False)
    head.add_row(
        "decode step", with_interval(s["step_ms"], s["step_interval_ms"], "ms", 2), "slowest rank"
    )
    if s["mtp_tokens"]:
        meaning = f"{s['mtp_tokens']} speculative, acceptance {s['mtp_acceptance']:g}"
    else:
        meaning = "no speculative tokens stated"
    head.add_row("tokens per step", f"{s['tokens_per_step']:.2f}", meaning)
    head.add_row(
        "TPOT",
        with_interval(s["tpot_ms"], s["tpot_interval_ms"], "ms", 2),
        f"rank p50 {s['rank_tpot_ms']['p50']:,.2f}, p99 {s['rank_tpot_ms']['p99']:,.2f} ms",
    )
    if s["tokens_per_s_per_npu"] is None:
        head.add_row("tokens/s per NPU", "-", "the trace does not state batch_per_npu")
    else:
        head.add_row(
            "tokens/s per NPU",
            f"{s['tokens_per_s_per_npu']:,.0f}",
            f"batch {s['batch_per_npu']:g} per NPU",
        )
    if s["layer_us"] is not None:
        head.add_row("MoE layer, steady", f"{s['layer_us']:,.1f} us", "mean increment")
    head.add_row(
        "straggler spread",
        f"{100 * s['step_straggler_spread']:.2f} %",
        "step; by layer "
        + (
            f"{100 * s['layer_straggler_spread_mean']:.1f} % mean, "
            f"{100 * s['layer_straggler_spread_max']:.1f} % at most"
            if s["layer_straggler_spread_mean"] is not None
            else "unknown"
        ),
    )

    if len(tokens.paper):
        table = table_of(
            "Beside the paper",
            *("quantity", "simulated", "paper", "difference", "", "strength", "source"),
            left=_LEFT,
        )
        footnotes: dict[str, int] = {}
        for row in tokens.paper.to_dict("records"):
            unit = "" if row["unit"] == "1/s" else f" {row['unit']}"
            missing = row["simulated"] is None or pd.isna(row["simulated"])
            digits = ".0f" if row["unit"] == "1/s" else ".2f"
            parts_of_note = [row["source"] or "no source stated"]
            parts_of_note += [f"at {row['point']}"] if row["point"] else []
            parts_of_note += [row["note"]] if row["note"] else []
            number = footnotes.setdefault("; ".join(parts_of_note), len(footnotes) + 1)
            paper = f"{row['paper']:,.5g}" if row["paper"] < 1e3 else f"{row['paper']:,.0f}"
            table.add_row(
                row["quantity"],
                "not known" if missing else f"{row['simulated']:,{digits}}{unit}",
                f"{paper}{unit}",
                "" if missing else f"{row['difference']:+,{digits}}{unit}",
                "" if missing else f"{row['difference_percent']:+.1f} %",
                Text(row["strength"]),
                f"({number})",
            )
        parts += [Text(f"({number}) {note}") for note, number in footnotes.items()]
    elif s["paper_rows_at_other_points"]:
        points = "; ".join(s["paper_rows_at_other_points"])
        parts.append(Text(f"\nThe paper has no row for this point; it has {points}."))
    if s["inputs"]:
        parts.append(Text("\nInputs, not simulated", style="bold"))
    for row in s["inputs"]:
        source = f": {row['source']}" if ".attention." in f".{row['key']}." else ""
        parts.append(Text(f"{row['key']} = {row['value']} ({row['strength']}){source}"))

    table = table_of("Latency in us", *("phase", "seen by", *_STATISTICS), left=_LEFT)
    for key, label in (("message_latency_us", "message"), ("rank_latency_us", "rank")):
        for phase, stats in s[key].items():
            values = [f"{stats[name]:,.1f}" for name in _STATISTICS]
            table.add_row(phase, label, *values)
    if s["extrapolated"] and s["moe_layers_drawn"]:
        seen = tokens.intervals[tokens.intervals["quantity"].isin(["message", "rank"])]
        for (label, phase), rows in seen.groupby(["quantity", "phase"], sort=False):
            spans = [
                f"{row['statistic']} {_span(row['low_ps'], row['high_ps'])}"
                for row in rows.to_dict("records")
            ]
            parts.append(
                Text(f"{phase} by {label} over all layers, {_confident()}, us: {', '.join(spans)}")
            )
    for phase, stats in s["rank_latency_us"].items():
        parts.append(
            Text(
                f"{phase}, mean of ranks: {stats['computing']:,.1f} us computing, "
                f"{stats['senders']:,.1f} us until the last sender begins, "
                f"{stats['network']:,.1f} us network"
            )
        )

    if len(tokens.pool):
        names = ("moved", "over", "n", "GB", "p50 us", "p99 us", "max us", "GB/s each")
        table = table_of("Beside the step", *names, left={"moved", "over"})
        for row in tokens.pool.to_dict("records"):
            times = [f"{row[f'{name}_ps'] / _PS_PER_US:,.0f}" for name in ("p50", "p99", "max")]
            size, rate = f"{row['bytes'] / 1e9:,.3f}", f"{row['bytes_per_s'] / 1e9:,.1f}"
            table.add_row(row["kind"], row["network"], f"{row['transfers']}", size, *times, rate)

    title = "Where the step goes (mean over ranks"
    title += ", extrapolated like the step)" if s["shares_extrapolated"] else ")"
    columns = {"%": s["shares"]}
    for group, of_group in s.get("shares_by_group", {}).items():
        columns[f"% of dies with {group}"] = of_group
    table = table_of(title, "share", *columns, left=_LEFT)
    for name in SHARES:
        if s["shares"][name] > 0:
            table.add_row(
                name.replace("_", " "), *(f"{100 * of[name]:.1f}" for of in columns.values())
            )
    parts.append(
        Text(
            f"Two or more tasks at once {100 * s['overlapped']:.1f} %; communication "
            f"{100 * s['communication']:.1f} %, of which exposed "
            f"{100 * s['exposed_communication']:.1f} % of the step."
        )
    )
    return Group(*parts)


def _confident() -> str:
    return f"{100 * CONFIDENCE:g} %"


def _span(low_ps: float, high_ps: float) -> str:
    """Say an interval in microseconds; an end may be missing."""
    low, high = low_ps / _PS_PER_US, high_ps / _PS_PER_US
    if math.isnan(low):
        return "unknown" if math.isnan(high) else f"up to {high:,.1f}"
    return f"{low:,.1f} or more" if math.isnan(high) else f"{low:,.1f} to {high:,.1f}"


#: Columns of text, which align left.
_LEFT = frozenset(["quantity", "meaning", "strength", "source", "phase", "seen by", "share"])
