"""Sweeps: points, the data set, failures, workers and sweeps that are killed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from distributed import LocalCluster

from ubfabric.cluster import ATTEMPTS
from ubfabric.errors import ResultError, SimulationError, SpecError, UbfabricWarning
from ubfabric.results import RunResult
from ubfabric.sweep import load_sweep, plan_sweep, run_sweep
from ubfabric.tokens import rebuild_tokens

BASE = {"topology": "one-node", "workload": "decode-ep8-sample", "run": {"layers": 1}}
BATCH = "workload.serving.batch_per_npu"
#: A schedule that cuts a die off: its point passes all checks beforehand and fails in the run.
CUT = {
    "detection_time": "1 us",
    "faults": [{"at": "1 us", "element": {"die": "die-0-0"}, "event": "down"}],
}
PATIENCE_S = 60


def sweep(**changes):
    return BASE | changes


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "points").glob("*.parquet")}


def wait_until(found, what):
    until = time.monotonic() + PATIENCE_S
    while not (result := found()):
        assert time.monotonic() < until, f"no {what} within {PATIENCE_S} s"
        time.sleep(0.002)
    return result


# ------------------------------------------------------------------------ points


def test_a_grid_is_every_combination_and_a_list_is_taken_with_each():
    spec, _, _ = load_sweep(
        sweep(
            grid={BATCH: [8, 16], "run.seed": [1, 2]},
            list=[{"run.path_policy": "random"}, {"run.plane_policy": "random", "run.layers": 2}],
        )
    )
    assert spec.keys == ["run.path_policy", "run.plane_policy", "run.layers", BATCH, "run.seed"]
    combinations = spec.combinations()
    assert len(combinations) == 8
    assert combinations[1] == {"run.path_policy": "random", BATCH: 8, "run.seed": 2}
    assert combinations[6] == {
        "run.plane_policy": "random",
        "run.layers": 2,
        BATCH: 16,
        "run.seed": 1,
    }


def test_a_point_is_what_decides_its_result(tmp_path):
    rate = "topology.ub.die_link.bandwidth"
    same = [{"run.seed": 1}, {"run.threads": 2}]
    points = plan_sweep(sweep(list=[{}, {rate: "20 GB/s"}, {rate: "20000 MB/s"}, *same]))
    ids = [point.point for point in points]
    assert ids[1] == ids[2]  # the same rate in other words
    assert ids[0] == ids[3]  # the seed that the workload has anyway
    assert ids[0] == ids[4]  # no result depends on threads
    assert len({point.file_name for point in points}) == 5
    assert len(set(ids)) == 2


def test_files_count_by_their_content(tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        json.dumps(sweep(workload="w.yaml", list=[{"run.faults": "f.yaml"}, {}]))
    )
    (tmp_path / "f.yaml").write_text(json.dumps({"faults": []}))
    (tmp_path / "gate.csv").write_text(
        "expert,tokens\n" + "".join(f"{expert},1\n" for expert in range(256))
    )
    gate = {"policy": "file", "file": "gate.csv"}
    (tmp_path / "w.yaml").write_text(json.dumps({"base": "decode-ep8-sample", "gate": gate}))
    first = [point.point for point in plan_sweep(tmp_path / "sweep.yaml")]
    (tmp_path / "f.yaml").write_text(json.dumps({"faults": [], "detection_time": "1 us"}))
    second = [point.point for point in plan_sweep(tmp_path / "sweep.yaml")]
    assert first[0] != second[0] and first[1] == second[1]
    text = (tmp_path / "gate.csv").read_text()
    (tmp_path / "gate.csv").write_text(text.replace("7,1\n", "7,2\n", 1))
    assert plan_sweep(tmp_path / "sweep.yaml")[1].point != second[1]


def test_a_whole_is_replaced_before_its_parts():
    key = "workload.gate"
    (point,) = plan_sweep(
        sweep(list=[{f"{key}.exponent": 0.5, key: {"policy": "zipf", "exponent": 1.0}}])
    )
    assert point.simulation.workload.spec.gate.exponent == 0.5


def test_warnings_of_a_run_are_said_once_when_the_sweep_is_planned():
    buffer = "topology.ub.l1.buffer"
    with pytest.warns(UbfabricWarning) as said:
        plan_sweep(sweep(grid={"run.seed": [1, 2], buffer: ["64 KiB", "5 kB"]}))
    lines = [str(one.message) for one in said]
    assert lines and len(set(lines)) == len(lines)
    assert all(line.startswith("point 2: ") and "a buffer of 5000 B" in line for line in lines)


MISTAKES = {
    "nothing varies": ({}, ["grid", "list"]),
    "unknown top key": ({"gird": {}}, ["gird", "grid, keep_runs, list, run"]),
    "unknown part": ({"grid": {"fabric.x": [1]}}, ["'fabric.x'", "topology.KEY"]),
    "whole run": ({"grid": {"run": [1]}}, ["'run'", "run.KEY"]),
    "no values": ({"grid": {BATCH: []}}, ["grid", BATCH]),
    "twice": ({"grid": {BATCH: [8]}, "list": [{BATCH: 8}]}, [BATCH, "allowed in one"]),
    "too many": ({"grid": {BATCH: [8] * 101, "run.seed": [1] * 100}}, ["10,100", "10,000"]),
    "bad run": ({"run": {"layers": 0}, "grid": {BATCH: [8]}}, ["run.layers", "0"]),
    "bad value": ({"grid": {BATCH: [8, 7]}}, ["point 2", f"{BATCH}=7", "batch_per_npu", "7"]),
    "bad key": ({"grid": {"topology.ub.color": [1]}}, ["point 1", "ub.color", "unknown key"]),
    "bad run key": ({"grid": {"run.speed": [1]}}, ["point 1", "run: speed", "path_policy"]),
    "bad policy": ({"grid": {"run.path_policy": ["best"]}}, ["point 1", "'best'", "flow-hash"]),
    "bad layers": ({"grid": {"run.layers": [1, 59]}}, ["point 2", "59", "58"]),
    "bad payload": ({"grid": {"run.payload_bytes": [10**6]}}, ["point 1", "payload_bytes"]),
    "no such base": ({"grid": {"topology": ["one-node", "moon"]}}, ["point 2", "moon"]),
    "no such fault": (
        {
            "grid": {
                "run.faults": [
                    {"faults": [{"at": "1 us", "element": {"die": "x"}, "event": "down"}]}
                ]
            }
        },
        ["point 1", "x"],
    ),
    "unused account": ({"run": {"account": True}, "grid": {BATCH: [8]}}, ["keep_runs: true"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_before_anything_runs(tmp_path, name):
    changes, parts = MISTAKES[name]
    with pytest.raises(SpecError) as refused:
        run_sweep(sweep(**changes), tmp_path / "out", scheduler="tcp://127.0.0.1:1")
    text = str(refused.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------ the data set


def test_rows_say_what_single_runs_say(tmp_path, cluster):
    spec = sweep(grid={BATCH: [8, 16]}, keep_runs=True)
    table = run_sweep(spec, tmp_path / "out", scheduler=cluster)
    assert list(table[BATCH]) == [8, 16]
    for _, row in table.iterrows():
        result = RunResult(tmp_path / "out" / "runs" / row["point"])
        summary = rebuild_tokens(result).summary
        assert json.loads((result.path / "tokens.json").read_text()) == summary
        assert row["tpot_ms"] == summary["tpot_ms"]
        assert row["packet_hops"] == result.summary["packet_hops"]
        assert row["combine_rank_latency_p99_us"] == summary["rank_latency_us"]["combine"]["p99"]
    stored = pd.read_parquet(tmp_path / "out" / "points").sort_values(BATCH, ignore_index=True)
    pd.testing.assert_frame_equal(stored, table)


def test_points_of_one_fabric_are_planned_with_the_routes_of_the_first(monkeypatch):
    made = []
    replay = sys.modules["ubfabric.replay"]
    compiled = replay.compile_fabric
    monkeypatch.setattr(replay, "compile_fabric", lambda graph: made.append(1) or compiled(graph))
    speedup = "topology.switching.speedup"
    points = plan_sweep(sweep(grid={speedup: [1, 2], "run.path_policy": ["random", "flow-hash"]}))
    assert len(points) == 4 and len(made) == 2
    alone = plan_sweep(sweep(grid={speedup: [2], "run.path_policy": ["flow-hash"]}))
    assert points[-1].point == alone[0].point


def test_the_longest_points_are_begun_first(tmp_path):
    spec = sweep(grid={BATCH: [8, 24, 16], "run.layers": [1, 2]})
    points = plan_sweep(spec)
    lengths = [point.length for point in points]
    assert lengths == [length * lengths[0] for length in (1, 1.5, 3, 4.5, 2, 3)]
    run_sweep(spec, tmp_path / "out", workers=1)
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    begun = [json.loads(line)["values"] for line in lines]
    # two are equally long, and begin by their hash
    assert begun == [str(point) for point in sorted(points, key=lambda p: (-p.length, p.point))]


def test_values_are_columns_of_their_type(tmp_path, cluster):
    listed = [
        {"run.seed": 3, "workload.gate": {"policy": "zipf", "exponent": 0.5}},
        {"topology.ub.die_link.bandwidth": {"value": "20 GB/s", "source": "x", "strength": "read"}},
    ]
    table = run_sweep(sweep(list=listed), tmp_path / "out", scheduler=cluster)
    assert table["run.seed"].tolist()[0] == 3 and pd.isna(table["run.seed"][1])
    assert json.loads(table["workload.gate"][0]) == {"policy": "zipf", "exponent": 0.5}
    assert table["topology.ub.die_link.bandwidth"].isna().tolist() == [True, False]
    assert table["topology.ub.die_link.bandwidth"][1] == "20 GB/s"


def test_combinations_that_come_to_the_same_are_simulated_once(tmp_path, cluster):
    rate = "topology.ub.die_link.bandwidth"
    spec = sweep(list=[{rate: "20 GB/s"}, {rate: "20000 MB/s"}])
    table = run_sweep(spec, tmp_path / "out", scheduler=cluster)
    assert table[rate].tolist() == ["20 GB/s", "20000 MB/s"]
    assert table["tpot_ms"].nunique() == 1
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 1
    # and a later combination is not simulated either
    spec["list"].append({rate: "160 Gbit/s"})
    table = run_sweep(spec, tmp_path / "out", scheduler="tcp://127.0.0.1:1")
    assert len(table) == 3 and table["point"].nunique() == 1


def test_finished_points_are_kept_and_only_new_ones_run(tmp_path, cluster):
    spec = sweep(grid={BATCH: [8, 16]})
    run_sweep(spec, tmp_path / "out", scheduler=cluster)
    before = {
        file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "points").iterdir()
    }
    # nothing to do: no scheduler is needed
    again = run_sweep(spec, tmp_path / "out", scheduler="tcp://127.0.0.1:1")
    assert len(again) == 2
    more = run_sweep(sweep(grid={BATCH: [16, 24]}), tmp_path / "out", scheduler=cluster)
    assert more[BATCH].tolist() == [16, 24]
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "points").iterdir()}
    assert before.items() < after.items() and len(after) == 3


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"run": {"layers": 2}}, "another base"),
        ({"grid": {"run.seed": [1]}}, "keys"),
        ({"grid": {BATCH: ["8"]}}, None),
        ({"keep_runs": True}, "keep_runs"),
    ],
)
def test_a_folder_belongs_to_one_sweep(tmp_path, cluster, change, part):
    run_sweep(sweep(grid={BATCH: [8]}), tmp_path / "out", scheduler=cluster)
    before = files(tmp_path / "out")
    other = sweep(grid={BATCH: [8]}) | change
    with pytest.raises((ResultError, SpecError)) as refused:
        run_sweep(other, tmp_path / "out", scheduler=cluster)
    assert part is None or part in str(refused.value)
    assert files(tmp_path / "out") == before


def test_a_folder_whose_sweep_was_killed_at_once_is_taken(tmp_path, cluster):
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".sweep.json.partial").write_text("{")
    assert len(run_sweep(sweep(grid={BATCH: [8]}), tmp_path, scheduler=cluster)) == 1
    assert not (tmp_path / ".sweep.json.partial").exists()


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ResultError, match="letter.txt"):
        run_sweep(sweep(grid={BATCH: [8]}), tmp_path, workers=1)
    assert [item.name for item in tmp_path.iterdir()] == ["letter.txt"]


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("ubfabric.cluster.CONNECT_TIMEOUT_S", 1)
    with pytest.raises(SpecError, match="tcp://127.0.0.1:1: cannot be reached"):
        run_sweep(sweep(grid={BATCH: [8]}), tmp_path / "out", scheduler="tcp://127.0.0.1:1")
    with pytest.raises(SpecError, match="one of them"):
        run_sweep(sweep(grid={BATCH: [8]}), tmp_path / "out", scheduler="x", workers=1)
    with pytest.raises(SpecError, match="found 0"):
        run_sweep(sweep(grid={BATCH: [8]}), tmp_path / "out", workers=0)


# ------------------------------------------------------------------------ failures


def test_a_failed_point_is_noted_and_the_others_are_simulated(tmp_path, cluster):
    spec = sweep(list=[{}, {"run.faults": CUT}, {"run.seed": 9}])
    with pytest.warns(UbfabricWarning, match="1 of 3 points failed"):
        table = run_sweep(spec, tmp_path / "out", scheduler=cluster)
    assert len(table) == 2
    failures = pd.read_parquet(tmp_path / "out" / "failures.parquet")
    assert failures["error"].tolist() == ["SimulationError"]
    assert "die-0-0" in failures["message"][0]
    assert json.loads(failures["run.faults"][0]) == CUT
    # tried again the next time, and off the list when it is not
    with pytest.warns(UbfabricWarning, match="1 of 3"):
        run_sweep(spec, tmp_path / "out", scheduler=cluster)
    assert len(pd.read_parquet(tmp_path / "out" / "failures.parquet")) == 1
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert sum("SimulationError" in line for line in lines) == 2


def test_the_command_line_says_so_with_its_exit_code(tmp_path, cluster, ubfabric):
    spec = tmp_path / "sweep.yaml"
    spec.write_text(json.dumps(sweep(list=[{}, {"run.faults": CUT}])))
    arguments = ["sweep", spec, "-o", "out", "--scheduler", cluster]
    code, out, err = ubfabric(*arguments)
    assert code == 1 and "wrote out/points: 1 points" in out and "1 of 2 points failed" in err
    spec.write_text(json.dumps(sweep(list=[{}, {"run.seed": 1}])))
    code, out, _ = ubfabric("sweep", spec, "-o", "good", "--scheduler", cluster, "--progress")
    assert code == 0 and "2 points" in out
    spec.write_text("grid: 3")
    code, out, err = ubfabric(*arguments)
    assert code == 2 and err.count("\n") == 1 and "sweep.yaml" in err


# ------------------------------------------------------------------------ killing


def test_a_worker_that_is_killed_loses_nothing_and_neither_do_more_workers(tmp_path, cluster):
    """Kills the process in the midst of its first point; the partial folder names it."""
    spec = sweep(grid={BATCH: [8, 16, 24]}, keep_runs=True)
    out = tmp_path / "out"
    killed = []

    def kill():
        partial = wait_until(lambda: next((out / "runs").glob(".*.partial-*"), None), "run")
        process = int(partial.name.split(".partial-")[1].split("-")[0])
        assert process != os.getpid()
        os.kill(process, signal.SIGKILL)
        killed.append(process)

    killer = threading.Thread(target=kill)
    killer.start()
    table = run_sweep(spec, out, workers=2)
    killer.join()
    assert len(killed) == 1
    assert table[BATCH].tolist() == [8, 16, 24]
    assert not (out / "failures.parquet").exists()
    run_sweep(spec, tmp_path / "calm", scheduler=cluster)
    assert files(out) == files(tmp_path / "calm")


@pytest.mark.slow
def test_a_point_that_kills_its_process_each_time_is_given_up(tmp_path):
    spec = sweep(grid={BATCH: [8, 16]}, keep_runs=True)
    victim, other = plan_sweep(spec)
    out = tmp_path / "out"
    pattern = f".{victim.point}.partial-*"
    killed = set()

    def kill():
        while len(killed) < 2 * ATTEMPTS:
            partials = wait_until(lambda: list((out / "runs").glob(pattern)), "run")
            for process in {int(p.name.split(".partial-")[1].split("-")[0]) for p in partials}:
                if process not in killed:
                    killed.add(process)
                    os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.warns(UbfabricWarning, match="1 of 2 points failed.*died each time"):
        table = run_sweep(spec, out, workers=1)
    killer.join()
    assert table["point"].tolist() == [other.point]
    failures = pd.read_parquet(out / "failures.parquet")
    assert failures["error"].tolist() == ["KilledWorker"]
    assert failures["point"].tolist() == [victim.point]


@pytest.mark.slow
def test_a_scheduler_that_is_lost_ends_the_sweep_with_one_line(tmp_path, cluster):
    spec = sweep(grid={BATCH: [8, 16, 24, 32, 40, 48, 56, 64]})
    out = tmp_path / "out"
    local = LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        silence_logs=logging.CRITICAL,
    )

    def close():
        wait_until(lambda: list((out / "points").glob("[!.]*.parquet")), "point")
        local.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(SimulationError, match="the scheduler was lost; the same command goes on"):
        run_sweep(spec, out, scheduler=local.scheduler_address)
    closer.join()
    assert 0 < len(files(out)) < 8
    assert len(run_sweep(spec, out, scheduler=cluster)) == 8


def test_a_sweep_that_is_killed_goes_on_where_it_was(tmp_path, cluster):
    spec = sweep(grid={BATCH: [8, 16, 24, 32]}, keep_runs=True)
    (tmp_path / "sweep.yaml").write_text(json.dumps(spec))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ubfabric", "sweep", "sweep.yaml", "-o", "out"]
    command += ["--workers", "1", "--progress"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: list((out / "points").glob("[!.]*.parquet")), "point")
    finally:
        process.kill()
        _, shown = process.communicate()
    assert "dashboard: http://127.0.0.1:" in shown
    done = files(out)
    times = {name: (out / "points" / name).stat().st_mtime_ns for name in done}
    assert 0 < len(done) < 4
    # what a kill at a worse moment leaves behind
    (out / "points" / ".half.parquet.partial").write_bytes(b"PAR1")
    table = run_sweep(spec, out, scheduler=cluster)
    assert table[BATCH].tolist() == [8, 16, 24, 32]
    assert {name: (out / "points" / name).stat().st_mtime_ns for name in done} == times
    assert not list((out / "points").glob(".*"))
    run_sweep(spec, tmp_path / "calm", scheduler=cluster)
    assert files(out) == files(tmp_path / "calm")


def test_two_sweeps_do_not_share_a_folder_at_the_same_time(tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ResultError, match="another sweep"):
            run_sweep(sweep(grid={BATCH: [8]}), tmp_path / "out", workers=1)
