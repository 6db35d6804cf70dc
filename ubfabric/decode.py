"""One decode step of a mixture-of-experts model as a trace.

The step follows CloudMatrix-Infer's microbatch pipeline (arXiv 2506.12708, decode section):
every die has two streams, attention (prologue, attention over the cache, output projection) on
stream 0 and the expert part (gate, dispatch, expert, combine) on stream 1, and two microbatches
alternate on them. Attention of a layer waits for the microbatch's combine of the layer before;
the expert part waits for its attention. With one microbatch every operator has all cores.

Dispatch and combine are fused operators in stages, each a task: write the messages, then a flag
with the count to every rank; receive, once all flags are there; copy what came to where the next
operator wants it. Quantisation, address and checks are part of what a message costs a core. With
one buffer in place of two, a round of flags goes before, when a rank has emptied its buffer.

With tensor parallelism neighbouring ranks share the heads of attention: before it each gathers
the states of the others' tokens, after it each gets the sums of its own.

Layers in order: the dense ones, the MoE ones, then, once for each MTP token, an MTP layer
(an MoE layer that begins with the LM head, the sampling of the tokens before and the projection
of both), and last the head, with the gap that the host leaves between two steps. ``layers=k``
leaves out the MoE layers after the first ``k``; the rest stays, and the metadata say how many
were left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ubfabric.errors import SpecError
from ubfabric.gate import RoutedModel, route_tokens
from ubfabric.operators import OperatorTimes
from ubfabric.placement import ExpertPlacement, place_experts
from ubfabric.trace import FLOW_SCHEMA, TASK_SCHEMA, TRACE_SCHEMA, Trace, TraceChunk, empty_table
from ubfabric.workload import Workload, WorkloadSpec, load_workload

#: Streams of a die.
ATTENTION_STREAM, EXPERT_STREAM = 0, 1
PHASES = ("dispatch", "combine")
#: Phases among the ranks that share heads: states before attention, partial sums after it.
GATHER, REDUCE = "gather", "reduce"
_PS_PER_S = 10**12
#: Hidden states travel between ranks that share heads in BF16.
_STATE_BYTES = 2
# What a random generator is for; part of its seed.
_FOR_POPULARITY, _FOR_ROUTING, _FOR_ORDER, _FOR_COUNTING = 1, 2, 3, 4
_ALL_MICROBATCHES = -1
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
    """One task of each rank in a layer.

    Attributes
    ----------
    kind : str
        Operator, or operator and stage: ``dispatch-copy``.
    microbatch : int
        -1 when it concerns all.
    sends, waits : str
        Phases, as in the task table.
    """

    kind: str
    microbatch: int
    sends: str = ""
    waits: str = ""

    @property
    def stream(self) -> int:
        """Stream that runs it."""
        on_attention = (*_HEAD, "prologue", "attention", "output", GATHER, REDUCE)
        return ATTENTION_STREAM if self.kind.split("-")[0] in on_attention else EXPERT_STREAM


_HEAD = ("head", "sampling", "projection", "host")


class DecodeStep:
    """Builds the chunks of a decode step, each on its own.

    Parameters
    ----------
    workload : Workload
        Checked specification.
    seed : int
        Seeds popularity, routing and send order, by layer and microbatch.
    layers : int
        MoE layers to emit.

    Raises
    ------
    SpecError
        If ``layers`` or ``seed`` is out of range, or the gate's file does not fit.
    """

    def __init__(self, workload: Workload, seed: int, layers: int) -> None:
        self.spec: WorkloadSpec = workload.spec
        self.seed = seed
        model = self.spec.model
        if not 1 <= layers <= model.moe_layers:
            raise SpecError(f"layers: found {layers}, allowed 1 to {model.moe_layers} MoE layers")
        if seed < 0:
            raise SpecError(f"seed: found {seed}, allowed 0 or more")
        self.n_ranks = self.spec.deployment.ranks
        self.tensor_parallel = self.spec.deployment.attention_tp
        self.times = OperatorTimes(
            model, self.spec.machine, self.spec.operators, workload.folder, self.tensor_parallel
        )
        deployment, step = self.spec.deployment, self.spec.serving.step
        routed = RoutedModel(model.layers, model.dense_layers, model.routed_experts, model.top_k)
        self.recorded = self.spec.gate.recorded(routed, workload.folder)
        if self.recorded is None:
            planned = step // deployment.plan.interval_steps * deployment.plan.interval_steps
            self.popularity, self.planned = (
                self.spec.gate.prepare(model.routed_experts, workload.folder, at)
                for at in (step, planned)
            )
        self.plans = self._plan(layers)

    def _plan(self, moe_layers: int) -> list[LayerPlan]:
        model, serving = self.spec.model, self.spec.serving
        requests = self.spec.requests_per_rank
        tokens = self.spec.tokens_per_rank // serving.microbatches
        rows: list[tuple[int, str, int, int]] = []
        rows += [(layer, "dense", tokens, 0) for layer in range(model.dense_layers)]
        rows += [(model.dense_layers + i, "moe", tokens, 0) for i in range(moe_layers)]
        head_tokens = self.spec.tokens_per_rank
        for guess in range(serving.mtp_tokens):
            # The first pass needs the state of every verified position, later ones only extend it.
            passed = tokens if guess == 0 else requests // serving.microbatches
            rows.append((model.layers + guess, "mtp", passed, head_tokens))
            head_tokens = requests
        rows.append((model.layers + serving.mtp_tokens, "head", 0, head_tokens))
        plans, first_task = [], 0
        for layer, label, layer_tokens, before in rows:
            plan = LayerPlan(layer, label, first_task, layer_tokens, before)
            plans.append(plan)
            first_task += len(self.stages(plan)) * self.n_ranks
        return plans

    def stages(self, plan: LayerPlan) -> list[Stage]:
        """Return the tasks of one rank in a layer, in table order: both streams' order."""
        stages = []
        if plan.head_tokens:
            stages += [Stage("head", _ALL_MICROBATCHES), Stage("sampling", _ALL_MICROBATCHES)]
        if plan.label == "head":
            return [*stages, Stage("host", _ALL_MICROBATCHES)]
        if plan.label == "mtp":
            stages.append(Stage("projection", _ALL_MICROBATCHES))
        both = range(self.spec.serving.microbatches)
        return stages + [
            stage
            for chain in (self._attention_chain, self._expert_chain)
            for microbatch in both
            for stage in chain(plan, microbatch)
        ]

    def _attention_chain(self, plan: LayerPlan, microbatch: int) -> list[Stage]:
        stages = [Stage(kind, microbatch) for kind in ("prologue", "attention", "output")]
        if self.tensor_parallel > 1:
            stages.insert(0, Stage(GATHER, microbatch, GATHER, GATHER))
            stages.append(Stage(REDUCE, microbatch, REDUCE, REDUCE))
            stages.append(Stage(f"{REDUCE}-copy", microbatch))
        return stages

    def _expert_chain(self, plan: LayerPlan, microbatch: int) -> list[Stage]:
        if plan.label == "dense":
            return [Stage("ffn", microbatch)]
        return [
            Stage("gate", microbatch),
            *self._fused("dispatch", microbatch),
            Stage("expert", microbatch),
            *self._fused("combine", microbatch),
        ]

    def _fused(self, phase: str, microbatch: int) -> list[Stage]:
        """Return the stages of a fused dispatch or combine."""
        messages = self.spec.messages
        copy = Stage(f"{phase}-copy", microbatch)
        if not messages.flag:
            return [Stage(phase, microbatch, phase, phase), copy]
        ready, flag = f"{phase}-ready", f"{phase}-flag"
        before = [Stage(ready, microbatch, ready, ready)] if messages.buffers == 1 else []
        return [
            *before,
            Stage(phase, microbatch, phase),
            Stage(flag, microbatch, flag, flag),
            Stage(f"{phase}-receive", microbatch, "", phase),
            copy,
        ]

    def chunks(self) -> Iterator[TraceChunk]:
        """Yield all chunks in order."""
        for position in range(len(self.plans)):
            yield self.chunk(position)

    def chunk(self, position: int) -> TraceChunk:
        """Build one chunk; the same whether or not others were built before."""
        plan = self.plans[position]
        serving, model = self.spec.serving, self.spec.model
        durations: dict[tuple[str, int], np.ndarray | int] = {}
        blocks: list[tuple[int, str, np.ndarray]] = []
        if plan.label in ("moe", "mtp"):
            placement = place_experts(
                self.spec.deployment, self.planned_load(plan.layer), model.top_k
            )
            for microbatch in range(serving.microbatches):
                slots = placement.assign_replicas(self.route(plan, microbatch))
                tokens_by_slot = _slot_tokens(slots, placement, plan.tokens)
                durations["expert", microbatch] = self.expert_ps(placement, tokens_by_slot)
                messages = _count_messages(slots, placement, plan.tokens)
                blocks += [
                    (microbatch, "dispatch", messages),
                    (microbatch, "combine", messages[[1, 0, 2]]),
                ]
        for microbatch, phase, (_, dst, messages) in blocks:
            arrived = np.bincount(dst, messages, self.n_ranks)
            durations[f"{phase}-copy", microbatch] = self.copy_ps(phase, arrived)
        blocks += self._flag_blocks(plan) + self._head_blocks(plan)
        flows = self._flows(plan, blocks) if blocks else empty_table("flows")
        return TraceChunk(plan.layer, plan.label, flows, self._tasks(position, durations))

    def _flag_blocks(self, plan: LayerPlan) -> list[tuple[int, str, np.ndarray]]:
        """Return the flags of the fused operators: one of every rank to every rank."""
        phases = [
            (stage.microbatch, stage.sends)
            for stage in self.stages(plan)
            if stage.sends.endswith(("-flag", "-ready"))
        ]
        src, dst = (part.ravel() for part in np.indices((self.n_ranks, self.n_ranks)))
        block = np.stack([src, dst, np.ones(len(src), np.int64)])
        return [(microbatch, phase, block) for microbatch, phase in phases]

    def _head_blocks(self, plan: LayerPlan) -> list[tuple[int, str, np.ndarray]]:
        """Return the flows among ranks that share heads: one message to each of the others."""
        tp = self.tensor_parallel
        if tp == 1 or plan.label == "head":
            return []
        src = np.repeat(np.arange(self.n_ranks), tp)
        dst = src // tp * tp + np.tile(np.arange(tp), self.n_ranks)
        others = src != dst
        block = np.stack([src, dst, np.ones(len(src), np.int64)])[:, others]
        both = range(self.spec.serving.microbatches)
        return [(m, phase, block) for m in both for phase in (GATHER, REDUCE)]

    def route(self, plan: LayerPlan, microbatch: int) -> np.ndarray:
        """Choose the experts of one microbatch of all ranks.

        Recorded tokens are taken in their order, from a place that the seed gives, the same in
        all layers; after the last comes the first again.

        Returns
        -------
        ndarray of int, shape (n_ranks * tokens, top_k)
            Experts of each token; tokens in order of source rank.
        """
        count = self.n_ranks * plan.tokens
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
        counted = self.spec.deployment.plan.counted_tokens
        n_experts = self.spec.model.routed_experts
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
        model = self.spec.model
        return route_tokens(
            popularity,
            count,
            top_k=model.top_k,
            n_groups=model.expert_groups,
            kept_groups=model.kept_groups,
            group_score_experts=model.group_score_experts,
            rng=rng,
        )

    def expert_ps(self, placement: ExpertPlacement, tokens_by_slot: np.ndarray) -> np.ndarray:
        """Return the time of the expert operator of each rank.

        Parameters
        ----------
        tokens_by_slot : ndarray of int64, shape (n_slots,)
            Tokens that each expert replica received.

        Returns
        -------
        ndarray of int64, shape (n_ranks,), picoseconds
            Replicas of a rank run one after another; one without tokens costs nothing.
        """
        cores = self.spec.stream_cores("expert")
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
        model, size = self.spec.model, getattr(self.spec.messages, phase)
        written = model.hidden_size * float(size.element)
        if phase == "combine":
            written /= model.top_k + model.shared_experts
        a_message = size.message_bytes(model.hidden_size) + written
        rate = self.spec.machine.memory_bytes_per_s
        times: np.ndarray = np.rint(messages * (a_message / rate * _PS_PER_S)).astype(np.int64)
        return times

    def duration_ps(self, plan: LayerPlan, stage: Stage) -> int:
        """Return the time of a stage that does not depend on routing, in picoseconds."""
        spec, kind = self.spec, stage.kind
        tp = self.tensor_parallel
        if kind == "host":
            return spec.machine.host_gap
        if kind in ("head", "sampling", "projection"):
            tokens = plan.head_tokens
            if kind == "projection":
                tokens = plan.tokens * spec.serving.microbatches
            return int(np.rint(self.times.time_ps(kind, tokens)))
        if kind == f"{REDUCE}-copy":  # as many partial sums as ranks share heads
            read = plan.tokens * tp * spec.model.hidden_size * _STATE_BYTES
            return round(read / spec.machine.memory_bytes_per_s * _PS_PER_S)
        if kind in (GATHER, REDUCE, *PHASES):
            return spec.machine.launch
        if kind in ("prologue", "attention", "output"):
            cores = spec.stream_cores("attention")
            tokens = plan.tokens * tp  # of all ranks that share the heads
            if kind == "attention":
                requests = spec.requests_per_rank // spec.serving.microbatches * tp
                kv_tokens = spec.serving.kv_tokens
                time = self.times.time_ps(
                    kind, tokens, cores, kv_tokens=kv_tokens, requests=requests
                )
            else:
                time = self.times.time_ps(kind, tokens, cores)
            if kind == "prologue":
                time = time + self.times.time_ps("quantise", tokens, cores)
            return int(np.rint(time))
        if kind in ("gate", "ffn"):
            # A dense layer has nothing else to run on the cores of the other stream.
            of_gate = spec.stream_cores("expert") if kind == "gate" else None
            return int(np.rint(self.times.time_ps(kind, plan.tokens, of_gate)))
        return 0

    def message_cost_ps(self, stage: Stage) -> int:
        """Return what each message of a stage costs an engine of the topology."""
        if not stage.sends or stage.sends in (GATHER, REDUCE):
            return 0
        communication = self.spec.machine.communication
        cores = self.spec.stream_cores("expert").vector_cores
        return communication.message_cost * communication.engines // cores

    def message_bytes(self, plan: LayerPlan, phase: str) -> int:
        """Return the size of one message of a phase."""
        hidden = self.spec.model.hidden_size
        if phase in PHASES:
            size: int = getattr(self.spec.messages, phase).message_bytes(hidden)
            return size
        if phase in (GATHER, REDUCE):
            return plan.tokens * hidden * _STATE_BYTES
        return self.spec.messages.flag

    def _rng(self, layer: int, purpose: int, microbatch: int = 0) -> np.random.Generator:
        seed = np.random.SeedSequence([self.seed, layer, purpose, microbatch])
        return np.random.Generator(np.random.PCG64(seed))

    def _flows(self, plan: LayerPlan, blocks: list[tuple[int, str, np.ndarray]]) -> pa.Table:
        """Build the flow table of a layer from ``(microbatch, phase, [src, dst, messages])``."""
        messages = self.spec.messages
        phases = tuple(dict.fromkeys(phase for _, phase, _ in blocks))
        sizes = {phase: self.message_bytes(plan, phase) for phase in phases}
        ordered = []
        for number, (_, phase, block) in enumerate(blocks):
            src, dst, _ = block
            if messages.send_order == "rotated" or phase not in PHASES:
                turn = (dst - src - 1) % self.n_ranks
            else:
                rng = self._rng(plan.layer, _FOR_ORDER, number)
                turn = rng.integers(1 << 31, size=len(src), dtype=np.int64)
            ordered.append(block[:, np.argsort(src << 31 | turn, kind="stable")])
        counts = [block.shape[1] for block in ordered]
        src, dst, n_messages = np.concatenate(ordered, axis=1).astype(np.int32)
        total = len(src)
        codes = np.repeat([phases.index(p) for _, p, _ in blocks], counts).astype(np.int32)
        columns = {
            "phase": _dictionary(codes, phases),
            "layer": np.full(total, plan.layer, np.int16),
            "microbatch": np.repeat(np.array([m for m, _, _ in blocks], np.int8), counts),
            "src": src,
            "dst": dst,
            "messages": n_messages,
            "message_bytes": np.repeat(
                np.array([sizes[p] for _, p, _ in blocks], np.int32), counts
            ),
            "network": _dictionary(np.zeros(total, np.int32), (messages.network,)),
            "service_level": np.full(total, messages.service_level, np.int8),
            "start_ps": np.full(total, -1, np.int64),
            "operation": _dictionary(np.zeros(total, np.int32), ("write",)),
        }
        arrays = [pa.array(columns[name]) for name in FLOW_SCHEMA.names]
        return pa.Table.from_arrays(arrays, schema=FLOW_SCHEMA)

    def _tasks(self, position: int, durations: dict[tuple[str, int], np.ndarray | int]) -> pa.Table:
        """Build the task table of a layer: one block of all ranks a stage.

        ``durations`` has the times that depend on routing, by kind and microbatch.
        """
        plan = self.plans[position]
        stages = self.stages(plan)
        ranks = np.arange(self.n_ranks)
        times, offsets, depends_on = [], [0], []
        for index, stage in enumerate(stages):
            time = durations.get((stage.kind, stage.microbatch))
            if time is None:
                time = self.duration_ps(plan, stage)
            times.append(np.broadcast_to(np.asarray(time, np.int64), self.n_ranks))
            needed = self._needs(position, stages, index)
            depends_on.append((np.array(needed, np.int64)[None, :] + ranks[:, None]).ravel())
            offsets.append(offsets[-1] + len(needed) * self.n_ranks)
        per_rank = np.diff(offsets) // self.n_ranks
        ends = np.cumsum(np.repeat(per_rank, self.n_ranks))
        n_tasks = len(stages) * self.n_ranks

        def repeat(values: list[Any], dtype: Any) -> np.ndarray:
            return np.repeat(np.array(values, dtype), self.n_ranks)

        def repeat_text(values: list[str]) -> pa.Array:
            return pa.array(repeat(values, object), pa.string())

        columns = {
            "task": plan.first_task + np.arange(n_tasks, dtype=np.int64),
            "rank": np.tile(ranks.astype(np.int32), len(stages)),
            "stream": repeat([stage.stream for stage in stages], np.int8),
            "kind": repeat_text([stage.kind for stage in stages]),
            "layer": np.full(n_tasks, plan.layer, np.int16),
            "microbatch": repeat([stage.microbatch for stage in stages], np.int8),
            "duration_ps": np.concatenate(times),
            "sends": repeat_text([stage.sends for stage in stages]),
            "waits": repeat_text([stage.waits for stage in stages]),
            "message_cost_ps": repeat([self.message_cost_ps(s) for s in stages], np.int64),
            "depends_on": pa.ListArray.from_arrays(
                pa.array(np.concatenate([[0], ends]), pa.int32()),
                pa.array(np.concatenate(depends_on)),
            ),
        }
        arrays = [pa.array(columns[name]) for name in TASK_SCHEMA.names]
        return pa.Table.from_arrays(arrays, schema=TASK_SCHEMA)

    def _needs(self, position: int, stages: list[Stage], index: int) -> list[int]:
        """Return the first task id of each stage that this one needs the result of.

        The stage before it in the chain of its microbatch; the first of a chain needs the head of
        its layer, or the last of the layer before.
        """
        plan, stage = self.plans[position], stages[index]
        if stage.microbatch == _ALL_MICROBATCHES:
            if index:
                return [plan.first_task + (index - 1) * self.n_ranks]
            return self._results(position - 1)
        before = [i for i in range(index) if stages[i].microbatch == stage.microbatch]
        of_all = [i for i in range(index) if stages[i].microbatch == _ALL_MICROBATCHES]
        if before or of_all:
            return [plan.first_task + (before or of_all)[-1] * self.n_ranks]
        return self._results(position - 1)[stage.microbatch : stage.microbatch + 1]

    def _results(self, position: int) -> list[int]:
        """Return the first task ids of a layer's last stages, one a microbatch."""
        if position < 0:
            return []
        plan = self.plans[position]
        last = {stage.microbatch: index for index, stage in enumerate(self.stages(plan))}
        return [
            plan.first_task + index * self.n_ranks
            for microbatch, index in sorted(last.items())
            if microbatch != _ALL_MICROBATCHES
        ]


