"""Experts on ranks, ranks on dies."""

import networkx as nx
import numpy as np
import pytest
from pydantic import ValidationError

from ubfabric.errors import SpecError, TraceError
from ubfabric.placement import DeploymentSpec, place_experts, place_ranks

EP320 = {
    "ranks": 320,
    "dies_per_npu": 2,
    "experts_per_rank": 1,
    "shared_replicas": 32,
    "redundant_experts": 32,
}
EP4 = {
    "ranks": 4,
    "dies_per_npu": 2,
    "experts_per_rank": 3,
    "shared_replicas": 2,
    "redundant_experts": 2,
}


def place(deployment, popularity, top_k=2, **changes):
    return place_experts(DeploymentSpec.model_validate(deployment | changes), popularity, top_k)


def experts_on(placement):
    """Return the list of experts of each rank."""
    return [
        placement.slot_expert[placement.slot_rank == rank].tolist()
        for rank in range(placement.n_ranks)
    ]


def replicas_of(placement, expert):
    first, last = placement.replica_first[expert : expert + 2]
    return placement.replica_slot[first:last]


def test_ep320_puts_one_expert_on_every_die():
    popularity = np.full(256, 1 / 256)
    placement = place(EP320, popularity, top_k=8)
    assert placement.slot_rank.tolist() == list(range(320))
    counts = np.bincount(placement.slot_expert)
    assert counts[:32].tolist() == [2] * 32  # nobody is more popular: the first 32
    assert counts[32:256].tolist() == [1] * 224
    assert counts[256] == 32
    shared_ranks = placement.slot_rank[replicas_of(placement, 256)]
    assert shared_ranks.tolist() == list(range(0, 320, 10))


def test_every_shared_replica_serves_ten_neighbouring_ranks():
    placement = place(EP320, np.full(256, 1 / 256))
    serving = placement.slot_rank[placement.shared_slot]
    assert serving.tolist() == [rank // 10 * 10 for rank in range(320)]


def test_popular_experts_get_the_redundant_slots():
    popularity = np.arange(8) / 28
    placement = place(EP4, popularity)
    assert len(replicas_of(placement, 7)) == len(replicas_of(placement, 6)) == 2
    assert all(len(replicas_of(placement, expert)) == 1 for expert in range(6))


def test_greedy_gives_a_very_hot_expert_several_replicas():
    popularity = np.array([0.6] + [0.4 / 7] * 7)
    placement = place(EP4, popularity, redundancy={"policy": "greedy"})
    assert len(replicas_of(placement, 0)) == 3


def test_first_and_listed_redundancy_ignore_popularity():
    popularity = np.arange(8) / 28
    placement = place(EP4, popularity, redundancy={"policy": "first"})
    assert len(replicas_of(placement, 0)) == len(replicas_of(placement, 1)) == 2
    placement = place(EP4, popularity, redundancy={"policy": "listed", "experts": [3, 3]})
    assert len(replicas_of(placement, 3)) == 3


@pytest.mark.parametrize("policy", ["contiguous", "balanced"])
def test_layout_fills_all_slots_and_keeps_replicas_apart(policy):
    popularity = np.arange(1, 9) / 36
    on_rank = experts_on(place(EP4, popularity, expert_layout={"policy": policy}))
    assert [len(experts) for experts in on_rank] == [3] * 4
    assert all(len(set(experts)) == 3 for experts in on_rank)
    assert {expert for experts in on_rank for expert in experts} == set(range(9))


def test_contiguous_layout_keeps_experts_in_order():
    deployment = EP4 | {"redundant_experts": 0, "shared_replicas": 4}
    on_rank = experts_on(place(deployment, np.full(8, 1 / 8)))
    assert on_rank == [[0, 1, 8], [2, 3, 8], [4, 5, 8], [6, 7, 8]]


def test_balanced_layout_lowers_the_peak_load():
    popularity = np.array([0.4, 0.3, 0.1, 0.1, 0.04, 0.03, 0.02, 0.01])
    peaks = {}
    for policy in ("contiguous", "balanced"):
        placement = place(EP4, popularity, expert_layout={"policy": policy})
        replicas = np.diff(placement.replica_first)
        load = np.append(popularity * 2, 1.0) / replicas
        loads = np.bincount(placement.slot_rank, weights=load[placement.slot_expert])
        peaks[policy] = loads.max()
    assert peaks["balanced"] < peaks["contiguous"]


def test_listed_layout_is_taken_as_it_stands():
    ranks = [[0, 1, "shared"], [2, 3, 0], [4, 5, "shared"], [6, 7, 5]]
    placement = place(EP4, np.full(8, 1 / 8), expert_layout={"policy": "listed", "ranks": ranks})
    assert experts_on(placement) == [[0, 1, 8], [0, 2, 3], [4, 5, 8], [5, 6, 7]]
    assert placement.slot_rank[replicas_of(placement, 5)].tolist() == [2, 3]


def test_each_source_rank_loads_replicas_within_one_message_and_starts_at_its_own():
    placement = place(EP4, np.full(8, 1 / 8), redundancy={"policy": "listed", "experts": [2, 2]})
    experts = np.full((4 * 5, 1), 2)
    slots = placement.assign_replicas(experts).reshape(4, 5)
    replicas = replicas_of(placement, 2)
    for rank in range(4):
        counts = [(slots[rank] == slot).sum() for slot in replicas]
        assert max(counts) - min(counts) <= 1 and sum(counts) == 5
        assert slots[rank, 0] == replicas[rank % 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": 3}, r"9 slots for 8 routed .* an expert without a replica"),
        ({"experts_per_rank": 4}, r"16 slots .* = 12 replicas: slots without an expert"),
        ({"shared_replicas": 0}, r"shared expert is an expert without a replica"),
        (
            {"redundancy": {"policy": "listed", "experts": [1]}},
            r"redundancy.experts: found 1 experts, allowed 2",
        ),
        (
            {"redundancy": {"policy": "listed", "experts": [1, 8]}},
            r"found expert 8, allowed 0 to 7",
        ),
        (
            {"expert_layout": {"policy": "listed", "ranks": [[0, 1, 2]] * 3}},
            r"found 3 lists, allowed 4",
        ),
        (
            {"expert_layout": {"policy": "listed", "ranks": [[0, 1]] * 4}},
            r"ranks\[0\]: found 2 experts, allowed 3",
        ),
        (
            {
                "expert_layout": {
                    "policy": "listed",
                    "ranks": [[0, 1, 2], [3, 4, 5], [6, "shared", 0], [0, "shared", 1]],
                }
            },
            r"found expert 7 nowhere, an expert without a replica",
        ),
        (
            {
                "expert_layout": {
                    "policy": "listed",
                    "ranks": [[0, 1, 2], [3, 4, 5], [6, 7, 0], [0, "shared", 1]],
                }
            },
            r"found 'shared' 1 times, allowed shared_replicas = 2",
        ),
    ],
)
def test_deployment_that_does_not_hold_the_experts_is_refused(changes, message):
    deployment = DeploymentSpec.model_validate(EP4 | changes)
    with pytest.raises(ValueError, match=message):
        deployment.check_experts(8, 1)


