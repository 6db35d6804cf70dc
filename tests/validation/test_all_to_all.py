"""An exchange that the wire alone bounds, and that fits in little memory."""

from __future__ import annotations

import pytest

import ubfabric as ub
from ubfabric.attributes import packet_bytes
from ubfabric.topology import build_topology


@pytest.mark.validation
@pytest.mark.slow
def test_sprayed_all_pairs_exchange_of_384_ranks_takes_the_time_of_the_wire(tmp_path):
    """Wire bound: all packets that a rank gets, headers included, one after another on its link.

    Tolerance 5 %: latency of the way is about 1 us of 64, and what is left is waiting where
    packets of several ranks meet. A path a pair, in place of spraying, meets more.
    """
    graph, trace = build_topology("leaf-spine-384"), ub.all_to_all_trace(384, 8192)
    wire = packet_bytes(graph, 4096)["ub"]
    bound_ps = 383 * 2 * wire * 10**12 // (400 * 10**9 // 8)
    taken = {}
    for policy in ("round-robin", "flow-hash"):
        result = ub.replay(graph, trace, tmp_path / policy, path_policy=policy, progress=False)
        assert result.summary["packets"] == 384 * 383 * 2
        assert result.summary["packet_hops"] == 384 * 2 * (7 * 2 + 376 * 4)
        taken[policy] = int(result.flows()["finish_ps"].max())
    assert bound_ps < taken["round-robin"] < 1.05 * bound_ps
    assert taken["flow-hash"] > 1.05 * bound_ps


@pytest.mark.validation
@pytest.mark.parametrize("n_ranks", [16, 32])
def test_bulk_exchange_keeps_the_engines_of_the_dies_busy(n_ranks, tmp_path):
    """Engines' bound: bytes that a die sends at the rate of its SDMA engines together.

    Links could take more (137 GB/s of 112), so only the fabric itself could make it slower, as it
    did when sources dealt their packets over the planes in step: 1.7 times the bound. Tolerance
    8 %: with 31 transfers on 8 engines one has to wait for the others at the end (31 / 32), and
    four rounds have a start of 26 us each, of 2.4 ms together.
    """
    graph = build_topology("two-nodes")
    die = graph.nodes["die-0-0"]
    per_pair = 2**23 * 32 // n_ranks
    trace = ub.all_to_all_trace(n_ranks, per_pair, operation="sdma-write")
    result = ub.replay(graph, trace, tmp_path / "run", progress=False)
    taken_ps = int(result.flows()["finish_ps"].max())
    rounds = -(-(n_ranks - 1) // die["sdma_engines"])
    bound_ps = rounds * per_pair * 10**12 // die["sdma_bytes_per_s"]
    assert bound_ps < taken_ps < 1.08 * bound_ps


@pytest.mark.slow
def test_all_pairs_exchange_of_384_ranks_takes_less_than_300_mb(python):
    """Peak of the whole process, libraries included; about 240 MB."""
    code = """
import os
import re
from pathlib import Path
import ubfabric as ub

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
graph, trace = ub.build_topology("leaf-spine-384"), ub.all_to_all_trace(384, 8192)
result = ub.replay(graph, trace, "run", progress=False)
assert result.n_flows == 384 * 383
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    assert int(python(code)) * 1024 < 300e6
