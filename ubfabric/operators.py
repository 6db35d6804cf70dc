"""How long an operator takes on one die: a roofline from shapes and peaks, or what was measured.

The work of an operator (operations, bytes, vector work, kernels) follows from the shape of the
model, the tokens it works on and its precision; its time is

    launches + max(operations / (rate x share of the cube cores x efficiency),
                   bytes / (HBM bandwidth x efficiency)) + vector work / vector cores

Weights and KV cache are read once from memory; activations are taken to stay in the cache of the
die. A table of measured times replaces this operator by operator (:class:`MeasuredTimes`).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from ubfabric.errors import SpecError
from ubfabric.quantities import (
    Bytes,
    BytesPerSecond,
    Count,
    Fraction,
    OpsPerSecond,
    Picoseconds,
    parse_time_ps,
)
from ubfabric.specs import Spec

PositiveCount = Annotated[Count, Field(ge=1)]
PositiveFraction = Annotated[Fraction, Field(gt=0, le=1)]
Precision = Literal["int8", "bf16", "fp32"]
#: Bytes of one number.
ELEMENT_BYTES = {"int8": 1, "bf16": 2, "fp32": 4}
#: The same by name.
FP32, BF16, INT8 = ELEMENT_BYTES["fp32"], ELEMENT_BYTES["bf16"], ELEMENT_BYTES["int8"]
#: Bytes of an element that is read in BF16 and written in INT8.
QUANTISED = BF16 + INT8
#: Bytes of one that is read in BF16 and written in FP32.
CAST = BF16 + FP32
_PS_PER_S = 10**12


class MlaSpec(Spec):
    """Multi-head latent attention: queries, keys and values through low-rank projections."""

    kind: Literal["mla"]
    heads: PositiveCount
    q_lora_rank: PositiveCount
    kv_lora_rank: PositiveCount
    qk_nope_head_dim: PositiveCount
    qk_rope_head_dim: PositiveCount
    v_head_dim: PositiveCount

    @property
    def cache_elements(self) -> int:
        """Numbers that a token leaves in the KV cache of a layer; not divided among heads."""
        return sum(self.cache_parts)

    @property
    def cache_parts(self) -> tuple[int, ...]:
        """The same by tensor: latent, and rotated key."""
        return self.kv_lora_rank, self.qk_rope_head_dim

    @property
    def query_elements(self) -> int:
        """Numbers of all heads' queries of a token, before they are absorbed."""
        return self.heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)

    def parameters(self, hidden_size: int) -> int:
        """Return the parameters of a layer's attention."""
        down = hidden_size * (self.q_lora_rank + self.cache_elements)
        up = self.q_lora_rank * self.query_elements + self.absorbed_parameters()
        return down + up + self.output_parameters(hidden_size)

    def absorbed_parameters(self) -> int:
        """Return the parameters that decode keeps apart: keys and values from the latent."""
        return self.heads * self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim)

    def output_parameters(self, hidden_size: int) -> int:
        """Return the parameters of the output projection."""
        return self.heads * self.v_head_dim * hidden_size


