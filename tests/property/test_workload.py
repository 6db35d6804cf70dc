"""Laws of the workload model, true of any deployment, gate and seed."""

from math import gcd

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ubfabric as ub
from ubfabric.decode import DecodeStep, generate_trace
from ubfabric.gate import route_tokens
from ubfabric.placement import DeploymentSpec, place_experts
from ubfabric.trace import check_chunk, read_trace, write_trace
from ubfabric.workload import load_workload

#: Loaded once: reading YAML takes longer than building a small trace.
SAMPLE = load_workload("decode-ep8-sample")
ONE_NODE = ub.build_topology("one-node")
few = settings(max_examples=25, deadline=None)
GATES = st.one_of(
    st.just({"policy": "uniform"}),
    st.builds(lambda s: {"policy": "zipf", "exponent": s}, st.sampled_from([0.3, 1.0, 2.5])),
    st.just(
        {"policy": "drifting", "of": {"policy": "zipf", "exponent": 1.0}, "half_life_steps": 3}
    ),
    st.builds(
        lambda c: {"policy": "dirichlet", "concentration": c}, st.sampled_from([0.01, 1.0, 30.0])
    ),
)


@st.composite
def workloads(draw):
    """Draw overrides that make a small valid workload of the EP8 sample."""
    ranks = draw(st.sampled_from([2, 4, 6, 8, 12]))
    groups = draw(st.sampled_from([1, 2, 4]))
    group_size = draw(st.integers(1, 6))
    kept = draw(st.integers(1, groups))
    routed = groups * group_size
    shared = draw(st.integers(0, 1))
    # Redundant experts and shared replicas fill up the slots that routed experts leave.
    per_rank = -(-(routed + shared) // ranks) + draw(st.integers(0, 2))
    spare = ranks * per_rank - routed
    shared_replicas = draw(st.integers(1, spare)) if shared else 0
    microbatches = draw(st.sampled_from([1, 2]))
    return {
        "model.layers": draw(st.integers(2, 4)),
        "model.dense_layers": 1,
        "model.routed_experts": routed,
        "model.shared_experts": shared,
        "model.top_k": draw(st.integers(1, kept * group_size)),
        "model.expert_groups": groups,
        "model.kept_groups": kept,
        "model.group_score_experts": draw(st.integers(1, 3)),
        "simulate_moe_layers": 1,
        "deployment.ranks": ranks,
        "deployment.experts_per_rank": per_rank,
        "deployment.shared_replicas": shared_replicas,
        "deployment.redundant_experts": spare - shared_replicas,
        "deployment.redundancy": {"policy": draw(st.sampled_from(["popular", "greedy", "first"]))},
        "deployment.expert_layout": {"policy": draw(st.sampled_from(["contiguous", "balanced"]))},
        "serving.microbatches": microbatches,
        "serving.batch_per_npu": 2 * microbatches * draw(st.integers(1, 4)),
        "serving.mtp_tokens": draw(st.integers(0, 2)),
        "deployment.attention_tp": draw(st.sampled_from([t for t in (1, 2, 4) if ranks % t == 0])),
        "messages.buffers": draw(st.sampled_from([1, 2])),
        "messages.flag": draw(st.sampled_from(["0 B", "512 B"])),
        "messages.send_order": draw(st.sampled_from(["shuffled", "rotated"])),
        "gate": draw(GATES),
        "seed": draw(st.integers(0, 2**32)),
    }


@st.composite
def disaggregated(draw):
    """Draw overrides that make a small valid workload whose dies attend or hold experts."""
    changes = draw(workloads())
    domains, size = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    attending = domains * size
    holding = draw(st.sampled_from([n for n in (1, 2, 3, 4) if (attending + n) % 2 == 0]))
    routed, shared = changes["model.routed_experts"], changes["model.shared_experts"]
    per_rank = -(-(routed + shared) // holding) + draw(st.integers(0, 2))
    spare = holding * per_rank - routed
    shared_replicas = draw(st.integers(1, spare)) if shared else 0
    npus = (attending + holding) // 2
    shares = attending * changes["serving.microbatches"]
    batch = shares // gcd(shares, npus) * draw(st.integers(1, 3))
    return changes | {
        "deployment.ranks": attending + holding,
        "deployment.disaggregated": {"attention_ranks": attending, "domains": domains},
        "deployment.experts_per_rank": per_rank,
        "deployment.shared_replicas": shared_replicas,
        "deployment.redundant_experts": spare - shared_replicas,
        "deployment.attention_tp": draw(st.sampled_from([t for t in (1, 2) if size % t == 0])),
        "serving.batch_per_npu": batch,
        "machine.die.hbm_capacity": "9 TB",
    }


def moe_chunks(trace):
    return [(c.label, c) for c in trace.chunks() if c.label in ("moe", "mtp")]


@few
@given(workloads())
def test_every_token_reaches_all_its_experts_and_comes_back(changes):
    trace = generate_trace(SAMPLE, overrides=changes)
    pairs = changes["model.top_k"] + changes["model.shared_experts"]
    tokens = {row["layer"]: row["tokens_per_microbatch"] for row in trace.metadata["layers"]}
    for _, chunk in moe_chunks(trace):
        flows = chunk.flows.to_pandas()
        sent = flows.groupby(["phase", "microbatch", "src"], observed=True).messages.sum()
        assert (sent["dispatch"] == tokens[chunk.layer] * pairs).all()
        assert len(sent["dispatch"]) == trace.n_ranks * changes["serving.microbatches"]


@few
@given(workloads())
def test_combine_is_dispatch_transposed(changes):
    for _, chunk in moe_chunks(generate_trace(SAMPLE, overrides=changes)):
        flows = chunk.flows.to_pandas()
        rows = flows[["microbatch", "src", "dst", "messages"]]
        dispatch = set(rows[flows.phase == "dispatch"].itertuples(index=False, name=None))
        combine = set(rows[flows.phase == "combine"].itertuples(index=False, name=None))
        assert combine == {(m, dst, src, n) for m, src, dst, n in dispatch}


@few
@given(disaggregated())
def test_tokens_go_to_dies_with_experts_and_come_back_to_those_that_attend(changes):
    trace = generate_trace(SAMPLE, overrides=changes)
    attending, domains = (trace.metadata[key] for key in ("attention_ranks", "domains"))
    size = attending // domains
    pairs = changes["model.top_k"] + changes["model.shared_experts"]
    tokens = {row["layer"]: row["tokens_per_microbatch"] for row in trace.metadata["layers"]}
    # no request is lost: those of all NPUs are those of the dies that attend
    batch = changes["serving.batch_per_npu"] * trace.metadata["npus"]
    assert trace.metadata["requests_per_rank"] * attending == batch
    for _, chunk in moe_chunks(trace):
        flows, tasks = chunk.flows.to_pandas(), chunk.tasks.to_pandas()
        for phase in ("dispatch", "combine"):
            outward = (phase == "dispatch") * 1
            for name, to_experts in (
                (phase, outward),
                (f"{phase}-flag", outward),
                (f"{phase}-ready", not outward),
            ):
                rows = flows[flows.phase == name]
                near, far = ("src", "dst") if to_experts else ("dst", "src")
                assert (rows[near] // size == rows.microbatch % domains).all()
                assert (rows[far] >= attending).all()
        sent = flows[flows.phase == "dispatch"].groupby(["microbatch", "src"]).messages.sum()
        assert len(sent) == attending * changes["serving.microbatches"]
        assert (sent == tokens[chunk.layer] * pairs).all()
        rows = flows[["microbatch", "src", "dst", "messages"]]
        dispatch = set(rows[flows.phase == "dispatch"].itertuples(index=False, name=None))
        combine = set(rows[flows.phase == "combine"].itertuples(index=False, name=None))
        assert combine == {(m, dst, src, n) for m, src, dst, n in dispatch}
        holds = tasks["rank"] >= attending
        assert not holds[tasks.kind.isin(["attention", "gate"])].any()
        assert holds[tasks.kind == "expert"].all()


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=disaggregated())
def test_experts_have_their_tokens_before_they_begin_and_attention_its_results(tmp_path, changes):
    layers = changes["model.layers"] - 1  # all MoE layers
    trace = generate_trace(SAMPLE, layers=layers, overrides=changes)
    run = ub.replay(ONE_NODE, trace, tmp_path / "run", overwrite=True, progress=False)
    tasks, flows = run.step_tasks(), pd.concat(run.flow_batches())
    tasks["kind"] = tasks["kind"].astype(str)
    assert (tasks.finish_ps >= tasks.start_ps).all() and (flows.finish_ps > 0).all()
    keys = ["layer", "microbatch"]
    for phase, kind in (("dispatch", "expert"), ("combine", "combine-copy")):
        came = flows[flows.phase == phase].groupby([*keys, "dst"], observed=True).finish_ps.max()
        begins = tasks[tasks.kind == kind].set_index([*keys, "rank"]).start_ps
        begins = begins.rename_axis(came.index.names).reindex(came.index)
        assert (begins >= came).all() and begins.notna().all()
    # and no layer of a microbatch begins before the results of the layer before are copied
    for _, of_rank in tasks.groupby(["rank", "microbatch"]):
        starts = of_rank[of_rank.kind == "prologue"].start_ps.to_numpy()[1:]
        ends = of_rank[of_rank.kind.isin(["ffn", "combine-copy"])].finish_ps.to_numpy()
        assert (starts >= ends[: len(starts)]).all()


@few
@given(st.one_of(workloads(), disaggregated()))
def test_generated_trace_is_sound(changes):
    trace, known = generate_trace(SAMPLE, overrides=changes), None
    for chunk in trace.chunks():
        known = check_chunk(chunk, trace.n_ranks, known)
    assert known.tolist() == list(range(len(known)))


@few
@given(workloads())
def test_layers_do_not_depend_on_the_order_they_are_built_in(changes):
    workload = load_workload(SAMPLE, changes)
    forth, back = (DecodeStep(workload, workload.spec.seed, 1) for _ in range(2))
    last_first = {i: back.chunk(i) for i in reversed(range(len(back.plans)))}
    for position, chunk in enumerate(forth.chunks()):
        assert chunk.flows.equals(last_first[position].flows)
        assert chunk.tasks.equals(last_first[position].tasks)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=workloads(), file_format=st.sampled_from(["parquet", "csv"]))
def test_same_seed_gives_same_bytes_that_read_back_equal(tmp_path, changes, file_format):
    written = []
    for name in ("a", "b"):
        trace = generate_trace(SAMPLE, overrides=changes)
        folder = write_trace(trace, tmp_path / file_format / name, file_format=file_format)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]
    read = read_trace(folder)
    assert read.metadata == trace.metadata
    for original, again in zip(trace.chunks(), read.chunks(), strict=True):
        assert again.flows.to_pylist() == original.flows.to_pylist()
        assert again.tasks.equals(original.tasks)


