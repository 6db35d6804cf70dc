"""Laws of the pool's traffic on random loads: what is written lies where it is read from."""

import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ubfabric.decode import DecodeStep, generate_trace
from ubfabric.pool import PoolTraffic
from ubfabric.trace import check_trace
from ubfabric.workload import Workload, load_workload

SAMPLE = load_workload("pool-sample")
NETWORKS = st.sampled_from(["ub", "vpc"])

loads = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "requests.rate": st.floats(100, 4000),
        "requests.arrivals": st.sampled_from(["poisson", "even"]),
        "requests.prompt_tokens": st.sampled_from([512, 1024, 2048]),
        "requests.reused": st.floats(0, 0.99),
        "cache.block_tokens": st.sampled_from([128, 256, 512]),
        "cache.prefixes": st.integers(1, 5),
        "cache.warm": st.booleans(),
        "cache_read.network": NETWORKS,
        "cache_read.operation": st.sampled_from(["write", "read", "sdma-read"]),
        "prefill.cached_at": st.sampled_from(["every", "share"]),
        "cache_write.network": NETWORKS,
        "kv_transfer.network": st.sampled_from(["ub", "rdma", "vpc"]),
        "model_load.network": NETWORKS,
    }
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(loads)
def test_every_block_is_read_from_where_it_was_written_and_no_byte_is_lost(load):
    workload = load_workload(SAMPLE, load)
    spec = workload.spec
    within = Workload(spec.step, workload.raw["step"], workload.label, workload.folder)
    traffic = PoolTraffic(workload, DecodeStep(within, spec.seed, 1))
    blocks = traffic.blocks()
    key = ["prefix", "serial", "index"]

    # one home and one size a block, whoever moves it and in whichever direction
    assert (blocks.groupby(key)[["cpu", "bytes"]].nunique() == 1).all(axis=None)
    written = blocks[blocks["kind"] == "cache-write"]
    read = blocks[blocks["kind"] == "cache-read"]
    assert not written.duplicated(key).any()
    if not spec.cache.warm:  # nothing is read that was not written before
        times = read.merge(written, on=key, how="left", suffixes=("", "_written"))
        assert (times["time_ps"] >= times["time_ps_written"]).all()

    # what the flows of the trace carry is what the blocks hold, at both ends
    flows = pd.concat([chunk.flows.to_pandas() for chunk in traffic.chunks()], ignore_index=True)
    flows["bytes"] = flows["messages"].astype("int64") * flows["message_bytes"]
    asked = flows["operation"].astype(str).str.endswith("read")  # the bytes go to who asked
    flows.loc[asked, ["src", "dst"]] = flows.loc[asked, ["dst", "src"]].to_numpy()
    phase = flows["phase"].astype(str)
    die_end = {"cache-read": ("dst", ["cache-read", "cache-read-down"]),
               "cache-write": ("src", ["cache-write", "cache-write-up"])}  # fmt: skip
    for kind, (column, phases) in die_end.items():
        mine = blocks[blocks["kind"] == kind]
        moved = flows[phase.isin(phases)].groupby(column)["bytes"].sum()
        assert moved.to_dict() == mine.groupby("die")["bytes"].sum().to_dict()
    for kind, column in (("cache-read", "src"), ("cache-write", "dst")):
        if getattr(spec, kind.replace("-", "_")).network == "ub":
            moved = flows[phase == kind].groupby(column)["bytes"].sum()
            mine = blocks[blocks["kind"] == kind]
            assert moved.to_dict() == mine.groupby("cpu")["bytes"].sum().to_dict()
    token_bytes = spec.token_layer_bytes * spec.model.layers
    handed = flows[phase.isin(["kv-transfer", "kv-transfer-down"])]["bytes"].sum()
    requests = sum(one.kind == "kv-transfer" for one in traffic.transfers)
    assert handed == requests * spec.requests.prompt_tokens * token_bytes


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(loads)
def test_traces_are_valid_and_the_same_each_time(load):
    one, two = (generate_trace(SAMPLE, layers=1, overrides=load) for _ in range(2))
    check_trace(one)
    assert one.metadata == two.metadata
    for first, second in zip(one.chunks(), two.chunks(), strict=True):
        assert first.flows.equals(second.flows)
        assert first.tasks.equals(second.tasks)
