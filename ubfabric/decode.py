"""One decode step of a mixture-of-experts model as a trace.

The step follows CloudMatrix-Infer's microbatch pipeline (arXiv 2506.12708, decode section):
every die has two streams, attention on stream 0 and the expert part (gate, dispatch, expert,
combine) on stream 1, and two microbatches alternate on them. Attention of a layer waits for
the microbatch's combine of the layer before; the expert part waits for its attention.

Layers in order: the dense ones, the MoE ones, then, once for each MTP token, an MTP layer (an
MoE layer that begins with the LM head and sampling of the tokens before), and last the head.
``layers=k`` keeps ``k`` MoE layers, drawn by the seed (:mod:`ubfabric.sampling`), in the order
of the model: each with its number, its popularity of experts and its routing, and each follows
the one drawn before it. The rest stays, and the metadata say how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ubfabric.errors import SpecError
from ubfabric.gate import LayerPopularity, route_tokens
from ubfabric.placement import ExpertPlacement, place_experts
from ubfabric.sampling import draw_layers
from ubfabric.trace import FLOW_SCHEMA, TASK_SCHEMA, TRACE_SCHEMA, Trace, TraceChunk, empty_table
from ubfabric.workload import ELEMENT_BYTES, RooflineTimeSpec, Workload, WorkloadSpec, load_workload

#: Streams of a die.
ATTENTION_STREAM, EXPERT_STREAM = 0, 1
PHASES = ("dispatch", "combine")
_PS_PER_S = 10**12
# What a random generator is for; part of its seed.
_FOR_POPULARITY, _FOR_ROUTING, _FOR_ORDER, _FOR_LAYERS = 1, 2, 3, 4
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

    def operators(self, microbatches: int) -> list[tuple[str, int]]:
        """Return ``(kind, microbatch)`` of the layer's tasks of one rank, in table order."""
        head = [("head", _ALL_MICROBATCHES)] if self.head_tokens else []
        if self.label == "head":
            return head
        parts = ("ffn",) if self.label == "dense" else ("gate", "dispatch", "expert", "combine")
        both = range(microbatches)
        return head + [("attention", m) for m in both] + [(kind, m) for m in both for kind in parts]