@few
@given(
    st.integers(1, 6).flatmap(lambda g: st.tuples(st.just(g), st.integers(1, g))),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(0, 2**32),
    st.data(),
)
def test_group_limit_is_respected(groups, group_size, best, seed, data):
    n_groups, kept = groups
    top_k = data.draw(st.integers(1, kept * group_size))
    rng = np.random.default_rng(seed)
    experts = route_tokens(
        rng.dirichlet(np.full(n_groups * group_size, 0.2)),
        40,
        top_k=top_k,
        n_groups=n_groups,
        kept_groups=kept,
        group_score_experts=best,
        rng=rng,
    )
    assert experts.shape == (40, top_k) and experts.max() < n_groups * group_size
    for row in experts.tolist():
        assert len(set(row)) == top_k
        assert len({expert // group_size for expert in row}) <= kept


@few
@given(workloads(), st.integers(1, 20))
def test_every_rank_loads_the_replicas_of_an_expert_within_one_of_even(changes, tokens):
    spec = load_workload(SAMPLE, changes).spec
    n_ranks, n_routed = spec.deployment.ranks, spec.model.routed_experts
    rng = np.random.default_rng(changes["seed"])
    placement = place_experts(spec.deployment, rng.dirichlet(np.ones(n_routed)), spec.model.top_k)
    experts = rng.integers(n_routed, size=(n_ranks * tokens, 3))
    slots = placement.assign_replicas(experts)
    assert (placement.slot_expert[slots] == experts).all()
    for rank in range(n_ranks):
        mine = slice(rank * tokens, (rank + 1) * tokens)
        load = np.bincount(slots[mine].ravel(), minlength=len(placement.slot_expert))
        for expert in range(n_routed):
            first, last = placement.replica_first[expert : expert + 2]
            replicas = load[placement.replica_slot[first:last]]
            assert replicas.max() - replicas.min() <= 1


@few
@given(workloads())
def test_every_slot_holds_one_expert_and_every_expert_has_a_slot(changes):
    spec = load_workload(SAMPLE, changes).spec
    deployment: DeploymentSpec = spec.deployment
    popularity = np.random.default_rng(changes["seed"]).dirichlet(
        np.ones(spec.model.routed_experts)
    )
    placement = place_experts(deployment, popularity, spec.model.top_k)
    on_rank = np.bincount(placement.slot_rank, minlength=deployment.ranks)
    assert (on_rank == deployment.experts_per_rank).all()
    replicas = np.diff(placement.replica_first)
    assert (replicas[:-1] >= 1).all()
    assert replicas[-1] == deployment.shared_replicas
    assert replicas[:-1].sum() == spec.model.routed_experts + deployment.redundant_experts
    if deployment.shared_replicas:
        served = np.bincount(placement.shared_slot, minlength=len(placement.slot_rank))
        served = served[placement.slot_expert == spec.model.routed_experts]
        assert served.max() - served.min() <= 1
