"""What steps of decode and prefill have in common: routing of tokens, flows and tasks of a layer.

A step is a list of layers (:class:`LayerPlan`), a layer a list of stages (:class:`Stage`), each of
which becomes one task of every rank, or of every rank of a group that does the same.
:class:`Step` routes tokens to expert replicas and turns stages and messages into the tables of a
trace; what the stages are, and how long each takes, is said by its subclasses in
:mod:`ubfabric.decode`, :mod:`ubfabric.disaggregated` and :mod:`ubfabric.prefill`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa

from ubfabric.errors import SpecError
from ubfabric.gate import RoutedModel, route_tokens
from ubfabric.operators import CoresSpec, OperatorTimes
from ubfabric.placement import ExpertPlacement, place_experts
from ubfabric.sampling import draw_layers
from ubfabric.trace import FLOW_SCHEMA, TASK_SCHEMA, TraceChunk
from ubfabric.workload import PoolSpec, Workload

PHASES = ("dispatch", "combine")
#: Microbatch of a stage that concerns all.
ALL_MICROBATCHES = -1
PS_PER_S = 10**12
# What a random generator is for; part of its seed.
_FOR_POPULARITY, _FOR_ROUTING, _FOR_ORDER, _FOR_LAYERS, _FOR_COUNTING = 1, 2, 3, 4, 5
FOR_SPREAD = 6
# Counting every pair of ranks is faster than sorting messages up to about this ratio.
_PAIRS_COUNTED_PER_MESSAGE = 16


@dataclass(frozen=True)
class LayerPlan:
    """Place of one layer in the step.

    Attributes
    ----------
    layer : int
        Index in the model; MTP layers and the head follow the model's last.
    label : str
        ``dense``, ``moe``, ``mtp`` or ``head``.
    first_task : int
        Id of the layer's first task.
    tokens : int
        Tokens of one rank in one microbatch.
    head_tokens : int
        Tokens of one rank that the LM head before this layer works on; 0 without one.
    """

    layer: int
    label: str
    first_task: int
    tokens: int
    head_tokens: int = 0


@dataclass(frozen=True)
class Stage:
    """One task of each rank, or each rank of a group, in a layer.

    Attributes
    ----------
    kind : str
        Operator, or operator and stage: ``dispatch-copy``.
    microbatch : int
        -1 when it concerns all.
    sends, waits : str
        Phases, as in the task table.
    stream : int
        Stream that runs it.
    group : int
        Whose task it is: place in :attr:`Step.groups`.
    """

    kind: str
    microbatch: int
    sends: str = ""
    waits: str = ""
    stream: int = 0
    group: int = 0


@dataclass(frozen=True)
class Block:
    """All flows of one phase and microbatch of a layer.

    Attributes
    ----------
    microbatch : int
    phase : str
    messages : ndarray of int64, shape (3, n_flows)
        Source rank, destination rank, and messages of each flow, sorted by source.
    message_bytes : int or ndarray of int64, shape (n_flows,)
        Bytes of each message.
    operation : str
        As in the flow table.
    """

    microbatch: int
    phase: str
    messages: np.ndarray
    message_bytes: int | np.ndarray
    operation: str = "write"


class Step(ABC):
    """Builds the chunks of one step, each on its own.

    Tasks of a rank depend on tasks of the same rank only.

    Parameters
    ----------
    workload : Workload
        Checked specification.
    seed : int
        Seeds popularity, routing and send order, by layer and microbatch.
    layers : int or sequence of int
        How many MoE layers to emit, drawn by the seed, or which, by their numbers in the model.

    Raises
    ------
    SpecError
        If ``layers`` or ``seed`` is out of range, or a file of gate or operators does not fit.
    """

    plans: list[LayerPlan]
    #: As of :class:`ubfabric.operators.OperatorTimes`.
    streams_rows = False

    def __init__(self, workload: Workload, seed: int, layers: int | Sequence[int]) -> None:
        spec = workload.spec
        if isinstance(spec, PoolSpec):
            raise SpecError(f"{workload.label}: kind: found 'pool', allowed: decode, prefill")
        self.seed = seed
        self._stages: dict[LayerPlan, list[Stage]] = {}
        self._columns: dict[tuple[tuple[Stage, ...], ...], dict[str, pa.Array]] = {}
        self._fixed_ps: dict[tuple[Stage, int, int], int] = {}
        model, deployment = spec.model, spec.deployment
        if seed < 0:
            raise SpecError(f"seed: found {seed}, allowed 0 or more")
        first, total = model.dense_layers, model.moe_layers
        self.is_drawn = isinstance(layers, (int, np.integer))
        if isinstance(layers, (int, np.integer)):
            if not 1 <= layers <= total:
                raise SpecError(f"layers: found {layers}, allowed 1 to {total} MoE layers")
            drawn = draw_layers(total, int(layers), self._rng(0, _FOR_LAYERS))
            self.moe_layers = [first + layer for layer in drawn]
        else:
            self.moe_layers = list(layers)
            wanted = sorted(set(self.moe_layers) & set(range(first, model.layers)))
            if not wanted or wanted != self.moe_layers:
                raise SpecError(
                    f"layers: found {self.moe_layers}, allowed MoE layers {first} to "
                    f"{model.layers - 1}, ascending, each once"
                )
        self.n_ranks = deployment.ranks
        #: Ranks that do the same; the first group sends tokens, the last one holds experts.
        self.groups = deployment.groups
        self.model, self.deployment, self.messages = model, deployment, spec.messages
        self.microbatches = spec.serving.microbatches
        self.memory_bytes_per_s = spec.machine.memory_bytes_per_s
        self.times = OperatorTimes(
            model,
            spec.machine,
            spec.operators,
            workload.folder,
            deployment.attention_tp,
            streams_rows=self.streams_rows,
        )
        step, interval = spec.serving.step, deployment.plan.interval_steps
        routed = RoutedModel(model.layers, model.dense_layers, model.routed_experts, model.top_k)
        self.recorded = spec.gate.recorded(routed, workload.folder)
        if self.recorded is None:
            self.popularity, self.planned = (
                spec.gate.prepare(model.routed_experts, workload.folder, at)
                for at in (step, step // interval * interval)
            )

    @abstractmethod
    def stages(self, plan: LayerPlan) -> list[Stage]:
        """Return the tasks of one rank in a layer, in table order: all streams' order."""

    @abstractmethod
    def duration_ps(self, plan: LayerPlan, stage: Stage) -> int:
        """Return the time of a stage that does not depend on routing, in picoseconds."""

    @abstractmethod
    def chunk(self, position: int) -> TraceChunk:
        """Build one chunk; the same whether or not others were built before."""

    def message_cost_ps(self, stage: Stage) -> int:
        """Return what each message of a stage costs an engine of the topology."""
        return 0

    def chunks(self) -> Iterator[TraceChunk]:
        """Yield all chunks in order."""
        for position in range(len(self.plans)):
            yield self.chunk(position)

    def stages_of(self, plan: LayerPlan) -> list[Stage]:
        """Return :meth:`stages` of a layer, which several of its tables ask for, made once."""
        stages = self._stages.get(plan)
        if stages is None:
            stages = self._stages[plan] = self.stages(plan)
        return stages

    def number(self, rows: list[tuple[int, str, int, int]]) -> list[LayerPlan]:
        """Return plans of ``(layer, label, tokens, head tokens)``, their tasks numbered."""
        plans, first_task = [], 0
        for layer, label, tokens, head_tokens in rows:
            plan = LayerPlan(layer, label, first_task, tokens, head_tokens)
            plans.append(plan)
            first_task += sum(len(self.groups[stage.group]) for stage in self.stages_of(plan))
        return plans

    def place(self, layer: int) -> ExpertPlacement:
        """Place the experts of a layer as planned."""
        return place_experts(self.deployment, self.planned_load(layer), self.model.top_k)

    def route(self, plan: LayerPlan, microbatch: int) -> np.ndarray:
        """Choose the experts of one microbatch of all ranks that send at once.

        Recorded tokens are taken in their order, from a place that the seed gives, the same in
        all layers; after the last comes the first again.

        Returns
        -------
        ndarray of int, shape (n_sources * tokens, top_k)
            Experts of each token; tokens in order of source rank.
        """
        count = len(self.groups[0]) * plan.tokens
        if self.recorded is not None:
            record = self.recorded(plan.layer)
            first = int(self._rng(0, _FOR_ROUTING).integers(len(record))) + microbatch * count
            return record[(first + np.arange(count)) % len(record)]
        popularity = self.popularity(plan.layer, self._rng(plan.layer, _FOR_POPULARITY))
        return self._draw(popularity, count, self._rng(plan.layer, _FOR_ROUTING, microbatch))

    def planned_load(self, layer: int) -> np.ndarray:
        """Return the load of each routed expert that replicas and layout are planned from.

        Returns
        -------
        ndarray of float64, shape (n_experts,), summing to one
        """
        counted = self.deployment.plan.counted_tokens
        n_experts = self.model.routed_experts
        if self.recorded is not None:
            experts = self.recorded(layer)
            experts = experts[:counted] if counted else experts
        else:
            popularity = self.planned(layer, self._rng(layer, _FOR_POPULARITY))
            if not counted:
                return popularity
            experts = self._draw(popularity, counted, self._rng(layer, _FOR_COUNTING))
        counts = np.bincount(experts.ravel().astype(np.int64), minlength=n_experts)
        load: np.ndarray = counts / counts.sum()
        return load

    def _draw(self, popularity: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        model = self.model
        return route_tokens(
            popularity,
            count,
            top_k=model.top_k,
            n_groups=model.expert_groups,
            kept_groups=model.kept_groups,
            group_score_experts=model.group_score_experts,
            rng=rng,
        )

    def expert_ps(
        self, placement: ExpertPlacement, tokens_by_slot: np.ndarray, cores: CoresSpec | None
    ) -> np.ndarray:
        """Return the time of the expert operator of each rank.

        Parameters
        ----------
        tokens_by_slot : ndarray of int64, shape (n_slots,)
            Tokens that each expert replica received.
        cores : CoresSpec, optional
            Cores of the die that the operator has; all by default.

        Returns
        -------
        ndarray of int64, shape (n_ranks,), picoseconds
            Replicas of a rank run one after another; one without tokens costs nothing.
        """
        times = self.times.time_ps("expert", tokens_by_slot, cores)
        total = np.bincount(placement.slot_rank, weights=times, minlength=self.n_ranks)
        return self.times.launches_ps("expert") + np.rint(total).astype(np.int64)

    def copy_ps(self, phase: str, messages: np.ndarray) -> np.ndarray:
        """Return the time in which each rank copies what came from buffer to operator.

        Dispatch: each message is read and its token written; combine: each message is read, and
        one token written for all of them that it gets.

        Parameters
        ----------
        phase : {'dispatch', 'combine'}
        messages : ndarray of float64, shape (n_ranks,)
            Messages that each rank received.

        Returns
        -------
        ndarray of int64, shape (n_ranks,), picoseconds
        """
        model, size = self.model, getattr(self.messages, phase)
        written = model.hidden_size * float(size.element)
        if phase == "combine":
            written /= model.top_k + model.shared_experts
        a_message = size.message_bytes(model.hidden_size) + written
        rate = self.memory_bytes_per_s
        times: np.ndarray = np.rint(messages * (a_message / rate * PS_PER_S)).astype(np.int64)
        return times

    def _rng(self, layer: int, purpose: int, microbatch: int = 0) -> np.random.Generator:
        seed = np.random.SeedSequence([self.seed, layer, purpose, microbatch])
        return np.random.Generator(np.random.PCG64(seed))

    def flow_table(self, layer: int, blocks: list[Block]) -> pa.Table:
        """Build the flow table of a layer.

        Dispatch and combine go in the order that ``messages.send_order`` says; in all other
        phases each rank begins with its successor, or all would begin with rank 0. The successor
        in another group is the rank at the next place there.
        """
        messages = self.messages
        place, size = (np.zeros(self.n_ranks, np.int64) for _ in range(2))
        for group in self.groups:
            ranks = slice(group.start, group.stop)
            place[ranks], size[ranks] = np.arange(len(group)), len(group)
        flows, sizes = [], []
        for number, block in enumerate(blocks):
            src, dst, _ = block.messages
            if messages.send_order == "rotated" or block.phase not in PHASES:
                turn = (place[dst] - place[src] - 1) % size[dst]
            else:
                rng = self._rng(layer, _FOR_ORDER, number)
                turn = rng.integers(1 << 31, size=len(src), dtype=np.int64)
            order = np.argsort(src << 31 | turn, kind="stable")
            flows.append(block.messages.take(order, axis=1))
            sizes.append(np.broadcast_to(block.message_bytes, len(src))[order])
        counts = [block.shape[1] for block in flows]
        src, dst, n_messages = np.concatenate(flows, axis=1).astype(np.int32)
        total = len(src)
        columns = {
            "phase": _repeated([block.phase for block in blocks], counts),
            "layer": np.full(total, layer, np.int16),
            "microbatch": np.repeat(np.array([b.microbatch for b in blocks], np.int8), counts),
            "src": src,
            "dst": dst,
            "messages": n_messages,
            "message_bytes": np.concatenate(sizes).astype(np.int32),
            "network": _dictionary(np.zeros(total, np.int32), (messages.network,)),
            "service_level": np.full(total, messages.service_level, np.int8),
            "start_ps": np.full(total, -1, np.int64),
            "operation": _repeated([block.operation for block in blocks], counts),
        }
        arrays = [pa.array(columns[name]) for name in FLOW_SCHEMA.names]
        return pa.Table.from_arrays(arrays, schema=FLOW_SCHEMA)

    def task_table(
        self,
        position: int,
        durations: Mapping[tuple[str, int], np.ndarray | int],
        memory: Mapping[tuple[str, int], np.ndarray | int] | None = None,
    ) -> pa.Table:
        """Build the task table of a layer: one block of the ranks of its group a stage.

        Parameters
        ----------
        position : int
            Place of the layer in the step.
        durations : mapping of (kind, microbatch) to int or ndarray of int64, picoseconds
            Times that :meth:`duration_ps` does not know: one, or one a rank of the group.
        memory : mapping of (kind, microbatch) to int or ndarray of int64, picoseconds
            Time that the memory of a die needs at its rate for what a stage reads and writes,
            likewise; none where it is not given, and never more than the stage takes.
        """
        plan = self.plans[position]
        columns = self._columns_of(position)
        n_tasks = len(columns["rank"])
        times, in_memory = np.empty(n_tasks, np.int64), np.zeros(n_tasks, np.int64)
        memory = memory or {}
        row = 0
        for stage in self.stages_of(plan):
            key, end = (stage.kind, stage.microbatch), row + len(self.groups[stage.group])
            times[row:end] = durations[key] if key in durations else self.fixed_ps(plan, stage)
            if key in memory:
                in_memory[row:end] = memory[key]
            row = end
        lists = columns["depends_on"]
        needed = plan.first_task + lists.values.to_numpy()
        columns = columns | {
            "task": plan.first_task + np.arange(n_tasks, dtype=np.int64),
            "layer": np.full(n_tasks, plan.layer, np.int16),
            "duration_ps": times,
            "memory_ps": np.minimum(times, in_memory),
            "depends_on": pa.ListArray.from_arrays(lists.offsets, pa.array(needed)),
        }
        arrays = [pa.array(columns[name]) for name in TASK_SCHEMA.names]
        return pa.Table.from_arrays(arrays, schema=TASK_SCHEMA)

    def fixed_ps(self, plan: LayerPlan, stage: Stage) -> int:
        """Return :meth:`duration_ps`, worked out once for layers of as many tokens."""
        key = stage, plan.tokens, plan.head_tokens
        if key not in self._fixed_ps:
            self._fixed_ps[key] = self.duration_ps(plan, stage)
        return self._fixed_ps[key]

    def _columns_of(self, position: int) -> dict[str, pa.Array]:
        """Return the columns of a task table that stages decide, made once for layers alike.

        Tasks that others depend on are counted from the first of the layer.
        """
        stages = self.stages_of(self.plans[position])
        earlier = self.stages_of(self.plans[position - 1]) if position else []
        alike = tuple(stages), tuple(earlier)
        if alike not in self._columns:
            groups = [self.groups[stage.group] for stage in stages]
            sizes = [len(group) for group in groups]
            ranks = [np.arange(group.start, group.stop, dtype=np.int32) for group in groups]
            costs = [self.message_cost_ps(stage) for stage in stages]
            first = self._first_tasks(position, stages)
            needed = [self._needs(position, stages, first, index) for index in range(len(stages))]
            depends_on = [
                (np.array(tasks, np.int64) - first[0] + np.arange(size)[:, None]).ravel()
                for tasks, size in zip(needed, sizes, strict=True)
            ]
            ends = np.cumsum(np.repeat([len(tasks) for tasks in needed], sizes))
            columns = {
                "depends_on": pa.ListArray.from_arrays(
                    pa.array(np.concatenate([[0], ends]), pa.int32()),
                    pa.array(np.concatenate(depends_on)),
                ),
                "rank": pa.array(np.concatenate(ranks)),
                "message_cost_ps": pa.array(np.repeat(np.array(costs, np.int64), sizes)),
            }
            for name in ("stream", "microbatch"):
                numbers = np.array([getattr(stage, name) for stage in stages], np.int8)
                columns[name] = pa.array(np.repeat(numbers, sizes))
            for name in ("kind", "sends", "waits"):
                texts = [getattr(stage, name) for stage in stages]
                columns[name] = _repeated(texts, sizes).dictionary_decode()
            self._columns[alike] = columns
        return self._columns[alike]

    def _first_tasks(self, position: int, stages: list[Stage]) -> list[int]:
        """Return the id of the first task of each stage."""
        sizes = [len(self.groups[stage.group]) for stage in stages]
        first = self.plans[position].first_task
        return [first + before for before in accumulate(sizes[:-1], initial=0)]

    def _needs(self, position: int, stages: list[Stage], first: list[int], index: int) -> list[int]:
        """Return the first task id of each stage that this one needs the result of.

        The stage before it in the chain of its group and microbatch; the first of a chain needs
        the head of its layer, or the last of the layer before. ``first`` has the first task
        of each stage.
        """
        stage = stages[index]
        before = [i for i in range(index) if stages[i].group == stage.group]
        if stage.microbatch != ALL_MICROBATCHES:
            chain = [i for i in before if stages[i].microbatch == stage.microbatch]
            of_all = [i for i in before if stages[i].microbatch == ALL_MICROBATCHES]
            before = chain or of_all
        if before:
            return [first[before[-1]]]
        results = self._results(position - 1, stage.group)
        if stage.microbatch == ALL_MICROBATCHES:
            return list(results.values())
        return [results[stage.microbatch]] if stage.microbatch in results else []

    def _results(self, position: int, group: int) -> dict[int, int]:
        """Return the first task ids of a group's last stages in a layer, by microbatch."""
        if position < 0:
            return {}
        stages = self.stages_of(self.plans[position])
        last = {
            stage.microbatch: task
            for stage, task in zip(stages, self._first_tasks(position, stages), strict=True)
            if stage.group == group and stage.microbatch != ALL_MICROBATCHES
        }
        return dict(sorted(last.items()))


def slot_tokens(slots: np.ndarray, placement: ExpertPlacement, tokens: int) -> np.ndarray:
    """Return the number of tokens that each expert replica receives."""
    n_slots = len(placement.slot_expert)
    counts = np.bincount(slots.ravel(), minlength=n_slots)
    if len(placement.shared_slot):
        counts = counts + tokens * np.bincount(placement.shared_slot, minlength=n_slots)
    return counts


def count_messages(slots: np.ndarray, placement: ExpertPlacement, tokens: int) -> np.ndarray:
    """Return ``[src, dst, messages]`` of the dispatch, shape (3, n_flows), sorted by src, dst.

    Sources are counted from 0, whichever ranks they are.
    """
    n_ranks, n_sources = placement.n_ranks, placement.n_sources
    source = np.repeat(np.arange(n_sources, dtype=np.int64), slots.size // n_sources)
    cells = source * n_ranks + placement.slot_rank[slots.ravel()]
    if n_sources * n_ranks <= _PAIRS_COUNTED_PER_MESSAGE * len(cells):
        counts = np.bincount(cells, minlength=n_sources * n_ranks)
        if len(placement.shared_slot):
            shared = np.arange(n_sources) * n_ranks + placement.slot_rank[placement.shared_slot]
            counts[shared] += tokens
        used = np.flatnonzero(counts)
        counts = counts[used]
    else:  # few of all pairs talk: sort instead of counting every pair
        if len(placement.shared_slot):
            shared = np.arange(n_sources) * n_ranks + placement.slot_rank[placement.shared_slot]
            cells = np.concatenate([cells, np.repeat(shared, tokens)])
        used, counts = np.unique(cells, return_counts=True)
    return np.stack([used // n_ranks, used % n_ranks, counts])


def _repeated(texts: list[str], counts: list[int]) -> pa.DictionaryArray:
    """Return each text so many times, one after the other."""
    names = tuple(dict.fromkeys(texts))
    return _dictionary(np.repeat([names.index(text) for text in texts], counts), names)


def _dictionary(codes: np.ndarray, names: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(names, pa.string()))