class DecodeStep:
    """Builds the chunks of a decode step, each on its own.

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
        If ``layers`` or ``seed`` is out of range, or the gate's file does not fit.
    """

    def __init__(self, workload: Workload, seed: int, layers: int | Sequence[int]) -> None:
        self.spec: WorkloadSpec = workload.spec
        self.seed = seed
        model = self.spec.model
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
        self.n_ranks = self.spec.deployment.ranks
        self.popularity: LayerPopularity = self.spec.gate.prepare(
            model.routed_experts, workload.folder
        )
        self.plans = self._plan()

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
        plans, first_task = [], 0
        for layer, label, layer_tokens, before in rows:
            plan = LayerPlan(layer, label, first_task, layer_tokens, before)
            plans.append(plan)
            first_task += len(plan.operators(serving.microbatches)) * self.n_ranks
        return plans

    def chunks(self) -> Iterator[TraceChunk]:
        """Yield all chunks in order."""
        for position in range(len(self.plans)):
            yield self.chunk(position)

    def chunk(self, position: int) -> TraceChunk:
        """Build one chunk; the same whether or not others were built before."""
        plan = self.plans[position]
        serving, model = self.spec.serving, self.spec.model
        expert_ps: list[np.ndarray] = []
        blocks: list[tuple[int, str, np.ndarray]] = []
        if plan.label in ("moe", "mtp"):
            popularity = self.popularity(plan.layer, self._rng(plan.layer, _FOR_POPULARITY))
            placement = place_experts(self.spec.deployment, popularity, model.top_k)
            for microbatch in range(serving.microbatches):
                slots = self.route(plan, microbatch, popularity, placement)
                tokens_by_slot = _slot_tokens(slots, placement, plan.tokens)
                expert_ps.append(self.expert_ps(placement, tokens_by_slot))
                messages = _count_messages(slots, placement, plan.tokens)
                blocks += [
                    (microbatch, "dispatch", messages),
                    (microbatch, "combine", messages[[1, 0, 2]]),
                ]
        flows = self._flows(plan, blocks) if blocks else empty_table("flows")
        return TraceChunk(plan.layer, plan.label, flows, self._tasks(position, expert_ps))

    def route(
        self, plan: LayerPlan, microbatch: int, popularity: np.ndarray, placement: ExpertPlacement
    ) -> np.ndarray:
        """Route one microbatch of all ranks.

        Returns
        -------
        ndarray of int32, shape (n_ranks * tokens, top_k)
            Slot of each (token, routed expert) pair; tokens in order of source rank.
        """
        model = self.spec.model
        experts = route_tokens(
            popularity,
            self.n_ranks * plan.tokens,
            top_k=model.top_k,
            n_groups=model.expert_groups,
            kept_groups=model.kept_groups,
            group_score_experts=model.group_score_experts,
            rng=self._rng(plan.layer, _FOR_ROUTING, microbatch),
        )
        return placement.assign_replicas(experts)

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
        model = self.spec.model
        parameters = model.ffn_matrices * model.hidden_size * model.expert_ffn_size
        operator = self.spec.operators.expert
        times = self.roofline_ps(operator, parameters, tokens_by_slot)
        times[tokens_by_slot == 0] = 0
        total = np.bincount(placement.slot_rank, weights=times, minlength=self.n_ranks)
        return operator.launch + np.rint(total).astype(np.int64)

    def roofline_ps(
        self, operator: RooflineTimeSpec, parameters: int, tokens: np.ndarray | int
    ) -> np.ndarray:
        """Return the longer of reading weights once and of multiplying tokens with them.

        Two operations a token and parameter; activations are small beside weights and left
        out. The two overlap on the machine, hence the maximum and not the sum.

        Returns
        -------
        ndarray of float64, picoseconds
            Without the operator's launch time.
        """
        die = self.spec.die
        read = parameters * ELEMENT_BYTES[operator.precision] * _PS_PER_S / die.hbm_bandwidth
        peak = die.int8_rate if operator.precision == "int8" else die.bf16_rate
        rate = peak * operator.cube_cores / die.cube_cores * operator.compute_efficiency
        return np.maximum(
            read, np.asarray(tokens, np.float64) * (2 * parameters * _PS_PER_S / rate)
        )

    def duration_ps(self, plan: LayerPlan, kind: str) -> int:
        """Return the time of an operator that does not depend on routing, in picoseconds."""
        model, operators = self.spec.model, self.spec.operators
        if kind == "attention":
            timing = operators.attention
            work = plan.tokens * self.spec.serving.kv_tokens * (timing.anchor_time - timing.fixed)
            anchor = timing.anchor_query_tokens * timing.anchor_kv_tokens
            return timing.fixed + (work + anchor // 2) // anchor
        if kind == "ffn":
            parameters = model.ffn_matrices * model.hidden_size * model.dense_ffn_size
            time = self.roofline_ps(operators.ffn, parameters, plan.tokens)
            return operators.ffn.launch + int(np.rint(time))
        if kind == "head":
            head = operators.head
            time = self.roofline_ps(head, model.hidden_size * model.vocabulary, plan.head_tokens)
            return head.launch + int(np.rint(time)) + head.sampling
        return {
            "gate": operators.gate.fixed,
            "dispatch": operators.dispatch.fixed,
            "combine": operators.combine.fixed,
        }[kind]

    def _rng(self, layer: int, purpose: int, microbatch: int = 0) -> np.random.Generator:
        seed = np.random.SeedSequence([self.seed, layer, purpose, microbatch])
        return np.random.Generator(np.random.PCG64(seed))

    def _flows(self, plan: LayerPlan, blocks: list[tuple[int, str, np.ndarray]]) -> pa.Table:
        """Build the flow table of a layer from ``(microbatch, phase, [src, dst, messages])``."""
        messages = self.spec.messages
        sizes = {p: getattr(messages, p).message_bytes(self.spec.model.hidden_size) for p in PHASES}
        ordered = []
        for number, (_, _, block) in enumerate(blocks):
            src, dst, _ = block
            if messages.send_order == "rotated":
                turn = (dst - src - 1) % self.n_ranks
            else:
                rng = self._rng(plan.layer, _FOR_ORDER, number)
                turn = rng.integers(1 << 31, size=len(src), dtype=np.int64)
            ordered.append(block[:, np.argsort(src << 31 | turn, kind="stable")])
        counts = [block.shape[1] for block in ordered]
        src, dst, n_messages = np.concatenate(ordered, axis=1).astype(np.int32)
        total = len(src)
        phase = np.repeat([PHASES.index(p) for _, p, _ in blocks], counts).astype(np.int32)
        columns = {
            "phase": _dictionary(phase, PHASES),
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

    def _tasks(self, position: int, expert_ps: list[np.ndarray]) -> pa.Table:
        """Build the task table of a layer: one block of all ranks an operator."""
        plan = self.plans[position]
        microbatches = self.spec.serving.microbatches
        operators = plan.operators(microbatches)
        ranks = np.arange(self.n_ranks)
        first = {
            operator: plan.first_task + index * self.n_ranks
            for index, operator in enumerate(operators)
        }
        durations, offsets, depends_on = [], [0], []
        for kind, microbatch in operators:
            if kind == "expert":
                durations.append(expert_ps[microbatch])
            else:
                durations.append(np.full(self.n_ranks, self.duration_ps(plan, kind), np.int64))
            needed = self._needs(position, kind, microbatch, first)
            depends_on.append((np.array(needed, np.int64)[None, :] + ranks[:, None]).ravel())
            offsets.append(offsets[-1] + len(needed) * self.n_ranks)
        per_rank = np.diff(offsets) // self.n_ranks
        ends = np.cumsum(np.repeat(per_rank, self.n_ranks))
        n_operators = len(operators)
        kinds = [kind for kind, _ in operators]
        sends = [kind if kind in PHASES else "" for kind in kinds]
        streams = [ATTENTION_STREAM if k in ("attention", "head") else EXPERT_STREAM for k in kinds]

        def repeat_text(values: list[str]) -> pa.Array:
            return pa.array(np.repeat(np.array(values, object), self.n_ranks), pa.string())

        columns = {
            "task": plan.first_task + np.arange(n_operators * self.n_ranks, dtype=np.int64),
            "rank": np.tile(ranks.astype(np.int32), n_operators),
            "stream": np.repeat(np.array(streams, np.int8), self.n_ranks),
            "kind": repeat_text(kinds),
            "layer": np.full(n_operators * self.n_ranks, plan.layer, np.int16),
            "microbatch": np.repeat(np.array([m for _, m in operators], np.int8), self.n_ranks),
            "duration_ps": np.concatenate(durations),
            "sends": repeat_text(sends),
            "waits": repeat_text(sends),
            "message_cost_ps": np.zeros(n_operators * self.n_ranks, np.int64),
            "depends_on": pa.ListArray.from_arrays(
                pa.array(np.concatenate([[0], ends]), pa.int32()),
                pa.array(np.concatenate(depends_on)),
            ),
        }
        arrays = [pa.array(columns[name]) for name in TASK_SCHEMA.names]
        return pa.Table.from_arrays(arrays, schema=TASK_SCHEMA)

    def _needs(
        self, position: int, kind: str, microbatch: int, first: dict[tuple[str, int], int]
    ) -> list[int]:
        """Return the first task id of each operator that this one needs the result of."""
        if kind == "head":
            return self._results(position - 1)
        if kind == "attention":
            if ("head", _ALL_MICROBATCHES) in first:
                return [first["head", _ALL_MICROBATCHES]]
            return self._results(position - 1)[microbatch : microbatch + 1]
        before = {"ffn": "attention", "gate": "attention", "dispatch": "gate", "expert": "dispatch"}
        return [first[before.get(kind, "expert"), microbatch]]

    def _results(self, position: int) -> list[int]:
        """Return the first task ids of a layer's last operators, one a microbatch."""
        if position < 0:
            return []
        plan = self.plans[position]
        operators = plan.operators(self.spec.serving.microbatches)
        last = "ffn" if plan.label == "dense" else "combine"
        return [
            plan.first_task + index * self.n_ranks
            for index, (kind, _) in enumerate(operators)
            if kind == last
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
    layers: int | Sequence[int] | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Trace:
    """Generate the trace of one decode step, layer by layer.

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
        "moe_layers_drawn": step.is_drawn,
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
