"""The results folder of a run of requests: tables, summary, and the table that people read.

::

    serving/demo/
        requests.parquet   one row a request
        pools.parquet      queues and batches over time, one row a pool instance and look
        summary.json       latencies, throughput, objectives, cache, step times and their errors

Columns are in :data:`REQUEST_SCHEMA` and :data:`POOL_SCHEMA`, and explained in
``traffic/README.md``.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Group, RenderableType
from rich.table import Table

from ubfabric.distribution import QUANTILES
from ubfabric.errors import ResultError

#: Version of the folder; it changes when a column changes its name, type or meaning.
SERVING_SCHEMA = 1

#: One row a request, in the order in which they arrive; null where a request has none.
REQUEST_SCHEMA = pa.schema(
    [
        ("arrival_ps", pa.int64()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("prefill_instance", pa.int16()),
        ("prefill_start_ps", pa.int64()),
        ("prefill_end_ps", pa.int64()),
        ("decode_instance", pa.int16()),
        ("die", pa.int16()),
        ("admitted_ps", pa.int64()),
        ("transfer_end_ps", pa.int64()),
        ("finish_ps", pa.int64()),
        ("steps", pa.int32()),
        ("ttft_ps", pa.int64()),
        ("tpot_ps", pa.float64()),
        ("e2e_ps", pa.int64()),
        ("within_ttft", pa.bool_()),
        ("within_tpot", pa.bool_()),
    ]
)

#: One row a look and instance.
POOL_SCHEMA = pa.schema(
    [
        ("time_ps", pa.int64()),
        ("pool", pa.dictionary(pa.int8(), pa.string())),
        ("instance", pa.int16()),
        ("queued_requests", pa.int32()),
        ("queued_tokens", pa.int64()),
        ("running_requests", pa.int32()),
        ("running_tokens", pa.int64()),
        ("step_ps", pa.int64()),
    ]
)
_REQUESTS, _POOLS, _SUMMARY = "requests.parquet", "pools.parquet", "summary.json"
_PS_PER_MS = 1e9


class ServingResult:
    """A complete results folder of a run of requests, opened for reading.

    Parameters
    ----------
    path : path
        The folder.

    Attributes
    ----------
    path : Path
    summary : dict
        Content of ``summary.json``.

    Raises
    ------
    ResultError
        If it is none, or of another schema version.

    Examples
    --------
    >>> result = ServingResult("serving/demo")                          # doctest: +SKIP
    >>> result.requests()["ttft_ps"].quantile(0.99) / 1e9               # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        file = self.path / _SUMMARY
        try:
            self.summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ResultError(f"{self.path}: not a folder that 'ubfabric serve' wrote") from None
        except (OSError, ValueError) as error:
            raise ResultError(f"{file}: cannot be read: {error}") from None
        is_ours = isinstance(self.summary, dict) and self.summary.get("kind") == "serving"
        if not is_ours:
            raise ResultError(f"{file}: not the summary of a run of requests")
        if self.summary.get("schema") != SERVING_SCHEMA:
            raise ResultError(
                f"{file}: schema version {self.summary.get('schema')!r}, expected {SERVING_SCHEMA}"
            )

    def requests(self) -> pd.DataFrame:
        """Return one row a request; columns of :data:`REQUEST_SCHEMA`."""
        return self._read(_REQUESTS)

    def pools(self) -> pd.DataFrame:
        """Return one row a look and instance; columns of :data:`POOL_SCHEMA`."""
        return self._read(_POOLS)

    def _read(self, name: str) -> pd.DataFrame:
        try:
            return pq.read_table(self.path / name).to_pandas()
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise ResultError(f"{self.path / name}: cannot be read: {reason}") from None

    def __rich__(self) -> RenderableType:
        return _render(self.summary)


def request_table(
    arrival_ps: np.ndarray,
    prompt_tokens: np.ndarray,
    output_tokens: np.ndarray,
    columns: Mapping[str, np.ndarray],
    ttft_objective_ps: int | None,
    tpot_objective_ps: int | None,
) -> pa.Table:
    """Return the table of requests.

    Parameters
    ----------
    arrival_ps, prompt_tokens, output_tokens : ndarray of int64, shape (n_requests,)
    columns : mapping of str to ndarray of int64, shape (n_requests,)
        As of :class:`ubfabric.serving.Served`; negative where a request has none.
    ttft_objective_ps, tpot_objective_ps : int or None
        Without an objective every request is within it.

    Returns
    -------
    pyarrow.Table
        Of :data:`REQUEST_SCHEMA`.
    """
    n = len(arrival_ps)
    first, finish = columns["prefill_end_ps"], columns["finish_ps"]
    later = output_tokens - 1
    has_later = later > 0
    tpot = np.divide(finish - first, later, out=np.full(n, np.nan), where=has_later)
    ttft = first - arrival_ps
    all_within = np.ones(n, bool)
    values: dict[str, Any] = {
        **columns,
        "arrival_ps": arrival_ps,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "ttft_ps": ttft,
        "tpot_ps": tpot,
        "e2e_ps": finish - arrival_ps,
        "within_ttft": all_within if ttft_objective_ps is None else ttft <= ttft_objective_ps,
        "within_tpot": (
            all_within if tpot_objective_ps is None else ~has_later | (tpot <= tpot_objective_ps)
        ),
    }
    arrays = []
    for column in REQUEST_SCHEMA:
        value = values[column.name]
        missing = np.zeros(n, bool) if value.dtype == bool else ~(value >= 0)
        arrays.append(pa.array(value, mask=missing).cast(column.type))
    return pa.Table.from_arrays(arrays, schema=REQUEST_SCHEMA)


