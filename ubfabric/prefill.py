"""One batch of prefill of a mixture-of-experts model as a trace.

Attention is ``staged``, the hybrid parallelism of CloudMatrix-Infer (arXiv 2506.12708, section
4.3.1): all ranks of an instance fill a batch of prompts together. Each has an equal share of the
packed tokens for the down-projections; an all-gather of the latents gives every rank all tokens, of
which it does its share of the heads; an all-to-all brings the heads of its own tokens back for the
output projection. Or it is ``data`` parallel: each rank has prompts of its own and all heads; every
rank is taken to be as loaded as the most loaded one, since all meet in the dispatch.

Then gate, dispatch, experts and combine as in decode, in bulk: one transfer to each rank, by SDMA
where ``messages.operation`` says so.

A die has one stream of products and attention, and one of transfers for each microbatch. With two
microbatches one computes while the other's tokens go to the experts or come back. With staged
attention packing and copying go with these transfers, on vector cores beside the products. The
all-gather and the all-to-all of attention do not, with ``serving.exchanges`` ``cores``: the paper's
pipeline (figure 18b) has a lane of cores for attention and products, one of vector cores for
packing and copying, one of SDMA for dispatch and combine, and none for these two. Cores move them
and compute nothing meanwhile, with one microbatch as with two; and a microbatch runs from its
down-projections to its dispatch before the other begins. With ``exchanges`` ``sdma`` they go by
SDMA beside the products, and so do the down-projections, 3 % of the products; heads of both
microbatches then come first, so that those of one hide the exchanges of the other.

With data-parallel attention the stream of products also does what goes with the transfers
otherwise, as in the CANN recipes: it packs, arranges what came by expert, and before the next layer
sums what came back (``finalize``).

Of a prompt with a cached prefix (``serving.prompts[].reused``) the rest is computed; its queries
attend over all, so keys and values are made from the cached latents too. These are there from the
start, or come by flows of phase ``cached`` for which each rank waits before attention
(:mod:`ubfabric.pool`). With staged attention every rank has all of them (section 4.3.3), or with
``serving.cached_at`` ``share`` an equal share each, and the all-gather brings them to all.

Not modelled: the MTP layer's pass over the prompt, chunks of prompts, and contention of the streams
for HBM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ubfabric.errors import SpecError
from ubfabric.operators import BF16, ELEMENT_BYTES, INT8, QUANTISED, MlaSpec, Precision, Work
from ubfabric.placement import ExpertPlacement
from ubfabric.steps import (
    ALL_MICROBATCHES,
    PHASES,
    PS_PER_S,
    Block,
    LayerPlan,
    Stage,
    Step,
    count_messages,
    slot_tokens,
)
from ubfabric.trace import TraceChunk, empty_table
from ubfabric.workload import PrefillSpec, Prompt, Workload

#: Streams of a die: products, and transfers of the first microbatch; the second's come after.
COMPUTE_STREAM, FIRST_TRANSFER_STREAM = 0, 1
#: All-gather of latents before the heads, all-to-all of the heads' results after them.
GATHER, SCATTER = "gather", "scatter"
#: Latents of reused tokens that come from the context cache.
CACHED = "cached"
T = TypeVar("T")


class PrefillStep(Step):
    """Builds the chunks of a prefill batch; parameters and errors as of :class:`Step`."""

    streams_rows = True

    def __init__(self, workload: Workload, seed: int, layers: int | Sequence[int]) -> None:
        super().__init__(workload, seed, layers)
        attention = workload.spec.model.attention
        if not isinstance(workload.spec, PrefillSpec) or not isinstance(attention, MlaSpec):
            raise SpecError(f"{workload.label}: kind: found 'decode', allowed: prefill")
        self.spec, self.attention = workload.spec, attention
        self.is_staged = self.spec.serving.attention == "staged"
        #: Whether exchanges of staged attention and down-projections go beside the products.
        self.is_beside = self.is_staged and self.spec.serving.exchanges == "sdma"
        #: Ranks that share a microbatch's prompts and its heads.
        self.sharing = self.n_ranks if self.is_staged else 1
        self.heads = attention.heads // self.sharing
        #: Stages that copy what came, by phase.
        self._copying = {phase: f"{phase}-copy" for phase in PHASES}
        if not self.is_staged:
            self._copying = {"dispatch": "arrange", "combine": "finalize"}
        parts = deal(self.spec.prompts, self.microbatches, _computed)
        if not self.is_staged:
            by_rank = [deal(part, self.n_ranks, _computed) for part in parts]
            parts = [max(ranks, key=_tokens) for ranks in by_rank]
        #: Prompts of each microbatch that a rank has its part in.
        self.prompts = parts
        #: Tokens that a rank computes in a microbatch, padded to the same number everywhere.
        self.tokens = max(-(-_tokens(part) // self.sharing) for part in parts)
        #: Cached tokens of each microbatch that a rank has its part in.
        self.reused = [sum(prompt.reused for prompt in part) for part in parts]
        model = self.model
        rows = [(layer, "dense", self.tokens, 0) for layer in range(model.dense_layers)]
        rows += [(layer, "moe", self.tokens, 0) for layer in self.moe_layers]
        last_tokens = -(-len(self.spec.prompts) // self.n_ranks)
        rows.append((model.layers, "head", 0, last_tokens))
        self.plans = self.number(rows)

    def metadata(self) -> dict[str, Any]:
        """Return what the metadata of a prefill trace have beside those of any step.

        ``batch_per_npu`` is in prompt tokens, so that the token stage's tokens/s an NPU are those
        of prefill, and its TPOT is the time of the batch.
        """
        rows = [
            {
                "ranks": row.ranks,
                "tokens_per_npu": row.tokens_per_npu,
                "gate": row.gate,
                "attention": row.attention,
                "microbatches": row.microbatches,
                "reused_tokens": 0,
                "tokens_per_s_per_npu": row.tokens_per_s_per_npu,
                "source": row.source,
                "strength": row.strength,
                "note": row.note,
            }
            for row in self.spec.reference.rows
        ]
        point = {
            "ranks": self.n_ranks,
            "tokens_per_npu": self.spec.tokens_per_npu,
            "gate": self.spec.gate.policy,
            "attention": self.spec.serving.attention,
            "microbatches": self.microbatches,
            "reused_tokens": self.spec.serving.reused_tokens,
        }
        same_point = [row for row in rows if point.items() <= row.items()]
        return {
            "kind": "prefill",
            "batch_per_npu": self.spec.tokens_per_npu,
            "tokens_per_npu": self.spec.tokens_per_npu,
            "gate": self.spec.gate.policy,
            "attention": self.spec.serving.attention,
            "reused_tokens": self.spec.serving.reused_tokens,
            "paper_row": same_point[0] if same_point else None,
            "paper_rows": rows,
        }

    def stages(self, plan: LayerPlan) -> list[Stage]:
        """Return the tasks of one rank in a layer, the microbatches interleaved."""
        if plan.label == "head":
            last = [Stage(kind, ALL_MICROBATCHES) for kind in ("head", "sampling", "host")]
            if self._finalizes(plan):
                last[:0] = [self._stage("finalize", mb) for mb in range(self.microbatches)]
            return last
        if self.is_staged:
            groups = [["down", GATHER, "heads", SCATTER, "output", "ffn"]]
            if self.is_beside:
                # Heads of both microbatches first, so that the other's hide each all-to-all.
                groups = [groups[0][:4], groups[0][4:]]
            moe = [["gate", "dispatch", "dispatch-copy"], ["expert", "combine", "combine-copy"]]
        else:
            groups = [["down", "heads", "output", "ffn"]]
            moe = [["gate", "pack", "dispatch"], ["arrange", "expert", "combine"]]
        if any(self.reused):
            groups[0].insert(1, CACHED)
        if plan.label == "moe":
            groups[-1][-1:] = moe[0]
            groups.append(moe[1])
        if self._finalizes(plan):
            groups[0].insert(0, "finalize")
        return [
            self._stage(kind, microbatch)
            for group in groups
            for microbatch in range(self.microbatches)
            for kind in group
        ]

    def _finalizes(self, plan: LayerPlan) -> bool:
        """Return whether a layer begins with the sums of a MoE layer before it."""
        follows = plan.label == "head" or plan.layer in self.moe_layers[1:]
        return follows and not self.is_staged

    def _stage(self, kind: str, microbatch: int) -> Stage:
        if kind == CACHED:
            return Stage(kind, microbatch, "", CACHED, FIRST_TRANSFER_STREAM + microbatch)
        moves = kind in (GATHER, SCATTER, *PHASES)
        phase = kind if moves else ""
        beside = kind in PHASES or kind.endswith("-copy")
        beside |= self.is_beside and kind in ("down", GATHER, SCATTER)
        stream = FIRST_TRANSFER_STREAM + microbatch if beside else COMPUTE_STREAM
        return Stage(kind, microbatch, phase, phase, stream)

    def chunk(self, position: int) -> TraceChunk:
        """Build one chunk; the same whether or not others were built before."""
        plan = self.plans[position]
        durations: dict[tuple[str, int], np.ndarray | int] = {}
        blocks: list[Block] = []
        if plan.label != "head" and self.sharing > 1:
            blocks = self._head_blocks(plan)
        if plan.label == "moe":
            placement = self.place(plan.layer)
            for microbatch in range(self.microbatches):
                slots = placement.assign_replicas(self.route(plan, microbatch))
                tokens_by_slot = slot_tokens(slots, placement, plan.tokens)
                durations["expert", microbatch] = self._expert_ps(placement, tokens_by_slot)
                there = count_messages(slots, placement, plan.tokens)
                for phase, messages in (("dispatch", there), ("combine", there[[1, 0, 2]])):
                    blocks.append(self._bulk(microbatch, phase, messages))
                    arrived = np.bincount(messages[1], messages[2], self.n_ranks)
                    durations[self._copying[phase], microbatch] = self.copy_ps(phase, arrived)
        flows = self.flow_table(plan.layer, blocks) if blocks else empty_table("flows")
        return TraceChunk(plan.layer, plan.label, flows, self.task_table(position, durations))

    def _bulk(self, microbatch: int, phase: str, messages: np.ndarray) -> Block:
        """Return the flows of a phase: tokens one by one, or one transfer of SDMA to each rank."""
        size = getattr(self.messages, phase).message_bytes(self.model.hidden_size)
        operation = self.messages.operation
        if operation == "write":
            return Block(microbatch, phase, messages, size)
        src, dst, count = messages[:, messages[0] != messages[1]]  # what stays is only copied
        one_each = np.stack([src, dst, np.ones(len(src), np.int64)])
        return Block(microbatch, phase, one_each, count * size, operation)

    def _head_blocks(self, plan: LayerPlan) -> list[Block]:
        """Return the flows of the all-gather and the all-to-all of attention; see ``exchanges``."""
        attention, n = self.attention, self.n_ranks
        src, dst = (part.ravel() for part in np.indices((n, n)))
        pairs = np.stack([src, dst, np.ones(len(src), np.int64)])[:, src != dst]
        # Queries are quantised for the next product; the rest is as the cache holds it.
        a_query, a_latent = attention.q_lora_rank * INT8, attention.cache_elements * BF16
        blocks = []
        for microbatch in range(self.microbatches):
            held = plan.tokens
            if self.spec.serving.cached_at == "share":
                held += -(-self.reused[microbatch] // n)
            sizes = {
                GATHER: plan.tokens * a_query + held * a_latent,
                SCATTER: plan.tokens * self.heads * attention.v_head_dim * BF16,
            }
            operation = "sdma-write" if self.is_beside else "write"
            blocks += [
                Block(microbatch, phase, pairs, size, operation) for phase, size in sizes.items()
            ]
        return blocks

    def message_cost_ps(self, stage: Stage) -> int:
        """Return what a message of dispatch or combine costs an engine; SDMA has its own start."""
        if stage.sends not in PHASES or self.messages.operation != "write":
            return 0
        communication, die = self.spec.machine.communication, self.spec.machine.die
        return communication.message_cost * communication.engines // die.vector_cores

    def _expert_ps(self, placement: ExpertPlacement, tokens_by_slot: np.ndarray) -> np.ndarray:
        """Return the time of the expert operator of each rank."""
        times = self.expert_ps(placement, tokens_by_slot, None)
        launches = self.times.launches_ps("expert")
        if launches == 0:  # measured
            return times
        longer = (times - launches) / self.spec.machine.efficiency.prefill
        whole: np.ndarray = launches + np.rint(longer).astype(np.int64)
        return whole

    def duration_ps(self, plan: LayerPlan, stage: Stage) -> int:
        """Return the time of a stage that does not depend on routing, in picoseconds."""
        kind, machine = stage.kind, self.spec.machine
        if kind == "host":
            return machine.host_gap
        if kind == CACHED:
            return 0
        if kind in ("head", "sampling"):
            return int(np.rint(self.times.time_ps(kind, plan.head_tokens)))
        if kind == "finalize":  # every token of the rank comes back, whoever had its experts
            return int(self.copy_ps("combine", np.array([self.tokens * self._copies]))[0])
        if kind == "pack":
            return self._packing_ps(plan)
        if kind == "dispatch" and self.is_staged:
            return machine.launch.communication + self._packing_ps(plan)
        if kind in (GATHER, SCATTER, *PHASES):
            return machine.launch.communication
        kernels = self._kernels(kind, plan.tokens, stage.microbatch)
        time = sum(float(self.times.roofline_ps(work)) for work in kernels)
        launch = machine.launch
        launches = sum(launch.cube if work.ops else launch.vector for work in kernels)
        return round(time / machine.efficiency.prefill) + launches

    @property
    def _copies(self) -> int:
        """Experts that a token is sent to."""
        return self.model.top_k + self.model.shared_experts

    def _packing_ps(self, plan: LayerPlan) -> int:
        """Return the time in which tokens are quantised into the buffer they are sent from."""
        size = self.messages.dispatch.message_bytes(self.model.hidden_size)
        return self._moved_ps(plan.tokens * (self.model.hidden_size * BF16 + self._copies * size))

    def _moved_ps(self, n_bytes: float) -> int:
        return round(n_bytes / self.memory_bytes_per_s * PS_PER_S)

    def _kernels(self, kind: str, tokens: int, microbatch: int) -> list[Work]:
        """Return the work of each kernel of a stage, activations read and written included."""
        model, attention = self.model, self.attention
        operators = self.spec.operators
        hidden, rank = model.hidden_size, attention.q_lora_rank
        norm = Work({}, tokens * hidden * (2 * BF16 + QUANTISED))  # of state and residual
        qk = attention.qk_nope_head_dim + attention.qk_rope_head_dim
        if kind == "down":
            down = rank + attention.cache_elements
            queries = Work({}, tokens * rank * QUANTISED)
            return [norm, _product(tokens, hidden, down, operators.prologue.precision), queries]
        if kind == "heads":
            every, reused = tokens * self.sharing, self.reused[microbatch]
            with_cache = every + reused
            # Pairs of a query and a key before it; cached tokens have keys and no queries.
            pairs = sum(
                computed * before + computed * (computed + 1) // 2
                for computed, before in self.prompts[microbatch]
            )
            queries = _product(every, rank, self.heads * qk, operators.prologue.precision)
            keys = self.heads * (attention.qk_nope_head_dim + attention.v_head_dim)
            # The weights that decode absorbs, so in their precision.
            precision = operators.prologue.absorbed
            values = _product(with_cache, attention.kv_lora_rank, keys, precision)
            rotary = attention.qk_rope_head_dim
            rotated = Work({}, every * self.heads * rotary * 2 * BF16)
            # Each rank that has all latents norms, rotates and stores all that are new, and copies
            # the cached ones from their blocks; a rotated key is the same for all heads, but
            # attention wants one for each (CANN recipes, vLLM-Ascend).
            cached = Work({}, (3 * every + 2 * reused) * attention.cache_elements * BF16)
            repeated = Work({}, with_cache * (1 + self.heads) * rotary * BF16)
            ops = 2 * self.heads * pairs * (qk + attention.v_head_dim)
            read = (every + with_cache) * self.heads * (qk + attention.v_head_dim) * BF16
            fused = Work({operators.attention.precision: ops}, read, "attention")
            kernels = [queries, cached, values, rotated, repeated, fused]
            if precision == "int8":
                kernels.insert(0, Work({}, with_cache * attention.kv_lora_rank * QUANTISED))
            return kernels
        if kind == "output":
            out = attention.heads * attention.v_head_dim
            quantised = Work({}, tokens * out * QUANTISED)
            kernels = [quantised, _product(tokens, out, hidden, operators.output.precision)]
            if self.sharing > 1:  # what came by rank is put in the order of tokens
                kernels.insert(0, Work({}, tokens * out * 2 * BF16))
            return kernels
        if kind == "gate":
            router = _product(tokens, hidden, model.routed_experts, operators.gate.precision)
            normed, cast = Work({}, tokens * hidden * 4 * BF16), self.times.cast_bytes()
            return [normed, Work({}, tokens * cast), router] if cast else [normed, router]
        wide = (model.ffn_matrices - 1) * model.dense_ffn_size
        gated = Work({}, tokens * self.times.gated_bytes(model.dense_ffn_size))
        precision = operators.ffn.precision
        up = _product(tokens, hidden, wide, precision)
        return [norm, up, gated, _product(tokens, model.dense_ffn_size, hidden, precision)]


def _product(tokens: int, inner: int, outer: int, precision: Precision) -> Work:
    """Return the work of a product of tokens with a matrix; its result is written in BF16."""
    size = ELEMENT_BYTES[precision]
    moved = inner * outer * size + tokens * (inner * size + outer * BF16)
    return Work({precision: 2 * tokens * inner * outer}, moved)


def _computed(prompt: Prompt) -> int:
    return prompt.computed


def _tokens(prompts: list[Prompt]) -> int:
    """Return the tokens of prompts that are computed."""
    return sum(prompt.computed for prompt in prompts)


def deal(prompts: list[T], n_parts: int, size: Callable[[T], int]) -> list[list[T]]:
    """Deal prompts out: the longest first, each to the part with the fewest tokens so far."""
    parts: list[list[T]] = [[] for _ in range(n_parts)]
    sums = [0] * n_parts
    for prompt in sorted(prompts, key=size, reverse=True):
        fewest = sums.index(min(sums))
        parts[fewest].append(prompt)
        sums[fewest] += size(prompt)
    return parts
