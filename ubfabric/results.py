"""The run folder: four files that a replay writes and that tokens and plots read.

::

    runs/demo/
        flows.parquet     one row a flow; each row group holds flows of one layer only
        tasks.parquet     one row a task of a rank
        links.parquet     one row a one-way link of the fabric
        summary.json      spec, seed, versions, totals, wall time; written last
        account.parquet   where the time of each flow went; only if asked for
        samples.parquet   load and queue of each link over time; only if asked for

:class:`RunWriter` fills a hidden folder beside the target and renames it at the very
end, so a folder under its final name is always whole. :class:`RunResult` opens a run
folder, checks it, and reads it layer by layer: a step of 58 layers (17 million flows)
never has to sit in memory at once.

The Parquet files depend on the simulation alone: no time stamp, no host name, no
version of pandas. The same trace and seed give the same bytes with the same pyarrow;
what differs from run to run (wall time) stands in ``summary.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ubfabric.errors import ResultError

#: Version of the run folder; it changes when a column changes its name, type or meaning.
RESULT_SCHEMA = 1

_LABEL = pa.dictionary(pa.int32(), pa.string())

#: One row a flow. Times are absolute simulated times unless the name says otherwise.
FLOW_SCHEMA = pa.schema(
    [
        ("phase", _LABEL),  # "dispatch", "combine" or any name of the trace
        ("layer", pa.int16()),
        ("microbatch", pa.int8()),
        ("src", pa.int32()),  # source rank
        ("dst", pa.int32()),  # destination rank; equal to src for a local copy
        ("network", _LABEL),  # "ub", "rdma" or "vpc"
        ("operation", _LABEL),  # "write", "read", "sdma-write" or "sdma-read"
        ("service_level", pa.int8()),
        ("messages", pa.int32()),
        ("message_bytes", pa.int32()),  # payload of one message
        ("bytes", pa.int64()),  # messages * message_bytes, headers not counted
        ("packets", pa.int64()),
        ("start_ps", pa.int64()),  # handed to the endpoint
        ("first_byte_ps", pa.int64()),  # first byte at the destination port
        ("finish_ps", pa.int64()),  # last byte seen by the receiver
        ("fct_ps", pa.int64()),  # finish_ps - start_ps
        ("hops", pa.int16()),  # links crossed; 0 for a local copy
        (
            "queueing_ps",
            pa.int64(),
        ),  # summed over packets: waiting beyond the unloaded path
    ]
)

#: One row a task of a rank.
TASK_SCHEMA = pa.schema(
    [
        ("task", pa.int64()),
        ("rank", pa.int32()),
        ("stream", pa.int8()),
        ("kind", _LABEL),  # "attention", "gate", "dispatch", "expert", "combine", ...
        ("layer", pa.int16()),
        ("microbatch", pa.int8()),  # -1: all microbatches
        ("duration_ps", pa.int64()),  # computation before anything is sent
        ("ready_ps", pa.int64()),  # all tasks it depends on have finished
        ("start_ps", pa.int64()),
        ("finish_ps", pa.int64()),
        ("issued_ps", pa.int64()),  # last own message issued, -1 if it sends nothing
        ("arrived_ps", pa.int64()),  # last awaited flow seen, -1 if it waits for none
    ]
)

#: One row a one-way link; a cable is two links.
LINK_SCHEMA = pa.schema(
    [
        ("link", pa.int32()),
        ("src", _LABEL),  # node names
        ("dst", _LABEL),
        ("plane", _LABEL),
        ("level", _LABEL),  # kinds of the two ends: "die-l1", "l1-l2", "l2-l1", ...
        ("bandwidth_bytes_per_s", pa.int64()),
        ("packets", pa.int64()),
        ("bytes", pa.int64()),  # on the wire, headers counted
        ("busy_ps", pa.int64()),
        ("max_queue_bytes", pa.int64()),
        ("no_credit_ps", pa.int64()),
        ("retries", pa.int64()),  # transmissions that a bit error spoilt
    ]
)

#: One row a flow, in the order of the flow table; only if asked for. Where the time of the
#: flow's packets went, summed over them: the parts of a packet add up from the hand-over of the
#: flow to the packet's last byte at the port of its destination.
ACCOUNT_SCHEMA = pa.schema(
    [
        ("layer", pa.int16()),
        ("issue_ps", pa.int64()),  # hand-over until the packet is ready for a port
        ("source_wait_ps", pa.int64()),  # waiting for a port of the source
        ("first_wait_ps", pa.int64()),  # waiting in the first switch
        ("second_wait_ps", pa.int64()),  # in the second
        ("further_wait_ps", pa.int64()),  # in further ones
        ("serialise_ps", pa.int64()),  # on the wire
        ("propagate_ps", pa.int64()),  # in cables
        ("switch_ps", pa.int64()),  # forwarding latency of switches
    ]
)

#: One row a sample and link that sent or held something; only if asked for.
SAMPLE_SCHEMA = pa.schema(
    [
        ("time_ps", pa.int64()),
        ("link", pa.int32()),
        ("bytes", pa.int64()),  # sent since the sample before, on the wire
        ("waiting_bytes", pa.int64()),  # waiting for the link at that time
    ]
)

_SCHEMAS = {"flows": FLOW_SCHEMA, "tasks": TASK_SCHEMA, "links": LINK_SCHEMA}
#: Tables that a run has if they were asked for.
_OPTIONAL = {"account": ACCOUNT_SCHEMA, "samples": SAMPLE_SCHEMA}
_ALL_SCHEMAS = _SCHEMAS | _OPTIONAL
_SUMMARY = "summary.json"
_RUN_FILES = frozenset([*(f"{name}.parquet" for name in _SCHEMAS), _SUMMARY])
#: Other files that ubfabric itself puts into a run folder, replaced together with it.
_COMPANIONS = frozenset(["tokens.json", *(f"{name}.parquet" for name in _OPTIONAL)])
_PICTURES = (".png", ".pdf")
#: Columns with few distinct values; for all others a Parquet dictionary costs time and saves
#: nothing, while consecutive times differ little and pack well as differences.
_FEW_VALUES = frozenset(
    [
        "phase",
        "layer",
        "microbatch",
        "network",
        "operation",
        "service_level",
        "messages",
        "message_bytes",
        "packets",
        "hops",
        "stream",
        "kind",
        "plane",
        "level",
        "bandwidth_bytes_per_s",
        "bytes",
        "duration_ps",
    ]
)


def check_run_target(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Return the resolved folder that a run may be written to.

    Call it before a long simulation: it touches nothing.

    Parameters
    ----------
    path : path
        The folder to be written. It may be absent or empty.
    overwrite : bool
        Whether a complete run folder that stands there may be replaced.

    Raises
    ------
    ResultError
        If ``path`` is a file, a run folder and ``overwrite`` is false, or any other
        folder with content (which is never deleted).
    """
    target = Path(os.path.realpath(path))
    if not target.exists():
        return target
    if not target.is_dir():
        raise ResultError(f"{path}: found a file, expected a new folder for the run")
    present = {item.name for item in target.iterdir()}
    if not present:
        return target
    if not present >= _RUN_FILES:
        raise ResultError(
            f"{path}: the folder holds {min(present)!r} and is not a complete run folder, so it "
            "is not replaced; give a new or an empty folder"
        )
    foreign = sorted(
        name
        for name in present - _RUN_FILES - _COMPANIONS
        if not name.endswith(_PICTURES) or (target / name).is_dir()
    )
    if foreign:
        raise ResultError(
            f"{path}: the run folder also holds {foreign[0]!r}, which is not part of a run, so it "
            "is not replaced; move that away or give another folder"
        )
    if not overwrite:
        raise ResultError(f"{path}: a run folder exists here; allow overwriting or give another")
    return target