def test_list_without_its_policy_is_refused():
    for changes in (
        {"redundancy": {"policy": "first", "experts": [1]}},
        {"redundancy": {"policy": "listed"}},
        {"expert_layout": {"policy": "listed"}},
        {"rank_placement": {"policy": "packed", "nodes": ["die-0-0"]}},
    ):
        with pytest.raises(ValidationError, match="belongs to policy 'listed' only"):
            DeploymentSpec.model_validate(EP4 | changes)


@pytest.fixture
def graph():
    """Two servers of three dies and a CPU, and a switch."""
    graph = nx.MultiGraph(name="small")
    for server in range(2):
        graph.add_node(f"cpu-{server}-0", kind="cpu", role="endpoint", server=server)
        for die in range(3):
            graph.add_node(f"die-{server}-{die}", kind="die", role="endpoint", server=server)
    graph.add_node("l1-0-0", kind="l1", role="switch", server=0)
    return graph


def test_packed_ranks_fill_server_by_server(graph):
    assert place_ranks(graph, "packed", 4) == ["die-0-0", "die-0-1", "die-0-2", "die-1-0"]


def test_striped_ranks_alternate_between_servers(graph):
    expected = ["die-0-0", "die-1-0", "die-0-1", "die-1-1", "die-0-2"]
    assert place_ranks(graph, {"policy": "striped"}, 5) == expected


def test_listed_ranks_may_be_any_endpoint(graph):
    nodes = ["die-1-2", "cpu-0-0"]
    assert place_ranks(graph, {"policy": "listed", "nodes": nodes}, 2) == nodes


@pytest.mark.parametrize(
    ("placement", "n_ranks", "message"),
    [
        ("packed", 7, r"rank 6 is a rank without a die: found 7 ranks, small has 6 dies"),
        (["die-0-0"], 2, r"rank 1 is a rank without a die: found 1 nodes for 2 ranks"),
        (["die-0-0", "die-0-1"], 1, r"found 2 nodes, allowed 1"),
        (["die-9-9"], 1, r"nodes\[0\]: found 'die-9-9', which is no node of small"),
        (["l1-0-0"], 1, r"found 'l1-0-0', a l1; allowed: endpoints"),
        (["die-0-0", "die-0-0"], 2, r"nodes\[1\]: found 'die-0-0', which already holds rank 0"),
    ],
)
def test_rank_without_a_place_is_refused(graph, placement, n_ranks, message):
    if isinstance(placement, list):
        placement = {"policy": "listed", "nodes": placement}
    with pytest.raises(TraceError, match=message):
        place_ranks(graph, placement, n_ranks)


def test_unknown_rank_placement_is_refused(graph):
    with pytest.raises(SpecError, match=r"rank_placement.policy: found 'random'"):
        place_ranks(graph, "random", 2)
