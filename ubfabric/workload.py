"""The traffic specification: model, deployment, batch, messages, gate and operator times.

``traffic/deepseek-r1-decode-ep320.yaml`` is the reference; each of its keys is explained
there, next to its number, unit and source.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from ubfabric.errors import SpecError
from ubfabric.gate import GatePolicy, parse_gate
from ubfabric.placement import DeploymentSpec
from ubfabric.quantities import Bytes, BytesPerSecond, Count, Fraction, OpsPerSecond, Picoseconds
from ubfabric.specs import Spec, load_yaml, override, shipped, validate_spec

PositiveCount = Annotated[Count, Field(ge=1)]
PositiveFraction = Annotated[Fraction, Field(gt=0, le=1)]
#: Bytes of one number of a weight matrix.
ELEMENT_BYTES = {"int8": 1, "bf16": 2}


class ModelSpec(Spec):
    """Shape of a mixture-of-experts transformer."""

    name: str
    layers: PositiveCount
    dense_layers: Annotated[Count, Field(ge=0)]
    hidden_size: PositiveCount
    dense_ffn_size: PositiveCount
    expert_ffn_size: PositiveCount
    ffn_matrices: PositiveCount
    routed_experts: PositiveCount
    shared_experts: Annotated[Count, Field(ge=0, le=1)]
    top_k: PositiveCount
    expert_groups: PositiveCount
    kept_groups: PositiveCount
    group_score_experts: PositiveCount
    vocabulary: PositiveCount

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts, without MTP layers."""
        return self.layers - self.dense_layers

    @model_validator(mode="after")
    def _check(self) -> ModelSpec:
        if self.dense_layers >= self.layers:
            raise ValueError(
                f"dense_layers: found {self.dense_layers}, allowed below {self.layers}"
            )
        if self.routed_experts > 65_536:
            raise ValueError(f"routed_experts: found {self.routed_experts}, allowed up to 65536")
        if self.routed_experts % self.expert_groups:
            raise ValueError(
                f"expert_groups: found {self.expert_groups}, "
                f"allowed a divisor of routed_experts = {self.routed_experts}"
            )
        if self.kept_groups > self.expert_groups:
            raise ValueError(
                f"kept_groups: found {self.kept_groups}, allowed 1 to {self.expert_groups}"
            )
        reachable = self.kept_groups * self.routed_experts // self.expert_groups
        if self.top_k > reachable:
            raise ValueError(
                f"top_k: found {self.top_k}, allowed 1 to {reachable}, the experts in kept groups"
            )
        return self


class ServingSpec(Spec):
    """The point of operation: one decode step of a full batch."""

    batch_per_npu: PositiveCount
    kv_tokens: PositiveCount
    microbatches: Annotated[Count, Field(ge=1, le=2)]
    mtp_tokens: Annotated[Count, Field(ge=0, le=8)]
    mtp_acceptance: Annotated[Fraction, Field(ge=0, le=1)]


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
    network: Literal["ub", "rdma", "vpc"] = "ub"
    service_level: Annotated[Count, Field(ge=0, le=15)] = 0
    send_order: Literal["shuffled", "rotated"] = "shuffled"


class DieSpec(Spec):
    """What one die can compute and read."""

    hbm_bandwidth: BytesPerSecond
    int8_rate: OpsPerSecond
    bf16_rate: OpsPerSecond
    cube_cores: PositiveCount


class FixedTimeSpec(Spec):
    """An operator that takes the same time whatever its input."""

    fixed: Picoseconds


class AttentionTimeSpec(Spec):
    """Attention of one microbatch: a fixed part and one in proportion to query x KV tokens.

    The slope is set by one known point: ``anchor_time`` for ``anchor_query_tokens`` query
    tokens that each attend to ``anchor_kv_tokens``.
    """

    fixed: Picoseconds
    anchor_time: Picoseconds
    anchor_query_tokens: PositiveCount
    anchor_kv_tokens: PositiveCount

    @model_validator(mode="after")
    def _check(self) -> AttentionTimeSpec:
        if self.anchor_time < self.fixed:
            raise ValueError(
                f"anchor_time: found {self.anchor_time} ps, allowed fixed = {self.fixed} ps or more"
            )
        return self


class RooflineTimeSpec(Spec):
    """A matrix operator: the longer of reading its weights and computing, plus ``launch``."""

    launch: Picoseconds
    precision: Literal["int8", "bf16"]
    cube_cores: PositiveCount
    compute_efficiency: PositiveFraction


class HeadTimeSpec(RooflineTimeSpec):
    """The LM head of one pass and the sampling of its tokens."""

    sampling: Picoseconds


class OperatorsSpec(Spec):
    """Time of each operator on one die."""

    attention: AttentionTimeSpec
    gate: FixedTimeSpec
    dispatch: FixedTimeSpec
    expert: RooflineTimeSpec
    combine: FixedTimeSpec
    ffn: RooflineTimeSpec
    head: HeadTimeSpec


