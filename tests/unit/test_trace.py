"""The trace on disk, and the checks of its rows."""

import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ubfabric.decode import generate_trace
from ubfabric.errors import TraceError
from ubfabric.trace import (
    FLOW_SCHEMA,
    OPERATIONS,
    TASK_SCHEMA,
    Trace,
    TraceChunk,
    check_and_link,
    check_chunk,
    check_trace,
    find_cycle,
    read_trace,
    write_trace,
)

TRAFFIC = Path(__file__).parents[2] / "traffic"


def flow(src, dst, phase="dispatch", layer=0, **changes):
    row = {"phase": phase, "layer": layer, "microbatch": 0, "src": src, "dst": dst, "messages": 2}
    row |= {"message_bytes": 100, "network": "ub", "service_level": 0, "start_ps": -1}
    return row | {"operation": "write"} | changes


def task(number, rank, kind="dispatch", layer=0, **changes):
    row = {"task": number, "rank": rank, "stream": 0, "kind": kind, "layer": layer}
    row |= {"microbatch": 0, "duration_ps": 5, "sends": kind, "waits": kind, "depends_on": []}
    return row | {"message_cost_ps": 0, "memory_ps": 0} | changes


def chunk(flows, tasks, layer=0, label="moe"):
    return TraceChunk(
        layer,
        label,
        pa.Table.from_pylist(flows, schema=FLOW_SCHEMA),
        pa.Table.from_pylist(tasks, schema=TASK_SCHEMA),
    )


def two_layers():
    """Two ranks that dispatch to each other, layer by layer."""
    layers = []
    for layer in range(2):
        flows = [flow(*pair, layer=layer) for pair in ((0, 1), (1, 0), (1, 1))]
        earlier = list(range(2 * layer))
        tasks = [task(2 * layer + r, r, layer=layer, depends_on=earlier) for r in range(2)]
        layers.append(chunk(flows, tasks, layer))
    metadata = {"schema": 1, "n_ranks": 2, "layers": [{"layer": i, "label": "moe"} for i in (0, 1)]}
    metadata |= {"spec": None, "seed": None, "rank_nodes": None}
    return Trace(metadata, 2, lambda: iter(layers))


def rows(trace):
    return [(c.layer, c.label, c.flows.to_pylist(), c.tasks.to_pylist()) for c in trace.chunks()]


@pytest.mark.parametrize("file_format", ["parquet", "csv"])
def test_written_trace_reads_back_equal(tmp_path, file_format):
    trace = two_layers()
    folder = write_trace(trace, tmp_path / "t", file_format=file_format)
    again = read_trace(folder)
    assert rows(again) == rows(trace)
    assert again.metadata == trace.metadata and again.n_chunks == 2
    for original, read in zip(trace.chunks(), again.chunks(), strict=True):
        assert read.flows.schema.equals(original.flows.schema)
        assert read.tasks.schema.equals(original.tasks.schema)
    check_trace(again)


def test_same_trace_gives_same_bytes_and_one_row_group_a_layer(tmp_path):
    first = write_trace(two_layers(), tmp_path / "a")
    second = write_trace(two_layers(), tmp_path / "b")
    for name in ("flows.parquet", "tasks.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert pq.ParquetFile(first / name).num_row_groups == 2


def test_interrupted_writing_leaves_nothing(tmp_path):
    def broken():
        yield next(two_layers().chunks())
        raise KeyboardInterrupt

    folder = tmp_path / "t"
    with pytest.raises(KeyboardInterrupt):
        write_trace(Trace({"schema": 1, "n_ranks": 2}, 2, broken), folder)
    assert list(folder.iterdir()) == []


def test_interrupted_rewriting_keeps_the_old_trace(tmp_path):
    folder = write_trace(two_layers(), tmp_path / "t")
    before = (folder / "flows.parquet").read_bytes()

    def broken():
        raise RuntimeError
        yield

    with pytest.raises(RuntimeError):
        write_trace(Trace({"schema": 1, "n_ranks": 2}, 2, broken), folder)
    assert (folder / "flows.parquet").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["flows.parquet", "tasks.parquet"]


def test_layers_cut_across_row_groups_are_joined(tmp_path):
    folder = write_trace(two_layers(), tmp_path / "t")
    for name in ("flows", "tasks"):
        table = pq.read_table(folder / f"{name}.parquet")
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=1)
    assert rows(read_trace(folder)) == rows(two_layers())


