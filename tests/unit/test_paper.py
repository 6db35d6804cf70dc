"""Published figures beside simulated ones: errors, ranges, points, and what is refused."""

import math
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from ubfabric.errors import SpecError
from ubfabric.paper import PaperSpec, compare_rows, load_paper, sweep_of
from ubfabric.specs import validate_spec
from ubfabric.sweep import load_sweep, plan_sweep
from ubfabric.workload import load_workload

FOLDER = Path(__file__).parents[2] / "analysis"
SHIPPED = load_paper(FOLDER / "paper.yaml")

ROW = {
    "name": "a-row",
    "quantity": "TPOT",
    "unit": "ms",
    "value": 10.0,
    "figure": "tpot_ms",
    "point": "one",
    "role": "predicted",
    "strength": "assumed",
    "source": "a test",
}
POINTS = {
    "one": {"topology": "one-node", "workload": "decode-ep8-sample", "payload_bytes": 8192},
    "two": {"topology": "one-node", "workload": {"base": "decode-ep8-sample", "seed": 2}},
}


def spec(*rows):
    return validate_spec(PaperSpec, {"points": POINTS, "rows": [ROW | row for row in rows]}, "p")


def test_errors_are_in_percent_of_a_value_and_in_points_of_a_change():
    rows = spec(
        {},
        {"name": "gain", "base": "two", "value": 25.0},
        {"name": "inside", "value": None, "low": 5.0, "high": 20.0},
        {"name": "above", "value": None, "low": 5.0, "high": 8.0},
        {"name": "below", "base": "two", "value": None, "low": 60.0, "high": 90.0},
        {"name": "layer", "figure": "layer_us", "value": 4.0},
    ).rows
    one = {"tpot_ms": 12.0, "tpot_low_ms": 11.0, "tpot_high_ms": 13.0, "layer_us": 4.0}
    two = {"tpot_ms": 8.0, "tpot_low_ms": None, "tpot_high_ms": None}
    table = compare_rows(rows, {"one": one, "two": two}).set_index("name")
    assert table.loc["a-row", "error"] == pytest.approx(20)
    assert list(table.loc["a-row", ["simulated_low", "simulated_high"]]) == [11, 13]
    assert table.loc["gain", "simulated"] == pytest.approx(50)
    assert table.loc["gain", "error"] == pytest.approx(25)
    assert table.loc["inside", "error"] == 0
    assert table.loc["above", "error"] == pytest.approx(50)
    assert table.loc["below", "error"] == pytest.approx(-10)
    assert table.loc["layer", "error"] == 0
    assert math.isnan(table.loc["layer", "simulated_low"])
    assert math.isnan(table.loc["gain", "simulated_low"])
    units = table["error_unit"].to_dict()
    assert {name for name, unit in units.items() if unit == "points"} == {"gain", "below"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"point": "three"}, "row a-row: found point 'three', allowed one, two"),
        ({"low": 1.0}, "found value 10.0, low 1.0, high None; allowed a value, or low and high"),
        ({"value": None}, "found value None, low None, high None"),
        ({"value": None, "high": 2.0}, "found value None, low None, high 2.0"),
        ({"role": "guessed"}, "role: found 'guessed'"),
        ({"strength": "sure"}, "strength: found 'sure'"),
        ({"name": "A row"}, "name: found 'A row'"),
    ],
)
def test_bad_rows_are_refused_in_one_line(row, message):
    with pytest.raises(SpecError, match=message) as error:
        spec(row)
    assert "\n" not in str(error.value)


def test_two_rows_of_a_name_are_refused():
    with pytest.raises(SpecError, match="rows: found a-row twice, allowed names that differ"):
        spec({}, {})


def test_sweeps_of_different_rows_share_a_folder():
    keys = []
    for rows in (SHIPPED.rows, SHIPPED.rows[1:2], SHIPPED.rows[-1:]):
        names, sweep = sweep_of(SHIPPED, rows, 2, 1)
        loaded = load_sweep(sweep)[0]
        keys.append(loaded.keys)
        assert len(loaded.combinations()) == len(names)
    assert keys[0] == keys[1] == keys[2]


def test_the_shipped_rows_are_the_papers_and_each_point_is_one_of_its_own():
    names, _ = sweep_of(SHIPPED, SHIPPED.rows, 1, 1)
    assert set(names) == set(SHIPPED.points)  # none is there for nothing
    fitted = {row.name for row in SHIPPED.rows if row.role == "fitted"}
    assert fitted == {"prefill-perfect", "prefill-data-one"}  # and no row of decode
    few = sweep_of(SHIPPED, [row for row in SHIPPED.rows if row.name.startswith("plane")], 1, 1)
    points = dict(zip(few[0], plan_sweep(few[1]), strict=True))
    ub = {"cache-90-one", "cache-90-every", "cache-90-layer"}
    assert set(points) == ub | {f"{name}-vpc" for name in (*ub, "cache-90-every-card")}
    traces = {name: point.simulation.trace() for name, point in points.items()}
    for name, trace in traces.items():
        assert trace.metadata["reused_tokens"] == 64 * 3584
        phases = set(trace.metadata["pool"]["phases"])
        assert ("cached-vpc" in phases) == name.endswith("-vpc")
        assert bool({"stored", "stored-vpc"} & phases) == ("layer" not in name)


