"""What a fresh process spends: start-up, an exchange, a waiting flow, a packet in the fabric.

    python tests/bench/bench_process.py startup|exchange|flow|packet

prints one line of JSON. Each needs a process of its own, since memory that another case freed
would not show.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import re
import sys
import tempfile
import time
from pathlib import Path


def resident_bytes() -> int:
    """Return the private memory of this process, after what is free went back to the system."""
    import pyarrow as pa

    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.M)
    assert found is not None
    return int(found[1]) * 1024


def peak_mb() -> float:
    """Return the most memory that this process ever had resident, files mapped included."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) / 1024


def startup() -> dict[str, float]:
    """Return processor seconds from nothing to the first packet, and the memory at its end.

    Loading the classes of ns-3 comes last: a replay does without.
    """
    begin = time.process_time()
    import ubfabric
    from ubfabric.replay import replay

    imported = time.process_time()
    graph, trace = ubfabric.build_topology("one-node"), ubfabric.all_to_all_trace(2, 512)
    from ubfabric import _bridge

    built = time.process_time()
    _bridge.load_library()
    loaded = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        replay(graph, trace, Path(folder) / "run", progress=False)
    end = time.process_time()
    replayed_mb = peak_mb()
    _bridge.load()
    return {
        "import_s": imported - begin,
        "load_s": loaded - built,
        "all_s": end - begin,
        "peak_mb": replayed_mb,
        "classes_s": time.process_time() - end,
        "classes_mb": peak_mb(),
    }


def exchange() -> dict[str, float]:
    """Return the peak of all pairs of 384 ranks, 8 KiB each, from nothing to the result."""
    import ubfabric

    graph, trace = ubfabric.build_topology("leaf-spine-384"), ubfabric.all_to_all_trace(384, 8192)
    with tempfile.TemporaryDirectory() as folder:
        ubfabric.replay(graph, trace, Path(folder) / "run", threads=1, progress=False)
    return {"exchange_mb": peak_mb()}


def flow() -> dict[str, float]:
    """Return bytes a flow whose sender computes, and a flow that its sender has handed over."""
    import numpy as np
    import pyarrow as pa

    import ubfabric
    from ubfabric import _bridge
    from ubfabric.replay import replay
    from ubfabric.trace import TASK_SCHEMA, Trace, TraceChunk

    n = 768
    graph = ubfabric.build_topology("cloudmatrix384")
    asked = ubfabric.all_to_all_trace(n, 7_680)

    def chunks():
        (chunk,) = asked.chunks()
        flows = chunk.flows
        place = flows.schema.get_field_index("start_ps")
        flows = flows.set_column(place, "start_ps", pa.array(np.full(len(flows), -1)))
        ranks = np.arange(n)
        columns = dict.fromkeys(TASK_SCHEMA.names, pa.array(np.zeros(n, np.int64)))
        columns |= {"task": pa.array(ranks), "rank": pa.array(ranks)}
        columns["duration_ps"] = pa.array(np.full(n, 10**9))
        columns |= dict.fromkeys(("kind", "sends", "waits"), pa.array(["all-to-all"] * n))
        columns["depends_on"] = pa.array([[]] * n, pa.list_(pa.int64()))
        tasks = pa.table(columns).select(TASK_SCHEMA.names).cast(TASK_SCHEMA)
        yield TraceChunk(0, "", flows, tasks)

    seen: list[int] = []

    class _EnoughError(Exception):
        pass

    run = _bridge.Engine.run

    def measured(engine, packet_hops=0):
        seen.append(resident_bytes())
        run(engine, 1)  # past the computation: all flows are handed over, few packets have left
        seen.append(resident_bytes())
        raise _EnoughError

    _bridge.Engine.run = measured
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughError):
        replay(
            graph,
            Trace(asked.metadata, 1, chunks),
            Path(folder) / "run",
            progress=False,
            attach=lambda engine, arrays: seen.append(resident_bytes()),
        )
    n_flows = n * (n - 1)
    return {
        "waiting_bytes": (seen[1] - seen[0]) / n_flows,
        "handed_over_bytes": (seen[2] - seen[0]) / n_flows,
    }


def packet() -> dict[str, float]:
    """Return bytes a packet of a pile: 383 ranks write to one, and their packets wait."""
    import numpy as np

    import ubfabric
    from ubfabric import _bridge
    from ubfabric.attributes import engine_attributes
    from ubfabric.routing import compile_fabric

    graph = ubfabric.build_topology("leaf-spine-384")
    arrays = compile_fabric(graph)
    flows = _bridge.flow_records(383)
    flows["src"], flows["dst"] = np.arange(1, 384), 0
    flows["messages"], flows["message_bytes"] = 4_000, 4_096
    flows["send_task"] = flows["wait_task"] = _bridge.NONE
    attributes = engine_attributes(graph, payload_bytes=4_096, n_virtual_lanes=1)
    with _bridge.Engine(arrays, attributes) as engine:
        engine.add_chunk(
            flows,
            np.zeros(0, _bridge.TASK_RECORD),
            first_task=0,
            send_order=np.zeros(0, np.uint32),
            dep_start=np.zeros(1, np.uint64),
            deps=np.zeros(0, np.uint64),
            open_order=np.arange(383, dtype=np.uint32),
            is_last=True,
        )
        before = resident_bytes()
        while engine.counters["packets"] < flows["messages"].sum():
            engine.run(1_000)
        after, counters = resident_bytes(), engine.counters
        inside = counters["packets"] - counters["bytes_delivered"] // 4_096
    return {"packet_bytes": (after - before) / inside, "packets": inside}


if __name__ == "__main__":
    sys.stdout.write(
        json.dumps(
            {"startup": startup, "exchange": exchange, "flow": flow, "packet": packet}[
                sys.argv[1]
            ]()
        )
    )
