"""The run folder appears whole or not at all, and reads back what was written."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ubfabric.errors import ResultError
from ubfabric.results import (
    FLOW_SCHEMA,
    LINK_SCHEMA,
    TASK_SCHEMA,
    RunResult,
    RunWriter,
    check_run_target,
)

#: Columns of flows that are categorical.
TEXTS = ("phase", "network", "operation")
FILES = ["flows.parquet", "links.parquet", "summary.json", "tasks.parquet"]


def flow_table(layer: int, n: int = 6) -> pa.Table:
    row = np.arange(n)
    start = 1_000 * layer + 10 * row
    return pa.table(
        {
            "phase": ["dispatch" if i % 2 == 0 else f"combine{layer}" for i in row],
            "layer": np.full(n, layer),
            "microbatch": row % 2,
            "src": row,
            "dst": row[::-1],
            "network": ["ub"] * n,
            "operation": ["write" if i % 3 else "sdma-read" for i in row],
            "service_level": np.zeros(n, dtype=np.int64),
            "messages": row + 1,
            "message_bytes": np.full(n, 7_680),
            "bytes": (row + 1) * 7_680,
            "packets": (row + 1) * 2,
            "start_ps": start,
            "first_byte_ps": start + 100,
            "finish_ps": start + 200,
            "fct_ps": np.full(n, 200),
            "hops": np.full(n, 4),
            "queueing_ps": row,
        }
    )


def task_table(n: int = 3) -> pa.Table:
    row = np.arange(n)
    columns = dict.fromkeys(TASK_SCHEMA.names, row) | {"kind": ["attention"] * n}
    return pa.table(columns)


def link_table(n: int = 2) -> pa.Table:
    row = np.arange(n)
    texts = {name: [f"{name}-{i}" for i in row] for name in ("src", "dst", "plane", "level")}
    return pa.table(dict.fromkeys(LINK_SCHEMA.names, row) | texts)


def write(path: Path, layers=(0, 1, 2), summary=None, **options) -> RunResult:
    with RunWriter(path, **options) as writer:
        for layer in layers:
            writer.write_flows(layer, flow_table(layer))
        writer.write_tasks(task_table())
        writer.write_links(link_table())
        return writer.finish({"seed": 1} if summary is None else summary)


def write_interrupted(path: Path, error: type[BaseException], **options) -> None:
    with RunWriter(path, **options) as writer:
        writer.write_flows(0, flow_table(0))
        raise error


def digests(path: Path) -> dict[str, str]:
    return {
        item.name: hashlib.sha256(item.read_bytes()).hexdigest() for item in sorted(path.iterdir())
    }


def test_run_reads_back_what_was_written(tmp_path):
    result = write(tmp_path / "run")
    assert result.path == tmp_path / "run"
    assert sorted(os.listdir(tmp_path)) == ["run"]
    assert sorted(os.listdir(tmp_path / "run")) == FILES
    expected = pd.concat([flow_table(layer).to_pandas() for layer in range(3)], ignore_index=True)
    found = result.flows().astype(dict.fromkeys(TEXTS, object))
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_column_type=False)
    assert list(found.columns) == FLOW_SCHEMA.names
    assert result.n_flows == 18 and result.n_tasks == 3
    assert result.tasks()["kind"].tolist() == ["attention"] * 3
    assert result.links()["src"].tolist() == ["src-0", "src-1"]
    assert RunResult(tmp_path / "run").summary == result.summary
    assert result.summary["rows"] == {"flows": 18, "tasks": 3, "links": 2}
    assert result.summary["seed"] == 1


def test_flow_batches_are_one_frame_a_layer_in_order(tmp_path):
    result = write(tmp_path / "run", layers=(3, 4, 7))
    batches = list(result.flow_batches())
    assert [frame["layer"].unique().tolist() for frame in batches] == [[3], [4], [7]]
    assert result.layers == [3, 4, 7]
    pd.testing.assert_frame_equal(
        pd.concat(batches, ignore_index=True).astype(dict.fromkeys(TEXTS, object)),
        result.flows().astype(dict.fromkeys(TEXTS, object)),
    )
    narrow = next(result.flow_batches(columns=["fct_ps", "src"]))
    assert list(narrow.columns) == ["fct_ps", "src"]


def test_a_layer_in_several_row_groups_is_one_batch(tmp_path):
    big = flow_table(5, n=1_100_000)  # more rows than pyarrow puts into one row group
    with RunWriter(tmp_path / "run") as writer:
        writer.write_flows(5, big)
        writer.write_tasks(task_table())
        writer.write_links(link_table())
        result = writer.finish({})
    assert pq.read_metadata(tmp_path / "run" / "flows.parquet").num_row_groups == 2
    (frame,) = result.flow_batches(columns=["src"])
    assert frame["src"].tolist() == list(range(1_100_000))


def test_flows_selects_columns_and_layers(tmp_path):
    result = write(tmp_path / "run")
    frame = result.flows(columns=["layer", "dst"], layers=[2, 0])
    assert frame["layer"].unique().tolist() == [0, 2]
    assert list(frame.columns) == ["layer", "dst"]
    with pytest.raises(ResultError, match=r"no flows of layer 9; layers: \[0, 1, 2\]"):
        result.flows(layers=[9])
    with pytest.raises(ResultError, match="unknown column 'nonsense'"):
        result.flows(columns=["nonsense"])


def test_a_run_without_flows_reads_back_empty(tmp_path):
    result = write(tmp_path / "run", layers=())
    assert list(result.flow_batches()) == []
    assert result.layers == []
    frame = result.flows()
    assert len(frame) == 0 and list(frame.columns) == FLOW_SCHEMA.names


def test_same_tables_give_the_same_parquet_bytes(tmp_path):
    write(tmp_path / "a", summary={"wall_s": 1.0})
    write(tmp_path / "b", summary={"wall_s": 2.0})
    a, b = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert a.pop("summary.json") != b.pop("summary.json")
    assert a == b


def test_tables_that_are_not_compressed_hold_the_same(tmp_path):
    packed, bare = write(tmp_path / "a"), write(tmp_path / "b", compress=False)
    pd.testing.assert_frame_equal(bare.flows(), packed.flows())
    pd.testing.assert_frame_equal(bare.tasks(), packed.tasks())
    for run, name in ((packed, "ZSTD"), (bare, "UNCOMPRESSED")):
        footer = pq.read_metadata(run.path / "flows.parquet")
        assert footer.row_group(0).column(0).compression == name


def test_dictionary_and_plain_texts_give_the_same_bytes(tmp_path):
    table = flow_table(0)
    encoded = table.set_column(0, "phase", table.column("phase").dictionary_encode())
    for name, flows in (("a", table), ("b", encoded)):
        with RunWriter(tmp_path / name) as writer:
            writer.write_flows(0, flows)
            writer.finish({})
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_column_order_of_the_input_does_not_matter(tmp_path):
    table = flow_table(0)
    for name, flows in (("a", table), ("b", table.select(table.column_names[::-1]))):
        with RunWriter(tmp_path / name) as writer:
            writer.write_flows(0, flows)
            writer.finish({})
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_numpy_scalars_in_the_summary_become_json(tmp_path):
    summary = {"packets": np.int64(7), "rate": np.float64(0.5), "list": np.arange(2)}
    write(tmp_path / "run", summary=summary)
    content = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (content["packets"], content["rate"], content["list"]) == (7, 0.5, [0, 1])


@pytest.mark.parametrize("summary", [{"x": float("nan")}, {"x": object()}])
def test_a_summary_that_is_not_json_leaves_nothing(tmp_path, summary):
    with pytest.raises(ResultError, match="summary.json"):
        write(tmp_path / "run", summary=summary)
    assert os.listdir(tmp_path) == []


def test_an_error_inside_the_block_leaves_nothing_not_even_parents(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_interrupted(tmp_path / "new" / "deep" / "run", KeyboardInterrupt)
    assert os.listdir(tmp_path) == []


def test_leaving_the_block_without_finish_leaves_nothing(tmp_path):
    with RunWriter(tmp_path / "run") as writer:
        writer.write_flows(0, flow_table(0))
    assert os.listdir(tmp_path) == []
    with pytest.raises(ResultError, match="finished or aborted"):
        writer.write_tasks(task_table())
    with pytest.raises(ResultError, match="finished or aborted"):
        writer.finish({})


def test_a_killed_writer_leaves_no_folder_that_reads_as_a_run(tmp_path):
    script = f"""
        import os, signal, sys
        sys.path[:] = {[*sys.path, str(Path(__file__).parent)]!r}
        from test_results import RunWriter, flow_table
        writer = RunWriter({str(tmp_path / "run")!r})
        writer.write_flows(0, flow_table(0))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "run").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".run.partial-")
    with pytest.raises(ResultError, match="not a complete run folder"):
        RunResult(left)
    write(tmp_path / "run")  # and it does not stand in the way of the next run


