"""The traffic specification: model, deployment, batch, messages, gate and operator times.

``traffic/deepseek-r1-decode-ep320.yaml`` is the reference; each of its keys is explained
there, next to its number, unit and source.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from ubfabric.errors import SpecError
from ubfabric.gate import GatePolicy, parse_gate
from ubfabric.operators import (
    ELEMENT_BYTES,
    GqaSpec,
    MachineSpec,
    MlaSpec,
    ModelSpec,
    OperatorsSpec,
    PositiveCount,
)
from ubfabric.placement import DeploymentSpec
from ubfabric.quantities import Bytes, Count, Fraction, Picoseconds
from ubfabric.specs import Spec, load_yaml, override, shipped, validate_spec

#: Sections that are files of their own, and the folder of the shipped ones.
PARTS = {
    "model": "traffic/models",
    "machine": "traffic/machines",
    "operators": "traffic/operators",
}
#: Section of a pool's specification that is itself a specification, or the name of one.
STEP = "step"
_GB = 1e9


class ServingSpec(Spec):
    """The point of operation: one decode step of a full batch."""

    batch_per_npu: PositiveCount
    kv_tokens: PositiveCount
    microbatches: Annotated[Count, Field(ge=1, le=2)]
    mtp_tokens: Annotated[Count, Field(ge=0, le=8)]
    mtp_acceptance: Annotated[Fraction, Field(ge=0, le=1)]
    step: Annotated[Count, Field(ge=0, le=100_000)] = 0


class MessageSpec(Spec):
    """Size of the message that carries one token to or from one expert."""

    element: Bytes
    pad: Bytes

    def message_bytes(self, hidden_size: int) -> int:
        """Return the size of one message in bytes."""
        return hidden_size * self.element + self.pad


class MessagesSpec(Spec):
    """Messages of both phases and the network that carries them."""

    dispatch: MessageSpec
    combine: MessageSpec
    flag: Bytes = 0
    buffers: Annotated[Count, Field(ge=1, le=2)] = 2
    network: Literal["ub", "rdma", "vpc"] = "ub"
    operation: Literal["write", "sdma-write"] = "write"
    service_level: Annotated[Count, Field(ge=0, le=15)] = 0
    send_order: Literal["shuffled", "rotated"] = "shuffled"


class SourcedRow(Spec):
    """A published throughput."""

    ranks: PositiveCount
    tokens_per_s_per_npu: PositiveCount
    source: str
    strength: Literal["read", "secondary", "recalled", "derived", "assumed", "fitted"]
    note: str = ""


class ReferenceRow(SourcedRow):
    """A published result of decode that a run of the same point is shown beside."""

    batch_per_npu: PositiveCount
    kv_tokens: PositiveCount
    tpot: Picoseconds
    slo: Picoseconds | None = None
    #: Ranks that only attended, of a disaggregated deployment, and its domains.
    attention_ranks: Annotated[Count, Field(ge=0)] = 0
    domains: PositiveCount = 1


class PrefillRow(SourcedRow):
    """A published result of prefill that a run of the same point is shown beside."""

    tokens_per_npu: PositiveCount
    gate: str
    attention: Literal["staged", "data"]
    microbatches: PositiveCount


class ReferenceSpec(Spec):
    """Published results."""

    rows: list[ReferenceRow] = Field(default_factory=list)


class PromptsSpec(Spec):
    """Prompts of one length in the batch of an instance, of which a prefix may be cached."""

    tokens: PositiveCount
    count: PositiveCount
    #: Tokens of each prompt whose latents are read from the context cache and not computed.
    reused: Annotated[Count, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> PromptsSpec:
        if self.reused >= self.tokens:
            raise ValueError(
                f"reused: found {self.reused} tokens of prompts of {self.tokens}, allowed up to "
                f"{self.tokens - 1}: the last token has to be computed"
            )
        return self


#: Where latents of reused tokens are before attention: on every rank that attends to them, or each
#: of these ranks has an equal share, and the all-gather brings it to the others.
CachedAt = Literal["every", "share"]


class PrefillServingSpec(Spec):
    """The point of operation: the prompts that all ranks of an instance fill at once."""

    prompts: Annotated[list[PromptsSpec], Field(min_length=1)]
    attention: Literal["staged", "data"]
    #: Who moves the all-gather and the all-to-all of staged attention: cores, which compute
    #: nothing meanwhile, or SDMA beside the products.
    exchanges: Literal["cores", "sdma"] = "cores"
    cached_at: CachedAt = "every"
    microbatches: Annotated[Count, Field(ge=1, le=2)]
    step: Annotated[Count, Field(ge=0, le=100_000)] = 0

    @property
    def every_rank_has_cached(self) -> bool:
        """Whether all ranks get the latents of a reused token, or one of them does."""
        return self.attention == "staged" and self.cached_at == "every"

    @property
    def tokens(self) -> int:
        """Prompt tokens of the batch."""
        return sum(prompts.tokens * prompts.count for prompts in self.prompts)

    @property
    def reused_tokens(self) -> int:
        """Tokens of the batch that are not computed."""
        return sum(prompts.reused * prompts.count for prompts in self.prompts)


class PrefillReferenceSpec(Spec):
    """Published results."""

    rows: list[PrefillRow] = Field(default_factory=list)


class CommonSpec(Spec):
    """What specifications of decode and prefill have in common."""

    name: str
    schema_version: Annotated[Count, Field(alias="schema", ge=1, le=1)]
    description: str = ""
    seed: Annotated[Count, Field(ge=0)]
    simulate_moe_layers: PositiveCount | None = None
    model: ModelSpec
    deployment: DeploymentSpec
    messages: MessagesSpec
    gate: Annotated[SerializeAsAny[GatePolicy], BeforeValidator(parse_gate)]
    machine: MachineSpec
    operators: OperatorsSpec

    @property
    def npus(self) -> int:
        """NPUs of the deployment."""
        return self.deployment.ranks // self.deployment.dies_per_npu

    def check_deployment(self) -> None:
        """Check that experts and layers fit the deployment.

        Raises
        ------
        ValueError
            Names the key, what was found and what is allowed.
        """
        deployment = self.deployment
        if deployment.ranks % deployment.dies_per_npu:
            raise ValueError(
                f"deployment.ranks: found {deployment.ranks}, "
                f"allowed a multiple of dies_per_npu = {deployment.dies_per_npu}"
            )
        try:
            deployment.check_experts(self.model.routed_experts, self.model.shared_experts)
        except ValueError as error:
            raise ValueError(f"deployment: {error}") from None
        if (self.simulate_moe_layers or 1) > self.model.moe_layers:
            raise ValueError(
                f"simulate_moe_layers: found {self.simulate_moe_layers}, "
                f"allowed 1 to {self.model.moe_layers}"
            )
        for name in ("dispatch", "combine"):
            size = getattr(self.messages, name).message_bytes(self.model.hidden_size)
            if not 1 <= size < 2**31:
                raise ValueError(
                    f"messages.{name}: found a message of {size} B, allowed 1 to 2**31 - 1"
                )


class Prompt(NamedTuple):
    """Tokens of a prompt that are computed, and those before them that are cached."""

    computed: int
    reused: int


class PrefillSpec(CommonSpec):
    """A traffic specification of prefill: attention of all ranks by tokens, heads, tokens."""

    kind: Literal["prefill"]
    serving: PrefillServingSpec
    reference: PrefillReferenceSpec = PrefillReferenceSpec()

    @property
    def prompts(self) -> list[Prompt]:
        """Each prompt of the batch."""
        return [
            Prompt(part.tokens - part.reused, part.reused)
            for part in self.serving.prompts
            for _ in range(part.count)
        ]

    @property
    def tokens_per_npu(self) -> int:
        """Prompt tokens of the batch for each NPU, rounded down."""
        return self.serving.tokens // self.npus

    @model_validator(mode="after")
    def _check(self) -> PrefillSpec:
        self.check_deployment()
        attention, ranks = self.model.attention, self.deployment.ranks
        if self.deployment.disaggregated:
            raise ValueError("deployment.disaggregated: found in prefill, allowed in decode")
        if self.messages.flag or self.messages.buffers != 2:
            raise ValueError(
                "messages.flag: found flags or one buffer, allowed flag 0 B and 2 buffers: bulk "
                "transfers of prefill tell their end themselves"
            )
        if not isinstance(attention, MlaSpec):
            raise ValueError(f"model.attention.kind: found {attention.kind!r}, allowed 'mla'")
        if self.serving.attention == "staged" and attention.heads % ranks:
            raise ValueError(
                f"deployment.ranks: found {ranks}, allowed a divisor of model.attention.heads = "
                f"{attention.heads}, which ranks divide among them"
            )
        if self.deployment.attention_tp != 1:
            raise ValueError(
                f"deployment.attention_tp: found {self.deployment.attention_tp}, allowed 1: "
                "in prefill all ranks share the heads"
            )
        fewest = self.serving.microbatches * (1 if self.serving.attention == "staged" else ranks)
        if len(self.prompts) < fewest:
            raise ValueError(
                f"serving.prompts: found {len(self.prompts)} prompts, allowed {fewest} or "
                "more: one a microbatch, and a rank with attention 'data'"
            )
        largest = self.serving.tokens * (
            self.messages.dispatch.message_bytes(self.model.hidden_size)
            + self.messages.combine.message_bytes(self.model.hidden_size)
        )
        if largest // ranks >= 2**31:
            raise ValueError(
                f"serving.prompts: found {self.serving.tokens} tokens, of which one rank may send "
                f"another {largest // ranks} B, allowed below 2**31 B"
            )
        return self


class WorkloadSpec(CommonSpec):
    """A traffic specification of decode."""

    kind: Literal["decode"] = "decode"
    serving: ServingSpec
    reference: ReferenceSpec = ReferenceSpec()

    @property
    def requests_per_rank(self) -> int:
        """Requests of one die that attends; the batch is an NPU's of all of the deployment."""
        return self.serving.batch_per_npu * self.npus // self.deployment.attention_ranks

    @property
    def query_tokens_per_request(self) -> int:
        """Tokens a request runs through the model each step: one and its MTP guesses."""
        return 1 + self.serving.mtp_tokens

    @property
    def tokens_per_rank(self) -> int:
        """Tokens that one die that attends runs through the model each step."""
        return self.requests_per_rank * self.query_tokens_per_request

    @property
    def shares_cores(self) -> bool:
        """Whether the two streams of a die share its cores; else each operator has all."""
        return self.serving.microbatches > 1 and not self.deployment.disaggregated

    def memory_bytes(self, die: Literal["all", "attention", "experts"] = "all") -> dict[str, int]:
        """Return what one die must hold, by kind: weights, KV cache, message buffers.

        Parameters
        ----------
        die : {'all', 'attention', 'experts'}
            Whether it attends and holds experts, or one of the two.
        """
        model, deployment, serving = self.model, self.deployment, self.serving
        operators, attention = self.operators, self.model.attention
        size = {
            name: ELEMENT_BYTES[getattr(operators, name).precision]
            for name in ("prologue", "output", "gate", "expert", "ffn", "projection", "head")
        }
        hidden, tp = model.hidden_size, deployment.attention_tp
        out = attention.output_parameters(hidden)
        absorbed = attention.absorbed_parameters() if isinstance(attention, MlaSpec) else 0
        rest = attention.parameters(hidden) - out - absorbed
        a_layer = (
            rest * size["prologue"]
            + absorbed * ELEMENT_BYTES[operators.output.absorbed]
            + out * size["output"]
        ) // tp
        mtp = min(serving.mtp_tokens, 1)  # later guesses run the same layer again
        an_expert = model.expert_parameters * size["expert"] * deployment.experts_per_rank
        router = hidden * model.routed_experts * size["gate"]
        experts = (model.moe_layers + mtp) * an_expert
        rest_of_model = (
            (model.layers + mtp) * a_layer
            + model.dense_layers * model.dense_parameters * size["ffn"]
            + (model.moe_layers + mtp) * router
            + mtp * 2 * hidden * hidden * size["projection"]
            + 2 * hidden * model.vocabulary * size["head"]  # embedding and head
        )
        shared_heads = tp if isinstance(attention, GqaSpec) else 1
        cache = (
            tp
            * self.requests_per_rank
            * serving.kv_tokens
            * (attention.cache_elements // shared_heads)
            * ELEMENT_BYTES[operators.attention.cache]
            * (model.layers + mtp)
        )
        dispatch, combine = (
            getattr(self.messages, p).message_bytes(hidden) for p in ("dispatch", "combine")
        )
        if die == "all":
            weights = rest_of_model + experts
            of_both = dispatch + combine if self.messages.buffers == 2 else max(dispatch, combine)
            buffers = deployment.ranks * self.tokens_per_rank * of_both
            return {"weights": weights, "KV cache": cache, "message buffers": buffers}
        # One buffer is emptied after each microbatch of each domain.
        parts = 1 if self.messages.buffers == 2 else serving.microbatches
        tokens = self.tokens_per_rank // parts
        if die == "attention":
            buffers = len(deployment.groups[-1]) * tokens * combine
            return {"weights": rest_of_model, "KV cache": cache, "message buffers": buffers}
        senders = deployment.groups[:-1] if self.messages.buffers == 2 else deployment.groups[:1]
        buffers = sum(map(len, senders)) * tokens * dispatch
        return {"weights": experts, "KV cache": 0, "message buffers": buffers}

    def _check_memory(self) -> None:
        dies: dict[Literal["all", "attention", "experts"], str] = {"all": "a die"}
        if self.deployment.disaggregated:
            dies = {"attention": "a die that attends", "experts": "a die with experts"}
        capacity = self.machine.die.hbm_capacity
        for die, name in dies.items():
            parts = self.memory_bytes(die)
            needed = sum(parts.values())
            if needed <= capacity:
                continue
            shown = ", ".join(f"{what} {size / _GB:.1f} GB" for what, size in parts.items())
            raise ValueError(
                f"machine.die.hbm_capacity: found {capacity / _GB:.1f} GB {name}, which "
                f"{self.model.name} exceeds by {(needed - capacity) / _GB:.1f} GB: {shown}; "
                f"allowed {needed / _GB:.1f} GB or more; or more ranks, fewer experts_per_rank, a "
                "smaller batch"
            )

    @model_validator(mode="after")
    def _check(self) -> WorkloadSpec:
        self.check_deployment()
        deployment, serving, die = self.deployment, self.serving, self.machine.die
        parts = deployment.dies_per_npu * serving.microbatches
        if deployment.disaggregated:
            shares = deployment.attention_ranks * serving.microbatches
            if serving.batch_per_npu * self.npus % shares:
                raise ValueError(
                    f"serving.batch_per_npu: found {serving.batch_per_npu} requests an NPU of "
                    f"{self.npus}, allowed a multiple of {shares // gcd(shares, self.npus)}, "
                    f"which attention_ranks x microbatches = {shares} divide among them"
                )
        elif serving.batch_per_npu % parts:
            raise ValueError(
                f"serving.batch_per_npu: found {serving.batch_per_npu}, allowed a multiple of "
                f"dies_per_npu x microbatches = {parts}"
            )
        tp = deployment.attention_tp
        for name in ("heads", "kv_heads"):
            heads = getattr(self.model.attention, name, tp)
            if heads % tp:
                raise ValueError(
                    f"deployment.attention_tp: found {tp}, allowed a divisor of "
                    f"model.attention.{name} = {heads}"
                )
        streams = self.operators.streams
        if self.shares_cores and min(die.cube_cores, die.vector_cores) < 2:
            raise ValueError(
                f"serving.microbatches: found {serving.microbatches}, allowed 1 on a die of "
                f"{die.cube_cores} cube and {die.vector_cores} vector cores, which two streams "
                "cannot share"
            )
        if self.shares_cores and streams.least_cube_cores > die.cube_cores // 2:
            raise ValueError(
                f"operators.streams.least_cube_cores: found {streams.least_cube_cores}, allowed up "
                f"to {die.cube_cores // 2}, half of machine.die.cube_cores"
            )
        for name in ("cube_cores", "vector_cores"):
            both, all_cores = (
                sum(getattr(of, name) for of in (streams.attention, streams.expert) if of),
                getattr(die, name),
            )
            if both > all_cores:
                raise ValueError(
                    f"operators.streams: found {both} {name} of both streams together, "
                    f"allowed up to machine.die.{name} = {all_cores}"
                )
        self._check_memory()
        return self


class ServersSpec(Spec):
    """Servers of the machine and what each holds, by which the pool's ranks are named."""

    count: PositiveCount
    dies: PositiveCount
    cpus: PositiveCount


class InstancesSpec(Spec):
    """Instances of prefill, the ranks (dies) of each, and which of them read a cached block."""

    instances: PositiveCount
    ranks: PositiveCount
    cached_at: CachedAt = "every"


class RequestsSpec(Spec):
    """Load of the pool: each request reads the cache, writes it, and hands its KV over."""

    rate: Annotated[Fraction, Field(gt=0)]
    arrivals: Literal["poisson", "even"]
    prompt_tokens: PositiveCount
    reused: Annotated[Fraction, Field(ge=0, lt=1)]


#: Where in a server the blocks lie that dies read after they came over vpc, and that a prefill
#: step stores: in the memory of its CPUs in turn, or all with the CPU that has the card.
VpcMemory = Literal["spread", "card"]


class CacheSpec(Spec):
    """The context cache: blocks of tokens in the memory of the CPUs, addressed by hash."""

    block_tokens: Annotated[Count, Field(ge=128, le=512)]
    #: Prompts with different prefixes that requests are drawn from.
    prefixes: PositiveCount
    #: Whether the prefixes lie in the cache from the start.
    warm: bool
    #: Whether a prefill step's own reads come layer by layer, or all before the first layer.
    step_reads: Literal["layer", "whole"]
    #: What the batch before a prefill step has still to store when the step begins, as many new
    #: blocks as the step will have: none, each stored by one die, or by every die that holds it.
    step_writes: Literal["none", "one", "every"]
    #: Layers that reads by layer may run ahead of the step.
    ahead_layers: Annotated[Count, Field(ge=0, le=16)]
    vpc_memory: VpcMemory = "spread"


class TransferSpec(Spec):
    """Network of a kind of transfer and who moves the bytes.

    ``write``: the cores of the rank that holds the bytes push them. ``sdma-write``: its SDMA
    engines do; only dies have some. ``read``, ``sdma-read``: the die that wants them loads them;
    over vpc from the CPUs of its server, to which they were pushed.
    """

    network: Literal["ub", "rdma", "vpc"]
    operation: Literal["write", "sdma-write", "read", "sdma-read"] = "write"


class KvTransferSpec(TransferSpec):
    """Transfer of the KV cache of a request from prefill to decode."""

    operation: Literal["write", "sdma-write"] = "sdma-write"
    #: ``layer``: a message a layer, ``whole``: one message.
    message: Literal["layer", "whole"] = "layer"

    def messages(self, layers: int) -> int:
        """Return the messages in which the cache of so many layers moves."""
        return layers if self.message == "layer" else 1


class CacheReadSpec(TransferSpec):
    """Reads of cached blocks."""

    network: Literal["ub", "vpc"]
    operation: Literal["write", "read", "sdma-read"] = "sdma-read"


class CacheWriteSpec(TransferSpec):
    """Writes of new blocks."""

    network: Literal["ub", "vpc"]
    operation: Literal["write", "sdma-write"] = "sdma-write"


class ModelLoadSpec(TransferSpec):
    """Dies that load their part of a model from the memory of the CPUs at a steady rate."""

    network: Literal["ub", "vpc"]
    operation: Literal["write", "read", "sdma-read"] = "write"
    dies: PositiveCount
    model: Bytes
    time: Picoseconds
    message: Bytes


class PoolSpec(Spec):
    """A traffic specification of a step and what the serving pool moves beside it."""

    name: str
    schema_version: Annotated[Count, Field(alias="schema", ge=1, le=1)]
    kind: Literal["pool"]
    description: str = ""
    seed: Annotated[Count, Field(ge=0)]
    step: WorkloadSpec | PrefillSpec
    servers: ServersSpec
    prefill: InstancesSpec
    decode_ranks: PositiveCount
    layer_time: Picoseconds
    requests: RequestsSpec
    cache: CacheSpec
    kv_transfer: KvTransferSpec | None = None
    cache_read: CacheReadSpec | None = None
    cache_write: CacheWriteSpec | None = None
    model_load: ModelLoadSpec | None = None

    @property
    def simulate_moe_layers(self) -> int | None:
        """MoE layers of the step to emit when the caller does not say."""
        return self.step.simulate_moe_layers

    @property
    def is_decode(self) -> bool:
        """Whether the step is one of decode."""
        return isinstance(self.step, WorkloadSpec)

    @property
    def model(self) -> ModelSpec:
        """The model of the step."""
        return self.step.model

    @property
    def gate(self) -> GatePolicy:
        """The gate of the step."""
        return self.step.gate

    @property
    def token_layer_bytes(self) -> int:
        """Bytes that a token leaves in the KV cache of one layer."""
        precision = self.step.operators.attention.cache
        return self.model.attention.cache_elements * ELEMENT_BYTES[precision]

    @property
    def is_data_parallel(self) -> bool:
        """Whether each prompt is one rank's alone, in all prefill instances: as in the step."""
        return isinstance(self.step, PrefillSpec) and self.step.serving.attention == "data"

    @property
    def every_rank_reads_blocks(self) -> bool:
        """Whether all ranks of a prefill instance read a cached block, or one of them."""
        return not self.is_data_parallel and self.prefill.cached_at == "every"

    @property
    def block_messages(self) -> int:
        """Messages that a block is moved in: one a layer and tensor of the cache."""
        return self.model.cache_tensors

    @property
    def piece_bytes(self) -> int:
        """Mean bytes of these messages."""
        block_bytes = self.cache.block_tokens * self.token_layer_bytes * self.model.layers
        return block_bytes // self.block_messages

    @property
    def extra_dies(self) -> int:
        """Dies beside those of the step."""
        ranks = self.prefill.instances * self.prefill.ranks + self.decode_ranks
        loading = self.model_load.dies if self.model_load else 0
        return ranks - self.step.deployment.ranks + loading

    @model_validator(mode="after")
    def _check(self) -> PoolSpec:
        step, deployment = self.step, self.step.deployment
        if deployment.disaggregated:
            raise ValueError(
                "step.deployment.disaggregated: found in the step of a pool, allowed in a decode "
                "step by itself"
            )
        key = "decode_ranks" if self.is_decode else "prefill.ranks"
        ranks = self.decode_ranks if self.is_decode else self.prefill.ranks
        if ranks != deployment.ranks:
            raise ValueError(
                f"{key}: found {ranks}, allowed {deployment.ranks}, the ranks of the step"
            )
        if deployment.attention_tp != 1:
            raise ValueError(
                f"step.deployment.attention_tp: found {deployment.attention_tp}, allowed 1"
            )
        dies, needed = self.servers.count * self.servers.dies, deployment.ranks + self.extra_dies
        if needed > dies:
            raise ValueError(
                f"servers: found {dies} dies, of which step, instances and model_load need "
                f"{needed}; allowed more servers or fewer instances"
            )
        if self.requests.prompt_tokens % self.cache.block_tokens:
            raise ValueError(
                f"requests.prompt_tokens: found {self.requests.prompt_tokens}, allowed a multiple "
                f"of cache.block_tokens = {self.cache.block_tokens}"
            )
        if self.kv_transfer is not None:
            layers = self.model.layers
            whole = self.requests.prompt_tokens * self.token_layer_bytes * layers
            size = whole // self.kv_transfer.messages(layers)
            if size >= 2**31:
                raise ValueError(
                    f"requests.prompt_tokens: found {self.requests.prompt_tokens}, with "
                    f"kv_transfer.message {self.kv_transfer.message} messages of {size} B, allowed "
                    "below 2**31 B"
                )
        if self.cache.step_writes != "none":
            self._check_step_writes()
        if isinstance(step, PrefillSpec):
            bad = [p.reused for p in step.serving.prompts if p.reused % self.cache.block_tokens]
            if bad:
                raise ValueError(
                    f"step.serving.prompts: found {bad[0]} reused tokens, allowed a multiple of "
                    f"cache.block_tokens = {self.cache.block_tokens}"
                )
            if step.serving.reused_tokens and self.cache_read is None:
                raise ValueError(
                    "cache_read: found none, and prompts of the step reuse tokens; allowed a "
                    "network and an operation"
                )
            if step.serving.cached_at != self.prefill.cached_at:
                raise ValueError(
                    f"prefill.cached_at: found {self.prefill.cached_at!r}, allowed "
                    f"{step.serving.cached_at!r}, that of the step"
                )
        if self.model_load is not None and not self.model_load.message:
            raise ValueError("model_load.message: found 0 B, allowed 1 B or more")
        return self

    def _check_step_writes(self) -> None:
        found = f"cache.step_writes: found {self.cache.step_writes!r}"
        if not isinstance(self.step, PrefillSpec):
            raise ValueError(f"{found} and a step of decode, which stores nothing; allowed 'none'")
        if self.cache_write is None:
            raise ValueError(f"{found} and no cache_write, allowed 'none' or both")
        if not self.step.serving.reused_tokens:
            raise ValueError(
                f"{found} and no reused tokens in the step, whose reads wait for what is stored; "
                "allowed 'none'"
            )
        if self.cache.step_writes == "every" and not self.every_rank_reads_blocks:
            raise ValueError(f"{found}, and each block is on one die only; allowed 'none', 'one'")


@dataclass(frozen=True)
class Workload:
    """A checked specification together with the text it came from.

    Attributes
    ----------
    spec : WorkloadSpec, PrefillSpec or PoolSpec
        Checked; quantities are integers in ps, bytes, bytes/s and operations/s.
    raw : dict
        The mapping as written, bases and parts put in, overrides applied: what a trace carries.
    label : str
        File or name, for messages to people.
    folder : Path
        Where relative file names in the specification start.
    """

    spec: WorkloadSpec | PrefillSpec | PoolSpec
    raw: dict[str, Any]
    label: str
    folder: Path


def load_workload(
    source: str | Path | Mapping[str, Any] | Workload, overrides: Mapping[str, Any] | None = None
) -> Workload:
    """Load and check a traffic specification.

    Parameters
    ----------
    source : str, Path, mapping or Workload
        A shipped name such as ``deepseek-r1-decode-ep320``, a YAML file, or its content. With
        the key ``base``, a name or file, it holds only what differs from that.
    overrides : mapping, optional
        Values to change, by dotted key: ``{"serving.batch_per_npu": 64, "gate": {...}}``.

    Raises
    ------
    SpecError
        One line with file, key, what was found and what is allowed.

    Examples
    --------
    >>> load_workload("deepseek-r1-decode-ep320").spec.tokens_per_rank
    96
    """
    if isinstance(source, Workload):
        label, raw, folder = source.label, copy.deepcopy(source.raw), source.folder
    else:
        label, raw, folder = read_spec(source, "traffic specification")
    raw = _resolve_parts(raw, label, folder)
    for key, value in (overrides or {}).items():
        override(raw, key, value, label)
    raw = _resolve_parts(raw, label, folder)  # an override may name another model or machine
    kind = raw.get("kind", "decode")
    models: dict[str, type[WorkloadSpec] | type[PrefillSpec] | type[PoolSpec]] = {
        "decode": WorkloadSpec,
        "prefill": PrefillSpec,
        "pool": PoolSpec,
    }
    if kind not in models:
        raise SpecError(f"{label}: kind: found {kind!r}, allowed: {', '.join(models)}")
    if kind == "pool":
        step = raw.get("step")
        if not isinstance(step, dict):
            raise SpecError(f"{label}: step: found {step!r}, allowed a specification of a step")
        of_step = step.get("kind", "decode")
        if of_step not in ("decode", "prefill"):
            raise SpecError(f"{label}: step.kind: found {of_step!r}, allowed: decode, prefill")
        # Checked by itself first, so that an error names the key of one kind and not of both.
        validate_spec(models[of_step], step, f"{label}: step")
    return Workload(validate_spec(models[kind], raw, label), raw, label, folder)


def read_spec(
    source: str | Path | Mapping[str, Any], unnamed: str
) -> tuple[str, dict[str, Any], Path]:
    """Read a specification of traffic or serving and lay it over its bases.

    Parameters
    ----------
    source : str, pathlib.Path or mapping
        A shipped name, a YAML file, or what one would hold.
    unnamed : str
        What to call a mapping without a name in messages.

    Returns
    -------
    label : str
        How messages call it.
    raw : dict
        What it says, not yet checked.
    folder : pathlib.Path
        Files that it names are beside this.

    Raises
    ------
    SpecError
        If a file or a base is missing, not YAML, or based on itself.
    """
    if isinstance(source, Mapping):
        label, raw, folder = str(source.get("name", unnamed)), dict(source), Path()
    else:
        label, raw = load_yaml(source, "traffic")
        folder = _folder_of(source)
    return label, _resolve_base(copy.deepcopy(raw), label, folder), folder


def _folder_of(source: str | Path) -> Path:
    if str(source).endswith((".yaml", ".yml")):
        return Path(source).parent
    return Path(str(shipped("traffic")[str(source)])).parent


def _resolve_base(
    raw: dict[str, Any], label: str, folder: Path, shipped_in: str = "traffic"
) -> dict[str, Any]:
    """Lay a specification over the one that its ``base`` names, and that over its own base."""
    bases = [label]
    while "base" in raw:
        base = raw.pop("base")
        if not isinstance(base, str):
            raise SpecError(f"{label}: base: found {base!r}, allowed a shipped name or a YAML file")
        if base.endswith((".yaml", ".yml")):
            base = str(folder / base)
        try:
            base_label, base_raw = load_yaml(base, shipped_in)
        except SpecError as error:
            raise SpecError(f"{label}: base: {error}") from None
        if base_label in bases:
            raise SpecError(f"{label}: base: found {base_label}, which is based on itself")
        bases.append(base_label)
        raw = _lay_over(base_raw, raw)
    return raw


def _resolve_parts(raw: dict[str, Any], label: str, folder: Path) -> dict[str, Any]:
    """Put in the parts that a specification names: its model, or the step of a pool."""
    step = raw.get(STEP)
    if isinstance(step, str):
        step = {"base": step}
    if isinstance(step, dict):
        step = _resolve_base(dict(step), f"{label}: {STEP}", folder)
        raw[STEP] = _resolve_parts(step, f"{label}: {STEP}", folder)
    for key, shipped_in in PARTS.items():
        part = raw.get(key)
        if isinstance(part, str):
            part = {"base": part}
        if isinstance(part, dict):
            raw[key] = _resolve_base(dict(part), f"{label}: {key}", folder, shipped_in)
    return raw


def _lay_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; a sourced number, a policy and a part are replaced whole.

    A part, such as the model, is written as the name of its file or as a mapping with ``base``.
    """
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if key in (*PARTS, STEP) and isinstance(old, str):
            old = {"base": old}
        if isinstance(old, dict) and isinstance(value, dict):
            whole = {"value", "policy"} & (old.keys() | value.keys()) or "base" in value
            value = value if whole else _lay_over(old, value)
        result[key] = value
    return result
