"""Laws of the token summary that hold for any run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import US, Synthetic, write_run

from ubfabric.distribution import Distribution
from ubfabric.tokens import SHARES, rebuild_tokens

runs = st.builds(
    Synthetic,
    n_ranks=st.integers(1, 6),
    layers=st.integers(1, 4).map(lambda n: tuple(range(3, 3 + n))),
    n_microbatches=st.integers(1, 2),
    attention_ps=st.integers(1, 200 * US),
    gate_ps=st.integers(0, 20 * US),
    send_compute_ps=st.integers(0, 20 * US),
    expert_ps=st.integers(0, 200 * US),
    issue_ps=st.integers(1, US),
    latency_ps=st.integers(1, 10 * US),
    messages=st.integers(1, 4),
    skew=st.sampled_from([0.0, 0.5]),
    jitter=st.sampled_from([0.0, 0.2]),
    two_streams=st.booleans(),
    seed=st.integers(0, 99),
    metadata=st.builds(
        lambda total, batch, tokens, acceptance: {
            "n_moe_layers_total": total,
            "moe_layers_drawn": True,
            "batch_per_npu": batch,
            "mtp": {"tokens": tokens, "acceptance": acceptance},
        },
        st.integers(0, 58),
        st.integers(1, 128),
        st.integers(0, 3),
        st.floats(0, 1),
    ),
)


@given(runs)
@settings(max_examples=40, deadline=None)
def test_shares_sum_to_one_and_times_are_consistent(spec):
    with tempfile.TemporaryDirectory() as folder:
        result = write_run(Path(folder) / "run", spec)
        tokens = rebuild_tokens(result)
        tasks = result.tasks()
    summary, ranks, shares = tokens.summary, tokens.ranks, tokens.shares
    values = shares[list(SHARES)].to_numpy()
    assert values.min() >= 0
    assert values.sum(axis=1) == pytest.approx(1.0)
    assert tokens.streams.groupby(["rank", "stream"])["share"].sum().to_numpy() == pytest.approx(
        1.0
    )
    assert (tokens.streams["busy_ps"] >= 0).all()
    # What is exposed cannot exceed what there is, and one task at a time cannot overlap.
    waits = shares[["dispatch_wait", "combine_wait", "other_wait"]].sum(axis=1)
    assert (waits <= shares["communication"] + 1e-9).all()
    if not spec.two_streams:
        assert (shares["overlapped"] == 0).all()
        assert waits.to_numpy() == pytest.approx(shares["communication"].to_numpy())
    # A task's time is its three parts.
    for phase in summary["rank_latency_us"]:
        parts = sum(ranks[f"{phase}_{part}_ps"] for part in ("computing", "senders", "network"))
        assert parts.to_numpy() == pytest.approx(ranks[f"{phase}_mean_ps"].to_numpy())
    # Attention alone, and the message latency of the network rule, bound the step from below.
    busy = tasks[tasks["kind"] == "attention"].groupby("rank")["duration_ps"].sum()
    assert (ranks["simulated_step_ps"].to_numpy() >= busy.to_numpy()).all()
    assert (tokens.latency["message_p50_ps"] >= spec.latency_ps).all()
    assert (tokens.latency["fct_mean_ps"] <= tokens.latency["message_max_ps"]).all()
    # Units and extrapolation agree between ranks, summary and range.
    assert summary["step_ms"] == pytest.approx(ranks["step_ps"].max() / 1e9)
    per_token = summary["tpot_ms"] * summary["tokens_per_step"]
    assert per_token == pytest.approx(summary["step_ms"])
    assert summary["tokens_per_s_per_npu"] * summary["tpot_ms"] / 1e3 == pytest.approx(
        spec.metadata["batch_per_npu"]
    )
    missing = max(0, spec.metadata["n_moe_layers_total"] - len(spec.layers))
    assert summary["extrapolated"] == (missing > 0)
    added_ms = summary["step_ms"] - summary["simulated_step_ms"]
    assert added_ms == pytest.approx(missing * summary["layer_us"] / 1e3, abs=1e-6)
    if missing:
        interval = summary["tpot_interval_ms"]
        assert (interval is None) == (len(spec.layers) < 3)
        if interval is not None:
            assert sum(interval) / 2 == pytest.approx(summary["tpot_ms"])
    table = tokens.intervals
    assert not (table["low_ps"] > table["value_ps"]).any()
    assert not (table["high_ps"] < table["value_ps"]).any()
    assert tokens.to_text()


@given(runs, st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_the_order_of_flow_and_task_rows_does_not_matter(spec, random):
    with tempfile.TemporaryDirectory() as folder:
        result = write_run(Path(folder) / "run", spec)
        tokens = rebuild_tokens(result)
        seed = random.randrange(2**32)
        batches = [part.sample(frac=1, random_state=seed) for part in result.flow_batches()]
        tasks = result.tasks().sample(frac=1, random_state=seed).reset_index(drop=True)
        result.flow_batches = lambda columns: (part[columns] for part in batches)
        result.tasks = lambda: tasks
        shuffled = rebuild_tokens(result)
    assert shuffled.summary["tpot_ms"] == tokens.summary["tpot_ms"]
    for key in ("message_latency_us", "rank_latency_us", "shares"):
        assert list(shuffled.summary[key]) == list(tokens.summary[key])
        for name, value in tokens.summary[key].items():
            assert shuffled.summary[key][name] == pytest.approx(value)


@given(
    st.lists(st.tuples(st.integers(0, 2**45), st.integers(0, 5)), min_size=1, max_size=200),
    st.floats(0, 1),
)
@settings(deadline=None)
def test_quantiles_of_a_distribution_occurred_and_are_near(pairs, q):
    values, weights = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    distribution = Distribution()
    distribution.add(values, weights)
    repeated = np.sort(np.repeat(values, weights))
    assert distribution.total == len(repeated)
    if not len(repeated):
        return
    exact = repeated[max(int(np.ceil(q * len(repeated) - 1e-9 * len(repeated))), 1) - 1]
    assert distribution.quantile(q) in repeated
    assert exact <= distribution.quantile(q) <= exact + exact // 2048
    assert distribution.quantile(1.0) == repeated[-1] == distribution.max
