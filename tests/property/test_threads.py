"""The number of threads changes nothing: the same bytes in every table."""

from __future__ import annotations

import pytest
from fabrics import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import closed_loop_traces, exchanges, leaf_spines, topologies, traces

from ubfabric import _bridge

from .test_delivery import cases, graphs, mechanisms

COUNTS = (2, 4, 7)
HOW = settings(
    max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.fixture(autouse=True, scope="module")
def eager():
    """Wake the threads however little there is to do."""
    make = _bridge.Engine.__init__

    def make_eager(self, arrays, attributes) -> None:
        make(self, arrays, attributes | {"ThreadHops": 1})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_bridge.Engine, "__init__", make_eager)
        yield


def same_on_any_number_of_threads(graph, trace, **options) -> None:
    alone = run(graph, trace, threads=1, **options)
    for count in COUNTS:
        assert run(graph, trace, threads=count, **options).files == alone.files, count


@pytest.mark.filterwarnings("ignore::ubfabric.errors.UbfabricWarning")  # buffers are small
@HOW
@given(cases())
def test_threads_change_nothing_whatever_fails(case):
    graph, trace, options = case
    same_on_any_number_of_threads(graph, trace, **options)


@pytest.mark.filterwarnings("ignore::ubfabric.errors.UbfabricWarning")
@HOW
@given(st.data())
def test_parts_of_a_plane_change_nothing(data):
    """There are more threads than planes, so that planes with long cables are cut."""
    graph = data.draw(leaf_spines())
    trace = data.draw(st.one_of(exchanges(graph), closed_loop_traces(graph)))
    same_on_any_number_of_threads(graph, trace)


@pytest.mark.filterwarnings("ignore::ubfabric.errors.UbfabricWarning")
@HOW
@given(st.data())
def test_parts_of_a_plane_change_nothing_with_any_mechanism(data):
    graph = data.draw(graphs())
    data.draw(mechanisms(graph))
    same_on_any_number_of_threads(
        graph,
        data.draw(exchanges(graph)),
        path_policy=data.draw(st.sampled_from(["round-robin", "random", "adaptive"])),
        n_virtual_lanes=data.draw(st.sampled_from([1, 2])),
    )


@pytest.mark.filterwarnings("ignore::ubfabric.errors.UbfabricWarning")
@HOW
@given(st.data())
def test_threads_change_nothing_in_a_closed_loop(data):
    graph = data.draw(topologies())
    trace = data.draw(traces(graph))
    same_on_any_number_of_threads(graph, trace, account=data.draw(st.booleans()))
