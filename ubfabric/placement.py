"""Placement of experts on ranks and of ranks on dies."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import networkx as nx
import numpy as np
from pydantic import Field, ValidationError, model_validator

from ubfabric.errors import SpecError, TraceError
from ubfabric.quantities import Count
from ubfabric.specs import Spec

#: How a listed layout writes the shared expert.
SHARED = "shared"


class RedundancySpec(Spec):
    """Which experts the redundant slots replicate.

    ``popular`` gives one replica each to the most popular experts of the layer; ``greedy``
    gives replicas one by one to the expert with the highest load a replica, so that a very
    hot expert gets several; ``first`` takes experts 0, 1, ...; ``listed`` takes ``experts``.
    """

    policy: Literal["popular", "greedy", "first", "listed"] = "popular"
    experts: list[int] | None = None

    @model_validator(mode="after")
    def _check(self) -> RedundancySpec:
        if (self.experts is not None) != (self.policy == "listed"):
            raise ValueError(
                f"found policy {self.policy!r}; 'experts' belongs to policy 'listed' only"
            )
        return self


class LayoutSpec(Spec):
    """On which ranks the replicas of experts sit.

    ``contiguous`` keeps experts in order and spreads shared and redundant replicas evenly
    between them (exchanging neighbours where a replica would sit beside its own expert);
    ``balanced`` puts the most loaded replica on the least loaded rank with a
    free slot, and so on; ``listed`` takes ``ranks``, one list of experts a rank, the shared
    expert written ``shared``.
    """

    policy: Literal["contiguous", "balanced", "listed"] = "contiguous"
    ranks: list[list[int | Literal["shared"]]] | None = None

    @model_validator(mode="after")
    def _check(self) -> LayoutSpec:
        if (self.ranks is not None) != (self.policy == "listed"):
            raise ValueError(
                f"found policy {self.policy!r}; 'ranks' belongs to policy 'listed' only"
            )
        return self


class RankPlacementSpec(Spec):
    """On which die each rank runs.

    ``packed`` takes the first dies in the graph's order; ``striped`` deals ranks out to the
    servers in turn, one die each; ``listed`` takes ``nodes``, one endpoint name a rank.
    """

    policy: Literal["packed", "striped", "listed"] = "packed"
    nodes: list[str] | None = None

    @model_validator(mode="after")
    def _check(self) -> RankPlacementSpec:
        if (self.nodes is not None) != (self.policy == "listed"):
            raise ValueError(
                f"found policy {self.policy!r}; 'nodes' belongs to policy 'listed' only"
            )
        return self


class PlanSpec(Spec):
    """When and from what load replicas and layout are planned (EPLB).

    At steps 0, ``interval_steps``, twice that and so on, from the load at that step; a step in
    between runs with the plan before it. The load is the popularity itself, or what is counted
    of it in ``counted_tokens`` tokens of each layer.
    """

    interval_steps: Annotated[Count, Field(ge=1)] = 1
    counted_tokens: Annotated[Count, Field(ge=0)] = 0


class DisaggregatedSpec(Spec):
    """Dies that only attend, and dies that only hold experts.

    Ranks 0 to ``attention_ranks - 1`` do all but the experts, in ``domains`` of as many
    neighbouring ranks each: the tokens of one domain and microbatch go to the experts as one
    batch. The ranks that follow hold the experts.
    """

    attention_ranks: Annotated[Count, Field(ge=1)]
    domains: Annotated[Count, Field(ge=1, le=32)] = 1

    @model_validator(mode="after")
    def _check(self) -> DisaggregatedSpec:
        if self.attention_ranks % self.domains:
            raise ValueError(
                f"domains: found {self.domains}, allowed a divisor of attention_ranks = "
                f"{self.attention_ranks}"
            )
        return self


class DeploymentSpec(Spec):
    """How the model is spread over ranks; a rank is one die."""

    ranks: Annotated[Count, Field(ge=1)]
    dies_per_npu: Annotated[Count, Field(ge=1)]
    experts_per_rank: Annotated[Count, Field(ge=1)]
    shared_replicas: Annotated[Count, Field(ge=0)]
    redundant_experts: Annotated[Count, Field(ge=0)]
    redundancy: RedundancySpec = RedundancySpec()
    expert_layout: LayoutSpec = LayoutSpec()
    plan: PlanSpec = PlanSpec()
    rank_placement: RankPlacementSpec = RankPlacementSpec()
    #: Neighbouring ranks that share the heads of attention, and each other's requests.
    attention_tp: Annotated[Count, Field(ge=1)] = 1
    #: Left out, every rank attends and holds experts.
    disaggregated: DisaggregatedSpec | None = None

    @property
    def attention_ranks(self) -> int:
        """Ranks that attend: the first ones, or all."""
        return self.disaggregated.attention_ranks if self.disaggregated else self.ranks

    @property
    def domains(self) -> int:
        """Parts of the ranks that attend whose tokens go to the experts one after another."""
        return self.disaggregated.domains if self.disaggregated else 1

    @property
    def groups(self) -> tuple[range, ...]:
        """Ranks that do the same: all, or each domain and at last those that hold experts."""
        if self.disaggregated is None:
            return (range(self.ranks),)
        first, size = self.attention_ranks, self.attention_ranks // self.domains
        domains = (range(start, start + size) for start in range(0, first, size))
        return (*domains, range(first, self.ranks))

    @model_validator(mode="after")
    def _check(self) -> DeploymentSpec:
        if self.disaggregated and self.attention_ranks >= self.ranks:
            raise ValueError(
                f"disaggregated.attention_ranks: found {self.attention_ranks}, allowed 1 to "
                f"{self.ranks - 1}: of {self.ranks} ranks some must hold the experts"
            )
        sharing, name = len(self.groups[0]), "ranks"
        if self.disaggregated:
            name = "attention_ranks / domains"
        if sharing % self.attention_tp:
            raise ValueError(
                f"attention_tp: found {self.attention_tp}, allowed a divisor of {name} = {sharing}"
            )
        return self

    def check_experts(self, n_routed: int, n_shared: int) -> None:
        """Check that the slots of all ranks hold every expert.

        Raises
        ------
        ValueError
            Names the key, what was found and what is allowed.
        """
        holders = len(self.groups[-1])
        slots = holders * self.experts_per_rank
        of_experts = "expert " if self.disaggregated else ""
        needed = n_routed + self.redundant_experts + self.shared_replicas
        sizes = (
            f"{holders} {of_experts}ranks x {self.experts_per_rank} experts_per_rank = "
            f"{slots} slots for "
            f"{n_routed} routed + {self.redundant_experts} redundant + "
            f"{self.shared_replicas} shared = {needed} replicas"
        )
        if n_shared and not self.shared_replicas:
            raise ValueError(
                "found shared_replicas 0: the shared expert is an expert without a replica"
            )
        if self.shared_replicas and not n_shared:
            raise ValueError(
                f"found shared_replicas {self.shared_replicas}, but the model shares no expert"
            )
        if slots < needed:
            raise ValueError(f"found {sizes}: an expert without a replica; allowed: equal numbers")
        if slots > needed:
            raise ValueError(f"found {sizes}: slots without an expert; allowed: equal numbers")
        listed = self.redundancy.experts
        if listed is not None:
            if len(listed) != self.redundant_experts:
                raise ValueError(
                    f"redundancy.experts: found {len(listed)} experts, "
                    f"allowed {self.redundant_experts}"
                )
            _check_expert_ids("redundancy.experts", listed, n_routed)
        if self.expert_layout.ranks is not None:
            self._check_listed(self.expert_layout.ranks, n_routed)

    def _check_listed(self, ranks: list[list[Any]], n_routed: int) -> None:
        key = "expert_layout.ranks"
        holders = len(self.groups[-1])
        if len(ranks) != holders:
            raise ValueError(f"{key}: found {len(ranks)} lists, allowed {holders}, one a rank")
        for rank, experts in enumerate(ranks):
            if len(experts) != self.experts_per_rank:
                raise ValueError(
                    f"{key}[{rank}]: found {len(experts)} experts, allowed {self.experts_per_rank}"
                )
            _check_expert_ids(
                f"{key}[{rank}]", [e for e in experts if not isinstance(e, str)], n_routed
            )
        everywhere = [expert for experts in ranks for expert in experts]
        missing = sorted(set(range(n_routed)) - set(everywhere))
        if missing:
            raise ValueError(
                f"{key}: found expert {missing[0]} nowhere, an expert without a replica; "
                f"allowed: each of 0 to {n_routed - 1} at least once"
            )
        if everywhere.count(SHARED) != self.shared_replicas:
            raise ValueError(
                f"{key}: found 'shared' {everywhere.count(SHARED)} times, "
                f"allowed shared_replicas = {self.shared_replicas}"
            )


def _check_expert_ids(key: str, experts: list[int], n_routed: int) -> None:
    for expert in experts:
        if not 0 <= expert < n_routed:
            raise ValueError(f"{key}: found expert {expert}, allowed 0 to {n_routed - 1}")


@dataclass(frozen=True)
class ExpertPlacement:
    """The replicas of one layer's experts. A *slot* is one replica on one rank.

    Attributes
    ----------
    n_ranks, n_sources, n_routed : int
        Ranks, those of them whose tokens are sent at once, and routed experts; the shared expert
        has the number ``n_routed``.
    slot_expert, slot_rank : ndarray of int32, shape (n_slots,)
        Expert in each slot and the rank that holds it; ascending by rank.
    replica_first : ndarray of int64, shape (n_routed + 2,)
        The replicas of expert ``e`` are ``replica_slot[replica_first[e]:replica_first[e + 1]]``.
    replica_slot : ndarray of int32, shape (n_slots,)
        Slots by expert, ascending within one.
    shared_slot : ndarray of int32, shape (n_sources,) or (0,)
        The shared replica that each source's tokens use; empty without a shared expert.
    """

    n_ranks: int
    n_sources: int
    n_routed: int
    slot_expert: np.ndarray
    slot_rank: np.ndarray
    replica_first: np.ndarray
    replica_slot: np.ndarray
    shared_slot: np.ndarray

    def assign_replicas(self, experts: np.ndarray) -> np.ndarray:
        """Choose a replica for every (token, expert) pair.

        Each source rank deals the tokens that it has for an expert out to the expert's
        replicas in turn, starting at its own rank modulo their number. So every rank loads
        the replicas evenly (within one message), deterministically and without knowing what
        others do.

        Parameters
        ----------
        experts : ndarray of int, shape (n_tokens, top_k)
            Experts of each token; tokens in order of source rank, equally many a rank.

        Returns
        -------
        ndarray of int32, shape (n_tokens, top_k)
            Slot of each pair.
        """
        flat = experts.ravel().astype(np.int64)
        n_replicas = np.diff(self.replica_first)
        position = self.replica_first[flat]
        pairs = np.flatnonzero((n_replicas > 1)[flat])
        if len(pairs):
            source = pairs // (len(flat) // self.n_sources)
            expert = flat[pairs]
            key = source * self.n_routed + expert
            order = np.argsort(key, kind="stable")
            is_first = np.ones(len(key), bool)
            is_first[1:] = key[order[1:]] != key[order[:-1]]
            first = np.flatnonzero(is_first)
            turn = np.empty(len(key), np.int64)
            turn[order] = np.arange(len(key)) - first[np.cumsum(is_first) - 1]
            position[pairs] += (source + turn) % n_replicas[expert]
        slots: np.ndarray = self.replica_slot[position]
        return slots.reshape(experts.shape)


def place_experts(
    deployment: DeploymentSpec, popularity: np.ndarray, top_k: int
) -> ExpertPlacement:
    """Place the experts of one layer on ranks.

    Parameters
    ----------
    deployment : DeploymentSpec
        Already checked by :meth:`DeploymentSpec.check_experts`.
    popularity : ndarray of float, shape (n_routed,)
        Shares of all (token, expert) pairs; used by the policies that look at load.
    top_k : int
        Routed experts a token visits; sets the load of the shared expert in comparison.

    Returns
    -------
    ExpertPlacement
    """
    n_routed = len(popularity)
    if deployment.expert_layout.ranks is not None:
        return _finish(
            [
                [n_routed if isinstance(e, str) else e for e in ranks]
                for ranks in deployment.expert_layout.ranks
            ],
            n_routed,
            deployment,
        )
    redundant = _choose_redundant(deployment, popularity)
    on_rank: list[list[int]] = [[] for _ in deployment.groups[-1]]
    for replica in range(deployment.shared_replicas):
        on_rank[replica * len(on_rank) // deployment.shared_replicas].append(n_routed)
    if deployment.expert_layout.policy == "balanced":
        _fill_balanced(on_rank, deployment, popularity, redundant, top_k)
    else:
        _fill_contiguous(on_rank, deployment, n_routed, redundant)
    return _finish(on_rank, n_routed, deployment)


def _choose_redundant(deployment: DeploymentSpec, popularity: np.ndarray) -> list[int]:
    count, policy = deployment.redundant_experts, deployment.redundancy.policy
    n_routed = len(popularity)
    if policy == "listed":
        return list(deployment.redundancy.experts or [])
    if policy == "first":
        return [index % n_routed for index in range(count)]
    if policy == "popular":
        ranking = np.argsort(-popularity, kind="stable")
        return [int(ranking[index % n_routed]) for index in range(count)]
    heap = [(-share, expert, 1) for expert, share in enumerate(popularity.tolist())]
    heapq.heapify(heap)
    result = []
    for _ in range(count):
        _, expert, replicas = heap[0]
        result.append(expert)
        heapq.heapreplace(heap, (-float(popularity[expert]) / (replicas + 1), expert, replicas + 1))
    return result


def _fill_contiguous(
    on_rank: list[list[int]], deployment: DeploymentSpec, n_routed: int, redundant: list[int]
) -> None:
    free = [
        rank
        for rank, experts in enumerate(on_rank)
        for _ in range(deployment.experts_per_rank - len(experts))
    ]
    # Redundant replicas sit in the middle of equal stretches of the free slots.
    middle = {(2 * i + 1) * len(free) // (2 * len(redundant)) for i in range(len(redundant))}
    expert = 0
    for position, rank in enumerate(free):
        if position not in middle:
            on_rank[rank].append(expert)
            expert += 1
    for position, replica in zip(sorted(middle), redundant, strict=True):
        on_rank[free[position]].append(replica)
    for rank, experts in enumerate(on_rank):
        if len(set(experts)) == len(experts):
            continue
        repeated = [i for i, e in enumerate(experts) if e != n_routed and e in experts[:i]]
        for index in repeated:
            _swap_away(on_rank, rank, index, n_routed)


def _swap_away(on_rank: list[list[int]], rank: int, index: int, n_routed: int) -> None:
    """Exchange a replica that sits beside its own expert with one of another rank.

    Later entries of a rank are tried first: these are its redundant replicas.
    """
    here = on_rank[rank]
    replica = here[index]
    others = sorted(range(len(on_rank)), key=lambda other: (abs(other - rank), other))
    for other in others[1:]:
        there = on_rank[other]
        if replica in there:
            continue
        for place in reversed(range(len(there))):
            if there[place] != n_routed and there[place] not in here:
                here[index], there[place] = there[place], replica
                return


def _fill_balanced(
    on_rank: list[list[int]],
    deployment: DeploymentSpec,
    popularity: np.ndarray,
    redundant: list[int],
    top_k: int,
) -> None:
    replicas = np.bincount(redundant, minlength=len(popularity)) + 1
    load = popularity * top_k / replicas
    shared_load = 1.0 / max(deployment.shared_replicas, 1)
    heap = [(shared_load * len(experts), rank) for rank, experts in enumerate(on_rank)]
    heapq.heapify(heap)
    order = np.repeat(np.argsort(-load, kind="stable"), replicas[np.argsort(-load, kind="stable")])
    for expert in order.tolist():
        skipped = []
        chosen = None
        while heap:
            rank_load, rank = heapq.heappop(heap)
            if len(on_rank[rank]) >= deployment.experts_per_rank:
                continue
            if expert in on_rank[rank]:
                skipped.append((rank_load, rank))
                continue
            chosen = (rank_load, rank)
            break
        if chosen is None:  # every rank with a free slot already has this expert
            chosen = skipped.pop(0)
        rank_load, rank = chosen
        on_rank[rank].append(expert)
        heapq.heappush(heap, (rank_load + float(load[expert]), rank))
        for entry in skipped:
            heapq.heappush(heap, entry)


def _finish(on_rank: list[list[int]], n_routed: int, deployment: DeploymentSpec) -> ExpertPlacement:
    slot_expert = np.array([expert for experts in on_rank for expert in sorted(experts)], np.int32)
    holders = np.array(deployment.groups[-1], np.int32)
    slot_rank = np.repeat(holders, [len(experts) for experts in on_rank])
    counts = np.bincount(slot_expert, minlength=n_routed + 1)
    first = np.concatenate([[0], np.cumsum(counts)])
    slots = np.argsort(slot_expert, kind="stable").astype(np.int32)
    shared = slots[first[n_routed] :]
    # Equal blocks of neighbouring ranks share a replica.
    n_sources = len(deployment.groups[0])
    block = np.arange(n_sources) * len(shared) // n_sources
    return ExpertPlacement(
        n_ranks=deployment.ranks,
        n_sources=n_sources,
        n_routed=n_routed,
        slot_expert=slot_expert,
        slot_rank=slot_rank,
        replica_first=first.astype(np.int64),
        replica_slot=slots,
        shared_slot=shared[block] if len(shared) else shared,
    )


def place_ranks(
    graph: nx.Graph,
    placement: RankPlacementSpec | dict[str, Any] | str,
    n_ranks: int,
) -> list[str]:
    """Return the die that each rank runs on.

    Parameters
    ----------
    graph : networkx.Graph
        A topology; its dies are the nodes of kind ``die``.
    placement : RankPlacementSpec, dict or str
        The specification, its mapping, or the name of a policy without parameters.
    n_ranks : int
        Number of ranks to place.

    Returns
    -------
    list of str, length n_ranks
        Node names, all different.

    Raises
    ------
    TraceError
        If there are fewer dies than ranks, or a listed node is unknown, not an endpoint, or
        listed twice.
    SpecError
        If the specification itself is malformed.
    """
    if isinstance(placement, str):
        placement = {"policy": placement}
    try:
        spec = RankPlacementSpec.model_validate(placement)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["rank_placement", *map(str, first["loc"])])
        raise SpecError(f"{key}: found {first['input']!r}; {first['msg']}") from None
    name = graph.graph.get("name") or "topology"
    if spec.nodes is not None:
        return _listed_nodes(graph, spec.nodes, n_ranks, name)
    dies = [node for node, kind in graph.nodes(data="kind") if kind == "die"]
    if len(dies) < n_ranks:
        raise TraceError(
            f"rank {len(dies)} is a rank without a die: found {n_ranks} ranks, "
            f"{name} has {len(dies)} dies"
        )
    if spec.policy == "striped":
        # The k-th die of every server comes before the (k + 1)-th of any.
        seen: dict[Any, int] = {}
        turn = []
        for die in dies:
            server = graph.nodes[die].get("server", -1)
            turn.append(seen.get(server, 0))
            seen[server] = turn[-1] + 1
        dies = [dies[index] for index in np.argsort(turn, kind="stable")]
    return dies[:n_ranks]


def _listed_nodes(graph: nx.Graph, nodes: list[str], n_ranks: int, name: str) -> list[str]:
    if len(nodes) < n_ranks:
        raise TraceError(
            f"rank_placement.nodes: rank {len(nodes)} is a rank without a die: "
            f"found {len(nodes)} nodes for {n_ranks} ranks"
        )
    if len(nodes) > n_ranks:
        raise TraceError(
            f"rank_placement.nodes: found {len(nodes)} nodes, allowed {n_ranks}, one a rank"
        )
    first_rank: dict[str, int] = {}
    for rank, node in enumerate(nodes):
        place = f"rank_placement.nodes[{rank}]: found {node!r}"
        if node not in graph:
            raise TraceError(f"{place}, which is no node of {name}")
        if graph.nodes[node].get("role") != "endpoint":
            raise TraceError(f"{place}, a {graph.nodes[node].get('kind')}; allowed: endpoints")
        if node in first_rank:
            raise TraceError(f"{place}, which already holds rank {first_rank[node]}")
        first_rank[node] = rank
    return list(nodes)