def test_foreign_file_needs_the_required_columns_only(tmp_path):
    columns = ["phase", "layer", "src", "dst", "messages", "message_bytes"]
    table = pq.read_table(write_trace(two_layers(), tmp_path / "t") / "flows.parquet")
    plain = table.select(columns).replace_schema_metadata(None)
    start = pa.array(np.arange(plain.num_rows), pa.int64())
    plain = plain.set_column(0, "phase", plain["phase"].cast(pa.string()))
    (tmp_path / "u").mkdir()
    pq.write_table(plain.append_column("start_ps", start), tmp_path / "u" / "flows.parquet")
    trace = read_trace(tmp_path / "u")
    check_trace(trace)
    first = next(trace.chunks())
    assert trace.n_ranks == 2 and trace.n_chunks == 2 and first.tasks.num_rows == 0
    assert first.flows["network"].to_pylist() == ["ub"] * 3
    assert first.flows["microbatch"].to_pylist() == [0] * 3
    assert first.flows["operation"].to_pylist() == ["write"] * 3


def test_shipped_open_loop_sample_is_whole():
    trace = read_trace(TRAFFIC / "sample-open-loop")
    check_trace(trace)
    assert trace.n_ranks == 8 and trace.n_chunks == 2


def write_csv(folder, flows="", tasks=None):
    header = "phase,layer,src,dst,messages,message_bytes,start_ps\n"
    (folder / "flows.csv").write_text(header + flows)
    if tasks is not None:
        header = "task,rank,kind,layer,duration_ps,sends,waits,depends_on\n"
        (folder / "tasks.csv").write_text(header + tasks)
    return folder