def test_an_existing_run_is_replaced_only_when_asked(tmp_path):
    write(tmp_path / "run", layers=(0,))
    before = digests(tmp_path / "run")
    with pytest.raises(ResultError, match="a run folder exists here"):
        RunWriter(tmp_path / "run")
    assert digests(tmp_path / "run") == before
    (tmp_path / "run" / "fct.png").write_bytes(b"picture of the old run")
    result = write(tmp_path / "run", layers=(4, 5), overwrite=True)
    assert result.layers == [4, 5]
    assert sorted(os.listdir(tmp_path / "run")) == FILES
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_an_interrupted_overwrite_keeps_the_old_run(tmp_path):
    write(tmp_path / "run")
    before = digests(tmp_path / "run")
    with pytest.raises(RuntimeError):
        write_interrupted(tmp_path / "run", RuntimeError, overwrite=True)
    assert digests(tmp_path / "run") == before
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("kind", ["other folder", "incomplete run", "run with notes", "file"])
def test_what_is_not_a_run_folder_is_never_replaced(tmp_path, kind):
    target = tmp_path / "run"
    if kind == "other folder":
        target.mkdir()
        (target / "thesis.tex").write_text("years of work")
    elif kind == "incomplete run":
        write(target)
        (target / "tasks.parquet").unlink()
    elif kind == "run with notes":
        write(target)
        (target / "notes.txt").write_text("mine")
    else:
        target.write_text("a file")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ResultError) as info:
        RunWriter(target, overwrite=True)
    assert "\n" not in str(info.value) and str(target) in str(info.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_taken_during_the_run_is_not_replaced(tmp_path):
    writer = RunWriter(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(ResultError, match="thesis.tex"):
        writer.finish({})
    assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(tmp_path / "run") == ["thesis.tex"]


def test_an_empty_folder_is_a_valid_target(tmp_path):
    (tmp_path / "run").mkdir()
    assert check_run_target(tmp_path / "run") == tmp_path / "run"
    write(tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run")) == FILES


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    write(tmp_path / "runs" / "a")
    assert sorted(os.listdir(tmp_path / "disk" / "a")) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    write(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(ResultError, match=rf"{name}: missing") as info:
        RunResult(tmp_path / "run")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_a_truncated_file_is_named(tmp_path, name, kept):
    write(tmp_path / "run")
    file = tmp_path / "run" / name
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ResultError, match=name) as info:
        RunResult(tmp_path / "run")
    assert "\n" not in str(info.value)


def test_a_damaged_page_is_an_error_of_one_line(tmp_path):
    write(tmp_path / "run")
    file = tmp_path / "run" / "tasks.parquet"
    content = bytearray(file.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    content[4:footer] = b"\xff" * (footer - 4)
    file.write_bytes(content)
    result = RunResult(tmp_path / "run")  # the footer is intact
    with pytest.raises(ResultError, match="tasks.parquet: truncated or not Parquet") as info:
        result.tasks()
    assert "\n" not in str(info.value)


def test_tables_of_another_run_or_version_are_refused(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", layers=(0,))
    run = tmp_path / "a"
    (run / "flows.parquet").write_bytes((tmp_path / "b" / "flows.parquet").read_bytes())
    with pytest.raises(ResultError, match="found 6 rows, but summary.json says 18"):
        RunResult(run)
    (run / "flows.parquet").write_bytes((run / "tasks.parquet").read_bytes())
    with pytest.raises(ResultError, match="not a table of flows"):
        RunResult(run)
    pq.write_table(pa.table({"a": [1]}), run / "flows.parquet")
    with pytest.raises(ResultError, match="not a table of flows"):
        RunResult(run)
    key = json.dumps({"schema": 99, "table": "flows"})
    pq.write_table(flow_table(0).replace_schema_metadata({"ubfabric": key}), run / "flows.parquet")
    with pytest.raises(ResultError, match="schema version 99, expected 1"):
        RunResult(run)
    key = json.dumps({"schema": 1, "table": "flows"})
    table = flow_table(0).replace_schema_metadata({"ubfabric": key})
    pq.write_table(table, run / "flows.parquet")
    with pytest.raises(ResultError, match="column 'phase' is string, expected dictionary"):
        RunResult(run)
    pq.write_table(table.drop_columns(["phase"]), run / "flows.parquet")
    with pytest.raises(ResultError, match="column 'phase' is missing"):
        RunResult(run)


@pytest.mark.parametrize("content", ["[]", '{"schema": 7}', '{"schema": 1}', "{"])
def test_a_wrong_summary_is_refused(tmp_path, content):
    write(tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text(content)
    with pytest.raises(ResultError, match=r"summary\.json"):
        RunResult(tmp_path / "run")


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(ResultError, match="no such run folder"):
        RunResult(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["hops"]), "column 'hops' is missing"),
        (lambda t: t.append_column("extra", t.column("src")), "unknown column 'extra'"),
        (
            lambda t: t.set_column(2, "microbatch", pa.array([300] * 6)),
            "column 'microbatch' is",
        ),
        (
            lambda t: t.set_column(3, "src", pa.array([None] * 6, pa.int32())),
            "holds nulls",
        ),
        (
            lambda t: t.set_column(1, "layer", pa.array([1, 1, 1, 1, 1, 2])),
            "holds 1 to 2 in the",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, change, message):
    with (
        RunWriter(tmp_path / "run") as writer,
        pytest.raises(ResultError, match=message),
    ):
        writer.write_flows(1, change(flow_table(1)))


def test_layers_must_ascend(tmp_path):
    with RunWriter(tmp_path / "run") as writer:
        writer.write_flows(2, flow_table(2))
        for layer in (2, 1):
            with pytest.raises(ResultError, match="write layers ascending"):
                writer.write_flows(layer, flow_table(layer))


def test_files_are_as_readable_as_other_files(tmp_path):
    write(tmp_path / "run")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "run").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_schemas_name_every_time_with_its_unit():
    times = {"start", "finish", "fct", "busy", "ready", "issued", "arrived", "queueing"}
    names = [*FLOW_SCHEMA.names, *TASK_SCHEMA.names, *LINK_SCHEMA.names]
    assert {name for name in names if name.split("_")[0] in times} == {
        name for name in names if name.endswith("_ps") and name.split("_")[0] in times
    }


def test_a_folder_that_another_writer_makes_meanwhile_is_used(tmp_path, monkeypatch):
    make = Path.mkdir

    def late(folder):
        make(folder)  # by the other writer, before ours
        make(folder)

    with monkeypatch.context() as at_once:
        at_once.setattr(Path, "mkdir", late)
        writer = RunWriter(tmp_path / "runs" / "one")
    writer.abort()
    assert list((tmp_path / "runs").iterdir()) == []  # the folder is the other's