@final
class RunWriter:
    """Write a run folder that appears under its name only when it is whole.

    Parameters
    ----------
    path : path
        The final folder. Missing parent folders are made.
    overwrite : bool
        Whether a complete run folder of that name may be replaced.
    compress : bool
        Whether the tables are compressed.

    Raises
    ------
    ResultError
        As :func:`check_run_target`, or if the folder cannot be made.

    Notes
    -----
    The writer works in ``.<name>.partial-<pid>-<random>`` beside the target. Leaving the
    ``with`` block before :meth:`finish` removes it; a killed process leaves it behind
    without ``summary.json``, hence not readable as a run, and it may be deleted.

    Examples
    --------
    >>> with RunWriter("runs/demo") as writer:                          # doctest: +SKIP
    ...     for layer, table in simulated_layers:
    ...         writer.write_flows(layer, table)
    ...     writer.write_tasks(tasks)
    ...     writer.write_links(links)
    ...     result = writer.finish(summary)
    """

    def __init__(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, compress: bool = True
    ) -> None:
        self.path = check_run_target(path, overwrite=overwrite)
        # What is read once and thrown away needs no statistics but those that find a layer.
        self._encoding: dict[str, Any] = {"compression": "none", "write_statistics": ["layer"]}
        if compress:
            self._encoding = {"compression": "zstd", "compression_level": 1}
        self._label = os.fspath(path)
        self._overwrite = overwrite
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._rows = dict.fromkeys(_SCHEMAS, 0)
        self._last_layer: int | None = None
        self._made_parents: list[Path] = []
        self._partial: Path | None = None
        try:
            self._make_parents(self.path.parent)
            prefix = f".{self.path.name}.partial-{os.getpid()}-"
            self._partial = Path(tempfile.mkdtemp(prefix=prefix, dir=self.path.parent))
            # mkdtemp makes private folders; a result is as readable as any other file.
            self._partial.chmod(0o777 & ~_umask())
            for table in _SCHEMAS:
                self._writers[table] = self._open(table)
        except OSError as error:
            self.abort()
            raise ResultError(
                f"{self._label}: cannot be written: {error.strerror or error}"
            ) from None

    def _make_parents(self, folder: Path) -> None:
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for parent in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another writer made it meanwhile
                parent.mkdir()
                self._made_parents.append(parent)

    def _open(self, table: str) -> pq.ParquetWriter:
        assert self._partial is not None
        schema = _schema_with_key(table)
        few = [name for name in schema.names if name in _FEW_VALUES]
        packed = {
            field.name: "DELTA_BINARY_PACKED"
            for field in schema
            if field.name not in few
            and pa.types.is_integer(field.type)
            and field.type.bit_width > 16
        }
        return pq.ParquetWriter(
            self._partial / f"{table}.parquet",
            schema,
            use_dictionary=few,
            column_encoding=packed,
            **self._encoding,
        )

    def write_flows(self, layer: int, table: pa.Table) -> None:
        """Append all flows of one layer.

        Parameters
        ----------
        layer : int
            Layer index; ascending from call to call, and equal to the ``layer`` column.
        table : pyarrow.Table
            The columns of :data:`FLOW_SCHEMA` in any order; ``phase`` and ``network`` may be
            plain strings. An empty table is allowed.

        Raises
        ------
        ResultError
            If a column is missing, unknown, null or of a type that does not fit, or if the
            layer is out of order.
        """
        if self._last_layer is not None and layer <= self._last_layer:
            raise ResultError(
                f"flows of layer {layer} after layer {self._last_layer}; write layers ascending"
            )
        table = _fit(table, "flows")
        if table.num_rows:
            layers = table.column("layer").to_numpy()
            if layers.min() != layer or layers.max() != layer:
                raise ResultError(
                    f"flows: column 'layer' holds {layers.min()} to {layers.max()} in the table "
                    f"of layer {layer}"
                )
        self._last_layer = layer
        self._write("flows", table)

    def write_tasks(self, table: pa.Table) -> None:
        """Append tasks, the columns of :data:`TASK_SCHEMA`; may be called repeatedly.

        Raises
        ------
        ResultError
            If a column is missing, unknown, null or of a type that does not fit.
        """
        self._write("tasks", _fit(table, "tasks"))

    def write_links(self, table: pa.Table) -> None:
        """Append links, the columns of :data:`LINK_SCHEMA`; may be called repeatedly.

        Raises
        ------
        ResultError
            If a column is missing, unknown, null or of a type that does not fit.
        """
        self._write("links", _fit(table, "links"))

    def write_account(self, table: pa.Table) -> None:
        """Append the accounts of flows, the columns of :data:`ACCOUNT_SCHEMA`.

        Raises
        ------
        ResultError
            If a column is missing, unknown, null or of a type that does not fit.
        """
        self._write_optional("account", table)

    def write_samples(self, table: pa.Table) -> None:
        """Append samples of links, the columns of :data:`SAMPLE_SCHEMA`.

        Raises
        ------
        ResultError
            If a column is missing, unknown, null or of a type that does not fit.
        """
        self._write_optional("samples", table)

    def _write_optional(self, name: str, table: pa.Table) -> None:
        if self._writers and name not in self._writers:
            self._rows[name] = 0
            self._writers[name] = self._open(name)
        self._write(name, _fit(table, name))

    def _write(self, name: str, table: pa.Table) -> None:
        if name not in self._writers:
            raise ResultError(
                f"{self._label}: the run is finished or aborted; nothing can be added"
            )
        if table.num_rows:  # an empty row group would have no layer
            try:
                self._writers[name].write_table(table)
            except OSError as error:
                raise ResultError(f"{self._label}: {name}.parquet: {error}") from None
        self._rows[name] += table.num_rows

    def finish(self, summary: Mapping[str, Any]) -> RunResult:
        """Close the files, write ``summary.json``, give the folder its name, and open it.

        Parameters
        ----------
        summary : mapping
            JSON-able content of ``summary.json``; NumPy scalars are converted. ``schema`` and
            ``rows`` (rows a table) are added.

        Raises
        ------
        ResultError
            If the summary is not JSON-able, the disk is full, or another run took the name
            meanwhile. The partial folder is removed.
        """
        if self._partial is None:
            raise ResultError(f"{self._label}: the run is finished or aborted already")
        content = dict(summary) | {"schema": RESULT_SCHEMA, "rows": dict(self._rows)}
        try:
            text = json.dumps(content, indent=1, allow_nan=False, default=_plain)
            writers, self._writers = self._writers, {}
            for writer in writers.values():
                writer.close()
            (self._partial / _SUMMARY).write_text(text + "\n", encoding="utf-8")
            result = RunResult(self._partial)  # never publish what cannot be read back
            self._publish()
        except (TypeError, ValueError) as error:
            self.abort()
            raise ResultError(f"{self._label}: {_SUMMARY}: {error}") from None
        except OSError as error:
            self.abort()
            raise ResultError(
                f"{self._label}: cannot be written: {error.strerror or error}"
            ) from None
        except BaseException:
            self.abort()
            raise
        result.path = self.path
        return result

    def _publish(self) -> None:
        """Rename the partial folder; an old run steps aside first and is deleted last."""
        assert self._partial is not None
        check_run_target(self.path, overwrite=self._overwrite)
        replaced = None
        if self.path.exists():
            replaced = Path(
                tempfile.mkdtemp(prefix=f".{self.path.name}.replaced-", dir=self.path.parent)
            )
            os.rename(self.path, replaced)  # onto an empty folder
        try:
            os.rename(self._partial, self.path)
        except OSError:
            if replaced is not None:
                os.rename(replaced, self.path)
            raise
        self._partial = None
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)

    def abort(self) -> None:
        """Remove everything written so far; harmless after :meth:`finish`."""
        writers, self._writers = self._writers, {}
        for writer in writers.values():
            with contextlib.suppress(OSError):  # a full disk must not keep us from freeing it
                writer.close()
        if self._partial is None:
            return
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial = None
        for parent in reversed(self._made_parents):
            try:
                parent.rmdir()
            except OSError:  # in use by someone else meanwhile
                break

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


