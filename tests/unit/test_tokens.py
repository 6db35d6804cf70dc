"""Every number of the token summary, against arithmetic done by hand.

The synthetic run has 8 ranks, 2 microbatches, 2 streams. Attention takes 100 us, the
gate 10, a dispatch or combine 5 of computing + 0.8 of issue (8 messages of 0.1) + 2 of
latency = 7.8, an expert 50, so one microbatch's MoE part takes 75.6 us and hides behind
attention: a layer takes 200 us and completes 75.6 us after its second attention.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from synthetic_run import US, Synthetic, write_run

import ubfabric as ub
from ubfabric.errors import ResultError
from ubfabric.results import LINK_SCHEMA, RunWriter
from ubfabric.tokens import SHARES, rebuild_tokens

METADATA = {
    "n_moe_layers_total": 58,
    "moe_layers_drawn": True,
    "batch_per_npu": 96,
    "kv_tokens": 4096,
    "mtp": {"tokens": 1, "acceptance": 0.7},
}
PAPER_ROW = {
    "batch_per_npu": 96,
    "kv_tokens": 4096,
    "slo_ps": 50_000_000_000,
    "tpot_ps": 49_400_000_000,
    "tokens_per_s_per_npu": {"value": 1943, "source": "abstract", "strength": "read"},
    "source": "notes on the paper",
    "strength": "secondary",
    "note": "batch is requests per NPU",
}


def rebuild(path, **changes):
    return rebuild_tokens(write_run(path / "run", Synthetic(**changes)))


def test_a_run_of_all_layers_is_not_extrapolated(tmp_path):
    metadata = METADATA | {"n_moe_layers_total": 3}
    summary = rebuild(tmp_path, metadata=metadata).summary
    assert summary["step_ms"] == pytest.approx(0.6756, abs=1e-12)
    assert summary["simulated_step_ms"] == summary["step_ms"]
    assert summary["extrapolated"] is False
    assert summary["extrapolation"] == "not extrapolated: all 3 MoE layers were simulated"
    assert summary["tokens_per_step"] == pytest.approx(1.7)
    assert summary["tpot_ms"] == pytest.approx(0.6756 / 1.7)
    assert summary["tokens_per_s_per_npu"] == pytest.approx(96 / (0.6756e-3 / 1.7))
    assert summary["step_standard_error_ms"] == summary["tpot_standard_error_ms"] == 0.0
    assert summary["step_interval_ms"] == [summary["step_ms"]] * 2
    assert summary["tpot_interval_ms"] == [summary["tpot_ms"]] * 2
    assert summary["tokens_per_s_per_npu_interval"] == [summary["tokens_per_s_per_npu"]] * 2


def test_missing_layers_are_added_at_the_steady_layer_time(tmp_path):
    tokens = rebuild(tmp_path, metadata=METADATA)
    summary = tokens.summary
    assert tokens.layers["completion_ps"].tolist() == [275_600_000, 475_600_000, 675_600_000]
    assert tokens.layers["increment_ps"].tolist() == [-1, 200 * US, 200 * US]
    assert tokens.layers["steady"].tolist() == [False, True, True]
    assert summary["layer_us"] == 200.0
    assert summary["step_ms"] == pytest.approx(0.6756 + 55 * 0.2)
    assert summary["step_standard_error_ms"] == 0.0
    assert summary["tpot_interval_ms"] == pytest.approx([summary["tpot_ms"]] * 2)
    assert summary["extrapolation"].startswith(
        "extrapolated from 3 of 58 layers, drawn at random: 55 more at 200.0"
    )
    assert (tokens.ranks["step_ps"] == 675_600_000 + 55 * 200 * US).all()
    assert (tokens.ranks["simulated_step_ps"] == 675_600_000).all()


def test_four_layers_leave_out_the_first_increment(tmp_path):
    """Completions at 100, 400, 500, 620: increments 300 (left out), 100, 120."""
    tokens = rebuild_tokens(
        layer_run(tmp_path, [100, 400, 500, 620], METADATA | {"n_moe_layers_total": 10})
    )
    assert tokens.layers["steady"].tolist() == [False, False, True, True]
    summary = tokens.summary
    assert summary["layer_us"] == 110.0
    deviation = math.sqrt(2) * 10  # of 100 and 120
    assert summary["layer_standard_deviation_us"] == pytest.approx(deviation)
    error_us = 6 * deviation * math.sqrt(1 / 2 + 1 / 6)
    assert summary["step_standard_error_ms"] == pytest.approx(error_us / 1e3)
    assert summary["step_ms"] == pytest.approx((620 + 6 * 110) / 1e3)
    # Student's t with one degree of freedom: 12.706
    low, high = (summary["step_ms"] + sign * 12.7062 * error_us / 1e3 for sign in (-1, 1))
    assert summary["step_interval_ms"] == pytest.approx([low, high], rel=1e-5)
    assert summary["tpot_interval_ms"] == pytest.approx([low / 1.7, high / 1.7], rel=1e-5)
    assert summary["tokens_per_s_per_npu_interval"] == pytest.approx(
        [96 / (high / 1.7e3), 96 / (low / 1.7e3)], rel=1e-5
    )
    assert (
        f"95 % interval of the step +- {12.7062 * error_us / 1e3:.2f} ms"
        in (summary["extrapolation"])
    )


def test_behind_a_dense_layer_the_first_increment_counts(tmp_path):
    """The pipeline is full already: increments 300, 100, 120."""
    labels = [(0, "dense"), (1, "moe"), (2, "moe"), (3, "moe"), (4, "moe")]
    metadata = METADATA | {
        "n_moe_layers_total": 10,
        "layers": [{"layer": layer, "label": label} for layer, label in labels],
    }
    run = layer_run(tmp_path, [50, 100, 400, 500, 620], metadata, first_kind="ffn")
    tokens = rebuild_tokens(run)
    assert tokens.layers["steady"].tolist() == [False, False, True, True, True]
    assert tokens.summary["layer_us"] == pytest.approx(520 / 3)


def test_experts_of_the_last_layer_do_not_count_as_those_of_others(tmp_path):
    """Dispatch ends at 100, 200 and 320, combine at 180, 290 and 340: the last, alone, is short."""
    table = pd.DataFrame(
        {
            "layer": [0, 0, 1, 1, 2, 2],
            "kind": ["dispatch", "combine"] * 3,
            "start_ps": [0, 100, 180, 200, 290, 320],
            "finish_ps": [100, 180, 200, 290, 320, 340],
        }
    )
    table[["start_ps", "finish_ps"]] *= US
    run = rank_run(tmp_path, table, METADATA | {"n_moe_layers_total": 10})
    layers = rebuild_tokens(run).layers
    assert layers["completion_ps"].tolist() == [180 * US, 290 * US, 340 * US]
    assert layers["increment_ps"].tolist() == [-1, 100 * US, 120 * US]


def test_the_text_says_what_the_draw_leaves_open(tmp_path):
    text = rebuild(tmp_path, skew=0.5, metadata=METADATA).to_text(width=200)
    (line,) = (line for line in text.splitlines() if line.startswith("dispatch by message over"))
    assert line.startswith("dispatch by message over all layers, 95 %, us: mean ")
    assert " to " in line and "or more" in line
    everything = rebuild(tmp_path / "all", metadata=METADATA | {"n_moe_layers_total": 3})
    assert "over all layers" not in everything.to_text()


def test_layers_that_were_not_drawn_have_no_interval(tmp_path):
    metadata = METADATA | {"n_moe_layers_total": 10, "moe_layers_drawn": False}
    tokens = rebuild_tokens(layer_run(tmp_path, [100, 400, 500, 620], metadata))
    assert tokens.summary["step_ms"] == pytest.approx((620 + 6 * 110) / 1e3)
    for key in ("step_interval_ms", "tpot_interval_ms", "tokens_per_s_per_npu_interval"):
        assert tokens.summary[key] is None
    assert tokens.intervals[["low_ps", "high_ps"]].isna().all(axis=None)
    assert tokens.intervals["value_ps"].notna().all()
    assert "not drawn at random" in tokens.summary["extrapolation"]


def test_intervals_of_all_layers_have_no_width(tmp_path):
    metadata = METADATA | {"n_moe_layers_total": 3}
    tokens = rebuild(tmp_path, skew=0.5, jitter=0.2, metadata=metadata)
    table = tokens.intervals
    assert set(table["quantity"]) == {"layer", "message", "fct", "rank"}
    assert (table["low_ps"] == table["value_ps"]).all()
    assert (table["high_ps"] == table["value_ps"]).all()
    of = table.set_index(["quantity", "phase", "statistic"])["value_ps"]
    rank = tokens.summary["rank_latency_us"]["combine"]["p99"]
    assert of["rank", "combine", "p99"] == pytest.approx(rank * US)
    message = tokens.summary["message_latency_us"]["dispatch"]["p50"]
    assert of["message", "dispatch", "p50"] == pytest.approx(message * US)
    assert tokens.summary["intervals"][0]["quantity"] == "layer"


def test_one_layer_is_an_upper_estimate_and_says_so(tmp_path):
    summary = rebuild(tmp_path, layers=(3,), metadata=METADATA).summary
    assert summary["layer_us"] == pytest.approx(275.6)
    assert summary["step_ms"] == pytest.approx(58 * 0.2756)
    assert "an upper estimate" in summary["extrapolation"]
    assert summary["step_standard_error_ms"] is None


def test_two_layers_have_one_increment_and_no_error(tmp_path):
    summary = rebuild(tmp_path, layers=(3, 4), metadata=METADATA).summary
    assert summary["layer_us"] == 200.0
    assert "one increment, so the error is unknown" in summary["extrapolation"]
    assert summary["step_standard_error_ms"] is None


def test_without_metadata_nothing_is_invented(tmp_path):
    tokens = rebuild(tmp_path)
    summary = tokens.summary
    assert summary["extrapolated"] is False
    assert "does not state how many the model has" in summary["extrapolation"]
    assert summary["tokens_per_s_per_npu"] is None
    assert summary["tokens_per_step"] == 1.0
    assert "tokens_per_s_per_npu" not in tokens.ranks
    assert tokens.paper.empty
    assert "does not state batch_per_npu" in tokens.to_text()


def test_mtp_layers_and_the_head_do_not_count_as_moe_layers(tmp_path):
    layers = [{"layer": 3, "label": "moe"}, {"layer": 4, "label": "moe"}]
    layers.append({"layer": 5, "label": "mtp"})
    metadata = METADATA | {"n_moe_layers_total": 4, "layers": layers}
    tokens = rebuild(tmp_path, metadata=metadata)
    assert tokens.layers["moe"].tolist() == [True, True, False]
    assert tokens.summary["moe_layers_simulated"] == 2
    total = tokens.latency[tokens.latency["layer"] == -1]
    assert total["flows"].tolist() == [2 * 2 * 64] * 2  # without the MTP layer
    assert tokens.latency["layer"].tolist() == [-1, -1, 3, 3, 4, 4, 5, 5]
    assert tokens.summary["step_ms"] == pytest.approx(0.6756 + 2 * 0.2)


@pytest.mark.parametrize(
    ("mtp", "expected"),
    [
        ({"tokens": 0, "acceptance": 0.7}, 1.0),
        ({"tokens": 1, "acceptance": 0.7}, 1.7),
        ({"tokens": 2, "acceptance": 0.5}, 1.75),
        ({"tokens": 3, "acceptance": 1.0}, 4.0),
    ],
)
def test_tokens_per_step_counts_a_draft_only_if_those_before_it_are_accepted(
    tmp_path, mtp, expected
):
    summary = rebuild(tmp_path, metadata={"mtp": mtp}).summary
    assert summary["tokens_per_step"] == pytest.approx(expected)


def test_message_latency_weighs_each_flow_by_its_messages(tmp_path):
    """The i-th of 8 flows ends 0.1 * i + 2 us after the send start."""
    tokens = rebuild(tmp_path)
    total = tokens.latency[tokens.latency["layer"] == -1].set_index("phase").loc["dispatch"]
    assert total["flows"] == 3 * 2 * 64 and total["messages"] == 3 * 2 * 64
    assert total["bytes"] == 3 * 2 * 64 * 7_680
    assert total["message_mean_ps"] == pytest.approx(2_450_000)
    assert total["message_p50_ps"] == 2_400_000
    assert total["message_p90_ps"] == 2_800_000
    assert total["message_max_ps"] == 2_800_000
    heavy = pd.DataFrame(
        {"dst": [0, 1], "messages": [99, 1], "start": [0, 10], "finish": [40, 500]}
    )
    tokens = rebuild_tokens(flow_run(tmp_path / "b", heavy))
    total = tokens.latency[tokens.latency["layer"] == -1].iloc[0]
    # 99 of 100 messages took 40 ps; the other 500 ps, since the rank began to send at 0.
    assert (total["message_p50_ps"], total["message_p99_ps"]) == (40, 40)
    assert total["message_max_ps"] == 500 and total["fct_max_ps"] == 490
    assert total["message_mean_ps"] == pytest.approx((500 + 99 * 40) / 100)


def test_rank_latency_splits_into_computing_senders_and_network(tmp_path):
    tokens = rebuild(tmp_path)
    for phase in ("dispatch", "combine"):
        stats = tokens.summary["rank_latency_us"][phase]
        assert stats["mean"] == stats["p50"] == stats["max"] == pytest.approx(7.8)
        assert stats["computing"] == pytest.approx(5.0)
        assert stats["senders"] == 0.0
        assert stats["network"] == pytest.approx(2.8)
        assert tokens.ranks[f"{phase}_p99_ps"].tolist() == [7_800_000] * 8


def test_time_lost_to_a_late_sender_is_not_called_network(tmp_path):
    """Rank 1 begins to send 30 after rank 0 is ready; the flow takes 5."""
    rows = [
        # rank, kind, duration, start, finish, issued, arrived
        (0, "dispatch", 10, 0, 45, 10, 45),
        (1, "attention", 30, 0, 30, -1, -1),
        (1, "dispatch", 10, 30, 45, 40, -1),
    ]
    flows = pd.DataFrame({"src": [1], "dst": [0], "messages": [1], "start": [40], "finish": [45]})
    tokens = rebuild_tokens(task_run(tmp_path, rows, flows))
    rank = tokens.ranks.set_index("rank").loc[0]
    assert rank["dispatch_computing_ps"] == 10
    assert rank["dispatch_senders_ps"] == 30
    assert rank["dispatch_network_ps"] == 5


def test_shares_of_the_overlapped_step(tmp_path):
    """600 us attention; after it the last MoE part of 75.6 us is exposed."""
    tokens = rebuild(tmp_path)
    step = 675.6
    expected = {
        "attention": 600 / step,
        "expert": 50 / step,
        "other_compute": 10 / step,
        "operator_compute": 10 / step,
        "dispatch_wait": 2.8 / step,
        "combine_wait": 2.8 / step,
        "other_wait": 0.0,
        "idle": 0.0,
    }
    for name, share in expected.items():
        assert tokens.shares[name].to_numpy() == pytest.approx([share] * 8), name
    # Of six MoE parts of 75.6 us five run beside attention.
    assert tokens.summary["overlapped"] == pytest.approx(5 * 75.6 / step)
    assert tokens.summary["communication"] == pytest.approx(6 * 5.6 / step)
    assert tokens.summary["exposed_communication"] == pytest.approx(5.6 / step)


def test_shares_are_extrapolated_like_the_step(tmp_path):
    """Between the starts of layers 4 and 5, at 200 and 400 us, attention never stops."""
    tokens = rebuild(tmp_path, metadata=METADATA)
    step = 675.6 + 55 * 200
    share = tokens.summary["shares"]
    assert tokens.summary["shares_extrapolated"] is True
    assert share["attention"] == pytest.approx((600 + 55 * 200) / step)
    assert share["combine_wait"] == pytest.approx(2.8 / step)
    assert sum(share.values()) == pytest.approx(1.0)
    # Two MoE parts of 75.6 us run within those 200 us, both beside attention.
    assert tokens.summary["overlapped"] == pytest.approx((5 * 75.6 + 55 * 2 * 75.6) / step)
    assert "extrapolated like the step" in tokens.to_text()


def test_shares_of_one_layer_are_not_extrapolated(tmp_path):
    tokens = rebuild(tmp_path, layers=(3,), metadata=METADATA)
    assert tokens.summary["shares_extrapolated"] is False
    assert tokens.summary["shares"]["attention"] == pytest.approx(200 / 275.6)
    assert "extrapolated like the step" not in tokens.to_text()


def test_shares_on_one_stream_are_plain_sums(tmp_path):
    tokens = rebuild(tmp_path, two_streams=False)
    step = 6 * 175.6
    share = tokens.summary["shares"]
    assert share["attention"] == pytest.approx(600 / step)
    assert share["expert"] == pytest.approx(300 / step)
    assert share["dispatch_wait"] == pytest.approx(6 * 2.8 / step)
    assert tokens.summary["overlapped"] == 0.0
    assert tokens.summary["step_ms"] == pytest.approx(step / 1e3)


def test_streams_complete_to_one_with_idle(tmp_path):
    streams = rebuild(tmp_path).streams
    assert streams.groupby(["rank", "stream"])["share"].sum().to_numpy() == pytest.approx(
        [1.0] * 16
    )
    one = streams[(streams["rank"] == 5) & (streams["stream"] == 1)].set_index("kind")
    assert one["busy_ps"].to_dict() == {
        "combine": 46_800_000,
        "dispatch": 46_800_000,
        "expert": 300_000_000,
        "gate": 60_000_000,
        "idle": 675_600_000 - 453_600_000,
    }
    assert one.loc["dispatch", "computing_ps"] == 30_000_000


def test_priority_of_simultaneous_activities(tmp_path):
    """Three streams at once: attention wins over expert, computing over waiting."""
    rows = [
        (0, "attention", 10, 0, 10, -1, -1, 0),
        (0, "expert", 20, 5, 25, -1, -1, 1),
        (0, "dispatch", 2, 20, 40, 22, 40, 2),
        (0, "gate", 5, 50, 55, -1, -1, 0),
        (0, "sync", 1, 55, 60, -1, 60, 0),
    ]
    tokens = rebuild_tokens(task_run(tmp_path, rows))
    share = {name: tokens.shares[name].iloc[0] * 60 for name in SHARES}
    assert share == pytest.approx(
        {
            "attention": 10,  # 0..10
            "expert": 15,  # 10..25, also over the dispatch's computing and waiting
            "other_compute": 5,  # 50..55
            "operator_compute": 1,  # 55..56
            "dispatch_wait": 15,  # 25..40
            "combine_wait": 0,
            "other_wait": 4,  # 56..60
            "idle": 10,  # 40..50
        }
    )
    assert tokens.shares["overlapped"].iloc[0] * 60 == pytest.approx(5 + 5)
    assert tokens.shares["communication"].iloc[0] * 60 == pytest.approx(18 + 4)


def test_straggler_spread_of_layer_and_step(tmp_path):
    """Four ranks with 10, 10, 10, 16: (16 - 10) / 10."""
    rows = [(rank, "attention", t, 0, t, -1, -1) for rank, t in enumerate([10, 10, 10, 16])]
    tokens = rebuild_tokens(task_run(tmp_path, rows))
    layer = tokens.layers.iloc[0]
    assert layer["straggler_spread"] == pytest.approx(0.6)
    assert layer["lag_ps"] == 6
    assert tokens.summary["step_straggler_spread"] == pytest.approx(0.6)
    assert tokens.summary["layer_straggler_spread_max"] == pytest.approx(0.6)
    assert tokens.layers["completion_ps"].tolist() == [-1]
    assert tokens.summary["moe_layers_simulated"] == 0


def test_step_of_the_group_is_that_of_the_slowest_rank(tmp_path):
    rows = [(rank, "attention", t, 0, t, -1, -1) for rank, t in enumerate([10, 30, 20])]
    tokens = rebuild_tokens(task_run(tmp_path, rows, metadata={"batch_per_npu": 2}))
    assert tokens.ranks["step_ps"].tolist() == [10, 30, 20]
    assert tokens.summary["step_ms"] == pytest.approx(30e-9)
    assert tokens.summary["tokens_per_s_per_npu"] == pytest.approx(2 / 30e-12)
    assert tokens.ranks["tokens_per_s_per_npu"].tolist() == pytest.approx(
        [2 / 10e-12, 2 / 30e-12, 2 / 20e-12]
    )
    assert tokens.summary["rank_tpot_ms"]["p50"] == pytest.approx(20e-9)


def test_load_is_the_largest_over_the_mean(tmp_path):
    flows = pd.DataFrame({"dst": [0, 1, 0], "src": [0, 1, 1], "messages": [3, 2, 3]})
    flows = flows.assign(start=0, finish=10)
    rows = [(rank, "dispatch", 0, 0, 10, 5, 10) for rank in range(2)]
    tokens = rebuild_tokens(task_run(tmp_path, rows, flows))
    assert tokens.layers["load_max_over_mean"].iloc[0] == pytest.approx(6 / 4)


def test_the_papers_row_stands_beside_the_simulation(tmp_path):
    metadata = METADATA | {"paper_row": PAPER_ROW, "paper_rows": [PAPER_ROW]}
    tokens = rebuild(tmp_path, metadata=metadata)
    paper = tokens.paper.set_index("quantity")
    assert list(paper.index) == ["TPOT", "tokens/s per NPU"]
    tpot = paper.loc["TPOT"]
    assert tpot["paper"] == pytest.approx(49.4)
    assert tpot["simulated"] == pytest.approx(tokens.summary["tpot_ms"])
    assert tpot["difference"] == pytest.approx(tokens.summary["tpot_ms"] - 49.4)
    assert tpot["difference_percent"] == pytest.approx(100 * tpot["difference"] / 49.4)
    assert (tpot["strength"], tpot["source"]) == ("secondary", "notes on the paper")
    assert paper.loc["tokens/s per NPU", "strength"] == "read"
    text = tokens.to_text()
    for part in ("49.4 ms", "1,943", f"{tpot['difference']:+,.2f} ms", "secondary", "slo 50 ms"):
        assert part in text
    assert f"{tpot['difference_percent']:+.1f} %" in text
    assert tokens.summary["paper"][0]["difference"] == pytest.approx(tpot["difference"])


@pytest.mark.parametrize(
    ("here", "row"), [({"batch_per_npu": 64}, {}), ({"kv_tokens": 5000}, {}), ({}, {"ranks": 320})]
)
def test_rows_of_other_points_are_named_not_compared(tmp_path, here, row):
    metadata = METADATA | {"paper_row": None, "paper_rows": [PAPER_ROW | row]} | here
    tokens = rebuild(tmp_path, metadata=metadata)
    assert tokens.paper.empty
    text = " ".join(tokens.to_text().split())
    assert "no row for this point; it has batch per NPU 96, KV tokens 4096, slo 50 ms" in text


def test_operator_times_of_the_spec_are_called_inputs(tmp_path):
    operators = {
        "attention": {
            "anchor": {"value": "600 us", "source": "the notes", "strength": "secondary"}
        },
        "gate": {"fixed": {"value": "15 us", "source": "no figure", "strength": "assumed"}},
        "cores": {"value": 8, "source": "x", "strength": "read"},
    }
    tokens = rebuild(tmp_path, metadata={"spec": {"operators": operators}})
    assert [row["key"] for row in tokens.summary["inputs"]] == [
        "operators.attention.anchor",
        "operators.gate.fixed",
    ]
    text = tokens.to_text()
    assert "Inputs, not simulated" in text
    assert "operators.attention.anchor = 600 us (secondary): the notes" in text


def test_summary_is_json_and_is_written_whole(tmp_path):
    tokens = rebuild(tmp_path, metadata=METADATA | {"paper_row": PAPER_ROW})
    text = tokens.to_json(tmp_path / "tokens.json")
    assert (tmp_path / "tokens.json").read_text() == text
    assert json.loads(text) == json.loads(json.dumps(tokens.summary))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["run", "tokens.json"]
    with pytest.raises(ResultError, match="cannot be written"):
        tokens.to_json(tmp_path / "none" / "tokens.json")


def test_text_fits_the_width_and_names_the_extrapolation(tmp_path):
    text = rebuild(tmp_path, metadata=METADATA).to_text(width=100)
    assert max(map(len, text.splitlines())) <= 100
    assert "Extrapolated from 3 of 58 layers" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"batch_per_npu": "many"}, "batch_per_npu: found 'many', expected a number"),
        ({"mtp": {"tokens": 1, "acceptance": 1.7}}, "mtp.acceptance: found 1.7, allowed 0 to 1"),
        ({"n_moe_layers_total": -1}, "n_moe_layers_total: found -1"),
        ({"paper_rows": ["49.4 ms"]}, "expected a list of mappings"),
        ({"paper_rows": [{"tpot_ps": "fast"}]}, "tpot_ps: found 'fast', expected a number above 0"),
    ],
)
def test_unusable_metadata_are_an_error_of_one_line(tmp_path, metadata, message):
    with pytest.raises(ResultError, match=message) as info:
        rebuild(tmp_path, metadata=metadata)
    assert "\n" not in str(info.value)


def test_a_run_without_tasks_is_an_error(tmp_path):
    with pytest.raises(ResultError, match="no tasks"):
        rebuild_tokens(task_run(tmp_path, []))


def test_missing_layers_without_a_simulated_one_are_an_error(tmp_path):
    rows = [(0, "attention", 10, 0, 10, -1, -1)]
    with pytest.raises(ResultError, match="simulate at least one"):
        rebuild_tokens(task_run(tmp_path, rows, metadata={"n_moe_layers_total": 58}))


def test_shares_of_a_full_step_sum_to_one(tmp_path):
    """58 layers, 320 ranks, 10 tasks a rank and layer; flows of few ranks only."""
    rng = np.random.default_rng(0)
    n = 58 * 320 * 10
    table = pd.DataFrame({"task": np.arange(n)})
    table["layer"] = np.repeat(np.arange(58), 3200)
    table["rank"] = np.tile(np.repeat(np.arange(320), 10), 58)
    kinds = np.array(["attention", "gate", "dispatch", "expert", "combine"])
    table["kind"] = np.tile(kinds, n // 5)
    table["stream"] = np.where(table["kind"] == "attention", 0, 1)
    table["microbatch"] = np.tile(np.repeat([0, 1], 5), n // 10)
    table["duration_ps"] = rng.integers(1, 100, n) * US
    by_stream = table.groupby(["rank", "stream"])["duration_ps"]
    table["finish_ps"] = by_stream.cumsum()
    table["start_ps"] = table["finish_ps"] - table["duration_ps"]
    table["ready_ps"] = table["start_ps"]
    sends = table["kind"].isin(["dispatch", "combine"])
    table["duration_ps"] //= np.where(sends, 2, 1)
    table["issued_ps"] = table["arrived_ps"] = table["finish_ps"].where(sends, -1)
    result = task_run(tmp_path, [], table=table)
    tokens = rebuild_tokens(result)
    assert tokens.summary["moe_layers_simulated"] == 58
    assert tokens.shares[list(SHARES)].sum(axis=1).to_numpy() == pytest.approx([1.0] * 320)


def test_a_closed_loop_run_without_flows_has_empty_latency_tables(tmp_path):
    rows = [(0, "attention", 10, 0, 10, -1, -1)]
    tokens = rebuild_tokens(task_run(tmp_path, rows))
    assert tokens.latency.empty and "message_p99_ps" in tokens.latency
    assert tokens.summary["message_latency_us"] == {}
    assert tokens.to_text()


# Runs written row by row, for cases the synthetic run cannot make.


def task_run(path, rows, flows=None, metadata=None, table=None):
    """Write a run of tasks ``(rank, kind, duration, start, finish, issued, arrived[, stream])``."""
    names = ["rank", "kind", "duration_ps", "start_ps", "finish_ps", "issued_ps", "arrived_ps"]
    if table is None:
        rows = [row if len(row) == 8 else (*row, 0) for row in rows]
        table = pd.DataFrame(rows, columns=[*names, "stream"])
        table = table.assign(layer=0, microbatch=0, task=range(len(table)))
        table["ready_ps"] = table["start_ps"]
        table = table.astype({name: "int64" for name in table.columns if name != "kind"})
        table["kind"] = table["kind"].astype(str)
    with RunWriter(path / "run") as writer:
        if flows is not None:
            writer.write_flows(0, flow_table(flows))
        writer.write_tasks(pa.Table.from_pandas(table, preserve_index=False))
        writer.write_links(
            pa.table({field.name: pa.array([], field.type) for field in LINK_SCHEMA})
        )
        return writer.finish({"trace": metadata or {}})


def flow_run(path, flows):
    rows = [(rank, "dispatch", 0, 0, 500, 0, 500) for rank in range(2)]
    return task_run(path, rows, flows.assign(src=0))


def flow_table(flows):
    n = len(flows)
    columns = {
        "phase": ["dispatch"] * n,
        "layer": np.zeros(n, np.int64),
        "microbatch": np.zeros(n, np.int64),
        "src": flows["src"],
        "dst": flows["dst"],
        "network": ["ub"] * n,
        "operation": ["write"] * n,
        "service_level": np.zeros(n, np.int64),
        "messages": flows["messages"],
        "message_bytes": np.full(n, 8),
        "bytes": flows["messages"] * 8,
        "packets": flows["messages"],
        "start_ps": flows["start"],
        "first_byte_ps": flows["start"],
        "finish_ps": flows["finish"],
        "fct_ps": flows["finish"] - flows["start"],
        "hops": np.full(n, 2),
        "queueing_ps": np.zeros(n, np.int64),
    }
    return pa.table({name: np.asarray(column) for name, column in columns.items()})


def rank_run(path, table, metadata):
    """One rank, one stream, tasks one after another: layer, kind, start and finish are given."""
    table = table.assign(rank=0, stream=0, microbatch=0, task=range(len(table)))
    table["duration_ps"] = table["finish_ps"] - table["start_ps"]
    table["issued_ps"] = table["arrived_ps"] = table["finish_ps"]
    table["ready_ps"] = table["start_ps"]
    return task_run(path, [], metadata=metadata, table=table)


def layer_run(path, completions_us, metadata, first_kind="combine"):
    """One rank, one combine a layer that ends at the given times."""
    starts = [0, *completions_us[:-1]]
    table = pd.DataFrame({"start_ps": starts, "finish_ps": completions_us}) * US
    table = table.assign(layer=range(len(table)), kind="combine")
    table.loc[0, "kind"] = first_kind
    return rank_run(path, table, metadata)


def test_stages_of_an_operator_count_as_one_task(tmp_path):
    trace = ub.generate_trace("decode-ep8-sample", layers=[3])
    result = ub.replay(ub.build_topology("one-node"), trace, tmp_path / "run")
    tokens = ub.rebuild_tokens(result)
    assert not tokens.streams["kind"].str.contains("-").any()
    tasks = result.tasks()
    tasks["kind"] = tasks["kind"].astype(str)
    for phase in ("dispatch", "combine"):
        parts = tasks[tasks["kind"].str.startswith(phase)]
        assert parts["kind"].nunique() == 4
        spans = parts.groupby(["layer", "microbatch", "rank"]).agg(
            start=("start_ps", "min"), finish=("finish_ps", "max")
        )
        spans["time"] = spans["finish"] - spans["start"]
        busy = tokens.streams[tokens.streams["kind"] == phase].set_index("rank")["busy_ps"]
        assert (busy == spans.groupby("rank")["time"].sum()).all()
        # the median over ranks of the MoE layer, in which stages are one operator as well
        median = tokens.summary["rank_latency_us"][phase]["p50"] * 1e6
        of_layer = spans.loc[3, "time"].sort_values()
        assert median == pytest.approx(of_layer.iloc[(len(of_layer) - 1) // 2])