@pytest.mark.parametrize(
    ("flows", "tasks", "message"),
    [
        ("a,0,0,1,-2,64,0\n", None, "flows.csv: row 1: column 'messages': found -2, allowed 1 or"),
        ("a,0,0,1,0,64,0\n", None, "row 1: column 'messages': found 0, allowed 1 or more"),
        ("a,0,0,1,1,-1,0\n", None, "row 1: column 'message_bytes': found -1, allowed 1 or more"),
        (
            "a,0,0,1,1,64,0\na,0,5,1,1,64,0\n",
            None,
            "row 2: column 'src': found 5, allowed a rank from 0 to 1",
        ),
        ("a,0,0,-1,1,64,0\n", None, "column 'dst': found -1, allowed a rank from 0 to 1"),
        ("a,0,0,1,1,64,-7\n", None, "column 'start_ps': found -7, allowed 0 or more, or -1"),
        (",0,0,1,1,64,0\n", None, "column 'phase': found '', allowed the name of a phase"),
        (
            "a,0,0,1,1,64,0\nb,0,0,1,1,64,0\na,0,0,1,1,64,5\n",
            None,
            "row 3: column 'dst': found 1, allowed one flow for each phase, layer",
        ),
        ("a,0,0,1,1,64,-1\n", None, "column 'src': found 0, allowed a rank with a task that sends"),
        (
            "a,0,0,1,1,64,-1\n",
            "0,0,x,0,1,a,,\n",
            "column 'dst': found 1, allowed a rank with a task that waits for it",
        ),
        (
            "a,0,0,1,1,64,3\n",
            "0,0,x,0,1,a,,\n",
            "column 'start_ps': found 3, allowed -1, because a task sends",
        ),
        (
            "a,0,0,1,1,64,-1\n",
            "0,0,x,0,1,a,,\n1,0,x,0,1,a,,\n",
            "tasks.csv: row 2: column 'sends': found 'a', allowed one sending task",
        ),
        (
            "a,0,0,1,1,64,-1\n",
            "0,0,x,0,1,a,,\n1,1,x,0,1,,a,\n2,1,x,0,1,,a,\n",
            "tasks.csv: row 3: column 'waits': found 'a', allowed one waiting task",
        ),
        ("", "0,2,x,0,1,,,\n", "tasks.csv: row 1: column 'rank': found 2, allowed a rank from 0"),
        ("", "0,0,x,0,-3,,,\n", "column 'duration_ps': found -3, allowed 0 or more"),
        ("", "4,0,x,0,1,,,\n4,1,x,0,1,,,\n", "row 2: column 'task': found 4, allowed ids that"),
        ("", "0,0,x,0,1,,,7\n", "row 1: column 'depends_on': found task 7, allowed tasks of this"),
        ("", "0,0,x,0,1,,,1\n1,0,x,1,1,,,\n", "column 'depends_on': found task 1, allowed tasks"),
        ("", "0,0,x,0,1,,,0\n", "tasks.csv: row 1: found a cycle of tasks 0 -> 0"),
        ("", "0,0,x,0,1,,,1\n1,1,x,0,1,,,0\n", "row 1: found a cycle of tasks"),
        ("", "0,0,x,0,1,,,1\n1,0,x,0,1,,,\n", "row 1: found a cycle of tasks"),
        (
            # Each waits for what the other sends after it, on one stream each.
            "a,0,0,1,1,64,-1\nb,0,1,0,1,64,-1\n",
            "0,0,x,0,1,,b,\n1,0,x,0,1,a,,\n2,1,x,0,1,,a,\n3,1,x,0,1,b,,\n",
            "row 1: found a cycle of tasks",
        ),
    ],
)
def test_bad_row_is_refused_in_one_line(tmp_path, flows, tasks, message):
    trace = read_trace(write_csv(tmp_path, flows, tasks))
    with pytest.raises(TraceError, match=re.escape(message)) as caught:
        check_trace(trace, 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flows", "tasks"),
    [
        # Both send and then wait: no cycle, because a task sends before it has heard anything.
        ("a,0,0,1,1,64,-1\na,0,1,0,1,64,-1\n", "0,0,x,0,1,a,a,\n1,1,x,0,1,a,a,\n"),
        # Nothing is sent to rank 0 in phase b: its task does not wait.
        ("a,0,0,1,1,64,-1\n", "0,0,x,0,1,a,b,\n1,1,x,0,1,,a,\n"),
        # A flow with a start time may be awaited.
        ("a,0,0,1,1,64,9\n", "0,1,x,0,1,,a,\n"),
        # Different streams of one rank.
        ("", "0,0,x,0,1,,,1\n1,1,x,0,1,,,\n2,0,x,1,1,,,0;1\n"),
    ],
)
def test_sound_tables_pass(tmp_path, flows, tasks):
    check_trace(read_trace(write_csv(tmp_path, flows, tasks)), 2)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("network", "ib", "column 'network': found 'ib', allowed ub, rdma, vpc"),
        (
            "operation",
            "atomic",
            "column 'operation': found 'atomic', allowed write, read, sdma-write, sdma-read",
        ),
        ("service_level", 16, "column 'service_level': found 16, allowed 0 to 15"),
        ("microbatch", -1, "column 'microbatch': found -1, allowed 0 or more"),
        ("layer", 3, "column 'layer': found 3, allowed 0"),
    ],
)
def test_bad_flow_value_is_refused(column, value, message):
    flows = [flow(0, 1), flow(1, 0, **{column: value})]
    with pytest.raises(TraceError, match=f"generated flows: row 2: {message}"):
        check_chunk(chunk(flows, [task(0, 0), task(1, 1)]), 2)