class RunResult:
    """A complete run folder, opened for reading.

    Parameters
    ----------
    path : path
        The run folder.

    Attributes
    ----------
    path : Path
        The folder.
    summary : dict
        Content of ``summary.json``.

    Raises
    ------
    ResultError
        One line naming the file, if one is missing, truncated or of another schema.

    Examples
    --------
    >>> result = RunResult("runs/demo")                                 # doctest: +SKIP
    >>> max(flows["fct_ps"].max() for flows in result.flow_batches())   # doctest: +SKIP
    161023456
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ResultError(f"{self.path}: no such run folder")
        self.summary: dict[str, Any] = _read_summary(self.path / _SUMMARY)
        self._rows: dict[str, int] = {}
        for table in _SCHEMAS:
            self._rows[table] = self._check(table)
        for table in _OPTIONAL:
            if table in self.summary["rows"]:
                self._rows[table] = self._check(table)

    def __repr__(self) -> str:
        return f"RunResult({os.fspath(self.path)!r}, n_flows={self.n_flows}, layers={self.layers})"

    def _check(self, table: str) -> int:
        """Return the number of rows of a table after checking its footer."""
        file = self.path / f"{table}.parquet"
        with _Reading(file):
            footer = pq.read_metadata(file)
            schema = footer.schema.to_arrow_schema()
        key = (schema.metadata or {}).get(b"ubfabric")
        try:
            written = json.loads(key) if key else {}
        except ValueError:
            written = {}
        if not isinstance(written, dict) or written.get("table") != table:
            raise ResultError(f"{file}: not a table of {table} written by ubfabric")
        if written.get("schema") != RESULT_SCHEMA:
            raise ResultError(
                f"{file}: schema version {written.get('schema')!r}, expected {RESULT_SCHEMA}"
            )
        for field in _ALL_SCHEMAS[table]:
            found = schema.field(field.name).type if field.name in schema.names else None
            if found is None:
                raise ResultError(f"{file}: column {field.name!r} is missing")
            if found != field.type:
                raise ResultError(
                    f"{file}: column {field.name!r} is {found}, expected {field.type}"
                )
        expected = self.summary.get("rows", {}).get(table)
        if expected != footer.num_rows:
            raise ResultError(
                f"{file}: found {footer.num_rows} rows, but {_SUMMARY} says {expected}; "
                "the files belong to different runs"
            )
        return int(footer.num_rows)

    @property
    def n_flows(self) -> int:
        """Number of flows."""
        return self._rows["flows"]

    @property
    def n_tasks(self) -> int:
        """Number of tasks."""
        return self._rows["tasks"]

    @property
    def trace_metadata(self) -> dict[str, Any]:
        """Metadata of the trace that was replayed; empty if the summary has none."""
        trace = self.summary.get("trace")
        return trace if isinstance(trace, dict) else {}

    @cached_property
    def _flow_groups(self) -> list[tuple[int, list[int]]]:
        """Layer and its row groups in file order; the writer never mixes layers in a group."""
        file = self.path / "flows.parquet"
        groups: list[tuple[int, list[int]]] = []
        with _Reading(file):
            footer = pq.read_metadata(file)
            column = footer.schema.names.index("layer")
            for index in range(footer.num_row_groups):
                statistics = footer.row_group(index).column(column).statistics
                if statistics is None or statistics.min != statistics.max:
                    raise ResultError(f"{file}: row group {index} mixes layers")
                layer = int(statistics.min)
                if groups and groups[-1][0] == layer:
                    groups[-1][1].append(index)
                else:
                    groups.append((layer, [index]))
        return groups

    @property
    def layers(self) -> list[int]:
        """Layers that have flows, ascending."""
        return [layer for layer, _ in self._flow_groups]

    def flow_batches(self, columns: Iterable[str] | None = None) -> Iterator[pd.DataFrame]:
        """Yield the flows of one layer after the other.

        Parameters
        ----------
        columns : iterable of str, optional
            Columns of :data:`FLOW_SCHEMA` to read; all by default.

        Yields
        ------
        DataFrame
            All flows of one layer; ``phase`` and ``network`` are categorical.

        Raises
        ------
        ResultError
            If a column is unknown or the file is damaged.
        """
        names = _known_columns(columns, "flows")
        file = self.path / "flows.parquet"
        groups = self._flow_groups
        with _Reading(file):
            parquet = pq.ParquetFile(file, memory_map=True)
        with parquet:
            for _, indices in groups:
                with _Reading(file):
                    frame = _frame(parquet.read_row_groups(indices, columns=names))
                yield frame

    def flows(
        self, columns: Iterable[str] | None = None, layers: Iterable[int] | None = None
    ) -> pd.DataFrame:
        """Return flows as one DataFrame.

        Parameters
        ----------
        columns : iterable of str, optional
            Columns of :data:`FLOW_SCHEMA` to read; all by default.
        layers : iterable of int, optional
            Layers to read; all by default. Other layers are not touched on disk.

        Raises
        ------
        ResultError
            If a column or layer is unknown or the file is damaged.
        """
        names = _known_columns(columns, "flows")
        indices = [index for _, group in self._flow_groups for index in group]
        if layers is not None:
            wanted = {int(layer) for layer in layers}
            unknown = wanted - set(self.layers)
            if unknown:
                raise ResultError(
                    f"{self.path}: no flows of layer {min(unknown)}; layers: {self.layers}"
                )
            indices = [i for layer, group in self._flow_groups if layer in wanted for i in group]
        file = self.path / "flows.parquet"
        with _Reading(file), pq.ParquetFile(file, memory_map=True) as parquet:
            return _frame(parquet.read_row_groups(indices, columns=names))

    def tasks(self, columns: Iterable[str] | None = None) -> pd.DataFrame:
        """Return the tasks, the columns of :data:`TASK_SCHEMA`; ``kind`` is categorical.

        Raises
        ------
        ResultError
            If a column is unknown or the file is damaged.
        """
        return self._table("tasks", columns)

    def step_tasks(self) -> pd.DataFrame:
        """Return the tasks of the step: all but those of a serving pool beside it.

        Raises
        ------
        ResultError
            If the file is damaged.
        """
        tasks, pool = self.tasks(), self.trace_metadata.get("pool")
        if not pool:
            return tasks
        beside = tasks["kind"].isin(pool["kinds"]) | (tasks["rank"] >= pool["step_ranks"])
        of_step = tasks[~beside].reset_index(drop=True)
        of_step["kind"] = of_step["kind"].cat.remove_unused_categories()
        return of_step

    def layer_times(self) -> pd.DataFrame:
        """Return how long each layer of the step took, and whether a fault was about.

        Returns
        -------
        DataFrame
            One row a layer with tasks, by its start: ``layer``, ``start_ps`` (first task),
            ``finish_ps`` (last task), ``step_ps`` (from the finish of the layer before to its
            own), ``when``: ``before`` the first fault, ``during`` faults until routes have
            followed the last of them, ``after``; ``before`` throughout if there were none.
        """
        layers = (
            self.step_tasks()
            .groupby("layer")
            .agg(start_ps=("start_ps", "min"), finish_ps=("finish_ps", "max"))
        )
        layers = layers.sort_values(["finish_ps", "start_ps"]).reset_index()
        begin = layers["finish_ps"].shift(fill_value=int(layers["start_ps"].min() or 0))
        layers["step_ps"] = layers["finish_ps"] - begin
        times = self.summary.get("fault_times_ps") or []
        layers["when"] = "before"
        if times:
            first, last = min(at for at, _ in times), max(seen for _, seen in times)
            layers.loc[layers["finish_ps"] > first, "when"] = "during"
            layers.loc[begin >= last, "when"] = "after"
        return layers

    def links(self, columns: Iterable[str] | None = None) -> pd.DataFrame:
        """Return the links, the columns of :data:`LINK_SCHEMA`; texts are categorical.

        Raises
        ------
        ResultError
            If a column is unknown or the file is damaged.
        """
        return self._table("links", columns)

    def account(self, columns: Iterable[str] | None = None) -> pd.DataFrame:
        """Return where the time of each flow went, the columns of :data:`ACCOUNT_SCHEMA`.

        Rows are in the order of :meth:`flows`.

        Raises
        ------
        ResultError
            If the run was made without an account, a column is unknown or the file is damaged.
        """
        return self._optional("account", columns, "replay with account=True (--account)")

    def samples(self, columns: Iterable[str] | None = None) -> pd.DataFrame:
        """Return the samples of links, the columns of :data:`SAMPLE_SCHEMA`.

        Raises
        ------
        ResultError
            If the run was made without samples, a column is unknown or the file is damaged.
        """
        return self._optional("samples", columns, "replay with sample_interval_ps (--sample)")

    def _optional(self, name: str, columns: Iterable[str] | None, advice: str) -> pd.DataFrame:
        if name not in self._rows:
            raise ResultError(f"{self.path}: the run has no {name}; {advice}")
        return self._table(name, columns)

    def _table(self, name: str, columns: Iterable[str] | None) -> pd.DataFrame:
        names = _known_columns(columns, name)
        file = self.path / f"{name}.parquet"
        with _Reading(file), pq.ParquetFile(file, memory_map=True) as parquet:
            return _frame(parquet.read(columns=names))


class _Reading:
    """Turn the errors of pyarrow and of the file system into one line with the file's name."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, FileNotFoundError):
            raise ResultError(
                f"{self._file}: missing; a run folder holds {', '.join(sorted(_RUN_FILES))}"
            ) from None
        if isinstance(error, (pa.ArrowException, OSError)):
            # A damaged file yields damaged texts: keep what prints, on one line.
            reason = " ".join("".join(filter(str.isprintable, str(error))).split())
            raise ResultError(
                f"{self._file}: truncated or not Parquet: {reason}; run the replay again"
            ) from None