class GqaSpec(Spec):
    """Grouped-query attention: several query heads share a key and value head."""

    kind: Literal["gqa"]
    heads: PositiveCount
    kv_heads: PositiveCount
    head_dim: PositiveCount

    @property
    def cache_elements(self) -> int:
        """Numbers that a token leaves in the KV cache of a layer."""
        return sum(self.cache_parts)

    @property
    def cache_parts(self) -> tuple[int, ...]:
        """The same by tensor: keys, and values."""
        return self.kv_heads * self.head_dim, self.kv_heads * self.head_dim

    @property
    def query_elements(self) -> int:
        """Numbers of all heads' queries of a token."""
        return self.heads * self.head_dim

    def parameters(self, hidden_size: int) -> int:
        """Return the parameters of a layer's attention."""
        return hidden_size * (self.query_elements + self.cache_elements) + self.output_parameters(
            hidden_size
        )

    def output_parameters(self, hidden_size: int) -> int:
        """Return the parameters of the output projection."""
        return self.query_elements * hidden_size

    @model_validator(mode="after")
    def _check(self) -> GqaSpec:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads: found {self.kv_heads}, allowed a divisor of heads = {self.heads}"
            )
        return self


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
    attention: Annotated[MlaSpec | GqaSpec, Field(discriminator="kind")]

    @property
    def cache_tensors(self) -> int:
        """Tensors that the KV cache of a token lies in, those of each layer."""
        return self.layers * len(self.attention.cache_parts)

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts, without MTP layers."""
        return self.layers - self.dense_layers

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert."""
        return self.ffn_matrices * self.hidden_size * self.expert_ffn_size

    @property
    def dense_parameters(self) -> int:
        """Parameters of the FFN of a dense layer."""
        return self.ffn_matrices * self.hidden_size * self.dense_ffn_size

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


class DieSpec(Spec):
    """What one die can hold, compute and read."""

    hbm_capacity: Bytes
    hbm_bandwidth: Annotated[BytesPerSecond, Field(gt=0)]
    int8_rate: Annotated[OpsPerSecond, Field(gt=0)]
    bf16_rate: Annotated[OpsPerSecond, Field(gt=0)]
    fp32_rate: Annotated[OpsPerSecond, Field(gt=0)]
    cube_cores: PositiveCount
    vector_cores: PositiveCount


class EfficiencySpec(Spec):
    """Shares of the peaks that operators reach, and the rate of the prologue's vector part.

    ``attention_spread`` is the standard deviation of the time of attention over the cache from
    rank to rank in decode, as a share of that time (arXiv 2508.02520, figure 20). ``prefill`` is
    what is left of all that in the compute stages of prefill.
    """

    memory: PositiveFraction
    int8_gemm: PositiveFraction
    bf16_gemm: PositiveFraction
    fp32_gemm: PositiveFraction
    attention: PositiveFraction
    attention_spread: Annotated[Fraction, Field(ge=0, lt=1)] = 0.0
    prefill: PositiveFraction
    vector_bandwidth: Annotated[BytesPerSecond, Field(gt=0)]


class CommunicationSpec(Spec):
    """What a message of a fused operator costs a vector core.

    ``message_cost`` is that of each that leaves the package, ``flag_cost`` that of a flag from rank
    to rank, while all vector cores of the die send, ``completion`` how long dispatch waits between
    them, until its last write is complete; more than ``useful_cores`` of them send no
    faster than so many, which need not be a whole number.
    """

    engines: PositiveCount
    message_cost: Picoseconds
    completion: Picoseconds
    flag_cost: Picoseconds
    useful_cores: Annotated[Fraction, Field(gt=0)]


class LaunchSpec(Spec):
    """What a kernel costs its stream beside its work: with products, without, with messages."""

    cube: Picoseconds
    vector: Picoseconds
    communication: Picoseconds


class MachineSpec(Spec):
    """One die and the software between its kernels."""

    name: str
    die: DieSpec
    efficiency: EfficiencySpec
    launch: LaunchSpec
    host_gap: Picoseconds
    communication: CommunicationSpec

    @property
    def memory_bytes_per_s(self) -> float:
        """Rate at which operators read and write HBM, in bytes per second."""
        return self.die.hbm_bandwidth * self.efficiency.memory


class CoresSpec(Spec):
    """Cores of a die that a stream has."""

    cube_cores: PositiveCount
    vector_cores: PositiveCount


