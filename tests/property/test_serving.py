"""Laws of serving under any arrivals, lengths, acceptance, limits and times.

No request is lost or served twice, tokens in are tokens out, instants are in order, no die holds
more than it may, and every block of the cache is read from where it was written.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_systems import MS, pools, requests, table, times

from ubfabric.serving import BlockStore, Simulation
from ubfabric.serving_results import request_table, summarise

BLOCK_TOKENS = 16


class WatchedStore(BlockStore):
    """A store that notes where blocks were written, and checks each reading against it."""

    def __init__(self, *about):
        super().__init__(*about)
        self.home = {}
        self.n_read = 0

    def write(self, blocks):
        nodes = super().write(blocks)
        for block, node in zip(blocks, nodes, strict=True):
            assert self.home.setdefault(block, node) == node
        return nodes

    def read(self, blocks):
        nodes = super().read(blocks)
        assert nodes == [self.home[block] for block in blocks]
        self.n_read += len(blocks)
        return nodes


@st.composite
def cases(draw):
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrival = np.sort(rng.integers(0, draw(st.integers(1, 4000)), n)).tolist()
    longest = draw(st.integers(1, 120))
    prompt = rng.integers(1, longest + 1, n)
    output = rng.integers(1, draw(st.integers(1, 40)) + 1, n)
    more = {}
    how = draw(st.sampled_from(["nothing", "share", "ids"]))
    if how == "share":
        more["reused_tokens"] = rng.integers(0, prompt + 1)
    if how == "ids":
        # Prompts go down a tree, so that equal ids have equal ids before them.
        more["block_tokens"] = BLOCK_TOKENS
        more["blocks"] = []
        for tokens in prompt.tolist():
            path, place = [], ()
            for _ in range(-(-tokens // BLOCK_TOKENS)):
                place = (*place, int(rng.integers(0, draw(st.integers(1, 3)))))
                path.append(place)
            more["blocks"].append(path)
    asked = requests(arrival, prompt.tolist(), output.tolist(), **more)
    most = int((prompt + output).max())
    of = pools(
        prefill_instances=draw(st.integers(1, 3)),
        batch_tokens=draw(st.integers(1, 300)),
        decode_instances=draw(st.integers(1, 3)),
        decode_dies=draw(st.integers(1, 4)),
        batch_per_die=draw(st.integers(1, 4)),
        kv_capacity_tokens=draw(st.integers(most, 4 * most)),
        mtp_tokens=draw(st.integers(0, 3)),
        mtp_acceptance=draw(st.floats(0, 1)),
        block_tokens=BLOCK_TOKENS,
        cache_blocks=draw(st.one_of(st.none(), st.integers(1, 40))),
        tpot_objective_ps=draw(st.one_of(st.none(), st.integers(1, 40 * MS))),
        seed=draw(st.integers(0, 1000)),
    )
    step = draw(st.floats(0.5, 20))
    of_batch = table(
        "decode",
        [[step, step + draw(st.floats(0, 20))], [step + 5, step + 40]],
        batch_per_die=[1, 4],
        kv_tokens=[10, 150],
    )
    of_prefill = table(
        "prefill",
        [[[1.0]], [[draw(st.floats(1, 400))]]],
        tokens=[1, 300],
        prompt_tokens=[1],
        cached_share=[0.0],
    )
    ms = {name: draw(st.floats(0, 50)) for name in ("kv_transfer", "cache_read", "cache_write")}
    return asked, of, times(of_batch, of_prefill, **ms)


def serve(case):
    asked, of, at = case
    simulation = Simulation(asked, of, at, int(asked.arrival_ps[-1]))
    simulation.store = WatchedStore(len(of.cache_nodes), of.cache_blocks, of.seed)
    return simulation, simulation.run(progress=False)


@given(cases())
@settings(max_examples=150)
def test_every_request_is_served_once_and_in_order(case):
    asked = case[0]
    simulation, served = serve(case)
    column = served.columns
    assert simulation.finished == len(asked)
    order = [asked.arrival_ps, column["prefill_start_ps"], column["prefill_end_ps"]]
    later = asked.output_tokens > 1
    for early, late in pairwise(order):
        assert (early <= late).all()
    decoded = [column[n][later] for n in ("prefill_end_ps", "admitted_ps", "transfer_end_ps")]
    decoded.append(column["finish_ps"][later])
    for early, late in pairwise(decoded):
        assert (early <= late).all()
    assert (column["finish_ps"][~later] == column["prefill_end_ps"][~later]).all()
    assert ((column["decode_instance"] >= 0) == later).all()
    # What was left in queues, slots and on the way: nothing.
    assert not any(
        p.queue or p.running or p.queued_tokens or p.transfers for p in simulation.prefill
    )
    for instance in simulation.decode:
        assert instance.n == 0 and not instance.waiting and not instance.arriving
        assert not any(a.any() for a in (instance.held, instance.kv, instance.reserved))
        assert not any(a.any() for a in (instance.active, instance.active_kv))
    assert not simulation.on_their_way


@given(cases())
@settings(max_examples=150)
def test_tokens_asked_are_tokens_given(case):
    asked, of, _ = case
    _, served = serve(case)
    later = asked.output_tokens - 1
    assert sum(d["output_tokens"] for d in served.counters["decode"]) == later.sum()
    assert sum(p["prompt_tokens"] for p in served.counters["prefill"]) == asked.prompt_tokens.sum()
    steps = served.columns["steps"]
    assert (steps <= later).all() and (steps >= -(-later // (1 + of.mtp_tokens))).all()


@given(cases())
@settings(max_examples=150)
def test_no_die_holds_more_requests_or_tokens_than_it_may(case):
    asked, of, _ = case
    _, served = serve(case)
    column = served.columns
    changes = defaultdict(list)
    needed = asked.prompt_tokens + asked.output_tokens
    for i in np.flatnonzero(asked.output_tokens > 1).tolist():
        die = column["decode_instance"][i], column["die"][i]
        assert 0 <= die[1] < of.decode_dies
        changes[die] += [(column["admitted_ps"][i], 1, needed[i])]
        changes[die] += [(column["finish_ps"][i], -1, -needed[i])]
    for events in changes.values():
        held = tokens = 0
        for _, one, size in sorted(events):  # who leaves makes room for who comes
            held, tokens = held + one, tokens + size
            assert held <= of.batch_per_die and tokens <= of.kv_capacity_tokens
        assert held == tokens == 0


@given(cases())
@settings(max_examples=150)
def test_batches_of_an_instance_keep_the_budget_and_do_not_overlap(case):
    asked, of, _ = case
    _, served = serve(case)
    column = served.columns
    batches = defaultdict(list)
    for i in range(len(asked)):
        key = int(column["prefill_instance"][i]), int(column["prefill_start_ps"][i])
        batches[key].append(i)
    last = {}
    for (instance, start), members in sorted(batches.items()):
        ends = {int(column["prefill_end_ps"][i]) for i in members}
        assert len(ends) == 1 and start >= last.get(instance, 0)
        last[instance] = ends.pop()
        computed = sum(asked.prompt_tokens[i] - column["cached_tokens"][i] for i in members)
        assert computed <= of.batch_tokens or len(members) == 1
        assert members == sorted(members)  # the first first
    cached = column["cached_tokens"]
    assert (cached % BLOCK_TOKENS == 0).all() and (cached < asked.prompt_tokens).all()


@given(cases())
@settings(max_examples=150)
def test_blocks_are_read_from_where_they_were_written(case):
    asked, _, _ = case
    simulation, served = serve(case)
    store, cache = simulation.store, served.counters["cache"]
    assert cache["blocks_read"] == store.n_read
    if asked.block_tokens:
        assert store.n_read * BLOCK_TOKENS == served.columns["cached_tokens"].sum()
    assert cache["blocks_written"] == cache["blocks_held"] + cache["blocks_evicted"]
    assert sum(cache["read_by_node"].values()) == store.n_read


@given(cases())
@settings(max_examples=60)
def test_the_same_case_gives_the_same_columns(case):
    (_, first), (_, again) = serve(case), serve(case)
    assert first.counters == again.counters
    for name, values in first.columns.items():
        assert values.tolist() == again.columns[name].tolist()


@given(cases())
@settings(max_examples=60)
def test_the_summary_agrees_with_the_rows(case):
    asked, of, _ = case
    _, served = serve(case)
    objectives = (200 * MS, of.tpot_objective_ps)
    rows = request_table(
        asked.arrival_ps, asked.prompt_tokens, asked.output_tokens, served.columns, *objectives
    )
    npus = {"prefill": of.prefill_instances, "decode": of.decode_instances}
    summary = summarise(rows, served.counters, npus, {"objectives": {}})
    frame = rows.to_pandas()
    ttft = frame["ttft_ps"] / MS
    assert summary["ttft_ms"]["max"] == ttft.max()
    assert summary["ttft_ms"]["p50"] in set(ttft)
    assert summary["within_objectives"]["ttft"] == (ttft <= 200).mean()
    # a tpot is the mean of the gaps after the first token: together they are the time to finish
    later = frame["output_tokens"] > 1
    whole = frame["ttft_ps"] + frame["tpot_ps"] * (frame["output_tokens"] - 1)
    assert np.allclose(whole[later], frame["e2e_ps"][later], rtol=1e-9)
    assert frame["tpot_ps"][~later].isna().all()
    assert len(frame) == len(asked)