def summarise(
    table: pa.Table, counters: Mapping[str, Any], npus: Mapping[str, int], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the summary of a run, JSON-able.

    Parameters
    ----------
    table : pyarrow.Table
        Of :data:`REQUEST_SCHEMA`.
    counters : mapping
        As of :class:`ubfabric.serving.Served`.
    npus : mapping of str to int
        NPUs of all instances of ``prefill`` and of ``decode``.
    about : mapping
        Goes into the summary as it is; ``objectives`` has the objectives in picoseconds.
    """
    window_s = counters["window_ps"] / 1e12
    of = {name: table[name].to_numpy(zero_copy_only=False) for name in table.schema.names}
    both = of["within_ttft"] & of["within_tpot"]
    n = table.num_rows

    def share(mask: np.ndarray) -> float | None:
        return float(mask.mean()) if n else None

    def pool(name: str, window_tokens: int, tokens: str) -> dict[str, Any]:
        instances = counters[name]
        busy_s = sum(i["busy_ps"] for i in instances) / 1e12
        done = sum(i[tokens] for i in instances)
        of_one = npus[name] / len(instances)
        end_s = counters["end_ps"] / 1e12
        return {
            "npus": npus[name],
            "instances": instances,
            "tokens_per_s_per_npu": window_tokens / window_s / npus[name] if window_s else None,
            "tokens_per_s_per_npu_while_busy": done / busy_s / of_one if busy_s else None,
            "busy_share": busy_s / end_s / len(instances) if end_s else None,
        }

    waits = of["prefill_start_ps"] - of["arrival_ps"]
    decoded = of["output_tokens"] > 1
    return {
        "schema": SERVING_SCHEMA,
        "kind": "serving",
        **about,
        "requests": n,
        "prompt_tokens": int(of["prompt_tokens"].sum()),
        "cached_tokens": int(of["cached_tokens"].sum()),
        "output_tokens": int(of["output_tokens"].sum()),
        "window_s": window_s,
        "end_s": counters["end_ps"] / 1e12,
        "ttft_ms": _percentiles(of["ttft_ps"]),
        "tpot_ms": _percentiles(of["tpot_ps"][decoded]),
        "e2e_ms": _percentiles(of["e2e_ps"]),
        "prefill_wait_ms": _percentiles(waits),
        "decode_wait_ms": _percentiles((of["admitted_ps"] - of["prefill_end_ps"])[decoded]),
        "transfer_ms": _percentiles((of["transfer_end_ps"] - of["admitted_ps"])[decoded]),
        "within_objectives": {
            "ttft": share(of["within_ttft"]),
            "tpot": share(of["within_tpot"]),
            "both": share(both),
            "requests_per_s": float(both.sum()) / window_s if window_s else None,
        },
        "admitted_beyond_objective": counters["admitted_beyond_objective"],
        "prefill": pool("prefill", counters["window_prompt_tokens"], "prompt_tokens"),
        "decode": pool("decode", counters["window_decode_tokens"], "output_tokens"),
        "cache": counters["cache"],
    }


def _percentiles(values_ps: np.ndarray) -> dict[str, float] | None:
    """Return mean, percentiles that occurred and the largest, in milliseconds."""
    if not len(values_ps):
        return None
    values = np.asarray(values_ps, np.float64) / _PS_PER_MS
    found = {"mean": float(values.mean())}
    for name, q in QUANTILES.items():
        found[name] = float(np.quantile(values, q, method="inverted_cdf"))
    return found | {"max": float(values.max())}


def check_target(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return the folder to write, or say why it cannot be.

    Raises
    ------
    ResultError
        If there is something else, or a run and ``overwrite`` is false.
    """
    target = Path(path)
    if target.is_dir() and not any(target.iterdir()):
        return target
    if target.is_dir() and overwrite:
        ServingResult(target)  # nothing but a run of requests is ever replaced
        return target
    if target.exists():
        raise ResultError(
            f"{path}: exists; give another folder, or overwrite a run of requests with --overwrite "
            "(overwrite=True)"
        )
    return target


def write_serving(
    path: str | os.PathLike[str],
    requests: pa.Table,
    samples: Mapping[str, list[Any]],
    summary: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> ServingResult:
    """Write a results folder, which appears under its name when it is whole.

    Parameters
    ----------
    path : path
    requests : pyarrow.Table
        Of :data:`REQUEST_SCHEMA`.
    samples : mapping of str to list
        Columns of :data:`POOL_SCHEMA`.
    summary : mapping
        JSON-able.
    overwrite : bool
        Replace a complete run of that name.

    Raises
    ------
    ResultError
        As of :func:`check_target`, or if it cannot be written.
    """
    target = check_target(path, overwrite=overwrite)
    partial: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}.partial-{os.getpid()}-"
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        partial.chmod(0o755)
        pools = pa.Table.from_pydict(dict(samples), schema=POOL_SCHEMA)
        for table, name in ((requests, _REQUESTS), (pools, _POOLS)):
            pq.write_table(table, partial / name, compression="zstd", compression_level=1)
        text = json.dumps(summary, indent=1)
        (partial / _SUMMARY).write_text(text + "\n", encoding="utf-8")
        ServingResult(partial)  # never publish what cannot be read back
        if target.exists():
            aside = partial.with_name(f"{partial.name}-old")
            os.rename(target, aside)
            os.rename(partial, target)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(partial, target)
        partial = None
    except OSError as error:
        raise ResultError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return ServingResult(target)


# --------------------------------------------------------------------------- for people


def _render(summary: Mapping[str, Any]) -> RenderableType:
    """Return tables of latencies, pools and times."""
    objectives = summary["objectives"]
    served = f"{summary['requests']:,} requests in {summary['window_s']:,.0f} s"
    latency = Table(title=f"{summary['name']}: {served}", title_justify="left")
    for column in ("ms", "mean", "p50", "p90", "p99", "max", "objective", "within"):
        # What does not fit goes on below, where an ellipsis would leave another number.
        latency.add_column(column, justify="left" if column == "ms" else "right", overflow="fold")
    rows = {
        "TTFT": ("ttft_ms", "ttft"),
        "TPOT": ("tpot_ms", "tpot"),
        "end to end": ("e2e_ms", None),
        "prefill wait": ("prefill_wait_ms", None),
        "decode wait": ("decode_wait_ms", None),
        "KV transfer": ("transfer_ms", None),
    }
    for title, (key, objective) in rows.items():
        values = summary[key]
        if values is None:
            continue
        cells = [_plain(values[name]) for name in ("mean", "p50", "p90", "p99", "max")]
        bound = objectives.get(f"{objective}_ps") if objective else None
        cells.append("" if bound is None else f"{bound / _PS_PER_MS:,.9g}")
        cells.append("" if bound is None else f"{summary['within_objectives'][objective]:.1%}")
        latency.add_row(title, *cells)
    pools = Table(title="Pools", title_justify="left")
    for column in ("", "NPUs", "tokens/s per NPU", "while busy", "busy"):
        pools.add_column(column, justify="right" if column else "left", overflow="fold")
    for name in ("prefill", "decode"):
        pool = summary[name]
        rates = (pool["tokens_per_s_per_npu"], pool["tokens_per_s_per_npu_while_busy"])
        cells = ["-" if rate is None else f"{rate:,.0f}" for rate in rates]
        busy = "-" if pool["busy_share"] is None else f"{pool['busy_share']:.1%}"
        pools.add_row(name, f"{pool['npus']:,}", *cells, busy)
    times = Table(title="Times from packets", title_justify="left")
    for column in ("", "points", "error, mean", "error, max", "asked", "below", "above"):
        times.add_column(column, justify="right" if column else "left", overflow="fold")
    for name, report in summary["step_times"].items():
        out = report["leave_one_out"]
        errors = ["-" if out[k] is None else f"{out[k]:.1%}" for k in ("mean", "max")]
        beyond = [
            max(report[side].values()) / report["asked"] if report["asked"] else 0.0
            for side in ("below", "above")
        ]
        times.add_row(
            name.replace("_", " "),
            f"{np.size(report['times_ps']):,}",
            *errors,
            f"{report['asked']:,}",
            *(f"{value:.1%}" for value in beyond),
        )
    within = summary["within_objectives"]
    lines = [f"within all objectives: {within['both']:.1%} of requests"]
    if within["requests_per_s"] is not None:
        lines[0] += f", {_plain(within['requests_per_s'])} a second"
    if summary["cached_tokens"]:
        lines.append(f"prompt tokens from the cache: {_share(summary):.1%}")
    if summary["admitted_beyond_objective"]:
        n = summary["admitted_beyond_objective"]
        lines.append(f"admitted alone though beyond the objective of TPOT: {n:,}")
    lines.append(
        "error: an inner point of the grid predicted from its neighbours; below, above: share of "
        "askings beyond the grid, answered by its edge"
    )
    return Group(latency, pools, times, *lines)


def _plain(value: float) -> str:
    """Return a number with four digits, all of those before the point, and no exponent."""
    text = f"{float(f'{value:.4g}'):,.9f}".rstrip("0").rstrip(".")
    return f"{value:,.0f}" if abs(value) >= 1000 else text


def _share(summary: Mapping[str, Any]) -> float:
    return float(summary["cached_tokens"] / summary["prompt_tokens"])