def _slot_tokens(slots: np.ndarray, placement: ExpertPlacement, tokens: int) -> np.ndarray:
    """Return the number of tokens that each expert replica receives."""
    n_slots = len(placement.slot_expert)
    counts = np.bincount(slots.ravel(), minlength=n_slots)
    if len(placement.shared_slot):
        counts = counts + tokens * np.bincount(placement.shared_slot, minlength=n_slots)
    return counts


def _count_messages(slots: np.ndarray, placement: ExpertPlacement, tokens: int) -> np.ndarray:
    """Return ``[src, dst, messages]`` of the dispatch, shape (3, n_flows), sorted by src, dst."""
    n_ranks = placement.n_ranks
    source = np.repeat(np.arange(n_ranks, dtype=np.int64), slots.size // n_ranks)
    cells = source * n_ranks + placement.slot_rank[slots.ravel()]
    if n_ranks * n_ranks <= _PAIRS_COUNTED_PER_MESSAGE * len(cells):
        counts = np.bincount(cells, minlength=n_ranks * n_ranks)
        if len(placement.shared_slot):
            shared = np.arange(n_ranks) * n_ranks + placement.slot_rank[placement.shared_slot]
            counts[shared] += tokens
        used = np.flatnonzero(counts)
        counts = counts[used]
    else:  # few of the n_ranks ** 2 pairs talk: sort instead of counting every pair
        if len(placement.shared_slot):
            shared = np.arange(n_ranks) * n_ranks + placement.slot_rank[placement.shared_slot]
            cells = np.concatenate([cells, np.repeat(shared, tokens)])
        used, counts = np.unique(cells, return_counts=True)
    return np.stack([used // n_ranks, used % n_ranks, counts])


def _dictionary(codes: np.ndarray, names: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(names, pa.string()))


def generate_trace(
    source: str | Path | Mapping[str, Any] | Workload,
    *,
    layers: int | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Trace:
    """Generate the trace of one decode step, layer by layer.

    Parameters
    ----------
    source : str, Path, mapping or Workload
        A shipped name such as ``deepseek-r1-decode-ep320``, a YAML file, or its content.
    layers : int, optional
        MoE layers to emit; the specification's ``simulate_moe_layers``, else all.
    seed : int, optional
        Replaces the specification's seed.
    overrides : mapping, optional
        Values to change, by dotted key: ``{"serving.batch_per_npu": 64}``.

    Returns
    -------
    Trace
        Nothing is routed yet; each chunk is built when :meth:`Trace.chunks` reaches it.

    Raises
    ------
    SpecError
        One line with file, key, what was found and what is allowed.

    Examples
    --------
    >>> trace = generate_trace("deepseek-r1-decode-ep320", layers=4, seed=1)
    >>> trace.n_ranks, trace.n_chunks
    (320, 9)
    """
    changes = dict(overrides or {})
    if seed is not None:
        changes["seed"] = seed
    workload = load_workload(source, changes)
    spec = workload.spec
    count = layers or spec.simulate_moe_layers or spec.model.moe_layers
    step = DecodeStep(workload, spec.seed, count if layers is None else layers)
    return Trace(_metadata(workload, step), len(step.plans), step.chunks)


def _metadata(workload: Workload, step: DecodeStep) -> dict[str, Any]:
    """Return what the later stages need to know, JSON-able; see traffic/README.md."""
    spec = workload.spec
    model, serving = spec.model, spec.serving
    rows = [
        {
            "ranks": row.ranks,
            "batch_per_npu": row.batch_per_npu,
            "kv_tokens": row.kv_tokens,
            "tpot_ps": row.tpot,
            "tokens_per_s_per_npu": row.tokens_per_s_per_npu,
            "slo_ps": row.slo,
            "source": row.source,
            "strength": row.strength,
            "note": row.note,
        }
        for row in spec.reference.rows
    ]
    point = {
        "ranks": spec.deployment.ranks,
        "batch_per_npu": serving.batch_per_npu,
        "kv_tokens": serving.kv_tokens,
    }
    same_point = [row for row in rows if point.items() <= row.items()]
    return {
        "schema": TRACE_SCHEMA,
        "name": spec.name,
        "n_ranks": spec.deployment.ranks,
        "spec": workload.raw,
        "seed": spec.seed,
        "rank_nodes": None,
        "rank_placement": spec.deployment.rank_placement.model_dump(),
        "dies_per_npu": spec.deployment.dies_per_npu,
        "npus": spec.npus,
        "batch_per_npu": serving.batch_per_npu,
        "kv_tokens": serving.kv_tokens,
        "requests_per_rank": spec.requests_per_rank,
        "tokens_per_rank": spec.tokens_per_rank,
        "microbatches": serving.microbatches,
        "mtp": {"tokens": serving.mtp_tokens, "acceptance": serving.mtp_acceptance},
        "n_dense_layers": model.dense_layers,
        "n_moe_layers_total": model.moe_layers,
        "n_moe_layers_simulated": sum(plan.label == "moe" for plan in step.plans),
        "layers": [
            {"layer": plan.layer, "label": plan.label, "tokens_per_microbatch": plan.tokens}
            for plan in step.plans
        ],
        "message_bytes": {
            phase: getattr(spec.messages, phase).message_bytes(model.hidden_size)
            for phase in PHASES
        },
        "paper_row": same_point[0] if same_point else None,
        "paper_rows": rows,
    }
