"""One decode step of a mixture-of-experts model as a trace.

The step follows CloudMatrix-Infer's microbatch pipeline (arXiv 2506.12708, decode section):
every die has two streams, attention (prologue, attention over the cache, output projection) on
stream 0 and the expert part (gate, dispatch, expert, combine) on stream 1, and two microbatches
alternate on them. Attention of a layer waits for the microbatch's combine of the layer before;
the expert part waits for its attention. The streams share the cores of the die, so that both take
about as long (:meth:`DecodeStep.balanced_cores`) or as listed; with one microbatch every operator
has all cores. They share its memory as well: a task says how much of it is reading, and the replay
slows those that ask for more together than the memory gives. Attention over the cache varies from
rank to rank; whatever waits for all ranks waits for the slowest.

Dispatch and combine are fused operators in stages, each a task (section 4.2.1): write the messages,
then the flags, of dispatch one to every rank with the count, of combine one a result; receive, once
all flags are there; copy what came to where the next operator wants it. Quantisation, address,
checks and the flag of a result are part of what a message costs a core. With one buffer in place of
two, a round of flags goes before, when a rank has emptied its buffer.

With tensor parallelism neighbouring ranks share the heads of attention: before it each gathers
the states of the others' tokens, after it each gets the sums of its own.

Layers in order: the dense ones, the MoE ones, then, once for each MTP token, an MTP layer
(an MoE layer that begins with the LM head, the sampling of the tokens before and the projection
of both), and last the head, with the gap that the host leaves between two steps. ``layers=k``
keeps ``k`` MoE layers, drawn by the seed (:mod:`ubfabric.sampling`), in the order of the model:
each with its number, its popularity of experts and its routing, and each follows the one drawn
before it. The rest stays, and the metadata say how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ubfabric.errors import SpecError
from ubfabric.operators import CoresSpec
from ubfabric.placement import ExpertPlacement
from ubfabric.steps import (
    ALL_MICROBATCHES,
    FOR_SPREAD,
    PHASES,
    PS_PER_S,
    Block,
    LayerPlan,
    Stage,
    Step,
    count_messages,
    slot_tokens,
)
from ubfabric.trace import TRACE_SCHEMA, Trace, TraceChunk, empty_table
from ubfabric.workload import (
    CommonSpec,
    PoolSpec,
    PrefillSpec,
    Workload,
    WorkloadSpec,
    load_workload,
)

#: Streams of a die.
ATTENTION_STREAM, EXPERT_STREAM = 0, 1
#: Phases among the ranks that share heads: states before attention, partial sums after it.
GATHER, REDUCE = "gather", "reduce"
#: Flags of combine: one a result, which its message pays for; others go from rank to rank.
COMBINE_FLAG = "combine-flag"
#: Hidden states travel between ranks that share heads in BF16.
_STATE_BYTES = 2


class DecodeStep(Step):
    """Builds the chunks of a decode step; parameters and errors as of :class:`Step`."""

    #: Whether streams of a die take from each other when both read its memory.
    shares_memory = True

    def __init__(self, workload: Workload, seed: int, layers: int | Sequence[int]) -> None:
        super().__init__(workload, seed, layers)
        if not isinstance(workload.spec, WorkloadSpec):
            raise SpecError(f"{workload.label}: kind: found 'prefill', allowed: decode")
        self.spec = workload.spec
        self.tensor_parallel = self.spec.deployment.attention_tp
        #: Microbatches of all ranks as the tables number them.
        self.rounds = self.microbatches * self.spec.deployment.domains
        self.plans = self._plan()
        #: Cores of a die that each stream has; None is all of them.
        self.cores: dict[str, CoresSpec | None] = {"attention": None, "expert": None}
        if self.spec.shares_cores:
            streams = self.spec.operators.streams
            if streams.policy == "listed":
                self.cores = {"attention": streams.attention, "expert": streams.expert}
            else:
                self.cores = self.balanced_cores()

    def _plan(self) -> list[LayerPlan]:
        model, serving = self.spec.model, self.spec.serving
        requests = self.spec.requests_per_rank
        tokens = self.spec.tokens_per_rank // serving.microbatches
        rows: list[tuple[int, str, int, int]] = []
        rows += [(layer, "dense", tokens, 0) for layer in range(model.dense_layers)]
        rows += [(layer, "moe", tokens, 0) for layer in self.moe_layers]
        head_tokens = self.spec.tokens_per_rank
        for guess in range(serving.mtp_tokens):
            # The first pass needs the state of every verified position, later ones only extend it.
            passed = tokens if guess == 0 else requests // serving.microbatches
            rows.append((model.layers + guess, "mtp", passed, head_tokens))
            head_tokens = requests
        rows.append((model.layers + serving.mtp_tokens, "head", 0, head_tokens))
        return self.number(rows)

    def balanced_cores(self) -> dict[str, CoresSpec | None]:
        """Return the cores of each stream with which the longer one is shortest in a MoE layer.

        A plan as engineers make it before a run: cube cores one by one, vector cores in
        proportion, by the times of the operators and what messages cost the cores of the rank
        that has most to do in a microbatch of the model's first MoE layer, whichever layers are
        simulated. Wires, what the streams take from each other's memory and the spread of
        attention have no part in it; what a layer takes is for the replay to say.

        Returns
        -------
        dict of str to CoresSpec
            Of ``attention`` and ``expert``.
        """
        die = self.spec.machine.die
        plan = next(plan for plan in self.plans if plan.label == "moe")
        plan = replace(plan, layer=self.model.dense_layers)
        placement = self.place(plan.layer)
        tokens_by_slot = slot_tokens(
            placement.assign_replicas(self.route(plan, 0)), placement, plan.tokens
        )
        shares: list[tuple[float, int]] = []
        least = self.spec.operators.streams.least_cube_cores
        for cube in range(least, die.cube_cores - least + 1):
            self.cores = self._divided(cube)
            attention = sum(self.duration_ps(plan, s) for s in self._attention_chain(plan, 0))
            expert = self._expert_part_ps(plan, placement, tokens_by_slot)
            shares.append((max(attention, expert), cube))
        return self._divided(min(shares)[1])

    def _divided(self, cube: int) -> dict[str, CoresSpec | None]:
        """Return cores of which attention has so many cube cores, and vector cores alike."""
        die = self.spec.machine.die
        vector = min(max(round(cube * die.vector_cores / die.cube_cores), 1), die.vector_cores - 1)
        return {
            "attention": CoresSpec(cube_cores=cube, vector_cores=vector),
            "expert": CoresSpec(
                cube_cores=die.cube_cores - cube, vector_cores=die.vector_cores - vector
            ),
        }

    def _expert_part_ps(
        self, plan: LayerPlan, placement: ExpertPlacement, tokens_by_slot: np.ndarray
    ) -> float:
        """Return how long one microbatch has the expert stream if wires take no time."""
        sent = plan.tokens * (self.model.top_k + self.model.shared_experts)
        # of which as many leave the package as ranks lie in others
        far = 1 - min(1, self.spec.deployment.dies_per_npu / self.n_ranks)
        arrived = np.bincount(placement.slot_rank, tokens_by_slot, self.n_ranks)
        time = self.expert_ps(placement, tokens_by_slot, self.cores["expert"])
        time = time + self.copy_ps("dispatch", arrived)
        time = time + self.copy_ps("combine", np.array([sent]))
        engines = self.spec.machine.communication.engines
        messages: dict[str, Any] = {"dispatch": sent, "combine": arrived}
        for stage in self._expert_chain(plan, 0):
            of_stage = messages.get(stage.sends, self.n_ranks)
            time = time + self.duration_ps(plan, stage)
            time = time + self.message_cost_ps(stage) * of_stage * far / engines
        return float(time.max())

    def stages(self, plan: LayerPlan) -> list[Stage]:
        """Return the tasks of one rank in a layer, in table order: both streams' order."""
        stages = self._before_attention(plan)
        if plan.label == "head":
            return stages
        both = range(self.spec.serving.microbatches)
        return stages + [
            replace(stage, stream=stream)
            for stream, chain in (
                (ATTENTION_STREAM, self._attention_chain),
                (EXPERT_STREAM, self._expert_chain),
            )
            for microbatch in both
            for stage in chain(plan, microbatch)
        ]

    def _before_attention(self, plan: LayerPlan) -> list[Stage]:
        """Return what a layer begins with: the head before it, and of the last one the host."""
        stages = []
        if plan.head_tokens:
            stages += [Stage("head", ALL_MICROBATCHES), Stage("sampling", ALL_MICROBATCHES)]
        if plan.label == "head":
            stages.append(Stage("host", ALL_MICROBATCHES))
        if plan.label == "mtp":
            stages.append(Stage("projection", ALL_MICROBATCHES))
        return stages

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

    def chunk(self, position: int) -> TraceChunk:
        """Build one chunk; the same whether or not others were built before."""
        plan = self.plans[position]
        durations: dict[tuple[str, int], np.ndarray | int] = {**self._attention_durations(plan)}
        memory = self._memory(plan)
        blocks: list[Block] = []
        if plan.label in ("moe", "mtp"):
            placement = self.place(plan.layer)
            cores = self.cores["expert"]
            holders = self.groups[-1]
            for microbatch in range(self.rounds):
                slots = placement.assign_replicas(self.route(plan, microbatch))
                tokens_by_slot = slot_tokens(slots, placement, plan.tokens)
                times = self.expert_ps(placement, tokens_by_slot, cores)
                durations["expert", microbatch] = times[holders.start : holders.stop]
                weights = self._weights_ps(plan, placement, tokens_by_slot)
                memory["expert", microbatch] = weights[holders.start : holders.stop]
                there = count_messages(slots, placement, plan.tokens)
                sources = self.sources(microbatch)
                there[0] += sources.start
                for phase, messages, receivers in (
                    ("dispatch", there, holders),
                    ("combine", there[[1, 0, 2]], sources),
                ):
                    size = self.message_bytes(plan, phase)
                    blocks.append(Block(microbatch, phase, messages, size))
                    if phase == "combine" and self.spec.messages.flag:
                        size = self.message_bytes(plan, COMBINE_FLAG)
                        blocks.append(Block(microbatch, COMBINE_FLAG, messages, size))
                    arrived = np.bincount(messages[1], messages[2], self.n_ranks)
                    of_receivers = arrived[receivers.start : receivers.stop]
                    copy = f"{phase}-copy", microbatch
                    durations[copy] = memory[copy] = self.copy_ps(phase, of_receivers)
        blocks += self._flag_blocks(plan) + self._head_blocks(plan)
        flows = self.flow_table(plan.layer, blocks) if blocks else empty_table("flows")
        tasks = self.task_table(position, durations, memory if self.shares_memory else None)
        return TraceChunk(plan.layer, plan.label, flows, tasks)

    def _attention_durations(self, plan: LayerPlan) -> dict[tuple[str, int], np.ndarray]:
        """Return the times of attention over the cache, which differ from rank to rank.

        Drawn for each rank, layer and microbatch; also ranks that share heads have one each, and
        wait for one another when they exchange their sums.

        Returns
        -------
        dict of (str, int) to ndarray of int64, picoseconds
            By kind and microbatch, of the ranks in :meth:`sources`.
        """
        if plan.label == "head":
            return {}
        spread = self.spec.machine.efficiency.attention_spread
        durations = {}
        for microbatch in range(self.rounds):
            rng = self._rng(plan.layer, FOR_SPREAD, microbatch)
            factors = 1 + spread * rng.standard_normal(len(self.sources(microbatch)))
            times = self.fixed_ps(plan, Stage("attention", microbatch)) * factors.clip(min=0)
            durations["attention", microbatch] = np.rint(times).astype(np.int64)
        return durations

    @property
    def attended_requests(self) -> int:
        """Requests of a microbatch whose cache a rank reads: of all that share its heads."""
        spec = self.spec
        return spec.requests_per_rank // spec.serving.microbatches * self.tensor_parallel

    def _read_ps(self, plan: LayerPlan, kind: str) -> float:
        """Return how long the memory needs at its rate for what an operator reads, once."""
        kv_tokens = self.spec.serving.kv_tokens
        work = self.times.work(kind, plan.tokens, kv_tokens, self.attended_requests)
        return float(work.read_bytes / self.spec.machine.memory_bytes_per_s * PS_PER_S)

    def _memory(self, plan: LayerPlan) -> dict[tuple[str, int], np.ndarray | int]:
        """Return the time of the memory for what stages read whatever the routing.

        That is weights and cache, and of copies all they do. Head, sampling and projection have
        a die to themselves, so that nothing is said of them.

        Returns
        -------
        dict of (str, int) to int, picoseconds
            By kind and microbatch.
        """
        if plan.label == "head":
            return {}
        kinds = ["prologue", "attention", "output", "ffn" if plan.label == "dense" else "gate"]
        memory: dict[tuple[str, int], np.ndarray | int] = {}
        for microbatch in range(self.rounds):
            memory |= {(kind, microbatch): round(self._read_ps(plan, kind)) for kind in kinds}
            if self.tensor_parallel > 1:
                copy = Stage(f"{REDUCE}-copy", microbatch)
                memory[copy.kind, microbatch] = self.duration_ps(plan, copy)
        return memory

    def _weights_ps(
        self, plan: LayerPlan, placement: ExpertPlacement, tokens_by_slot: np.ndarray
    ) -> np.ndarray:
        """Return the time of the memory for the weights of each rank's experts with tokens.

        Returns
        -------
        ndarray of int64, shape (n_ranks,), picoseconds
        """
        replicas = np.bincount(placement.slot_rank, tokens_by_slot > 0, self.n_ranks)
        weights: np.ndarray = np.rint(replicas * self._read_ps(plan, "expert")).astype(np.int64)
        return weights

    def sources(self, microbatch: int) -> range:
        """Return the ranks whose tokens a microbatch has."""
        return self.groups[microbatch % self.spec.deployment.domains]

    def _flag_blocks(self, plan: LayerPlan) -> list[Block]:
        """Return the flags that every rank sends to every rank that waits: all but of combine."""
        stages = self.stages_of(plan)
        waiting = {(stage.waits, stage.microbatch): stage.group for stage in stages if stage.waits}
        blocks = []
        for stage in stages:
            if not stage.sends.endswith(("-flag", "-ready")) or stage.sends == COMBINE_FLAG:
                continue
            src = self.groups[stage.group]
            dst = self.groups[waiting[stage.sends, stage.microbatch]]
            each = np.ones(len(src) * len(dst), np.int64)
            pairs = np.stack([np.repeat(src, len(dst)), np.tile(dst, len(src)), each])
            size = self.message_bytes(plan, stage.sends)
            blocks.append(Block(stage.microbatch, stage.sends, pairs, size))
        return blocks

    def _head_blocks(self, plan: LayerPlan) -> list[Block]:
        """Return the flows among ranks that share heads: one message to each of the others."""
        tp = self.tensor_parallel
        if tp == 1 or plan.label == "head":
            return []
        blocks = []
        for microbatch in range(self.rounds):
            sources = self.sources(microbatch)
            place = np.repeat(np.arange(len(sources)), tp)
            other = place // tp * tp + np.tile(np.arange(tp), len(sources))
            pairs = np.stack([place + sources.start, other + sources.start, np.ones_like(place)])
            pairs = pairs[:, place != other]
            blocks += [
                Block(microbatch, phase, pairs, self.message_bytes(plan, phase))
                for phase in (GATHER, REDUCE)
            ]
        return blocks

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
            return round(read / spec.machine.memory_bytes_per_s * PS_PER_S)
        if kind == "dispatch-flag":
            return spec.machine.communication.completion
        if kind in (GATHER, REDUCE, *PHASES):
            return spec.machine.launch.communication
        if kind in ("prologue", "attention", "output"):
            cores = self.cores["attention"]
            tokens = plan.tokens * tp  # of all ranks that share the heads
            if kind == "attention":
                kv_tokens, requests = spec.serving.kv_tokens, self.attended_requests
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
            of_gate = self.cores["expert"] if kind == "gate" else None
            return int(np.rint(self.times.time_ps(kind, plan.tokens, of_gate)))
        return 0

    def message_cost_ps(self, stage: Stage) -> int:
        """Return what each message of a stage costs an engine of the topology, in picoseconds.

        ``message_cost`` and ``flag_cost`` are what they cost a core when all cores of the die send,
        as far as they leave the package. As many a second go out until the stream has fewer cores
        than are of use, and in proportion fewer with fewer cores.
        """
        if not stage.sends or stage.sends in (GATHER, REDUCE, COMBINE_FLAG):
            return 0
        communication = self.spec.machine.communication
        cost = communication.message_cost if stage.sends in PHASES else communication.flag_cost
        all_cores = self.times.all_cores.vector_cores
        cores = (self.cores["expert"] or self.times.all_cores).vector_cores
        useful = communication.useful_cores
        slower = min(all_cores, useful) / min(cores, useful)
        return int(cost * communication.engines / all_cores * slower)

    def message_bytes(self, plan: LayerPlan, phase: str) -> int:
        """Return the size of one message of a phase."""
        hidden = self.spec.model.hidden_size
        if phase in PHASES:
            size: int = getattr(self.spec.messages, phase).message_bytes(hidden)
            return size
        if phase in (GATHER, REDUCE):
            return plan.tokens * hidden * _STATE_BYTES
        return self.spec.messages.flag


