"""Step times: between points and beyond them, remembered on disk, and simulated from packets."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

import ubfabric as ub
from ubfabric import step_times
from ubfabric.errors import ResultError, SimulationError, SpecError, UbfabricWarning
from ubfabric.serving_spec import load_serving
from ubfabric.step_times import (
    MeasuredTransfers,
    TimeStore,
    TimeTable,
    default_cache,
    measure_step_times,
)

MS = 10**9
#: The sample with so few points that they take seconds.
SMALL = {
    "decode.run": {"layers": 1},
    "decode.batch_per_die": 4,
    "decode.grid": {"batch_per_die": [1, 4], "kv_tokens": [1024]},
    "prefill.run": {"layers": 1, "payload_bytes": 8192},
    "prefill.batch_tokens": 2048,
    "prefill.grid": {"tokens": [512, 2048], "prompt_tokens": [512], "cached_share": [0.0, 0.5]},
    "transfers": {"tokens": [128, 1024], "concurrent": [2]},
    "arrivals.prompt_tokens": {"policy": "constant", "tokens": 512},
    "arrivals.output_tokens": {"policy": "constant", "tokens": 8},
    "duration": "5 s",
}


def small(**changes):
    return load_serving("serving-sample", SMALL | changes)


@pytest.fixture(scope="module")
def remembered(tmp_path_factory):
    """A folder with the times of the small system, simulated once for this file."""
    folder = tmp_path_factory.mktemp("times")
    return folder, measure_step_times(small(), cache=folder, workers=1, progress=False)


# --------------------------------------------------------------------------- between points


def test_times_are_linear_between_points_and_exact_at_them():
    values = [[10, 20, 60], [30, 60, 120]]
    table = TimeTable("t", {"a": [1, 3], "b": [0, 10, 20]}, np.array(values) * MS)
    for i, a in enumerate((1, 3)):
        for j, b in enumerate((0, 10, 20)):
            assert table.time_ps(a, b) == values[i][j] * MS
    assert table.time_ps(2, 0) == 20 * MS
    assert table.time_ps(1, 15) == 40 * MS
    assert table.time_ps(1.5, 5) == (0.75 * 15 + 0.25 * 45) * MS
    assert table.asked == 9 and not any(table.below.values()) and not any(table.above.values())


def test_beyond_the_grid_is_its_edge_and_is_counted():
    table = TimeTable("t", {"a": [1, 3], "b": [0, 10]}, np.array([[10, 20], [30, 60]]) * MS)
    assert table.time_ps(0, 5) == 15 * MS
    assert table.time_ps(9, 5) == 45 * MS
    assert table.time_ps(9, 11) == 60 * MS
    assert table.below == {"a": 1, "b": 0} and table.above == {"a": 2, "b": 1}


def test_the_error_is_that_of_a_point_predicted_from_its_neighbours():
    # At 2 between 1 (10) and 5 (50): 20 predicted, 25 there. The other axis is short of a middle.
    table = TimeTable("t", {"a": [1, 2, 5], "b": [0, 1]}, [[10, 10], [25, 20], [50, 50]])
    errors = table.errors()
    assert errors["a"] == pytest.approx([20 / 25 - 1, 0.0]) and errors["b"] == []
    report = table.report()["leave_one_out"]
    assert report["points"] == 2 and report["max"] == pytest.approx(0.2)
    assert report["mean"] == pytest.approx(0.1) and report["max_by_axis"]["b"] is None
    straight = TimeTable("t", {"a": [1, 2, 5], "b": [0, 1]}, [[10, 10], [20, 20], [50, 50]])
    assert straight.report()["leave_one_out"]["max"] == pytest.approx(0, abs=1e-12)


def test_of_a_smooth_curve_the_reported_error_is_four_times_that_between_points():
    points = np.arange(1.0, 6.0)
    table = TimeTable("t", {"a": points}, np.rint(points**2 * MS))
    reported = table.report()["leave_one_out"]["max_by_axis"]["a"]
    at = 2.0  # where the relative error is largest
    between = table.time_ps(at + 0.5) / ((at + 0.5) ** 2 * MS) - 1
    # a square: the error is the same everywhere in absolute terms
    assert reported * at**2 == pytest.approx(4 * between * (at + 0.5) ** 2, rel=1e-6)


def test_a_transfer_beyond_the_last_point_goes_in_pieces():
    table = TimeTable(
        "t", {"tokens": [100, 1000], "concurrent": [1, 3]}, np.array([[1, 3], [10, 30]]) * MS
    )
    transfer = MeasuredTransfers(table).transfer_ps
    assert transfer(0, 1) == 0
    assert transfer(550, 1) == 5.5 * MS
    assert transfer(1000, 2) == 20 * MS
    assert transfer(2100, 1) == 21 * MS
    assert not any(table.above.values())


# --------------------------------------------------------------------------- remembered


def test_what_is_put_in_is_found_by_another_store(tmp_path):
    TimeStore(tmp_path / "a").put("key", {"time_ps": 7, "what": {"kind": "decode"}})
    assert TimeStore(tmp_path / "a").get("key")["time_ps"] == 7
    assert TimeStore(tmp_path / "a").get("other") is None
    assert TimeStore(tmp_path / "b").get("key") is None
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["key.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 0, "time_ps": 7}', '{"schema": 1}'])
def test_a_file_that_is_no_time_is_named(tmp_path, text):
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(ResultError, match=r"key\.json: .*delete it"):
        TimeStore(tmp_path).get("key")


_PUT_OFTEN = """
import sys
from pathlib import Path
from ubfabric.step_times import TimeStore

