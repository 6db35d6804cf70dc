"""The specification of a serving system: arrivals, pools of prefill and decode, cache, objectives.

``traffic/deepseek-r1-serving.yaml`` is the reference; each of its keys is explained there, next
to its number and source. Steps of both pools are specifications of their own
(:mod:`ubfabric.workload`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import networkx as nx
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from ubfabric.errors import SpecError
from ubfabric.operators import ELEMENT_BYTES, PositiveCount
from ubfabric.quantities import Bytes, Count, Fraction, Picoseconds
from ubfabric.requests import ArrivalPolicy, parse_arrivals
from ubfabric.specs import Spec, override, validate_spec
from ubfabric.sweep import SweepRunSpec
from ubfabric.topology import SAVED_GRAPHS
from ubfabric.workload import (
    KvTransferSpec,
    PrefillSpec,
    VpcMemory,
    Workload,
    WorkloadSpec,
    load_workload,
    read_spec,
)


def _ascending(values: list[Any]) -> list[Any]:
    if any(low >= high for low, high in itertools.pairwise(values)):
        raise ValueError(f"found {values}, allowed ascending numbers")
    return values


_Counts = Annotated[list[PositiveCount], Field(min_length=1)]
_Share = Annotated[Fraction, Field(ge=0, lt=1)]


class GridSpec(Spec):
    """Points at which a time is simulated: every combination of the axes."""

    @model_validator(mode="after")
    def _check_order(self) -> GridSpec:
        for axis in type(self).model_fields:
            try:
                _ascending(getattr(self, axis))
            except ValueError as error:
                raise ValueError(f"{axis}: {error}") from None
        return self


class DecodeGridSpec(GridSpec):
    """Shapes of a decode step: requests of the fullest die, and mean KV tokens of its requests."""

    batch_per_die: _Counts
    kv_tokens: _Counts


class PrefillGridSpec(GridSpec):
    """Shapes of a batch of prefill: tokens to compute, length of prompts, share that is cached."""

    tokens: _Counts
    prompt_tokens: _Counts
    cached_share: Annotated[list[_Share], Field(min_length=1)]


class TransferGridSpec(GridSpec):
    """Shapes of a transfer: tokens of a request, and requests that move at the same time."""

    tokens: _Counts
    concurrent: _Counts


class InstancesSpec(Spec):
    """What pools of both kinds have in common.

    ``workload`` names the specification of a step, ``changes`` what is other in it, and ``run``
    how it is replayed.
    """

    workload: str
    changes: dict[str, Any] = Field(default_factory=dict)
    run: SweepRunSpec = SweepRunSpec()
    instances: PositiveCount


class PrefillPoolSpec(InstancesSpec):
    """Instances that fill prompts, batch by batch."""

    batch_tokens: PositiveCount
    grid: PrefillGridSpec


class DecodePoolSpec(InstancesSpec):
    """Instances that decode, step by step."""

    batch_per_die: PositiveCount
    grid: DecodeGridSpec


class ServingKvTransferSpec(KvTransferSpec):
    """The way of a request's KV cache from a die of prefill to a die of decode."""

    network: Literal["rdma", "ub"]


class CacheSpec(Spec):
    """The context cache in the DRAM of the CPUs."""

    network: Literal["ub", "vpc"]
    block_tokens: PositiveCount
    capacity: Bytes | None = None
    vpc_memory: VpcMemory = "spread"


class ObjectivesSpec(Spec):
    """What a request should get; a time left out is no objective."""

    ttft: Picoseconds | None = None
    tpot: Picoseconds | None = None


class ServingSystemSpec(Spec):
    """A serving system and its requests."""

    name: str
    schema_version: Annotated[Count, Field(alias="schema", ge=1, le=1)]
    kind: Literal["serving"]
    description: str = ""
    seed: Annotated[Count, Field(ge=0)]
    topology: str
    fabric: dict[str, Any] = Field(default_factory=dict)
    arrivals: Annotated[SerializeAsAny[ArrivalPolicy], BeforeValidator(parse_arrivals)]
    duration: Annotated[Picoseconds, Field(gt=0)] | None = None
    prefill: PrefillPoolSpec
    decode: DecodePoolSpec
    kv_transfer: ServingKvTransferSpec
    cache: CacheSpec
    transfers: TransferGridSpec
    transfer_run: SweepRunSpec = SweepRunSpec()
    objectives: ObjectivesSpec = ObjectivesSpec()
    sample_interval: Annotated[Picoseconds, Field(gt=0)]