@cache
def _schema_with_key(table: str) -> pa.Schema:
    """Return the schema with our key, so that a reader knows what it holds."""
    key = json.dumps({"schema": RESULT_SCHEMA, "table": table})
    return _ALL_SCHEMAS[table].with_metadata({"ubfabric": key})


def _fit(table: pa.Table, name: str) -> pa.Table:
    """Return the table in the exact schema of the file, or say which column does not fit."""
    schema = _schema_with_key(name)
    given, allowed = table.column_names, schema.names
    unknown = [column for column in given if column not in allowed]
    if unknown:
        raise ResultError(f"{name}: unknown column {unknown[0]!r}; allowed: {allowed}")
    columns = []
    for field in schema:
        if field.name not in given:
            raise ResultError(f"{name}: column {field.name!r} is missing")
        column = table.column(field.name)
        if column.null_count:
            raise ResultError(f"{name}: column {field.name!r} holds nulls")
        try:
            if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(column.type):
                column = column.cast(pa.string()).dictionary_encode()
            if column.type != field.type:
                column = column.cast(field.type)
            columns.append(column)
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise ResultError(
                f"{name}: column {field.name!r} is {column.type}, expected {field.type}: {reason}"
            ) from None
    return pa.Table.from_arrays(columns, schema=schema)