class ReferenceRow(Spec):
    """A published result that a run of the same point is shown beside."""

    ranks: PositiveCount
    batch_per_npu: PositiveCount
    kv_tokens: PositiveCount
    tpot: Picoseconds
    tokens_per_s_per_npu: PositiveCount
    slo: Picoseconds | None = None
    source: str
    strength: Literal["read", "secondary", "recalled", "derived", "assumed", "fitted"]
    note: str = ""


class ReferenceSpec(Spec):
    """Published results."""

    rows: list[ReferenceRow] = Field(default_factory=list)


class WorkloadSpec(Spec):
    """A traffic specification."""

    name: str
    schema_version: Annotated[Count, Field(alias="schema", ge=1, le=1)]
    description: str = ""
    seed: Annotated[Count, Field(ge=0)]
    simulate_moe_layers: PositiveCount | None = None
    model: ModelSpec
    deployment: DeploymentSpec
    serving: ServingSpec
    messages: MessagesSpec
    gate: Annotated[SerializeAsAny[GatePolicy], BeforeValidator(parse_gate)]
    die: DieSpec
    operators: OperatorsSpec
    reference: ReferenceSpec = ReferenceSpec()

    @property
    def requests_per_rank(self) -> int:
        """Requests that one die decodes."""
        return self.serving.batch_per_npu // self.deployment.dies_per_npu

    @property
    def query_tokens_per_request(self) -> int:
        """Tokens a request runs through the model each step: one and its MTP guesses."""
        return 1 + self.serving.mtp_tokens

    @property
    def tokens_per_rank(self) -> int:
        """Tokens that one die runs through the model each step."""
        return self.requests_per_rank * self.query_tokens_per_request

    @property
    def npus(self) -> int:
        """NPUs of the deployment."""
        return self.deployment.ranks // self.deployment.dies_per_npu

    @model_validator(mode="after")
    def _check(self) -> WorkloadSpec:
        deployment, serving, die = self.deployment, self.serving, self.die
        if deployment.ranks % deployment.dies_per_npu:
            raise ValueError(
                f"deployment.ranks: found {deployment.ranks}, "
                f"allowed a multiple of dies_per_npu = {deployment.dies_per_npu}"
            )
        parts = deployment.dies_per_npu * serving.microbatches
        if serving.batch_per_npu % parts:
            raise ValueError(
                f"serving.batch_per_npu: found {serving.batch_per_npu}, allowed a multiple of "
                f"dies_per_npu x microbatches = {parts}"
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
        for name in ("expert", "ffn", "head"):
            cores = getattr(self.operators, name).cube_cores
            if cores > die.cube_cores:
                raise ValueError(
                    f"operators.{name}.cube_cores: found {cores}, "
                    f"allowed 1 to die.cube_cores = {die.cube_cores}"
                )
        for name in ("dispatch", "combine"):
            size = getattr(self.messages, name).message_bytes(self.model.hidden_size)
            if not 1 <= size < 2**31:
                raise ValueError(
                    f"messages.{name}: found a message of {size} B, allowed 1 to 2**31 - 1"
                )
        return self


@dataclass(frozen=True)
class Workload:
    """A checked specification together with the text it came from.

    Attributes
    ----------
    spec : WorkloadSpec
        Checked; quantities are integers in ps, bytes, bytes/s and operations/s.
    raw : dict
        The mapping as written, overrides applied: what a trace carries.
    label : str
        File or name, for messages to people.
    folder : Path
        Where relative file names in the specification start.
    """

    spec: WorkloadSpec
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
        label, raw, folder = source.label, source.raw, source.folder
    elif isinstance(source, Mapping):
        label, raw, folder = str(source.get("name", "traffic specification")), dict(source), Path()
    else:
        label, raw = load_yaml(source, "traffic")
        folder = _folder_of(source)
    raw = _resolve_base(copy.deepcopy(raw), label, folder)
    for key, value in (overrides or {}).items():
        override(raw, key, value, label)
    return Workload(validate_spec(WorkloadSpec, raw, label), raw, label, folder)


def _folder_of(source: str | Path) -> Path:
    if str(source).endswith((".yaml", ".yml")):
        return Path(source).parent
    return Path(str(shipped("traffic")[str(source)])).parent


def _resolve_base(raw: dict[str, Any], label: str, folder: Path) -> dict[str, Any]:
    """Lay a specification over the one that its ``base`` names, and that over its own base."""
    bases = [label]
    while "base" in raw:
        base = raw.pop("base")
        if not isinstance(base, str):
            raise SpecError(f"{label}: base: found {base!r}, allowed a shipped name or a YAML file")
        if base.endswith((".yaml", ".yml")):
            base = str(folder / base)
        base_label, base_raw = load_yaml(base, "traffic")
        if base_label in bases:
            raise SpecError(f"{label}: base: found {base_label}, which is based on itself")
        bases.append(base_label)
        raw = _lay_over(base_raw, raw)
    return raw


def _lay_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; a sourced number and a policy are replaced whole."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            whole = {"value", "policy"} & (old.keys() | value.keys())
            value = value if whole else _lay_over(old, value)
        result[key] = value
    return result