@dataclass(frozen=True)
class ServingSystem:
    """A checked serving specification with the steps of its pools.

    Attributes
    ----------
    spec : ServingSystemSpec
    raw : dict
        The mapping as written, overrides applied.
    label : str
        File or name, for messages to people.
    folder : Path
        Where relative file names start.
    prefill, decode : Workload
        Steps, with their changes; decode at the greatest batch and the fewest KV tokens.
    """

    spec: ServingSystemSpec
    raw: dict[str, Any]
    label: str
    folder: Path
    prefill: Workload
    decode: Workload

    @property
    def prefill_spec(self) -> PrefillSpec:
        """The step of prefill."""
        assert isinstance(self.prefill.spec, PrefillSpec)
        return self.prefill.spec

    @property
    def decode_spec(self) -> WorkloadSpec:
        """The step of decode."""
        assert isinstance(self.decode.spec, WorkloadSpec)
        return self.decode.spec

    @property
    def every_die_reads(self) -> bool:
        """Whether all dies of a prefill instance read each cached block, or one of them does."""
        return self.prefill_spec.serving.every_rank_has_cached

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of a token in all layers, without those of MTP: what travels."""
        spec = self.decode_spec
        size = ELEMENT_BYTES[spec.operators.attention.cache]
        return spec.model.attention.cache_elements * size * spec.model.layers

    def kv_messages(self, tokens: int) -> tuple[int, int]:
        """Return the messages in which the KV cache of a request moves, and the bytes of each."""
        messages = self.spec.kv_transfer.messages(self.decode_spec.model.layers)
        return messages, tokens * self.kv_bytes_per_token // messages

    @property
    def kv_capacity_tokens(self) -> int:
        """KV tokens that a die of decode has room for beside weights and message buffers."""
        spec = self.decode_spec
        parts = spec.memory_bytes()
        tokens = spec.requests_per_rank * spec.serving.kv_tokens
        free = spec.machine.die.hbm_capacity - parts["weights"] - parts["message buffers"]
        return free * tokens // parts["KV cache"]

    def decode_changes(self, batch_per_die: int, kv_tokens: int) -> dict[str, Any]:
        """Return the changes that make a shape of a decode step.

        Fewer requests than microbatches are one microbatch.
        """
        dies = self.decode_spec.deployment.dies_per_npu
        shape = {"serving.batch_per_npu": batch_per_die * dies, "serving.kv_tokens": kv_tokens}
        if batch_per_die < self.decode_spec.serving.microbatches:
            shape["serving.microbatches"] = 1
        return flatten(self.spec.decode.changes) | shape

    def prefill_changes(self, tokens: int, prompt_tokens: int, share: float) -> dict[str, Any]:
        """Return the changes that make a shape of a batch of prefill.

        Fewer prompts than microbatches are one microbatch. Tokens that are less than one prompt
        (with data-parallel attention one a rank) are so many shorter prompts, since no batch has
        less.

        Raises
        ------
        SpecError
            If the tokens are no whole number of prompts.
        """
        serving, ranks = self.prefill_spec.serving, self.prefill_spec.deployment.ranks
        fewest = ranks if serving.attention == "data" else 1
        length: float = prompt_tokens
        count, rest = divmod(tokens, prompt_tokens * (1 - share))
        if count < fewest:
            count, rest, length = fewest, 0, tokens / fewest / (1 - share)
        cached = length * share
        if rest or length != int(length) or cached != int(cached):
            raise SpecError(
                f"{self.label}: prefill.grid: found {tokens} tokens to compute in prompts of "
                f"{prompt_tokens} of which {share:g} is cached, allowed a whole number of prompts "
                "of whole tokens"
            )
        prompts: dict[str, Any] = {"tokens": int(length), "count": int(count)}
        if cached:
            prompts["reused"] = int(cached)
        shape: dict[str, Any] = {"serving.prompts": [prompts]}
        if count < fewest * serving.microbatches:
            shape["serving.microbatches"] = 1
        return flatten(self.spec.prefill.changes) | shape

    def check_fabric(self, graph: nx.Graph) -> None:
        """Check that all instances have dies of their own.

        Raises
        ------
        SpecError
            If there are fewer dies.
        """
        spec = self.spec
        dies = sum(kind == "die" for _, kind in graph.nodes(data="kind"))
        ranks = [step.deployment.ranks for step in (self.prefill_spec, self.decode_spec)]
        needed = spec.prefill.instances * ranks[0] + spec.decode.instances * ranks[1]
        if needed > dies:
            raise SpecError(
                f"{self.label}: prefill.instances: found {spec.prefill.instances} of {ranks[0]} "
                f"dies beside {spec.decode.instances} of {ranks[1]} for decode, {needed} dies; "
                f"{spec.topology} has {dies}"
            )


def flatten(changes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested changes by dotted key; sourced numbers, policies and parts stay whole."""
    flat: dict[str, Any] = {}
    for key, value in changes.items():
        if isinstance(value, Mapping) and not {"value", "policy", "base"} & value.keys():
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def load_serving(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> ServingSystem:
    """Load and check the specification of a serving system.

    Parameters
    ----------
    source : str, Path or mapping
        A shipped name such as ``deepseek-r1-serving``, a YAML file, or its content. Relative file
        names start at the file's folder.
    overrides : mapping, optional
        Values to change, by dotted key: ``{"decode.changes.serving.mtp_acceptance": 0.9}``.

    Raises
    ------
    SpecError
        One line with file, key, what was found and what is allowed.

    Examples
    --------
    >>> load_serving("deepseek-r1-serving").kv_bytes_per_token
    70272
    """
    label, raw, folder = read_spec(source, "serving specification")
    for key, value in (overrides or {}).items():
        override(raw, key, value, label)
    if raw.get("kind") != "serving":
        raise SpecError(f"{label}: kind: found {raw.get('kind', 'decode')!r}, allowed: serving")
    spec = validate_spec(ServingSystemSpec, raw, label)
    spec = spec.model_copy(
        update={
            "topology": _placed(spec.topology, folder),
            "prefill": _placed_pool(spec.prefill, folder),
            "decode": _placed_pool(spec.decode, folder),
        }
    )
    prefill = _load_step(spec.prefill, "prefill", {}, label)
    decode = _load_step(spec.decode, "decode", {}, label)
    assert isinstance(decode.spec, WorkloadSpec)
    limits = {
        "serving.batch_per_npu": spec.decode.batch_per_die * decode.spec.deployment.dies_per_npu,
        "serving.kv_tokens": spec.decode.grid.kv_tokens[0],
    }
    decode = _load_step(spec.decode, "decode", limits, label)
    system = ServingSystem(spec, raw, label, folder, prefill, decode)
    _check_limits(system)
    return system


def _placed(name: str, folder: Path) -> str:
    """Return a name as it stands, and a file's path as seen from here."""
    is_file = name.endswith((".yaml", ".yml", *SAVED_GRAPHS))
    return str((folder / name).absolute()) if is_file else name


def _placed_pool(pool: InstancesSpec, folder: Path) -> InstancesSpec:
    return pool.model_copy(update={"workload": _placed(pool.workload, folder)})


def _load_step(pool: InstancesSpec, kind: str, limits: Mapping[str, Any], label: str) -> Workload:
    try:
        workload = load_workload(pool.workload, flatten(pool.changes) | dict(limits))
    except SpecError as error:
        raise SpecError(f"{label}: {kind}.workload: {error}") from None
    found = getattr(workload.spec, "kind", "decode")
    if found != kind:
        raise SpecError(f"{label}: {kind}.workload: found one of kind {found!r}, allowed: {kind}")
    if isinstance(workload.spec, WorkloadSpec) and workload.spec.deployment.disaggregated:
        raise SpecError(
            f"{label}: {kind}.workload: found deployment.disaggregated, allowed dies that attend "
            "and hold experts"
        )
    return workload


def _check_limits(system: ServingSystem) -> None:
    """Check that no batch can leave the grid of its times."""
    spec, label = system.spec, system.label
    highest = spec.decode.grid.batch_per_die[-1]
    if spec.decode.batch_per_die > highest:
        raise SpecError(
            f"{label}: decode.batch_per_die: found {spec.decode.batch_per_die}, allowed up to the "
            f"last of decode.grid.batch_per_die, {highest}"
        )
    highest = spec.prefill.grid.tokens[-1]
    if spec.prefill.batch_tokens > highest:
        raise SpecError(
            f"{label}: prefill.batch_tokens: found {spec.prefill.batch_tokens}, allowed up to the "
            f"last of prefill.grid.tokens, {highest}"
        )
    models = [step.spec.model.name for step in (system.prefill, system.decode)]
    if models[0] != models[1]:
        raise SpecError(
            f"{label}: prefill.workload: found the model {models[0]}, allowed that of "
            f"decode.workload, {models[1]}"
        )
    tokens = spec.transfers.tokens[-1]
    _, size = system.kv_messages(tokens)
    if size >= 2**31:
        raise SpecError(
            f"{label}: transfers.tokens: found {tokens}, with kv_transfer.message "
            f"{spec.kv_transfer.message} messages of {size} B, allowed below 2**31 B"
        )
    prefill = spec.prefill.grid
    for point in itertools.product(prefill.tokens, prefill.prompt_tokens, prefill.cached_share):
        system.prefill_changes(*point)
