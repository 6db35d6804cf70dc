"""The traffic trace: what each rank computes, sends and waits for.

A trace is two tables. One row of *flows* is all messages of one source rank to one
destination rank in one phase of one layer; one row of *tasks* is one step of one
rank's work. Both are produced and read layer by layer, so that a full decode step
never sits in memory whole. ``traffic/README.md`` documents every column.

On disk a trace is a folder with ``flows.parquet`` and ``tasks.parquet`` (the trace's
metadata as JSON in the schema, under the key ``ubfabric``), or ``flows.csv`` and
``tasks.csv`` with an optional ``metadata.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ubfabric.errors import TraceError
from ubfabric.specs import NETWORKS

#: Version of the two tables; a reader refuses any other.
TRACE_SCHEMA = 1
#: Highest service level; the UB network header has four bits for it.
MAX_SERVICE_LEVEL = 15

#: What a flow does: its bytes go from src to dst (write), or src asks and they come from dst
#: (read); vector cores issue it, or an SDMA engine. The position is the engine's code.
OPERATIONS = ("write", "read", "sdma-write", "sdma-read")
#: Those with which ``src`` asks for the bytes.
READS = ("read", "sdma-read")

_METADATA_KEY = b"ubfabric"
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())

#: Arrow schema of the flow table.
FLOW_SCHEMA = pa.schema(
    [
        ("phase", _DICTIONARY),
        ("layer", pa.int16()),
        ("microbatch", pa.int8()),
        ("src", pa.int32()),
        ("dst", pa.int32()),
        ("messages", pa.int32()),
        ("message_bytes", pa.int32()),
        ("network", _DICTIONARY),
        ("service_level", pa.int8()),
        ("start_ps", pa.int64()),
        ("operation", _DICTIONARY),
    ]
)
#: Arrow schema of the task table.
TASK_SCHEMA = pa.schema(
    [
        ("task", pa.int64()),
        ("rank", pa.int32()),
        ("stream", pa.int8()),
        ("kind", pa.string()),
        ("layer", pa.int16()),
        ("microbatch", pa.int8()),
        ("duration_ps", pa.int64()),
        ("sends", pa.string()),
        ("waits", pa.string()),
        ("depends_on", pa.list_(pa.int64())),
        ("message_cost_ps", pa.int64()),
        ("memory_ps", pa.int64()),
    ]
)
#: Columns that a file may leave out, with the value they then take.
DEFAULTS: dict[str, dict[str, Any]] = {
    "flows": {
        "microbatch": 0,
        "network": "ub",
        "service_level": 0,
        "start_ps": -1,
        "operation": "write",
    },
    "tasks": {
        "stream": 0,
        "microbatch": 0,
        "sends": "",
        "waits": "",
        "depends_on": [],
        "message_cost_ps": 0,
        "memory_ps": 0,
    },
}
_SCHEMAS = {"flows": FLOW_SCHEMA, "tasks": TASK_SCHEMA}


@dataclass(frozen=True)
class TraceChunk:
    """One layer of a trace.

    Attributes
    ----------
    layer : int
        Layer index; chunks come in ascending order of it.
    label : str
        What the layer is: ``dense``, ``moe``, ``mtp``, ``head``, or empty.
    flows : pyarrow.Table
        Columns of :data:`FLOW_SCHEMA`.
    tasks : pyarrow.Table
        Columns of :data:`TASK_SCHEMA`.
    flows_file, tasks_file : str
        Where the rows came from, for messages to people.
    first_flow_row, first_task_row : int
        Rows of the file that come before this chunk's first row.
    """

    layer: int
    label: str
    flows: pa.Table
    tasks: pa.Table
    flows_file: str = "generated flows"
    tasks_file: str = "generated tasks"
    first_flow_row: int = 0
    first_task_row: int = 0


@dataclass(frozen=True)
class Trace:
    """A trace that can be walked layer by layer, any number of times.

    Attributes
    ----------
    metadata : dict
        JSON-able: ``schema``, ``n_ranks``, ``spec``, ``seed``, ``rank_nodes`` and, from the
        generator, what the token stage needs (see ``traffic/README.md``).
    n_chunks : int
        Number of chunks that :meth:`chunks` yields.
    open_chunks : callable
        Returns a new iterator over the chunks, in ascending order of layer.
    """

    metadata: dict[str, Any]
    n_chunks: int
    open_chunks: Callable[[], Iterator[TraceChunk]] = field(repr=False)

    @property
    def n_ranks(self) -> int:
        """Number of ranks; ranks are 0 to ``n_ranks - 1``."""
        return int(self.metadata["n_ranks"])

    def chunks(self) -> Iterator[TraceChunk]:
        """Yield the layers in ascending order, each built or read when it is asked for."""
        return self.open_chunks()


def empty_table(name: str) -> pa.Table:
    """Return a ``flows`` or ``tasks`` table with all columns and no rows."""
    return _SCHEMAS[name].empty_table()


# --------------------------------------------------------------------------- writing


def write_trace(trace: Trace, folder: str | Path, *, file_format: str = "parquet") -> Path:
    """Write a trace, layer by layer, into a folder.

    Both files are first written under a temporary name beside the target, so that an
    interrupted run leaves no file that looks whole. Parquet gets at least one row group a
    layer, and the same trace gives the same bytes.

    Parameters
    ----------
    trace : Trace
        What to write.
    folder : str or Path
        Made if missing; an older trace of the same format in it is replaced.
    file_format : {'parquet', 'csv'}
        ``csv`` is meant for small traces to be read by people.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    TraceError
        If the format is unknown or the folder cannot be written.
    """
    if file_format not in ("parquet", "csv"):
        raise TraceError(f"file_format: found {file_format!r}, allowed: parquet, csv")
    folder = Path(folder)
    metadata = json.dumps(trace.metadata, sort_keys=True)
    temporary = {name: folder / f".{name}.{file_format}.{os.getpid()}.part" for name in _SCHEMAS}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(_open_writer(path, name, metadata, file_format))
                for name, path in temporary.items()
            }
            for chunk in trace.chunks():
                for name, table in (("flows", chunk.flows), ("tasks", chunk.tasks)):
                    if table.num_rows == 0:
                        continue
                    if file_format == "parquet":
                        writers[name].write_table(table, row_group_size=table.num_rows)
                    else:
                        writers[name].write_table(_to_csv_columns(table))
        if file_format == "csv":
            text = folder / f".metadata.json.{os.getpid()}.part"
            temporary["metadata"] = text
            text.write_text(json.dumps(trace.metadata, sort_keys=True, indent=1) + "\n")
            os.replace(text, folder / "metadata.json")
        for name in ("tasks", "flows"):
            os.replace(temporary[name], folder / f"{name}.{file_format}")
    except OSError as error:
        raise TraceError(f"{folder}: cannot write the trace: {_one_line(error)}") from None
    finally:
        for path in temporary.values():
            with suppress(OSError):
                path.unlink()
    return folder


def _open_writer(path: Path, name: str, metadata: str, file_format: str) -> Any:
    schema = _SCHEMAS[name]
    if file_format == "parquet":
        schema = schema.with_metadata({_METADATA_KEY: metadata.encode()})
        return pq.ParquetWriter(path, schema, compression="zstd")
    columns = [(field.name, _csv_type(field.type)) for field in schema]
    options = pa_csv.WriteOptions(quoting_style="needed")
    return pa_csv.CSVWriter(path, pa.schema(columns), write_options=options)


def _csv_type(arrow_type: pa.DataType) -> pa.DataType:
    return arrow_type if pa.types.is_integer(arrow_type) else pa.string()


def _to_csv_columns(table: pa.Table) -> pa.Table:
    """Turn dictionaries into text and lists into ``3;5``."""
    columns = {}
    for name in table.column_names:
        column = table[name]
        if pa.types.is_list(column.type):
            column = pa.array([";".join(map(str, ids)) for ids in column.to_pylist()], pa.string())
        elif pa.types.is_dictionary(column.type):
            column = column.cast(pa.string())
        columns[name] = column
    return pa.table(columns)


# --------------------------------------------------------------------------- reading


def read_trace(folder: str | Path) -> Trace:
    """Open a trace folder; its layers are read when they are asked for.

    Structure is checked here and while reading (files whole, columns present, integers in
    range, rows sorted by layer); what the rows mean is checked by :func:`check_trace` or
    :func:`check_chunk`.

    Parameters
    ----------
    folder : str or Path
        Holds ``flows.parquet`` and ``tasks.parquet``, or ``flows.csv`` and ``tasks.csv``. The
        task file may be missing when every flow has a start time (open loop).

    Raises
    ------
    TraceError
        One line with the file, what was found and what is allowed.
    """
    folder = Path(folder)
    found = [ending for ending in ("parquet", "csv") if (folder / f"flows.{ending}").is_file()]
    if len(found) != 1:
        what = (
            "both flows.parquet and flows.csv" if found else "neither flows.parquet nor flows.csv"
        )
        raise TraceError(f"{folder}: found {what}; a trace folder has one of them")
    open_source = _ParquetSource if found[0] == "parquet" else _CsvSource
    sources = {"flows": open_source(folder / f"flows.{found[0]}", "flows")}
    if (folder / f"tasks.{found[0]}").is_file():
        sources["tasks"] = open_source(folder / f"tasks.{found[0]}", "tasks")

    metadata = sources["flows"].metadata()
    for source in sources.values():
        if source.metadata() != metadata:
            raise TraceError(
                f"{source.label}: its metadata differ from those of {sources['flows'].label}; "
                "both files of a trace must come from one writing"
            )
    metadata = dict(metadata or {})
    schema = metadata.setdefault("schema", TRACE_SCHEMA)
    if schema != TRACE_SCHEMA:
        raise TraceError(f"{folder}: trace schema is {schema!r}, this version reads {TRACE_SCHEMA}")
    if "n_ranks" not in metadata:
        highest = [source.maximum(column) for source, column in _rank_columns(sources)]
        metadata["n_ranks"] = max(highest, default=-1) + 1
    n_ranks = metadata["n_ranks"]
    if not isinstance(n_ranks, int) or n_ranks < 1:
        raise TraceError(f"{folder}: metadata n_ranks: found {n_ranks!r}, allowed 1 or more")
    for key in ("spec", "seed", "rank_nodes"):
        metadata.setdefault(key, None)

    labels = _layer_labels(metadata, folder)
    if labels:
        n_chunks = len(labels)
    else:
        n_chunks = len(set().union(*(source.layers() for source in sources.values())))
    return Trace(metadata, n_chunks, lambda: _merge(sources, labels))


def _rank_columns(sources: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    for name, source in sources.items():
        for column in ("src", "dst") if name == "flows" else ("rank",):
            yield source, column


def _layer_labels(metadata: dict[str, Any], folder: Path) -> dict[int, str]:
    layers = metadata.get("layers") or []
    try:
        return {int(row["layer"]): str(row.get("label", "")) for row in layers}
    except (TypeError, KeyError, ValueError, AttributeError):
        raise TraceError(
            f"{folder}: metadata layers: found {layers!r:.60}, "
            "allowed a list of {{layer: integer, label: text}}"
        ) from None


def _merge(sources: dict[str, Any], labels: dict[int, str]) -> Iterator[TraceChunk]:
    """Walk both files in step and yield one chunk for each layer found in either."""
    walks = {name: source.by_layer() for name, source in sources.items()}
    heads = {name: next(walk, None) for name, walk in walks.items()}
    done = dict.fromkeys(_SCHEMAS, 0)
    while any(head is not None for head in heads.values()):
        layer = min(head[0] for head in heads.values() if head is not None)
        tables = {name: empty_table(name) for name in _SCHEMAS}
        first = dict(done)
        for name, head in heads.items():
            if head is not None and head[0] == layer:
                tables[name] = head[1]
                done[name] += head[1].num_rows
                heads[name] = next(walks[name], None)
        yield TraceChunk(
            layer=layer,
            label=labels.get(layer, ""),
            flows=tables["flows"],
            tasks=tables["tasks"],
            flows_file=sources["flows"].label,
            tasks_file=sources["tasks"].label if "tasks" in sources else "(no task file)",
            first_flow_row=first["flows"],
            first_task_row=first["tasks"],
        )


class _Source:
    """One table file: its row batches in the trace's schema, and its metadata."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.label = str(path)
        self.name = name

    def metadata(self) -> dict[str, Any] | None:
        raise NotImplementedError

    def batches(self, columns: list[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """Yield ``(rows before, table)``."""
        raise NotImplementedError

    def maximum(self, column: str) -> int:
        """Return the largest value of an integer column, or -1 without rows."""
        values = [pc.max(table[column]).as_py() for _, table in self.batches([column])]
        return max((value for value in values if value is not None), default=-1)

    def layers(self) -> set[int]:
        """Return the layers that have rows."""
        result: set[int] = set()
        for _, table in self.batches(["layer"]):
            result.update(pc.unique(table["layer"]).to_pylist())
        return result

    def by_layer(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield ``(layer, table)`` in file order, refusing files not sorted by layer."""
        held: list[pa.Table] = []
        current: int | None = None
        for first_row, table in self.batches():
            layers = table["layer"].to_numpy()
            edges = np.flatnonzero(np.diff(layers)) + 1
            for start, stop in zip([0, *edges], [*edges, len(layers)], strict=True):
                if start == stop:
                    continue
                layer = int(layers[start])
                if current is not None and layer < current:
                    raise TraceError(
                        f"{self.label}: row {first_row + start + 1}: found layer {layer} after "
                        f"layer {current}; rows must be sorted by layer"
                    )
                if current is not None and layer != current:
                    yield current, _concatenate(held)
                    held = []
                current = layer
                held.append(table.slice(start, stop - start))
        if current is not None:
            yield current, _concatenate(held)

    def _conform(self, table: pa.Table, first_row: int, columns: list[str] | None) -> pa.Table:
        """Give a table as read the columns and types of the schema."""
        schema = _SCHEMAS[self.name]
        wanted = [schema.field(name) for name in (columns or schema.names)]
        arrays = []
        for column in wanted:
            if column.name in table.column_names:
                arrays.append(self._cast(table[column.name], column, first_row))
            else:
                default = DEFAULTS[self.name][column.name]
                scalar = pa.scalar(
                    default, _csv_type(column.type) if default != [] else column.type
                )
                arrays.append(pa.repeat(scalar, table.num_rows).cast(column.type))
        return pa.Table.from_arrays(arrays, schema=pa.schema(wanted))

    def _check_columns(self, names: list[str]) -> None:
        schema = _SCHEMAS[self.name]
        for name in schema.names:
            if name not in names and name not in DEFAULTS[self.name]:
                raise TraceError(
                    f"{self.label}: column {name!r} is missing; found: {', '.join(names)}"
                )
        for name in names:
            if name not in schema.names:
                raise TraceError(
                    f"{self.label}: unknown column {name!r}; allowed: {', '.join(schema.names)}"
                )

    def _cast(self, values: pa.ChunkedArray, column: pa.Field, first_row: int) -> pa.ChunkedArray:
        if values.null_count:
            row = int(np.flatnonzero(values.is_null().to_numpy())[0])
            self._fail(first_row + row, column.name, "an empty cell", "a value in every row")
        if pa.types.is_integer(column.type):
            values = self._to_int64(values, column, first_row)
            limits = np.iinfo(column.type.to_pandas_dtype())
            numbers = values.to_numpy()
            bad = np.flatnonzero((numbers < limits.min) | (numbers > limits.max))
            if len(bad):
                allowed = f"a whole number of {limits.bits} bits"
                self._fail(first_row + int(bad[0]), column.name, numbers[bad[0]], allowed)
        elif pa.types.is_list(column.type):
            values = self._to_id_lists(values, column, first_row)
        try:
            return values.cast(column.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise TraceError(
                f"{self.label}: column {column.name!r}: found type {values.type}, "
                f"allowed {column.type}"
            ) from None

    def _to_int64(self, values: Any, column: pa.Field, first_row: int) -> Any:
        if not pa.types.is_integer(values.type):
            raise TraceError(
                f"{self.label}: column {column.name!r}: found type {values.type}, "
                "allowed whole numbers"
            )
        return values.cast(pa.int64(), safe=True)

    def _to_id_lists(self, values: Any, column: pa.Field, first_row: int) -> Any:
        return values

    def _fail(self, row: int, column: str, found: Any, allowed: str) -> None:
        raise TraceError(
            f"{self.label}: row {row + 1}: column {column!r}: found {found}, allowed {allowed}"
        )


class _ParquetSource(_Source):
    """Row groups of a Parquet file, one at a time."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        with self._open() as file:
            self._check_columns(file.schema_arrow.names)
            text = (file.schema_arrow.metadata or {}).get(_METADATA_KEY)
        try:
            self._metadata = None if text is None else json.loads(text)
        except ValueError as error:
            raise TraceError(f"{self.label}: metadata is not JSON: {_one_line(error)}") from None

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise TraceError(
                f"{self.label}: truncated or not a Parquet file: {_one_line(error)}"
            ) from None

    def metadata(self) -> dict[str, Any] | None:
        return self._metadata

    def batches(self, columns: list[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        first_row = 0
        with self._open() as file:
            present = [
                c for c in (columns or file.schema_arrow.names) if c in file.schema_arrow.names
            ]
            for group in range(file.num_row_groups):
                try:
                    table = file.read_row_group(group, columns=present, use_threads=False)
                except (pa.ArrowException, OSError) as error:
                    raise TraceError(
                        f"{self.label}: row group {group} cannot be read: {_one_line(error)}"
                    ) from None
                yield first_row, self._conform(table, first_row, columns)
                first_row += table.num_rows


class _CsvSource(_Source):
    """A CSV file, read whole; its cells stay text until they are checked."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        try:
            with path.open(encoding="utf-8-sig") as file:
                header = [cell.strip().strip('"') for cell in file.readline().split(",")]
            self._check_columns(header)
            convert = pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in header}, strings_can_be_null=False
            )
            parse = pa_csv.ReadOptions(use_threads=False, column_names=header, skip_rows=1)
            self._table = pa_csv.read_csv(path, read_options=parse, convert_options=convert)
            text = path.parent / "metadata.json"
            self._metadata = json.loads(text.read_text()) if text.is_file() else None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise TraceError(f"{self.label}: not a readable CSV: {_one_line(error)}") from None

    def metadata(self) -> dict[str, Any] | None:
        return self._metadata

    def batches(self, columns: list[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        yield 0, self._conform(self._table, 0, columns)

    def _to_int64(self, values: Any, column: pa.Field, first_row: int) -> Any:
        values = pc.utf8_trim_whitespace(values)
        self._match(values, r"^-?[0-9]{1,18}$", column.name, "a whole number")
        return values.cast(pa.int64())

    def _to_id_lists(self, values: Any, column: pa.Field, first_row: int) -> Any:
        values = pc.utf8_trim_whitespace(values)
        self._match(
            values,
            r"^([0-9]{1,18}(;[0-9]{1,18})*)?$",
            column.name,
            "task ids such as 3;5, or nothing",
        )
        lists = [[int(i) for i in text.split(";")] if text else [] for text in values.to_pylist()]
        return pa.chunked_array([pa.array(lists, pa.list_(pa.int64()))])

    def _match(self, values: Any, pattern: str, column: str, allowed: str) -> None:
        bad = np.flatnonzero(~pc.match_substring_regex(values, pattern).to_numpy())
        if len(bad):
            self._fail(int(bad[0]), column, repr(values[int(bad[0])].as_py()), allowed)


def _concatenate(tables: list[pa.Table]) -> pa.Table:
    """Join pieces of one layer so that every column is a single array."""
    if len(tables) == 1:
        return tables[0]
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


# --------------------------------------------------------------------------- checking


def check_trace(trace: Trace, n_ranks: int | None = None) -> None:
    """Check every row of a trace, layer by layer.

    Parameters
    ----------
    trace : Trace
        Usually one that :func:`read_trace` opened.
    n_ranks : int, optional
        Number of ranks that exist; the trace's own count if left out.

    Raises
    ------
    TraceError
        One line for the first fault, as :func:`check_chunk` words it.
    """
    known = np.empty(0, np.int64)
    for chunk in trace.chunks():
        known = check_chunk(chunk, trace.n_ranks if n_ranks is None else n_ranks, known)


def check_chunk(
    chunk: TraceChunk, n_ranks: int, known_tasks: np.ndarray | None = None
) -> np.ndarray:
    """Check one layer of a trace.

    Checked: sizes and durations, ranks, networks and service levels; that a flow is unique, is
    sent by exactly one task (or has a start time and is sent by none) and, unless it has a
    start time, is waited for by one task of its destination; that task ids ascend and
    dependencies exist; and that the task table has no cycle. A task may wait for a phase
    without flows: it then does not wait.

    Parameters
    ----------
    chunk : TraceChunk
        One layer; chunks must be given in order.
    n_ranks : int
        Number of ranks that exist.
    known_tasks : ndarray of int64, shape (n_known,), ascending, optional
        Ids of the tasks of all earlier layers, as the previous call returned them.

    Returns
    -------
    ndarray of int64, shape (n_known + n_tasks,), ascending
        Ids of all tasks so far.

    Raises
    ------
    TraceError
        One line: file, row (counted from 1, without a header), column, what was found and
        what is allowed.

    Notes
    -----
    A cycle cannot span layers: dependencies point to the same or an earlier layer, a stream
    runs in table order, and a flow belongs to one layer. So each layer is checked alone.
    """
    return check_and_link(chunk, n_ranks, known_tasks)[0]


def check_and_link(
    chunk: TraceChunk, n_ranks: int, known_tasks: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check one layer, and find the task that sends each flow and the task that waits for it.

    Parameters and errors as of :func:`check_chunk`.

    Returns
    -------
    all_tasks : ndarray of int64, shape (n_known + n_tasks,), ascending
        Ids of all tasks so far.
    sender, waiter : ndarray of int64, shape (n_flows,)
        Row of the layer's task table, -1 where no task sends the flow or waits for it.
    """
    known = np.empty(0, np.int64) if known_tasks is None else known_tasks
    check = _ChunkCheck(chunk, n_ranks)
    check.check_flow_values()
    check.check_task_values(int(known[-1]) if len(known) else -1)
    sender, waiter = check.match_flows_to_tasks()
    all_tasks = np.concatenate([known, check.tasks["task"]])
    sent = sender >= 0
    check.check_order((sender[sent], waiter[sent]), check.resolve_dependencies(all_tasks))
    return all_tasks, sender, waiter


#: Edges of a graph: nodes that come before, nodes that come after.
_Edges = tuple[np.ndarray, np.ndarray]


class _ChunkCheck:
    """The checks of one layer, in the order in which they build on each other."""

    def __init__(self, chunk: TraceChunk, n_ranks: int) -> None:
        self.chunk = chunk
        self.n_ranks = n_ranks
        self.flows = _columns(chunk.flows)
        self.tasks = _columns(chunk.tasks)
        self.n_tasks = chunk.tasks.num_rows
        names: dict[str, int] = {"": _NO_PHASE}
        self.phase = _name_codes(chunk.flows["phase"], names)
        self.sends = _name_codes(chunk.tasks["sends"], names)
        self.waits = _name_codes(chunk.tasks["waits"], names)
        self.ranks = f"a rank from 0 to {n_ranks - 1}"
        operations: dict[str, int] = {}
        operation = _name_codes(chunk.flows["operation"], operations)
        #: Whether the bytes of each flow go to its source, and the rank that they go to.
        self.is_read = np.array([name in READS for name in operations], bool)[operation]
        self.receiver = np.where(self.is_read, self.flows["src"], self.flows["dst"])

    def reject_flow(self, column: str, bad: np.ndarray, allowed: str) -> None:
        """Raise for the first bad row of the flow table."""
        chunk = self.chunk
        _reject(chunk.flows_file, chunk.first_flow_row, chunk.flows, column, bad, allowed)

    def reject_task(self, column: str, bad: np.ndarray, allowed: str) -> None:
        """Raise for the first bad row of the task table."""
        chunk = self.chunk
        _reject(chunk.tasks_file, chunk.first_task_row, chunk.tasks, column, bad, allowed)

    def check_flow_values(self) -> None:
        """Check each cell of the flow table by itself."""
        flows, reject = self.flows, self.reject_flow
        reject("phase", self.phase == _NO_PHASE, "the name of a phase")
        for column in ("messages", "message_bytes"):
            reject(column, flows[column] < 1, "1 or more")
        for column in ("src", "dst"):
            reject(column, (flows[column] < 0) | (flows[column] >= self.n_ranks), self.ranks)
        reject("microbatch", flows["microbatch"] < 0, "0 or more")
        for column, allowed in (("network", NETWORKS), ("operation", OPERATIONS)):
            texts = self.chunk.flows[column]
            if set(pc.unique(texts).to_pylist()) - set(allowed):
                known = pc.is_in(texts.cast(pa.string()), value_set=pa.array(allowed))
                reject(column, ~known.to_numpy(), ", ".join(allowed))
        level = flows["service_level"]
        reject("service_level", (level < 0) | (level > MAX_SERVICE_LEVEL), "0 to 15")
        reject("start_ps", flows["start_ps"] < -1, "0 or more, or -1 if a task sends it")
        reject("layer", flows["layer"] != self.chunk.layer, f"{self.chunk.layer}")

    def check_task_values(self, last_task: int) -> None:
        """Check each cell of the task table by itself, and that ids ascend."""
        tasks, reject = self.tasks, self.reject_task
        reject("rank", (tasks["rank"] < 0) | (tasks["rank"] >= self.n_ranks), self.ranks)
        reject("stream", tasks["stream"] < 0, "0 or more")
        reject("duration_ps", tasks["duration_ps"] < 0, "0 or more")
        cost = tasks["message_cost_ps"]
        limit = np.iinfo(np.uint32).max
        reject("message_cost_ps", (cost < 0) | (cost > limit), f"0 to {limit}")
        memory = tasks["memory_ps"]
        reject("memory_ps", (memory < 0) | (memory > tasks["duration_ps"]), "0 to duration_ps")
        reject("layer", tasks["layer"] != self.chunk.layer, f"{self.chunk.layer}")
        communicates = (self.sends != _NO_PHASE) | (self.waits != _NO_PHASE)
        microbatch = tasks["microbatch"]
        reject(
            "microbatch",
            (microbatch < -1) | (communicates & (microbatch < 0)),
            "0 or more, or -1 in a task that neither sends nor waits",
        )
        previous = np.concatenate([[last_task], tasks["task"]])[:-1]
        reject("task", tasks["task"] <= previous, "ids that ascend over the whole trace, from 0")

    def match_flows_to_tasks(self) -> tuple[np.ndarray, np.ndarray]:
        """Check who sends and who awaits each flow.

        Returns
        -------
        tuple of two ndarray of int64, shape (n_flows,)
            Rows of the tasks that send and await each flow, -1 for none. A flow that is sent is
            awaited.
        """
        flows, tasks = self.flows, self.tasks
        sent = self._keys(self.phase, flows["microbatch"], flows["src"])
        awaited = self._keys(self.phase, flows["microbatch"], self.receiver)
        self.reject_flow(
            "dst",
            _repeats(sent * self.n_ranks + flows["dst"]),
            "one flow for each phase, layer, microbatch, src and dst",
        )
        send_rows = np.flatnonzero(self.sends != _NO_PHASE)
        wait_rows = np.flatnonzero(self.waits != _NO_PHASE)
        send_keys = self._keys(self.sends, tasks["microbatch"], tasks["rank"])[send_rows]
        wait_keys = self._keys(self.waits, tasks["microbatch"], tasks["rank"])[wait_rows]
        for column, rows, keys in (
            ("sends", send_rows, send_keys),
            ("waits", wait_rows, wait_keys),
        ):
            twice = np.zeros(self.n_tasks, bool)
            twice[rows[_repeats(keys)]] = True
            verb = "sending" if column == "sends" else "waiting"
            self.reject_task(
                column, twice, f"one {verb} task for each phase, layer, microbatch and rank"
            )

        timed = flows["start_ps"] >= 0
        sender, waiter = _find(send_keys, send_rows, sent), _find(wait_keys, wait_rows, awaited)
        or_timed = "or start_ps of 0 or more"
        self.reject_flow(
            "src", (sender < 0) & ~timed, f"a rank with a task that sends it, {or_timed}"
        )
        self.reject_flow("start_ps", (sender >= 0) & timed, "-1, because a task sends this flow")
        for column in ("dst", "src"):  # of writes, and of reads
            self.reject_flow(
                column,
                (waiter < 0) & ~timed & (self.is_read == (column == "src")),
                f"a rank with a task that waits for it, {or_timed}",
            )
        return sender, waiter

    def resolve_dependencies(self, all_tasks: np.ndarray) -> _Edges:
        """Check that every dependency exists.

        Returns
        -------
        tuple of two ndarray of int64, shape (n_edges,)
            Row of a task of this layer, and row of a task that depends on it.
        """
        chunk = self.chunk
        needed, dependents = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        row = 0
        for lists in chunk.tasks["depends_on"].chunks:
            counts = np.diff(np.asarray(lists.offsets))
            needed.append(np.asarray(lists.flatten(), np.int64))
            dependents.append(np.repeat(np.arange(row, row + len(counts)), counts))
            row += len(counts)
        task, dependent = np.concatenate(needed), np.concatenate(dependents)
        position = np.searchsorted(all_tasks, task)
        unknown = position == len(all_tasks)
        unknown[~unknown] = all_tasks[position[~unknown]] != task[~unknown]
        if unknown.any():
            first = int(np.argmax(unknown))
            raise TraceError(
                f"{chunk.tasks_file}: row {chunk.first_task_row + dependent[first] + 1}: "
                f"column 'depends_on': found task {task[first]}, "
                "allowed tasks of this or an earlier layer"
            )
        here = position - (len(all_tasks) - self.n_tasks)
        return here[here >= 0], dependent[here >= 0]

    def check_order(self, flow_edges: _Edges, dependencies: _Edges) -> None:
        """Check that all tasks can run: no task waits, over any path, for itself.

        Every task has two nodes, its start and its finish: a flow leaves after the start of its
        sender, which may itself be waiting for flows.
        """
        if self._ascends(flow_edges, dependencies):
            return
        tasks, rows = self.tasks, np.arange(self.n_tasks)
        start, finish = rows, rows + self.n_tasks
        order = np.lexsort((rows, tasks["stream"], tasks["rank"]))
        same = (np.diff(tasks["stream"][order]) == 0) & (np.diff(tasks["rank"][order]) == 0)
        needed, dependent = dependencies
        sender, waiter = flow_edges
        edges = [
            (start, finish),
            (finish[order[:-1][same]], start[order[1:][same]]),
            (finish[needed], start[dependent]),
            (start[sender], finish[waiter]),
        ]
        before, after = (np.concatenate(ends) for ends in zip(*edges, strict=True))
        cycle = find_cycle(before, after, 2 * self.n_tasks)
        if cycle is None:
            return
        # Both nodes of a task may be on the cycle; it is shown once.
        involved = list(dict.fromkeys(node % self.n_tasks for node in cycle))
        names = [str(tasks["task"][row]) for row in involved]
        shown = " -> ".join([*names[:6], "..."] if len(names) > 6 else [*names, names[0]])
        raise TraceError(
            f"{self.chunk.tasks_file}: row {self.chunk.first_task_row + min(involved) + 1}: found "
            f"a cycle of tasks {shown}; a task may only wait for what can finish before it"
        )

    def _ascends(self, flow_edges: _Edges, dependencies: _Edges) -> bool:
        """Return whether nothing waits for what comes later in the table; then nothing is circular.

        The table is cut where the rank does not ascend, so that no part has two tasks of a
        stream. The starts of a part come before its finishes, and these before the next part.
        """
        part = np.cumsum(np.diff(self.tasks["rank"], prepend=np.int32(-1)) <= 0)
        (needed, dependent), (sender, waiter) = dependencies, flow_edges
        return bool((part[needed] < part[dependent]).all() and (part[sender] <= part[waiter]).all())

    def _keys(self, phase: np.ndarray, microbatch: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """Return one integer for each (phase, microbatch, rank)."""
        keys: np.ndarray = (phase * 256 + microbatch) * self.n_ranks + rank
        return keys


_NO_PHASE = 0
#: Entries of a table that is looked up, for each key and each look, up to which it is made.
_DENSE = 8


def _name_codes(column: pa.ChunkedArray, names: dict[str, int]) -> np.ndarray:
    """Return an integer for each name in a column, adding new ones to ``names``."""
    codes = [np.empty(0, np.int64)]
    for part in column.chunks:
        encoded = part if pa.types.is_dictionary(part.type) else part.dictionary_encode()
        values = encoded.dictionary.to_pylist()
        code = np.array([names.setdefault(name, len(names)) for name in values], np.int64)
        codes.append(code[np.asarray(encoded.indices)])
    return np.concatenate(codes)


def _reject(
    file: str, first_row: int, table: pa.Table, column: str, bad: np.ndarray, allowed: str
) -> None:
    """Raise for the first bad row of a table, if there is one."""
    if bad.any():
        row = int(np.argmax(bad))
        raise TraceError(
            f"{file}: row {first_row + row + 1}: column {column!r}: "
            f"found {table[column][row].as_py()!r}, allowed {allowed}"
        )


def _find(keys: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the row of each wanted key, -1 where it is not among the keys.

    Parameters
    ----------
    keys : ndarray of int64, shape (n,)
        All different.
    rows : ndarray of int64, shape (n,)
    wanted : ndarray of int64
    """
    if not len(keys):
        return np.full(len(wanted), -1, np.int64)
    lowest = keys.min()
    span = int(keys.max() - lowest) + 1
    if span <= _DENSE * (len(keys) + len(wanted)):
        row = np.full(span + 1, -1, np.int64)
        row[keys - lowest] = rows
        at = wanted - lowest
        at[(at < 0) | (at > span)] = span
    else:
        order = np.argsort(keys)
        row = np.append(rows[order], -1)
        at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
        at[keys[order][at] != wanted] = len(keys)
    found: np.ndarray = row[at]
    return found


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    """Return the integer columns of a table as numpy arrays."""
    integer = [field.name for field in table.schema if pa.types.is_integer(field.type)]
    return {name: table[name].to_numpy() for name in integer}


def _repeats(keys: np.ndarray) -> np.ndarray:
    """Return a mask of the rows whose key an earlier row has."""
    mask = np.zeros(len(keys), bool)
    ordered = np.sort(keys)
    if (ordered[1:] == ordered[:-1]).any():  # finding the rows takes ten times as long
        order = np.argsort(keys, kind="stable")
        mask[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    return mask


def _ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return ``first[i], first[i] + 1, ...`` (``counts[i]`` of them) for every i, joined."""
    total = int(counts.sum())
    offsets = np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]])[: len(first)], counts)
    return offsets + np.arange(total)


def find_cycle(before: np.ndarray, after: np.ndarray, n_nodes: int) -> list[int] | None:
    """Return the nodes of one cycle of a directed graph, or None.

    Kahn's method, a whole frontier at a time.

    Parameters
    ----------
    before, after : ndarray of int, shape (n_edges,)
        Edge ``i`` says that node ``before[i]`` comes before node ``after[i]``.
    n_nodes : int
        Nodes are 0 to ``n_nodes - 1``.
    """
    waiting = np.bincount(after, minlength=n_nodes)
    order = np.argsort(before, kind="stable")
    targets = after[order]
    out_degree = np.bincount(before, minlength=n_nodes)
    first = np.concatenate([[0], np.cumsum(out_degree)])
    frontier = np.flatnonzero(waiting == 0)
    while len(frontier):
        reached = targets[_ranges(first[frontier], out_degree[frontier])]
        waiting[frontier] = -1
        reached, times = np.unique(reached, return_counts=True)
        waiting[reached] -= times
        frontier = reached[waiting[reached] == 0]
    left = waiting > 0
    if not left.any():
        return None
    # Every node left has a predecessor that is left: walking back must come round.
    inside = left[before] & left[after]
    predecessor = np.full(n_nodes, -1)
    predecessor[after[inside]] = before[inside]
    path: list[int] = []
    seen: dict[int, int] = {}
    node = int(np.flatnonzero(left)[0])
    while node not in seen:
        seen[node] = len(path)
        path.append(node)
        node = int(predecessor[node])
    return path[seen[node] :][::-1]
