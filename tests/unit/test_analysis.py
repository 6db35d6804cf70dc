"""The scripts that users copy run as their first lines say."""

from __future__ import annotations

import itertools
import json
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from synthetic_run import Synthetic, write_run

import ubfabric as ub
from ubfabric.workload import load_workload

FOLDER = Path(__file__).parents[2] / "analysis"
#: Scripts that simulate a topology; all others read a run folder.
MACHINE_SCRIPTS = ["fit_fabric.py", "validate_fabric.py"]
#: The script that simulates whole steps; it has no input to be wrong.
STEP_SCRIPTS = ["fit_step.py"]
#: Scripts that simulate a workload.
STUDIES = [
    "draw_study.py",
    "layer_sampling.py",
    "pool_interference.py",
    "reproduce_paper.py",
]
SCRIPTS = sorted(
    {path.name for path in FOLDER.glob("*.py")} - {*MACHINE_SCRIPTS, *STEP_SCRIPTS, *STUDIES}
)
PHASES = ("dispatch", "combine")
PAPER_ROW = {"batch_per_npu": 96, "tpot_ps": 49_400_000_000, "strength": "secondary"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    metadata = {"n_moe_layers_total": 58, "batch_per_npu": 96, "paper_row": PAPER_ROW}
    path = tmp_path_factory.mktemp("analysis") / "demo"
    return write_run(path, Synthetic(metadata=metadata)).path


EXPECTED = {
    "fct_by_phase.py": ["dispatch       all         336      2.50      2.50"],
    "rank_timeline.py": [
        "    4          0          0       0.0       100.0        10.0         7.8"
    ],
    "link_load.py": ["most bytes of 112 links", "die-l1            56"],
    "token_latency.py": ["Extrapolated from 3 of 58 layers", "most exposed communication: rank"],
    "compare_with_paper.py": ["demo: extrapolated from 3 of 58", "paper      49.40 ms"],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_prints_its_numbers_and_draws(script, run, tmp_path, name):
    code, out, err = script(name, run, "-o", tmp_path / "picture.png")
    assert (code, err) == (0, "")
    for part in EXPECTED[name]:
        assert part in out
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_cases_of_layer_sampling_fit_in_the_machine():
    cases = runpy.run_path(str(FOLDER / "layer_sampling.py"))["CASES"]
    assert len(cases) == 4
    for changes in cases.values():
        load_workload("decode-ep32-sample", changes)  # raises where a die's memory is too small


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_fails_with_one_line_and_code_2(script, tmp_path, name):
    code, out, err = script(name, tmp_path / "none", "-o", tmp_path / "picture.png")
    assert code == 2 and out == ""
    assert err == f"error: {tmp_path / 'none'}: no such run folder\n"
    assert list(tmp_path.iterdir()) == []


def test_every_script_is_in_the_readme():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(EXPECTED) == SCRIPTS
    for name in SCRIPTS:
        assert f"`{name} RUN" in readme
    for name in MACHINE_SCRIPTS:
        assert f"`{name} TOPOLOGY`" in readme
    for name in [*STEP_SCRIPTS, *STUDIES]:
        assert f"`{name}`" in readme


#: Workload, its microbatches, and the measured step: 16,384 tokens at 6,688 and 5,237 a second.
FITS = {
    "deepseek-r1-prefill-ep32": (2, 2449.761),
    "cann-recipes-prefill-ep32": (1, 3128.509),
}


@pytest.mark.parametrize("chosen", [[], ["cann-recipes-prefill-ep32"]])
def test_fit_of_a_step_finds_where_a_line_meets_the_row_of_each_system(script, monkeypatch, chosen):
    generate = ub.generate_trace

    class Traced:
        def __init__(self, workload, *, layers, seed, overrides):
            self.value = overrides["machine.efficiency.prefill"]
            self.step = FITS[workload][1]
            self.metadata = generate(workload, layers=1, overrides=overrides).metadata
            assert self.metadata["microbatches"] == FITS[workload][0]

    class Tokens:
        def __init__(self, trace):
            self.summary = {"step_ms": trace.step + 100 - 500 * trace.value}

    monkeypatch.setattr("ubfabric.generate_trace", Traced)
    monkeypatch.setattr("ubfabric.replay", lambda fabric, trace, run, **options: trace)
    monkeypatch.setattr("ubfabric.rebuild_tokens", Tokens)
    arguments = [part for name in chosen for part in ("--workload", name)]
    code, out, err = script("fit_step.py", *arguments)
    assert (code, err) == (0, "")
    for name in chosen or FITS:
        step = f"{FITS[name][1]:.1f} ms"
        assert f"{name}: efficiency.prefill 0.200: step {step}\n" in out
        assert f"{name}: measured step {step}\n" in out
    assert len({line.split(":")[0] for line in out.splitlines()}) == len(chosen or FITS)


def test_the_shipped_efficiencies_are_those_of_the_fitted_rows():
    """Each value names its row as its source, and the row names the value."""
    for name, (microbatches, _) in FITS.items():
        workload = load_workload(name)
        value = workload.raw["machine"]["efficiency"]["prefill"]
        assert value["strength"] == "fitted" and "fit_step.py" in value["source"]
        (row,) = (
            row for row in workload.raw["reference"]["rows"] if "fitted" in str(row.get("note"))
        )
        assert row["microbatches"] == microbatches
        assert f"{row['tokens_per_s_per_npu']:,}" in value["source"]


@pytest.mark.parametrize("name", MACHINE_SCRIPTS)
def test_script_of_a_machine_names_what_is_wrong_with_its_input(script, tmp_path, name):
    code, out, err = script(name, "no-such-machine")
    assert (code, out) == (2, "")
    assert err.startswith("error: 'no-such-machine' is neither") and err.count("\n") == 1
    code, out, err = script(name, "one-node", "--measured", tmp_path / "none.yaml")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / 'none.yaml'}") and err.count("\n") == 1


def test_token_script_writes_json_and_csv(script, run, tmp_path):
    files = ["-o", tmp_path / "t.pdf", "--json", tmp_path / "t.json", "--csv", tmp_path / "t.csv"]
    assert script("token_latency.py", run, *files)[0] == 0
    assert json.loads((tmp_path / "t.json").read_text())["moe_layers_simulated"] == 3
    table = pd.read_csv(tmp_path / "t.csv")
    assert len(table) == 8 and {"tpot_ps", "attention", "idle"} <= set(table.columns)


@pytest.mark.slow
def test_the_study_of_layer_sampling_tells_interval_and_truth(script, tmp_path):
    small = ["--topology", "one-node", "--workload", "decode-ep8-sample", "--draws", "40"]
    small += ["--verify", "4,57", "--verify-draws", "1"]
    files = ["-o", tmp_path / "s.png", "--csv", tmp_path / "s.csv"]
    code, out, err = script("layer_sampling.py", *small, *files)
    assert (code, err) == (0, "")
    assert "correlation of one with the next" in out
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(tmp_path / "s.csv")
    step = table[(table["quantity"] == "step") & (table["how"] == "resampled")]
    assert sorted(step["k"].unique()) == list(range(1, 58))
    everything = step[step["k"] == 57]
    assert (everything["half_width_percent"] == 0).all()
    assert (everything["coverage_percent"] == 100).all()
    whole = table[table["k"] == 58]
    assert len(whole) == 4 and (whole["half_width_percent"] == 0).all()
    real = table[(table["how"] == "simulated") & (table["k"] < 58)].set_index("k")
    # 57 of 58 layers on their own come close to all, and closer than 4 may
    assert abs(real.loc[57, "mean_error_percent"]) < 0.1
    assert real.loc[57, "half_width_percent"] < real.loc[4, "half_width_percent"]
    code, out, err = script("layer_sampling.py", "--workload", "nothing")
    assert (code, out) == (2, "") and err.count("\n") == 1


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Call `draw` of a script; gives its figure, laid out, instead of closing it."""
    monkeypatch.setattr(plt, "close", lambda figure: None)

    def call(name, *arguments):
        runpy.run_path(str(FOLDER / name))["draw"](*arguments, str(tmp_path / "x.png"))
        figure = plt.gcf()
        figure.draw_without_rendering()
        return figure

    yield call
    monkeypatch.undo()
    plt.close("all")


def study(tpot_ms, latency_us=2.0):
    """Return the table that `draw_study.py` draws."""
    names = [f"{phase}_rank_latency_{p}_us" for phase in PHASES for p in ("p50", "p99")]
    table = pd.DataFrame({"label": [f"point {n}" for n in range(len(tpot_ms))], "tpot_ms": tpot_ms})
    table["tpot_change_percent"] = 100 * (table["tpot_ms"] / table["tpot_ms"].iloc[0] - 1)
    return table.assign(**dict.fromkeys(names, latency_us))


def ticks(axis):
    """Return the labels of an axis that are within its view; others exist but are not drawn."""
    low, high = sorted(axis.get_view_interval())
    labels = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
    return [label for place, label in labels if low <= place <= high]


def said(labels):
    return [label.get_text() for label in labels]


def test_a_study_of_prefill_has_times_of_a_batch():
    measure = runpy.run_path(str(FOLDER / "draw_study.py"))["measure"]
    assert measure(["prefill", "prefill"]) == "time of a batch"
    # TPOT is what every other kind has, and what kinds side by side have in common
    assert measure(["decode"]) == measure(["pool"]) == measure(["decode", "prefill"]) == "TPOT"


def test_a_change_that_rounds_to_nothing_has_no_minus(drawn):
    left, _ = drawn("draw_study.py", study([50.0, 49.9999, 49.0]), "s", "TPOT").axes
    assert said(left.texts) == [" 50.0 (+0.0 %)", " 50.0 (+0.0 %)", " 49.0 (-2.0 %)"]
    assert left.get_xlabel() == "TPOT (ms)"


@pytest.mark.parametrize("tpot_ms", [[50.0, 50.0], [1e-9, 123_456.7], [0.31, 0.3]])
def test_labels_of_a_study_are_within_its_axes_and_picture(drawn, tpot_ms):
    figure = drawn("draw_study.py", study(tpot_ms, 19_050.0), "s", "time of a batch")
    left, right = figure.axes
    for text in left.texts:
        assert text.get_window_extent().x1 < left.bbox.x1 - 5
    boxes = [label.get_window_extent() for label in ticks(right.xaxis)]
    assert max(box.x1 for box in boxes) < figure.bbox.x1 - 5
    assert all(one.x1 + 5 < other.x0 for one, other in itertools.pairwise(boxes))


def test_long_labels_of_a_study_are_apart_and_its_legend_hides_no_mark(drawn):
    table = study([50.0] * 6, 20.0).assign(label="ranks 768, experts 1, shared 76, redundant 436")
    figure = drawn("draw_study.py", table, "s", "TPOT")
    left, right = figure.axes
    boxes = sorted(
        (label.get_window_extent() for label in left.get_yticklabels()), key=lambda b: b.y0
    )
    assert all(one.y1 < other.y0 for one, other in itertools.pairwise(boxes))
    assert figure.legends[0].get_window_extent().y1 < right.bbox.y0


def test_axes_of_a_study_separate_thousands_and_keep_digits(drawn):
    left, right = drawn("draw_study.py", study([0.9, 0.8], 20_000.0), "s", "TPOT").axes
    assert "20,000" in said(ticks(right.xaxis))
    assert said(ticks(left.xaxis))[:3] == ["0", "0.2", "0.4"]  # not 0, 0, 0


def interference(loads):
    """Return the tables that `pool_interference.py` draws, of a pool that changes nothing."""
    script = runpy.run_path(str(FOLDER / "pool_interference.py"))
    keys = [(case, load) for case in list(script["CASES"])[1:] for load in loads]
    steps = pd.DataFrame(keys, columns=["case", "load"])
    steps = steps.assign(**{f"{name}_change_percent": 0.0 for name in script["FIGURES"]})
    kinds = pd.DataFrame({"kind": script["POOL_KINDS"], "p50_ps": 2e12})
    return steps, steps[["case", "load"]].merge(kinds, how="cross")


def test_lines_of_interference_that_coincide_are_seen(drawn):
    """On one another, a hollow marker is seen unless one of its shape and size lies on it."""
    left, right = drawn("pool_interference.py", *interference([1.0, 4.0, 16.0])).axes
    assert (len(left.lines), len(right.lines)) == (8, 16)
    for axes in (left, right):
        looks = {(line.get_marker(), line.get_markersize()) for line in axes.lines}
        assert len(looks) == len(axes.lines)
        assert {line.get_markerfacecolor() for line in axes.lines} == {"none"}


@pytest.mark.parametrize("loads", [[1.0, 4.0, 16.0], [0.5, 1.0], [2.0], [1.0, 2_000_000.0]])
def test_axes_of_interference_name_the_loads(drawn, loads):
    figure = drawn("pool_interference.py", *interference(loads))
    for axes in figure.axes:
        assert said(ticks(axes.xaxis)) == [f"{load:,.1f}".removesuffix(".0") for load in loads]
        assert not [label for label in axes.get_xticklabels(minor=True) if label.get_text()]
        box = axes.get_legend().get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0


@pytest.mark.parametrize(
    ("p50_ms", "labels"),
    [
        ([2_000.0, 2_000.0], ["2,000"]),  # no power of ten is near
        ([2.0, 7.0], ["2", "5"]),
        ([0.05, 3_000.0], ["0.1", "1", "10", "100", "1,000"]),
    ],
)
def test_times_of_interference_are_labelled_and_have_no_exponents(drawn, p50_ms, labels):
    steps, transfers = interference([1.0, 4.0])
    times = transfers["load"].map(dict(zip([1.0, 4.0], p50_ms, strict=True)))
    figure = drawn("pool_interference.py", steps, transfers.assign(p50_ps=1e9 * times))
    shown = said(ticks(figure.axes[1].yaxis))
    assert set(labels) <= set(shown)
    assert not [label for label in shown if "e" in label or "^" in label]


POOL = ["--topology", "two-nodes", "--workload", "pool-sample", "--layers", "1", "--loads", "1"]


@pytest.mark.slow
def test_interference_of_the_pool_is_told_by_plane(script, tmp_path):
    files = ["-o", tmp_path / "p.png", "--csv", tmp_path / "p.csv", "--runs", tmp_path / "runs"]
    small = [*POOL, "--payload", "8192", "--workers", "1", *files]
    code, _, err = script("pool_interference.py", *small)
    assert (code, err) == (0, "")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    step = pd.read_csv(tmp_path / "p-step.csv").set_index("case")
    assert list(step.index)[:2] == ["step alone", "as specified"]
    assert step.loc["step alone", "tpot_ms_change_percent"] == 0
    pool = pd.read_csv(tmp_path / "p-pool.csv").set_index(["case", "kind"])
    # a server has 50 GB/s of vpc for all of its dies, a die 25 GB/s of rdma for itself
    means = pool["mean_us"]
    assert means["cache over vpc", "cache-write"] > means["as specified", "cache-write"]
    assert pool.loc[("as specified", "kv-transfer"), "GB_s"] == pytest.approx(24.4, rel=0.05)
    bytes_moved = pool["GB"].unstack("kind")
    assert (bytes_moved.nunique() == 1).all()  # the same bytes, whichever way they go


def test_interference_of_the_pool_needs_a_pool(script, tmp_path):
    files = ["--runs", tmp_path / "runs"]
    code, out, err = script("pool_interference.py", "--workload", "decode-ep8-sample", *files)
    assert (code, out) == (2, "")
    assert err == "error: decode-ep8-sample: kind: found 'decode', allowed: pool\n"


def test_a_study_of_decode_names_its_tpot(script, tmp_path, monkeypatch):
    """Only a trace of prefill says of which kind it is, so the kind is the specification's."""
    small = "topology: one-node\nworkload: decode-ep8-sample\nrun: {layers: 1}\n"
    (tmp_path / "s.yaml").write_text(f"{small}grid: {{run.seed: [1, 2]}}\n")
    row = dict.fromkeys(runpy.run_path(str(FOLDER / "draw_study.py"))["FIGURES"], 2.0)
    near = row | {"tpot_ms": 1.99999}
    monkeypatch.setattr("ubfabric.sweep.run_sweep", lambda *_, **__: pd.DataFrame([row, near]))
    monkeypatch.chdir(tmp_path)
    code, out, err = script("draw_study.py", tmp_path / "s.yaml")
    assert (code, err) == (0, "")
    assert "TPOT %" in out and "batch" not in out and "-0.0" not in out
