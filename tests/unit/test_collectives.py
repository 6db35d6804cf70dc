"""Traces of a collective by itself."""

from __future__ import annotations

import numpy as np
import pytest

import ubfabric as ub
from ubfabric.errors import TraceError
from ubfabric.trace import check_trace, read_trace, write_trace


def flows_of(trace):
    (chunk,) = trace.chunks()
    assert chunk.tasks.num_rows == 0
    return chunk.flows.to_pandas()


def test_every_rank_writes_to_every_other_once_and_from_time_0():
    trace = ub.all_to_all_trace(5, 8192)
    flows = flows_of(trace)
    assert trace.n_ranks == 5 and trace.n_chunks == 1
    pairs = set(zip(flows["src"], flows["dst"], strict=True))
    assert pairs == {(a, b) for a in range(5) for b in range(5) if a != b}
    assert len(flows) == len(pairs)
    assert set(flows["start_ps"]) == {0} and set(flows["message_bytes"]) == {8192}
    assert set(flows["messages"]) == {1}


def test_at_each_turn_the_destinations_are_a_permutation_of_the_ranks():
    flows = flows_of(ub.all_to_all_trace(7, 100))
    assert list(flows["src"]) == sorted(flows["src"])
    turns = flows["dst"].to_numpy().reshape(7, 6)
    for turn in range(6):
        assert sorted(turns[:, turn]) == list(range(7))
    assert list(turns[5]) == [6, 0, 1, 2, 3, 4]


def test_bytes_of_a_pair_are_split_into_the_messages_asked_for():
    flows = flows_of(ub.all_to_all_trace(3, 6000, messages_per_pair=4))
    assert set(flows["messages"]) == {4} and set(flows["message_bytes"]) == {1500}


def test_an_exchange_is_written_by_cores_or_moved_as_asked_for():
    assert set(flows_of(ub.all_to_all_trace(3, 100))["operation"]) == {"write"}
    moved = flows_of(ub.all_to_all_trace(3, 100, operation="sdma-write"))
    assert set(moved["operation"]) == {"sdma-write"}
    with pytest.raises(TraceError, match=r"^operation: found 'send', allowed: write, read, sdma-"):
        ub.all_to_all_trace(3, 100, operation="send")


def test_it_is_a_valid_trace_and_survives_a_file(tmp_path):
    trace = ub.all_to_all_trace(6, 512)
    check_trace(trace)
    again = read_trace(write_trace(trace, tmp_path / "trace"))
    assert flows_of(again).equals(flows_of(trace))
    assert again.metadata == trace.metadata


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 8192), r"^n_ranks: found 1, allowed 2 to 65535$"),
        ((65536, 1), r"^n_ranks: found 65536, allowed"),
        ((4, 0), r"^bytes_per_pair: found 0, allowed 1 to 2147483647$"),
        ((4, 2**31), r"^bytes_per_pair: found 2147483648, allowed"),
        ((4, 100, 0), r"^messages_per_pair: found 0, allowed 1 to 2147483647$"),
        ((4, 100, 3), r"^bytes_per_pair: found 100, allowed multiples of messages_per_pair, 3$"),
    ],
)
def test_numbers_out_of_range_get_one_line(arguments, message):
    n_ranks, size, *messages = arguments
    with pytest.raises(TraceError, match=message):
        ub.all_to_all_trace(
            n_ranks, size, **({"messages_per_pair": messages[0]} if messages else {})
        )


def test_a_replay_delivers_all_of_it(tmp_path):
    graph = ub.build_topology("leaf-spine-384", {"servers": 3})
    result = ub.replay(graph, ub.all_to_all_trace(24, 9000), tmp_path / "run", progress=False)
    flows = result.flows()
    assert result.summary["bytes_delivered"] == 24 * 23 * 9000
    assert (flows["packets"] == 3).all()
    same_leaf = flows["src"] // 8 == flows["dst"] // 8
    assert np.array_equal(flows["hops"], np.where(same_leaf, 2, 4))
