"""Traces of a collective by itself: what every rank sends, without a model around it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ubfabric.errors import TraceError
from ubfabric.trace import (
    FLOW_SCHEMA,
    OPERATIONS,
    TRACE_SCHEMA,
    Trace,
    TraceChunk,
    empty_table,
)

_LARGEST = np.iinfo(np.int32).max
#: So that the number of flows stays below 2**32.
_MOST_RANKS = (1 << 16) - 1


def all_to_all_trace(
    n_ranks: int, bytes_per_pair: int, *, messages_per_pair: int = 1, operation: str = "write"
) -> Trace:
    """Return the trace of one exchange in which every rank writes to every other, open loop.

    All flows start at time 0. Rank ``r`` issues to ``r + 1``, ``r + 2``, ... (modulo
    ``n_ranks``), a message to each in turn, so no rank is everybody's first destination.

    Parameters
    ----------
    n_ranks : int
        Ranks, 2 to 65,535; placed on endpoints in graph order unless the caller changes
        ``metadata["rank_placement"]``.
    bytes_per_pair : int
        Bytes from each rank to each other one.
    messages_per_pair : int, optional
        Messages of equal size that they are sent in.
    operation : str, optional
        Who moves them: ``write``, by vector cores, or another one that flows may have.

    Returns
    -------
    Trace
        One chunk, layer 0, phase ``all-to-all``, ``n_ranks * (n_ranks - 1)`` flows, no tasks.

    Raises
    ------
    TraceError
        If a number is out of range, the bytes do not divide into the messages, or the operation
        is unknown.

    Examples
    --------
    >>> trace = all_to_all_trace(384, 8192)
    >>> next(trace.chunks()).flows.num_rows
    147072
    """
    for name, value, lowest, highest in (
        ("n_ranks", n_ranks, 2, _MOST_RANKS),
        ("messages_per_pair", messages_per_pair, 1, _LARGEST),
        ("bytes_per_pair", bytes_per_pair, 1, messages_per_pair * _LARGEST),
    ):
        if not lowest <= value <= highest:
            raise TraceError(f"{name}: found {value}, allowed {lowest} to {highest}")
    message_bytes, rest = divmod(bytes_per_pair, messages_per_pair)
    if rest:
        raise TraceError(
            f"bytes_per_pair: found {bytes_per_pair}, allowed multiples of messages_per_pair, "
            f"{messages_per_pair}"
        )
    if operation not in OPERATIONS:
        raise TraceError(f"operation: found {operation!r}, allowed: {', '.join(OPERATIONS)}")
    metadata = {
        "schema": TRACE_SCHEMA,
        "n_ranks": n_ranks,
        "name": f"all-to-all-{n_ranks}",
        "spec": None,
        "seed": None,
        "rank_nodes": None,
        "rank_placement": {"policy": "packed"},
    }

    def chunk() -> TraceChunk:
        flows = _all_pairs(n_ranks, messages_per_pair, message_bytes, operation)
        return TraceChunk(0, "", flows, empty_table("tasks"))

    return Trace(metadata, 1, lambda: iter([chunk()]))


def _all_pairs(n_ranks: int, messages: int, message_bytes: int, operation: str) -> pa.Table:
    src, turn = np.divmod(np.arange(n_ranks * (n_ranks - 1)), n_ranks - 1)
    dst = (src + turn + 1) % n_ranks
    total = len(src)
    numbers: dict[str, int | np.ndarray] = {
        "layer": 0,
        "microbatch": 0,
        "src": src,
        "dst": dst,
        "messages": messages,
        "message_bytes": message_bytes,
        "service_level": 0,
        "start_ps": 0,
    }
    texts = {"phase": "all-to-all", "network": "ub", "operation": operation}
    code = pa.array(np.zeros(total, np.int32))
    columns = []
    for field in FLOW_SCHEMA:
        if field.name in texts:
            columns.append(pa.DictionaryArray.from_arrays(code, pa.array([texts[field.name]])))
        else:
            values = np.broadcast_to(numbers[field.name], total)
            columns.append(pa.array(values.astype(field.type.to_pandas_dtype())))
    return pa.Table.from_arrays(columns, schema=FLOW_SCHEMA)