@pytest.mark.parametrize("n_ranks", [3, 2_000_000_000])
def test_each_flow_is_linked_to_its_tasks_however_far_apart_their_ranks_are(n_ranks):
    last = n_ranks - 1
    flows = [
        flow(0, last, phase="a"),
        flow(last, 0, phase="b"),
        flow(1, 0, phase="a", start_ps=5),
        flow(1, last, phase="free", start_ps=5),
    ]
    tasks = [
        task(3, last, waits="a", sends=""),
        task(4, 0, sends="a", waits="b"),
        task(7, last, sends="b", waits=""),
        task(9, 0, sends="", waits="a"),
    ]
    all_tasks, sender, waiter = check_and_link(chunk(flows, tasks), n_ranks)
    assert all_tasks.tolist() == [3, 4, 7, 9]
    assert sender.tolist() == [1, 2, -1, -1]
    assert waiter.tolist() == [0, 1, 3, -1]


def test_flows_of_ranks_below_and_above_those_with_tasks_have_none():
    pairs = [(0, 1), (0, 3), (1, 2), (1, 0), (2, 1), (2, 3), (3, 2), (3, 0)]
    flows = [
        flow(src, dst, phase="a", start_ps=-1 if {src, dst} == {1, 2} else 5) for src, dst in pairs
    ]
    # those of a rank with a task are sent by it
    flows = [row for row in flows if row["src"] not in (1, 2) or row["start_ps"] == -1]
    tasks = [
        task(0, 0, sends="", waits=""),
        task(1, 2, sends="a", waits="a"),
        task(2, 1, sends="a", waits="a"),
    ]
    _, sender, waiter = check_and_link(chunk(flows, tasks), 4)
    assert [(row["src"], row["dst"]) for row in flows] == [
        *((0, 1), (0, 3), (1, 2), (2, 1), (3, 2), (3, 0))
    ]
    assert sender.tolist() == [-1, -1, 2, 1, -1, -1]
    assert waiter.tolist() == [2, -1, 1, 2, 1, -1]


def test_the_bytes_of_a_read_arrive_at_the_rank_that_asks():
    tasks = [task(0, 0), task(1, 1, sends="", waits="")]
    for operation in ("read", "sdma-read"):
        fetched = chunk([flow(0, 1, operation=operation)], tasks)
        all_tasks, sender, waiter = check_and_link(fetched, 2)
        assert (all_tasks.tolist(), sender.tolist(), waiter.tolist()) == ([0, 1], [0], [0])
    for operation in ("write", "sdma-write"):
        with pytest.raises(TraceError, match="column 'dst': found 1, allowed a rank with a task"):
            check_chunk(chunk([flow(0, 1, operation=operation)], tasks), 2)
    tasks = [task(0, 0, waits=""), task(1, 1, sends="")]
    message = r"row 1: column 'src': found 0, allowed a rank with a task that waits for it"
    with pytest.raises(TraceError, match=message):
        check_chunk(chunk([flow(0, 1, operation="read")], tasks), 2)


def test_operation_is_kept_in_both_formats(tmp_path):
    flows = [flow(0, 1, operation=name, start_ps=0, phase=name) for name in OPERATIONS]
    trace = Trace({"schema": 1, "n_ranks": 2}, 1, lambda: iter([chunk(flows, [])]))
    for file_format in ("parquet", "csv"):
        folder = write_trace(trace, tmp_path / file_format, file_format=file_format)
        again = next(read_trace(folder).chunks()).flows
        assert again["operation"].to_pylist() == list(OPERATIONS)


def test_cost_of_a_message_is_an_integer_of_32_bits():
    check_chunk(chunk([], [task(0, 0, message_cost_ps=2**32 - 1)]), 2)
    for cost in (-1, 2**32):
        message = f"row 1: column 'message_cost_ps': found {cost}, allowed 0 to 4294967295"
        with pytest.raises(TraceError, match=message):
            check_chunk(chunk([], [task(0, 0, message_cost_ps=cost)]), 2)


def test_time_of_the_memory_is_part_of_the_duration():
    for memory in (0, 3, 5):
        check_chunk(chunk([], [task(0, 0, memory_ps=memory)]), 2)
    for memory in (-1, 6):
        message = f"row 2: column 'memory_ps': found {memory}, allowed 0 to duration_ps"
        with pytest.raises(TraceError, match=message):
            check_chunk(chunk([], [task(0, 0), task(1, 1, memory_ps=memory)]), 2)