class StreamsSpec(Spec):
    """Cores of both streams while two microbatches run; with one each operator has all.

    ``balanced`` gives each stream what lets both take about as long, and ``least_cube_cores`` or
    more (:meth:`ubfabric.decode.DecodeStep.balanced_cores`); ``listed`` takes ``attention`` and
    ``expert``.
    """

    policy: Literal["balanced", "listed"] = "balanced"
    least_cube_cores: PositiveCount = 1
    attention: CoresSpec | None = None
    expert: CoresSpec | None = None

    @model_validator(mode="after")
    def _check(self) -> StreamsSpec:
        for name in ("attention", "expert"):
            if (getattr(self, name) is not None) != (self.policy == "listed"):
                raise ValueError(
                    f"found policy {self.policy!r}; 'attention' and 'expert' belong to policy "
                    "'listed', both of them, and to no other"
                )
        return self


class CountsSpec(Spec):
    """Kernels of an operator: those with products, and those of vector cores alone."""

    cube: Annotated[Count, Field(ge=0)] = 0
    vector: Annotated[Count, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> CountsSpec:
        if not self.cube + self.vector:
            raise ValueError("found no kernel, allowed 1 or more of cube and vector together")
        return self


class KernelsSpec(Spec):
    """An operator with its number of kernels."""

    kernels: CountsSpec


class WeightsSpec(KernelsSpec):
    """An operator with weights in one precision."""

    precision: Precision


class LatentSpec(WeightsSpec):
    """A projection of which the absorbed part keeps a precision of its own."""

    absorbed: Precision


class FusedAttentionSpec(KernelsSpec):
    """Attention over the cache."""

    precision: Precision
    cache: Precision


class SamplingSpec(KernelsSpec):
    """Choice of tokens from logits, which are read or written so many times."""

    passes: PositiveCount


class OperatorsSpec(Spec):
    """Kernels and precision of each operator, and measured times to use instead."""

    table: str | None = None
    streams: StreamsSpec
    quantise: KernelsSpec
    prologue: LatentSpec
    attention: FusedAttentionSpec
    output: LatentSpec
    gate: WeightsSpec
    expert: WeightsSpec
    ffn: WeightsSpec
    projection: WeightsSpec
    head: WeightsSpec
    sampling: SamplingSpec


#: Operators that a table of measured times may hold; those of attention also depend on KV length.
OPERATORS = tuple(name for name in OperatorsSpec.model_fields if name not in ("table", "streams"))
_TABLE_COLUMNS = ("operator", "tokens", "kv_tokens", "time")


class MeasuredTimes:
    """Operator times from a CSV file, linear between its points.

    Columns ``operator`` (a key of ``operators``), ``tokens`` of the die in one microbatch (of an
    expert: of one replica), ``kv_tokens`` (of ``attention`` only, else empty) and ``time`` with
    its unit, such as ``130 us``. The points of an operator form a grid: each number of tokens with
    each KV length. There is no extrapolation.

    Parameters
    ----------
    path : Path

    Raises
    ------
    SpecError
        One line with file, row, what was found and what is allowed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        points: dict[str, dict[tuple[int, int], int]] = {}
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                found = reader.fieldnames or []
                if sorted(found) != sorted(_TABLE_COLUMNS):
                    raise SpecError(
                        f"{path}: found columns {', '.join(found) or '(none)'}, "
                        f"allowed: {', '.join(_TABLE_COLUMNS)}"
                    )
                for number, row in enumerate(reader, start=1):
                    self._read(points, f"{path}: row {number}", row)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise SpecError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
        if not points:
            raise SpecError(f"{path}: found no rows, allowed one a measured point")
        self._grids = {name: self._grid(name, of) for name, of in points.items()}

    @staticmethod
    def _read(points: dict[str, dict[tuple[int, int], int]], place: str, row: Any) -> None:
        name = row["operator"]
        if name not in OPERATORS:
            raise SpecError(f"{place}: found operator {name!r}, allowed: {', '.join(OPERATORS)}")
        key = []
        for column in ("tokens", "kv_tokens"):
            text = row[column] or ""
            if column == "kv_tokens" and name != "attention":
                if text:
                    raise SpecError(
                        f"{place}: kv_tokens: found {text!r}, allowed for attention only"
                    )
                text = "1"
            if not text.isascii() or not text.isdigit() or int(text) < 1:
                raise SpecError(f"{place}: {column}: found {text!r}, allowed integers from 1")
            key.append(int(text))
        try:
            time = parse_time_ps(row["time"] or "")
        except ValueError as error:
            raise SpecError(f"{place}: time: {error}") from None
        if (key[0], key[1]) in points.setdefault(name, {}):
            raise SpecError(f"{place}: found a second time of {name} at this point")
        points[name][key[0], key[1]] = time

    def _grid(
        self, name: str, points: dict[tuple[int, int], int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens, kv = (np.unique([key[axis] for key in points]) for axis in (0, 1))
        for a in tokens.tolist():
            for b in kv.tolist():
                if (a, b) not in points:
                    raise SpecError(
                        f"{self.path}: {name}: found no time for {a} tokens and {b} kv_tokens; "
                        "each number of tokens is needed with each KV length"
                    )
        times = np.array([[points[a, b] for b in kv.tolist()] for a in tokens.tolist()], float)
        return tokens, kv, times

    def __contains__(self, name: str) -> bool:
        """Return whether the file has times of an operator."""
        return name in self._grids

    def time_ps(self, name: str, tokens: np.ndarray | int, kv_tokens: int = 1) -> np.ndarray:
        """Return times between the measured points.

        Parameters
        ----------
        name : str
            An operator that the file has.
        tokens : int or ndarray of int
        kv_tokens : int

        Returns
        -------
        ndarray of float64, picoseconds, shape as ``tokens``

        Raises
        ------
        SpecError
            If a point lies outside of the measured ones.
        """
        grid_tokens, grid_kv, times = self._grids[name]
        for axis, given, grid in (
            ("tokens", np.atleast_1d(tokens), grid_tokens),
            ("kv_tokens", np.atleast_1d(kv_tokens), grid_kv),
        ):
            outside = given[(given < grid[0]) | (given > grid[-1])]
            if len(outside):
                raise SpecError(
                    f"{self.path}: {name}: found {outside[0]} {axis} to be timed, "
                    f"allowed {grid[0]} to {grid[-1]}, the measured ones"
                )
        at_kv = [np.interp(kv_tokens, grid_kv, row) for row in times]
        return np.asarray(np.interp(tokens, grid_tokens, at_kv))


@dataclass(frozen=True)
class Work:
    """What an operator does on one die; the numbers may be arrays, one an expert replica.

    Attributes
    ----------
    ops : dict of str to float
        Multiplications and additions, by precision.
    read_bytes : float
        Bytes from or to HBM.
    efficiency : str
        ``gemm`` or ``attention``: which share of the peak rate is reached.
    vector_bytes : float
        Bytes that vector cores handle beside: norms, quantisation, activation, rotation.
    """

    ops: dict[Precision, Any]
    read_bytes: Any
    efficiency: Literal["gemm", "attention"] = "gemm"
    vector_bytes: float = 0.0


class OperatorTimes:
    """Times of all operators of one model on one kind of die.

    Parameters
    ----------
    model : ModelSpec
    machine : MachineSpec
    operators : OperatorsSpec
    folder : Path
        Where the relative name of the table starts.
    tensor_parallel : int
        Dies that share the heads of attention.
    streams_rows : bool
        Whether vector cores have so many rows that their kernels run at the rate of the memory, as
        in prefill; in decode each core has a few, and goes at the rate of a core.

    Raises
    ------
    SpecError
        If the table is missing or malformed.
    """

    def __init__(
        self,
        model: ModelSpec,
        machine: MachineSpec,
        operators: OperatorsSpec,
        folder: Path,
        tensor_parallel: int = 1,
        *,
        streams_rows: bool = False,
    ) -> None:
        self.model, self.machine, self.operators = model, machine, operators
        self.tensor_parallel, self.streams_rows = tensor_parallel, streams_rows
        self.measured = MeasuredTimes(folder / operators.table) if operators.table else None
        die = machine.die
        self.all_cores = CoresSpec(cube_cores=die.cube_cores, vector_cores=die.vector_cores)

    def time_ps(
        self,
        name: str,
        tokens: np.ndarray | int,
        cores: CoresSpec | None = None,
        *,
        kv_tokens: int = 0,
        requests: int = 0,
    ) -> np.ndarray:
        """Return the time of an operator.

        Parameters
        ----------
        name : str
            One of :data:`OPERATORS`.
        tokens : int or ndarray of int
            Tokens that the operator works on; of ``expert`` those of one replica, without which
            it takes no time.
        cores : CoresSpec, optional
            Cores of the die that it has; all by default.
        kv_tokens, requests : int
            Of ``attention``: tokens of KV of each request, and requests whose cache is read.

        Returns
        -------
        ndarray of float64, picoseconds, shape as ``tokens``
            Launches included, except those of ``expert``, whose kernels serve all replicas.

        Raises
        ------
        SpecError
            If the table of measured times has the operator but not this point.
        """
        tokens = np.asarray(tokens)
        if self.measured is not None and name in self.measured:
            if name != "expert":
                return self.measured.time_ps(name, tokens, max(kv_tokens, 1))
            times = np.zeros(tokens.shape)
            times[tokens > 0] = self.measured.time_ps(name, tokens[tokens > 0])
            return times
        time = self.roofline_ps(self.work(name, tokens, kv_tokens, requests), cores)
        if name == "expert":
            return np.where(tokens > 0, time, 0.0)
        return time + self.launches_ps(name)

    def launches_ps(self, name: str) -> int:
        """Return what starting the kernels of an operator costs; 0 where times are measured."""
        if self.measured is not None and name in self.measured:
            return 0
        kernels, launch = getattr(self.operators, name).kernels, self.machine.launch
        return int(kernels.cube * launch.cube + kernels.vector * launch.vector)

    def roofline_ps(self, work: Work, cores: CoresSpec | None = None) -> np.ndarray:
        """Return the time of some work, in picoseconds, without launches; cores as in time_ps."""
        die, efficiency = self.machine.die, self.machine.efficiency
        cores = cores or self.all_cores
        share = cores.cube_cores / die.cube_cores
        compute: Any = 0.0
        for precision, ops in work.ops.items():
            reached = efficiency.attention
            if work.efficiency == "gemm":
                reached = getattr(efficiency, f"{precision}_gemm")
            compute = compute + ops / (getattr(die, f"{precision}_rate") * share * reached)
        read = work.read_bytes / self.machine.memory_bytes_per_s
        if self.streams_rows:
            rate = float(self.machine.memory_bytes_per_s)
        else:
            rate = efficiency.vector_bandwidth * cores.vector_cores
        vector = work.vector_bytes / rate
        return np.asarray((np.maximum(compute, read) + vector) * _PS_PER_S)

    def work(self, name: str, tokens: Any, kv_tokens: int = 0, requests: int = 0) -> Work:
        """Return the work of an operator on one die; parameters as in :meth:`time_ps`.

        Two operations a token and parameter. With tensor parallelism a die has its share of the
        heads; the down-projections and the latent cache are not divided.
        """
        model, operators = self.model, self.operators
        hidden = model.hidden_size
        if name in ("prologue", "output"):
            return self._projection_work(name, tokens)
        if name == "attention":
            return self._attention_work(tokens, kv_tokens, requests)
        if name == "quantise":
            return Work({}, 0.0, vector_bytes=tokens * hidden * QUANTISED)
        if name == "sampling":
            passes = operators.sampling.passes
            return Work({}, tokens * model.vocabulary * FP32 * passes)
        parameters = {
            "gate": hidden * model.routed_experts,
            "expert": model.expert_parameters,
            "ffn": model.dense_parameters,
            "projection": 2 * hidden * hidden,  # of the token before and its state, to one state
            "head": hidden * model.vocabulary,
        }[name]
        normed = hidden * 4 * BF16  # state and residual, their sum and what follows
        vector = {
            "gate": normed + self.cast_bytes(),
            "expert": self.gated_bytes(model.expert_ffn_size),
            "ffn": hidden * (2 * BF16 + QUANTISED) + self.gated_bytes(model.dense_ffn_size),
            "projection": 2 * hidden * 2 * BF16,
            "head": normed,
        }[name]
        return _gemm(tokens, [(parameters, getattr(operators, name).precision)], vector * tokens)

    def cast_bytes(self) -> int:
        """Return what the cast of a token's state for the router moves, 0 if there is none."""
        return self.model.hidden_size * CAST if self.operators.gate.precision == "fp32" else 0

    def gated_bytes(self, ffn_size: int) -> int:
        """Return what the activation of a token moves: products in BF16, and INT8 out."""
        return ffn_size * ((self.model.ffn_matrices - 1) * BF16 + INT8)

    def _projection_work(self, name: str, tokens: Any) -> Work:
        """Return the work before or after the attention over the cache."""
        attention, tp = self.model.attention, self.tensor_parallel
        hidden = self.model.hidden_size
        spec: LatentSpec = getattr(self.operators, name)
        if isinstance(attention, GqaSpec):
            queries = attention.query_elements + attention.cache_elements
            if name == "output":
                parts = [(attention.output_parameters(hidden) // tp, spec.precision)]
                return _gemm(tokens, parts, attention.query_elements // tp * QUANTISED * tokens)
            vector = 2 * (hidden + queries // tp)
            return _gemm(tokens, [(hidden * queries // tp, spec.precision)], vector * tokens)
        latent = attention.heads * attention.kv_lora_rank
        if name == "output":
            parts = [
                (latent * attention.v_head_dim // tp, spec.absorbed),
                (attention.output_parameters(hidden) // tp, spec.precision),
            ]
            quantised = attention.heads * attention.v_head_dim // tp * QUANTISED
            return _gemm(tokens, parts, quantised * tokens)
        down = hidden * (attention.q_lora_rank + attention.cache_elements)
        up = attention.q_lora_rank * attention.query_elements // tp
        parts = [
            (down + up, spec.precision),
            (latent * attention.qk_nope_head_dim // tp, spec.absorbed),
        ]
        absorbed = latent + attention.heads * attention.qk_rope_head_dim
        heads = (attention.query_elements + absorbed) // tp
        elements = hidden + attention.q_lora_rank + attention.cache_elements + heads
        return _gemm(tokens, parts, 2 * elements * tokens)

    def _attention_work(self, tokens: Any, kv_tokens: int, requests: int) -> Work:
        attention, tp, spec = self.model.attention, self.tensor_parallel, self.operators.attention
        if isinstance(attention, MlaSpec):  # every head works on the same latent cache
            a_head = attention.cache_elements + attention.kv_lora_rank
            cache = attention.cache_elements
        else:
            a_head = 2 * attention.head_dim
            cache = attention.cache_elements // tp
        ops = 2 * tokens * kv_tokens * (attention.heads // tp) * a_head
        read = requests * kv_tokens * cache * ELEMENT_BYTES[spec.cache]
        return Work({spec.precision: ops}, read, "attention")


def _gemm(tokens: Any, parts: list[tuple[int, Precision]], vector_bytes: float = 0.0) -> Work:
    """Return the work of products of tokens with weights, each read once."""
    ops: dict[Precision, Any] = {}
    for parameters, precision in parts:
        ops[precision] = ops.get(precision, 0) + 2 * tokens * parameters
    read = sum(parameters * ELEMENT_BYTES[precision] for parameters, precision in parts)
    return Work(ops, read, vector_bytes=vector_bytes)