def _frame(table: pa.Table) -> pd.DataFrame:
    """Return a DataFrame with one set of categories a column, whatever the row groups hold."""
    return table.unify_dictionaries().to_pandas()


def _known_columns(columns: Iterable[str] | None, table: str) -> list[str]:
    known = _ALL_SCHEMAS[table].names
    if columns is None:
        return list(known)
    names = [columns] if isinstance(columns, str) else list(columns)
    for name in names:
        if name not in known:
            raise ResultError(f"{table}: unknown column {name!r}; allowed: {known}")
    return names


def _read_summary(file: Path) -> dict[str, Any]:
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(
            f"{file}: missing, so this is not a complete run folder; a run folder holds "
            f"{', '.join(sorted(_RUN_FILES))}"
        ) from None
    except OSError as error:
        raise ResultError(f"{file}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ResultError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(summary, dict) or summary.get("schema") != RESULT_SCHEMA:
        found = summary.get("schema") if isinstance(summary, dict) else type(summary).__name__
        raise ResultError(f"{file}: schema version {found!r}, expected {RESULT_SCHEMA}")
    if not isinstance(summary.get("rows"), dict):
        raise ResultError(f"{file}: key 'rows' is missing or not a mapping of table to rows")
    return summary


def _plain(value: Any) -> Any:
    """Return NumPy scalars, arrays and paths as JSON knows them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON")


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