store = TimeStore(Path(sys.argv[1]))
for _ in range(200):
    store.put("key", {"time_ps": int(sys.argv[2]), "filler": "x" * 5000})
    assert store.get("key")["time_ps"] in (1, 2)  # never half of one
"""


def test_two_processes_share_a_folder(tmp_path):
    both = [
        subprocess.Popen([sys.executable, "-c", _PUT_OFTEN, str(tmp_path), number])
        for number in ("1", "2")
    ]
    assert [process.wait(60) for process in both] == [0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["key.json"]


def test_the_default_folder_is_that_of_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "ubfabric" / "step-times"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG rule: then it is not set
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "ubfabric" / "step-times"


# --------------------------------------------------------------------------- from packets


def test_a_step_time_is_that_of_its_replay(remembered, tmp_path):
    system = small()
    changes = system.decode_changes(4, 1024)
    trace = ub.generate_trace("decode-ep8-sample", layers=1, overrides=changes)
    result = ub.replay(ub.build_topology("two-nodes"), trace, tmp_path / "run", progress=False)
    step_ps = int(ub.rebuild_tokens(result).ranks["step_ps"].max())
    assert remembered[1].decode.time_ps(4, 1024) == step_ps


def test_a_transfer_takes_its_bytes_over_the_links_of_its_plane(remembered):
    times = remembered[1]
    bytes_ = 1024 * 70_272
    # RDMA: 25 GB/s a die, and each transfer has dies of its own; header and latency come on top.
    bound_ps = bytes_ / 25e9 * 1e12
    assert 1.0 < times.kv_transfer.transfer_ps(1024, 2) / bound_ps < 1.35


def test_every_die_of_an_instance_reads_the_cache_by_its_sdma_engines(remembered):
    nodes = ub.build_topology("two-nodes").nodes
    die = nodes["die-0-0"]
    n_messages = 1024 // 128 * 61 * 2  # latents and rotated keys by layer
    message_ps = 128 * 576 * 1e12 / nodes["cpu-0-0"]["sdma_read_bytes_per_s"]
    bound_ps = n_messages * (die["sdma_start_ps"] + message_ps) / die["sdma_engines"]
    assert 1.0 < remembered[1].cache_read.transfer_ps(1024, 1) / bound_ps < 1.02


def test_new_blocks_are_written_by_the_dies_in_turn(remembered):
    nodes = ub.build_topology("two-nodes").nodes
    die = nodes["die-0-0"]
    n_messages = 2 * 61 * 2  # each of eight dies has a block of both requests
    message_ps = 128 * 576 * 1e12 / nodes["cpu-0-0"]["sdma_write_bytes_per_s"]
    bound_ps = n_messages * (die["sdma_start_ps"] + message_ps) / die["sdma_engines"]
    assert 1.0 < remembered[1].cache_write.transfer_ps(1024, 2) / bound_ps < 1.1


def test_remembered_times_are_not_simulated_again(remembered, monkeypatch):
    folder, first = remembered

    def never(job):
        raise AssertionError(f"simulated {job.what}")

    monkeypatch.setattr(step_times._Job, "run", never)
    again = measure_step_times(small(), cache=folder, workers=1, progress=False)
    for name, report in again.report().items():
        assert report["times_ps"] == first.report()[name]["times_ps"]
    with pytest.raises(AssertionError, match="simulated .*'kind': 'decode', 'batch_per_die': 1"):
        measure_step_times(
            small(**{"decode.changes": {"serving": {"mtp_tokens": 0}}}),
            cache=folder,
            workers=1,
            progress=False,
        )


def test_whatever_decides_a_time_decides_its_key():
    def keys(**changes):
        plan = step_times._Plan(small(**changes))
        return {
            "decode": [job.key for job in plan.decode[1]],
            "prefill": [job.key for job in plan.prefill[1]],
            "kv_transfer": [job.key for job in plan.transfers["kv_transfer"][1]],
            "cache_read": [job.key for job in plan.transfers["cache_read"][1]],
        }

    def differ(**changes):
        other = keys(**changes)
        return {name for name in base if not set(base[name]) & set(other[name])}

    base = keys()
    assert keys() == base
    assert differ(fabric={"switching": {"speedup": 1}}) == set(base)
    assert differ(**{"decode.run": {"layers": 2}}) == {"decode"}
    assert differ(**{"prefill.changes": {"gate": {"policy": "zipf", "exponent": 1.0}}}) == {
        "prefill"
    }
    by_card = keys(**{"cache.network": "vpc"})  # a block that lies near takes the same way
    assert {name for name in base if by_card[name] != base[name]} == {"cache_read"}
    with_card = keys(**{"cache.network": "vpc", "cache.vpc_memory": "card"})
    assert {name for name in base if with_card[name] != by_card[name]} == {"cache_read"}
    assert differ(**{"kv_transfer.network": "ub"}) == {"kv_transfer"}
    assert differ(**{"kv_transfer.operation": "write"}) == {"kv_transfer"}
    assert differ(**{"kv_transfer.message": "whole"}) == {"kv_transfer"}
    # Where nothing is decided, nothing changes.
    assert differ(seed=7, objectives={}, **{"arrivals.rate_per_s": 1.0}) == set()


@pytest.mark.slow  # two processes start
def test_missing_times_are_simulated_in_two_processes(remembered, tmp_path):
    system = small(**{"prefill.grid.tokens": [2048], "transfers.tokens": [128]})
    found = measure_step_times(system, cache=tmp_path, workers=2, progress=False)
    assert (
        found.prefill.times_ps.ravel().tolist()
        == remembered[1].prefill.times_ps[1].ravel().tolist()
    )
    assert len(list(tmp_path.iterdir())) == 2 + 2 + 3


def test_a_failed_point_is_told_and_the_others_are_remembered(tmp_path, monkeypatch):
    real = step_times._Job.run

    def failing(job):
        if job.what["kind"] == "cache_write":
            return {"error": "OSError", "message": "no space"}
        return real(job)

    monkeypatch.setattr(step_times._Job, "run", failing)
    system = small(**{"prefill.grid.tokens": [2048], "transfers.tokens": [128]})
    expected = (
        r"1 of 6 step times failed; .*cache_write, tokens 128, concurrent 2: OSError: no space"
    )
    with pytest.raises(SimulationError, match=expected):
        measure_step_times(system, cache=tmp_path, workers=1, progress=False)
    assert len(list(tmp_path.iterdir())) == 6


def test_reuse_shortens_a_batch_and_is_told_to_the_replay(remembered):
    system = small()
    prompts = system.prefill_changes(2048, 512, 0.5)["serving.prompts"]
    assert prompts == [{"tokens": 512, "count": 8, "reused": 256}]
    times = remembered[1].prefill
    # The same tokens to compute: with a cached prefix there is more to attend to. But half of the
    # tokens to compute take less than all of them.
    assert times.time_ps(512, 512, 0.5) < times.time_ps(2048, 512, 0.0)


# --------------------------------------------------------------------------- the specification


def test_shapes_with_less_than_a_microbatch_are_one():
    system = small(**{"decode.changes": {}, "prefill.changes": {}})
    assert "serving.microbatches" not in system.decode_changes(2, 1024)
    assert system.decode_changes(1, 1024)["serving.microbatches"] == 1
    assert "serving.microbatches" not in system.prefill_changes(1024, 512, 0.0)
    assert system.prefill_changes(512, 512, 0.0)["serving.microbatches"] == 1
    shorter = system.prefill_changes(512, 4096, 0.5)
    assert shorter["serving.prompts"] == [{"tokens": 1024, "count": 1, "reused": 512}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"decode.batch_per_die": 8},
            r"decode\.batch_per_die: found 8, allowed up to the last of decode\.grid.*, 4",
        ),
        (
            {"prefill.batch_tokens": 4096},
            r"prefill\.batch_tokens: found 4096, allowed up to the last of prefill\.grid.*, 2048",
        ),
        (
            {"prefill.grid.tokens": [700, 2048]},
            r"prefill\.grid: found 700 tokens to compute in prompts of 512",
        ),
        (
            {"decode.grid.kv_tokens": [2048, 1024]},
            r"decode\.grid: kv_tokens: found \[2048, 1024\], allowed ascending",
        ),
        (
            {"prefill.workload": "decode-ep8-sample"},
            r"found one of kind 'decode', allowed: prefill",
        ),
        (
            {"decode.changes": {"model": "pangu-ultra-moe"}},
            r"prefill\.workload: found the model .* allowed that of decode\.workload",
        ),
        ({"cache.network": "rdma"}, r"cache\.network: found 'rdma'"),
        ({"kind": "decode"}, r"kind: found 'decode', allowed: serving"),
        ({"decode.instances": 0}, r"decode\.instances: found 0"),
        (
            {"decode.changes": {"deployment": {"ranks": 6}}},
            r"decode\.workload: .*deployment: .*experts",
        ),
        (
            {"decode.changes": {"machine": {"die": {"hbm_capacity": "30 GB"}}}},
            r"decode\.workload: .*hbm_capacity: found 30\.0 GB a die, which .* exceeds by",
        ),
    ],
)
def test_a_bad_specification_is_refused_in_one_line(changes, message):
    with pytest.raises(SpecError, match=message) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("traffic/serving-sample.yaml: ")


@pytest.mark.parametrize("name", ["serving-sample", "deepseek-r1-serving"])
def test_shipped_systems_are_sound(name):
    system = load_serving(name)
    assert system.spec.name == name
    assert system.kv_bytes_per_token == 61 * 576 * 2  # notes on the paper: 70,272 B in BF16


def test_a_system_is_laid_over_its_base(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "base: deepseek-r1-serving\nname: mine\n"
        "arrivals: {policy: file, file: requests.csv}\nobjectives: {tpot: 15 ms}\n"
    )
    mine, base = load_serving(path), load_serving("deepseek-r1-serving")
    assert mine.raw["arrivals"] == {"policy": "file", "file": "requests.csv"}  # replaced whole
    assert mine.raw["objectives"] == base.raw["objectives"] | {"tpot": "15 ms"}
    assert mine.raw["decode"] == base.raw["decode"]
    assert mine.spec.name == "mine"
    assert mine.folder == tmp_path  # where requests.csv is looked for


def test_a_missing_base_of_a_system_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: deepseek-r1-servin\nname: mine\n")
    with pytest.raises(SpecError, match=r"mine\.yaml: base: .*deepseek-r1-servin") as caught:
        load_serving(path)
    assert "\n" not in str(caught.value)


def test_room_for_kv_is_what_weights_and_buffers_leave():
    system = load_serving("deepseek-r1-serving")
    parts = system.decode_spec.memory_bytes()
    die = system.decode_spec.machine.die.hbm_capacity
    left = die - parts["weights"] - parts["message buffers"]
    with_mtp = system.kv_bytes_per_token // 61 * 62
    assert system.kv_capacity_tokens == left // with_mtp
    # as many requests of 4,096 tokens as the paper's largest batch, and more
    assert system.kv_capacity_tokens > 64 * 4096


def test_instances_need_dies_of_their_own(tmp_path):
    expected = r"prefill\.instances: found 4 of 8 dies beside 1 of 8 for decode, 40 dies; .* has 32"
    with pytest.raises(SpecError, match=expected):
        measure_step_times(small(**{"prefill.instances": 4}), cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_objective_that_no_batch_meets_is_refused_after_the_smallest(tmp_path, remembered):
    smallest_ms = remembered[1].decode.time_ps(1, 1024) / MS / 1.7  # MTP: 1.7 tokens a step
    expected = (
        rf"objectives\.tpot: found 1 ms, which no batch can meet: with 1 requests a die and 1024 "
        rf"KV tokens a token takes {smallest_ms:.6g} ms"
    )
    system = small(**{"objectives.tpot": "1 ms"})
    with pytest.raises(SpecError, match=expected):
        measure_step_times(system, cache=tmp_path, workers=1, progress=False)
    assert len(list(tmp_path.iterdir())) == 1


# --------------------------------------------------------------------------- the whole


def test_requests_are_served_with_times_from_packets(remembered, tmp_path, capsys):
    folder, _ = remembered
    result = ub.serve(small(), tmp_path / "out", cache=folder, progress=False)
    rows, summary = result.requests(), result.summary
    assert len(rows) == summary["requests"] > 20
    assert (rows["finish_ps"] >= rows["prefill_end_ps"]).all()
    assert (
        summary["within_objectives"]["both"] == (rows["within_ttft"] & rows["within_tpot"]).mean()
    )
    assert summary["cached_tokens"] == rows["cached_tokens"].sum() == len(rows) * 128
    # A lone token cannot be faster than the smallest step.
    fastest = min(summary["step_times"]["decode"]["times_ps"])[0] / 1.7 / MS
    assert summary["tpot_ms"]["mean"] > 0.8 * fastest
    assert not list(tmp_path.glob(".*"))
    again = ub.serve(small(), tmp_path / "again", cache=folder, progress=False)
    for name in ("requests.parquet", "pools.parquet", "summary.json"):
        assert (result.path / name).read_bytes() == (again.path / name).read_bytes()
    picture = ub.plot_serving(result, tmp_path / "serving.png")
    assert picture.stat().st_size > 10_000
    from rich.console import Console

    Console(width=120).print(result)
    shown = capsys.readouterr().out
    assert f"{len(rows)} requests in 5 s" in shown and "within all objectives" in shown


def test_a_time_beyond_the_grid_warns(remembered, tmp_path):
    long = small(**{"arrivals.prompt_tokens": {"policy": "constant", "tokens": 1024}})
    expected = r"prefill: 100\.00% of the times asked for lie above prompt_tokens = 512"
    with pytest.warns(UbfabricWarning, match=expected):
        ub.serve(long, tmp_path / "out", cache=remembered[0], progress=False)


def test_nothing_is_replaced_unless_it_is_a_run_of_requests(remembered, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    ub.serve(small(), out, cache=remembered[0], progress=False)
    with pytest.raises(ResultError, match=r"out: exists; give another folder"):
        ub.serve(small(), out, cache=remembered[0], progress=False)
    other = small(seed=2)
    ub.serve(other, out, cache=remembered[0], progress=False, overwrite=True)
    assert json.loads((out / "summary.json").read_text())["seed"] == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ResultError, match=r"mine: not a folder that 'ubfabric serve' wrote"):
        ub.serve(other, tmp_path / "mine", cache=remembered[0], overwrite=True)
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]


def test_columns_are_those_of_the_documentation(remembered, tmp_path, source_root):
    result = ub.serve(small(), tmp_path / "out", cache=remembered[0], progress=False)
    text = (source_root / "traffic" / "README.md").read_text(encoding="utf-8")
    for name in ("requests.parquet", "pools.parquet"):
        for column in pq.read_schema(result.path / name).names:
            assert f"`{column}`" in text, column