def generate_trace(
    source: str | Path | Mapping[str, Any] | Workload,
    *,
    layers: int | Sequence[int] | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Trace:
    """Generate the trace of one step of decode or prefill, or of a pool, layer by layer.

    Parameters
    ----------
    source : str, Path, mapping or Workload
        A shipped name such as ``deepseek-r1-decode-ep320``, a YAML file, or its content.
    layers : int or sequence of int, optional
        How many MoE layers to emit, drawn by the seed; the specification's
        ``simulate_moe_layers``, else all. A sequence gives them by their numbers in the model,
        ascending; the token stage then extrapolates without an interval.
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
    if layers is None:
        layers = spec.simulate_moe_layers or spec.model.moe_layers
    if isinstance(spec, PoolSpec):
        from ubfabric.pool import PoolTraffic

        within = Workload(spec.step, workload.raw["step"], workload.label, workload.folder)
        step, metadata = _step(within, spec.step, spec.seed, layers)
        pool = PoolTraffic(workload, step)
        metadata |= {"spec": workload.raw, "seed": spec.seed} | pool.metadata()
        return Trace(metadata, len(step.plans), pool.chunks)
    step, metadata = _step(workload, spec, spec.seed, layers)
    return Trace(metadata, len(step.plans), step.chunks)


def _step(
    workload: Workload,
    spec: WorkloadSpec | PrefillSpec,
    seed: int,
    layers: int | Sequence[int],
) -> tuple[Step, dict[str, Any]]:
    """Return the step of a specification and the metadata of its trace."""
    if isinstance(spec, WorkloadSpec):
        from ubfabric.disaggregated import DisaggregatedStep

        kind = DisaggregatedStep if spec.deployment.disaggregated else DecodeStep
        decode = kind(workload, seed, layers)
        return decode, _metadata(workload, spec, decode)
    from ubfabric.prefill import PrefillStep

    prefill = PrefillStep(workload, seed, layers)
    return prefill, common_metadata(workload, spec, prefill) | prefill.metadata()


def common_metadata(workload: Workload, spec: CommonSpec, step: Step) -> dict[str, Any]:
    """Return what the later stages need to know of any step, JSON-able; see traffic/README.md."""
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
        "microbatches": step.microbatches,
        "n_dense_layers": spec.model.dense_layers,
        "n_moe_layers_total": spec.model.moe_layers,
        "moe_layers_drawn": step.is_drawn,
        "n_moe_layers_simulated": sum(plan.label == "moe" for plan in step.plans),
        "layers": [
            {"layer": plan.layer, "label": plan.label, "tokens_per_microbatch": plan.tokens}
            for plan in step.plans
        ],
        "message_bytes": {
            phase: getattr(spec.messages, phase).message_bytes(spec.model.hidden_size)
            for phase in PHASES
        },
    }


def _metadata(workload: Workload, spec: WorkloadSpec, step: DecodeStep) -> dict[str, Any]:
    """Return the metadata of a decode step."""
    serving, deployment = spec.serving, spec.deployment
    # Said only where some ranks only attend, or a published row has such ranks.
    apart = {}
    if deployment.disaggregated or any(row.attention_ranks for row in spec.reference.rows):
        apart = {"attention_ranks": deployment.groups[-1].start, "domains": deployment.domains}
    rows = [
        {
            "ranks": row.ranks,
            **({"attention_ranks": row.attention_ranks, "domains": row.domains} if apart else {}),
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
        "ranks": deployment.ranks,
        **apart,
        "batch_per_npu": serving.batch_per_npu,
        "kv_tokens": serving.kv_tokens,
    }
    same_point = [row for row in rows if point.items() <= row.items()]
    return (
        common_metadata(workload, spec, step)
        | apart
        | {
            "batch_per_npu": serving.batch_per_npu,
            "kv_tokens": serving.kv_tokens,
            "requests_per_rank": spec.requests_per_rank,
            "tokens_per_rank": spec.tokens_per_rank,
            "stream_cores": {
                name: cores.model_dump() if cores else None for name, cores in step.cores.items()
            },
            "mtp": {"tokens": serving.mtp_tokens, "acceptance": serving.mtp_acceptance},
            "paper_row": same_point[0] if same_point else None,
            "paper_rows": rows,
        }
    )