def test_points_of_the_context_cache_reuse_whole_blocks_on_the_servers_of_the_paper():
    shares, blocks, writes = {}, {}, {}
    for name, point in SHIPPED.points.items():
        if name.startswith("cache-"):
            spec = load_workload(point.workload).spec
            assert spec.servers.count == 32  # section 5.1
            assert [spec.kv_transfer, spec.model_load] == [None] * 2
            assert (spec.cache_write is None) == (spec.cache.step_writes == "none")
            writes[name] = spec.cache.step_writes
            (prompts,) = spec.step.serving.prompts
            assert prompts.count * prompts.tokens == 16 * spec.step.tokens_per_npu
            shares.setdefault(name.split("-")[1], set()).add(prompts.reused / prompts.tokens)
            blocks[name] = spec.cache.block_tokens
    # a batch waits for the stores of the one before where batches follow each other
    assert {name for name, how in writes.items() if how == "one"} == {
        *(f"cache-{n}-one" for n in (12, 50, 90)),
        "cache-90-one-vpc",
    }
    assert all(("every" in name) == (how == "every") for name, how in writes.items())
    # of 90 %, 3,686 of 4,096 tokens, what is in whole blocks
    assert shares == {"12": {0.125}, "50": {0.5}, "90": {0.875}}
    assert all(3686 // size * size == 3584 for size in blocks.values())
    sized = {name: size for name, size in blocks.items() if size != 256}
    assert sized == {f"cache-{n}-{size}": size for n in (50, 90) for size in (128, 512)}


def test_gains_are_from_where_the_source_takes_them():
    """1.42x is from 12.5 to 50 % reused, all else of the cache over prefill without it."""
    rows = {row.name: row for row in SHIPPED.rows}
    assert (rows["cache-50"].point, rows["cache-50"].base) == ("cache-50-every", "cache-12-every")
    names = ["cache-90", *(f"ttft-{n}{size}" for n in (50, 90) for size in ("", "-128", "-512"))]
    assert {rows[name].base for name in names} == {"prefill"}
    recipes = load_workload(SHIPPED.points["prefill-data"].workload).spec.reference.rows
    two, one = (row.tokens_per_s_per_npu for row in recipes)
    assert (two, one) == (rows["prefill-data"].value, rows["prefill-data-one"].value)
    gain = rows["prefill-data-microbatch"].value
    assert gain == pytest.approx(100 * (two / one - 1), abs=0.05)


def test_studies_are_sweeps_of_what_they_say():
    fabric, experts, skew = (
        load_sweep(FOLDER / "studies" / f"{name}.yaml")[0]
        for name in ("fabric", "expert-parallelism", "skew")
    )
    assert len(fabric.combinations()) == 7
    prefill = load_sweep(FOLDER / "studies" / "fabric-prefill.yaml")[0]
    assert load_workload(prefill.workload).spec.kind == "prefill"
    ranks = [values["workload.deployment.ranks"] for values in experts.combinations()]
    assert ranks == [32, 64, 160, 320, 480, 768]
    gates = {values["workload.gate"]["policy"] for values in skew.combinations()}
    assert gates == {"uniform", "dirichlet", "zipf", "hottest"}


def test_the_paper_is_simulated_once_and_printed_twice(script, tmp_path):
    content = {"points": {"one": POINTS["one"]}, "rows": [ROW, ROW | {"name": "other"}]}
    with (tmp_path / "p.yaml").open("w") as file:
        YAML().dump(content, file)
    files = ["-o", tmp_path / "p.png", "--csv", tmp_path / "p.csv", "--markdown", tmp_path / "p.md"]
    common = ["--paper", tmp_path / "p.yaml", "--runs", tmp_path / "runs", "--workers", "1"]
    only = ["--layers", "1", "--only", "a-row"]
    for _ in range(2):
        code, out, err = script("reproduce_paper.py", *common, *only, *files)
        assert (code, err) == (0, "")
        assert "of 1 predicted rows within 5 % or 5 points" in out
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "runs" / "log.jsonl").read_text().splitlines()) == 1
    table = pd.read_csv(tmp_path / "p.csv")
    assert list(table["name"]) == ["a-row"]
    assert table["error"].iloc[0] == pytest.approx(100 * (table["simulated"].iloc[0] / 10 - 1))
    assert (tmp_path / "p.md").read_text().count("| predicted |") == 1
    code, out, err = script("reproduce_paper.py", *common, "--only", "nothing")
    assert (code, out) == (2, "")
    assert err.startswith("error: --only: found 'nothing', allowed a-row, other, dispatch-ep8")


def test_a_study_that_is_no_sweep_is_refused(script, tmp_path):
    (tmp_path / "s.yaml").write_text("topology: one-node\n")
    code, out, err = script("draw_study.py", tmp_path / "s.yaml", "--runs", tmp_path / "runs")
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path / 's.yaml'}: workload: required key is missing\n"


@pytest.mark.slow
def test_a_study_is_printed_and_drawn(script, tmp_path):
    study = {
        "topology": "one-node",
        "workload": "decode-ep8-sample",
        "run": {"layers": 1, "payload_bytes": 8192},
        "grid": {"workload.gate": [{"policy": "uniform"}, {"policy": "hottest", "ratio": 5}]},
    }
    with (tmp_path / "s.yaml").open("w") as file:
        YAML().dump(study, file)
    files = ["-o", tmp_path / "s.png", "--csv", tmp_path / "s.csv", "--runs", tmp_path / "runs"]
    code, out, err = script("draw_study.py", tmp_path / "s.yaml", "--workers", "1", *files)
    assert (code, err) == (0, "")
    assert "gate hottest ratio 5" in out
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(tmp_path / "s.csv")
    assert list(table["label"]) == ["gate uniform", "gate hottest ratio 5"]
    assert table["tpot_change_percent"].iloc[0] == 0