def test_task_that_sends_for_all_microbatches_is_refused():
    with pytest.raises(
        TraceError, match=r"column 'microbatch': found -1, allowed 0 or more, or -1"
    ):
        check_chunk(chunk([], [task(0, 0, microbatch=-1)]), 2)
    check_chunk(chunk([], [task(0, 0, microbatch=-1, sends="", waits="")]), 2)


def test_rows_are_counted_over_the_whole_file(tmp_path):
    def chunks():
        for layer in range(3):
            flows = [flow(*pair, layer=layer, start_ps=0) for pair in ((0, 1), (1, 0), (1, 1))]
            flows[2]["messages"] = 0 if layer == 2 else 1
            yield chunk(flows, [], layer)

    folder = write_trace(Trace({"schema": 1, "n_ranks": 2}, 3, chunks), tmp_path / "t")
    with pytest.raises(TraceError, match=r"flows\.parquet: row 9: column 'messages': found 0"):
        check_trace(read_trace(folder))


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_truncated_parquet_is_refused(tmp_path, keep):
    folder = write_trace(two_layers(), tmp_path / "t")
    for name in ("flows", "tasks"):
        whole = (folder / f"{name}.parquet").read_bytes()
        (folder / f"{name}.parquet").write_bytes(whole[:keep])
        with pytest.raises(TraceError, match=rf"{name}\.parquet: truncated or not a Parquet file"):
            read_trace(folder)
        (folder / f"{name}.parquet").write_bytes(whole)


def test_damaged_row_group_is_refused(tmp_path):
    file = write_trace(two_layers(), tmp_path / "t") / "flows.parquet"
    content = bytearray(file.read_bytes())
    content[4:60] = bytes(56)
    file.write_bytes(content)
    with pytest.raises(TraceError, match=r"flows\.parquet: row group 0 cannot be read"):
        check_trace(read_trace(file.parent))


def rewrite(folder, name, change):
    """Change a table on disk, its metadata kept."""
    table = pq.read_table(folder / f"{name}.parquet")
    pq.write_table(change(table), folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("flows", lambda t: t.drop_columns("dst"), "column 'dst' is missing; found: phase, layer"),
        ("flows", lambda t: t.append_column("size", t["src"]), "unknown column 'size'; allowed:"),
        ("flows", lambda t: t.take([3, 4, 5, 0]), "row 4: found layer 0 after layer 1"),
        (
            "flows",
            lambda t: t.set_column(5, "messages", t["messages"].cast(pa.float64())),
            "column 'messages': found type double, allowed whole numbers",
        ),
        (
            "flows",
            lambda t: t.set_column(5, "messages", pa.array([1, 2, 2**40, 1, 1, 1])),
            "row 3: column 'messages': found 1099511627776, allowed a whole number of 32 bits",
        ),
        (
            "tasks",
            lambda t: t.set_column(6, "duration_ps", pa.array([1, None, 1, 1], pa.int64())),
            "row 2: column 'duration_ps': found an empty cell, allowed a value",
        ),
        (
            "tasks",
            lambda t: t.set_column(9, "depends_on", pa.array(["", "", "", "0"])),
            "column 'depends_on': found type string, allowed list",
        ),
    ],
)
def test_file_of_another_structure_is_refused(tmp_path, name, change, message):
    folder = rewrite(write_trace(two_layers(), tmp_path / "t"), name, change)
    with pytest.raises(TraceError, match=re.escape(message)) as caught:
        check_trace(read_trace(folder))
    assert f"{name}.parquet" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flows", "message"),
    [
        ("a,0,0,1,many,64,0\n", "row 1: column 'messages': found 'many', allowed a whole number"),
        ("a,0,0,1,1.5,64,0\n", "row 1: column 'messages': found '1.5', allowed a whole number"),
        ("a,0,0,1,,64,0\n", "row 1: column 'messages': found '', allowed a whole number"),
        ("a,0,0,1,1,64\n", "flows.csv: not a readable CSV"),
        ("a,9999999,0,1,1,64,0\n", "column 'layer': found 9999999, allowed a whole number of 16"),
    ],
)
def test_csv_cell_that_is_no_number_is_refused(tmp_path, flows, message):
    with pytest.raises(TraceError, match=re.escape(message)):
        check_trace(read_trace(write_csv(tmp_path, flows)))


