"""Parts of open-loop traces: no choice of processes or reuse moves a byte, nothing is lost."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from fabrics import GB, NS, US, FabricBuilder, flow, make_trace
from hypothesis import given, settings
from hypothesis import strategies as st

from ubfabric.parts import replay_in_parts
from ubfabric.replay import replay

layers = st.lists(st.integers(0, 2), min_size=1, max_size=5)
ways = st.fixed_dictionaries(
    {
        "path_policy": st.sampled_from(["round-robin", "flow-hash", "load-balance", "adaptive"]),
        "plane_policy": st.sampled_from(["round-robin", "flow-hash"]),
        "payload_bytes": st.sampled_from([256, 1_000]),
        "account": st.booleans(),
        "seed": st.integers(0, 9),
    }
)


def fabric():
    """Return six dies on two planes of two levels."""
    builder = FabricBuilder()
    dies = builder.dies(6, issue_engines=2, issue_cost_ps=50 * NS)
    for plane in ("ub0", "ub1"):
        low = [builder.switch(f"l1-{plane}-{n}", plane) for n in range(3)]
        high = [builder.switch(f"l2-{plane}-{n}", plane, kind="l2", level=2) for n in range(2)]
        for number, name in enumerate(dies):
            builder.link(name, low[number // 2], plane=plane)
        for u in low:
            for v in high:
                builder.link(u, v, 7 * GB, plane=plane)
    return builder.build()


def trace(kinds):
    """Return a layer for each kind; layers of one kind are alike but for their time."""
    rows = []
    for number, kind in enumerate(kinds):
        rng = np.random.default_rng(kind)
        pairs = rng.permutation(36)[: 8 + 6 * kind]
        for pair in sorted(pairs.tolist()):
            size = {
                "messages": int(rng.integers(1, 4)),
                "message_bytes": int(rng.integers(1, 4_000)),
            }
            start_ps = number * 300 * US + int(rng.integers(US))
            rows.append(flow(pair // 6, pair % 6, layer=number, start_ps=start_ps, **size))
    return make_trace(rows, n_ranks=6)


@given(layers, ways)
@settings(max_examples=20, deadline=None)
def test_reuse_moves_no_byte_and_parts_carry_what_the_whole_carries(kinds, how):
    graph, flows = fabric(), trace(kinds)
    with tempfile.TemporaryDirectory() as folder:
        reused = replay_in_parts(graph, flows, Path(folder) / "reused", **how)
        every = replay_in_parts(graph, flows, Path(folder) / "every", reuse=False, **how)
        whole = replay(graph, flows, Path(folder) / "whole", progress=False, **how)
        names = sorted(path.name for path in whole.path.glob("*.parquet"))
        assert names == sorted(path.name for path in reused.path.glob("*.parquet"))
        for name in names:
            assert (reused.path / name).read_bytes() == (every.path / name).read_bytes()
        assert reused.summary["parts"]["simulated"] == len(set(kinds))
        assert every.summary["parts"]["simulated"] == len(kinds)
        for name in ("packets", "packet_hops", "bytes_sent", "bytes_delivered"):
            assert reused.summary[name] == whole.summary[name]
        assert reused.flows(layers=[0]).equals(whole.flows(layers=[0]))
        asked = ["layer", "src", "dst", "bytes", "packets", "start_ps", "hops"]
        assert reused.flows(asked).equals(whole.flows(asked))