def test_files_of_two_traces_are_refused(tmp_path):
    folder = write_trace(two_layers(), tmp_path / "t")
    other = two_layers()
    other.metadata["seed"] = 7
    (write_trace(other, tmp_path / "u") / "tasks.parquet").replace(folder / "tasks.parquet")
    with pytest.raises(TraceError, match=r"tasks\.parquet: its metadata differ from those of"):
        read_trace(folder)


def test_folder_must_hold_one_trace(tmp_path):
    with pytest.raises(TraceError, match=r"found neither flows\.parquet nor flows\.csv"):
        read_trace(tmp_path)
    write_trace(two_layers(), tmp_path)
    write_trace(two_layers(), tmp_path, file_format="csv")
    with pytest.raises(TraceError, match=r"found both flows\.parquet and flows\.csv"):
        read_trace(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"schema": 2, "n_ranks": 2}, "trace schema is 2, this version reads 1"),
        ({"n_ranks": 0}, "metadata n_ranks: found 0, allowed 1 or more"),
        ({"n_ranks": 2, "layers": [1]}, "metadata layers: found [1], allowed a list of"),
    ],
)
def test_bad_metadata_is_refused(tmp_path, metadata, message):
    trace = two_layers()
    folder = write_trace(Trace(metadata, 2, trace.open_chunks), tmp_path / "t")
    with pytest.raises(TraceError, match=re.escape(message)):
        read_trace(folder)


def test_unwritable_folder_and_unknown_format_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="cannot write the trace"):
        write_trace(two_layers(), tmp_path / "file")
    with pytest.raises(TraceError, match="found 'xml', allowed: parquet, csv"):
        write_trace(two_layers(), tmp_path / "t", file_format="xml")


def test_cycle_is_found_and_closed():
    #  0 -> 1 -> 2 -> 3 -> 1, and 4 hanging off it
    before, after = np.array([0, 1, 2, 3, 3]), np.array([1, 2, 3, 1, 4])
    cycle = find_cycle(before, after, 5)
    assert sorted(cycle) == [1, 2, 3]
    edges = set(zip(before.tolist(), after.tolist(), strict=True))
    assert all(pair in edges for pair in zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    assert find_cycle(before[:3], after[:3], 5) is None


def test_readme_names_every_column_and_operation():
    text = (TRAFFIC / "README.md").read_text()
    named = set(re.findall(r"`([a-z_-]+)`", text))
    assert {*FLOW_SCHEMA.names, *TASK_SCHEMA.names, *OPERATIONS} <= named


def test_readme_example_makes_a_sound_trace(tmp_path, monkeypatch):
    import pandas as pd

    text = (TRAFFIC / "README.md").read_text()
    (example,) = (
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "def" in block
    )
    pairs = pd.DataFrame({"src": [0, 0, 1, 2, 2], "dst": [1, 1, 2, 0, 2]})
    monkeypatch.chdir(tmp_path)
    exec(example, {"N_RANKS": 3, "N_LAYERS": 2, "pairs_of": lambda layer: pairs})
    trace = read_trace(tmp_path / "my-trace")
    check_trace(trace)
    flows = next(trace.chunks()).flows.to_pandas()
    sent = flows[(flows.phase == "dispatch") & (flows.src == 0)]
    assert sent[["dst", "messages"]].to_numpy().tolist() == [[1, 2]]
    assert flows.messages.sum() == 10


def test_tasks_that_wait_only_for_earlier_ones_need_no_search(monkeypatch):
    def search(*edges):
        raise AssertionError("searched for a cycle")

    monkeypatch.setattr(sys.modules["ubfabric.trace"], "find_cycle", search)
    check_trace(generate_trace("decode-ep8-sample", layers=2))
    check_trace(generate_trace("prefill-ep8-sample", layers=2))
