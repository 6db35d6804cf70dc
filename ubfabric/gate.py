"""Gate policies: how popular each expert is, and which experts each token visits.

A policy gives, for every layer, the *popularity* of the routed experts: the share of all
(token, expert) pairs that goes to each, summing to one. :func:`route_tokens` then draws the
experts of each token under the group-limited top-k rule of DeepSeek-V3. A policy may also have
the experts of tokens recorded elsewhere (:class:`RecordedGate`); nothing is drawn then.

To add a policy, derive from :class:`GatePolicy`, give it a ``policy`` name and decorate it
with :func:`register_gate`; traffic specifications can then name it.
"""

from __future__ import annotations

import csv
import json
import zipfile
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BeforeValidator, Field, SerializeAsAny

from ubfabric.errors import SpecError
from ubfabric.quantities import Fraction
from ubfabric.specs import Spec, parse_policy

#: ``popularity(layer, rng)`` returns float64 shares of shape (n_experts,), summing to one.
LayerPopularity = Callable[[int, np.random.Generator], np.ndarray]

#: Policies by name; filled by :func:`register_gate`.
GATE_POLICIES: dict[str, type[GatePolicy]] = {}

#: Share of a token that no expert can exceed: it is certain to be chosen.
_HIGHEST_INCLUSION = 0.999
#: Popularity of the least popular expert, relative to the mean, so that none is impossible.
_LOWEST_RELATIVE = 1e-6
#: Tokens routed at a time: their affinities, 256 kB with 256 experts, stay in the second cache.
_TOKENS_A_BLOCK = 256


@dataclass(frozen=True)
class RoutedModel:
    """What a record of routing must fit.

    Attributes
    ----------
    layers, dense_layers : int
        Layers of the model, without MTP layers, and how many come first without experts.
    n_experts, top_k : int
        Routed experts of a layer, and how many of them a token visits.
    """

    layers: int
    dense_layers: int
    n_experts: int
    top_k: int


#: ``recorded(layer)`` returns the experts of all recorded tokens: uint16, (n_tokens, top_k).
LayerRecord = Callable[[int], np.ndarray]


class GatePolicy(Spec):
    """One way to tell how popular experts are."""

    policy: str
    #: Name under which a specification asks for this policy.
    name: ClassVar[str] = ""

    @abstractmethod
    def prepare(self, n_experts: int, folder: Path, step: int = 0) -> LayerPopularity:
        """Return the popularity of ``n_experts`` experts as a function of the layer.

        Parameters
        ----------
        n_experts : int
            Number of routed experts of a layer.
        folder : Path
            Where relative file names of the specification start.
        step : int
            Step of the run, from 0; for policies whose popularity changes over time.

        Returns
        -------
        callable
            ``(layer, rng) -> ndarray of float64, shape (n_experts,)``, summing to one. The
            generator is seeded by run and layer, so layers do not depend on their order.
        """

    def recorded(self, model: RoutedModel, folder: Path) -> LayerRecord | None:
        """Return the recorded experts of tokens as a function of the layer, or None.

        Parameters
        ----------
        model : RoutedModel
            What the record must fit.
        folder : Path
            Where relative file names of the specification start.

        Raises
        ------
        SpecError
            If there is a record that is missing, malformed or of another model.
        """
        return None


def register_gate(cls: type[GatePolicy]) -> type[GatePolicy]:
    """Make a policy known under its ``name``."""
    GATE_POLICIES[cls.name] = cls
    return cls


def parse_gate(raw: Any) -> GatePolicy:
    """Return the policy that a specification's ``gate`` mapping describes.

    Raises
    ------
    ValueError
        If the policy or one of its parameters is unknown or out of range.
    """
    if isinstance(raw, GatePolicy):
        return raw
    return parse_policy(raw, GATE_POLICIES)


@register_gate
class UniformGate(GatePolicy):
    """All experts equally popular."""

    name = "uniform"

    def prepare(self, n_experts: int, folder: Path, step: int = 0) -> LayerPopularity:
        """Return equal shares; see :meth:`GatePolicy.prepare`."""
        return lambda layer, rng: np.full(n_experts, 1.0 / n_experts)


@register_gate
class ZipfGate(GatePolicy):
    """The i-th most popular expert has popularity proportional to ``i ** -exponent``.

    Which expert is the i-th is drawn anew for each layer.
    """

    name = "zipf"
    exponent: Annotated[Fraction, Field(ge=0)]

    def prepare(self, n_experts: int, folder: Path, step: int = 0) -> LayerPopularity:
        """Return Zipf shares in a random order; see :meth:`GatePolicy.prepare`."""
        shares = np.arange(1, n_experts + 1, dtype=np.float64) ** -self.exponent
        shares /= shares.sum()
        return lambda layer, rng: shares[rng.permutation(n_experts)]


@register_gate
class HottestGate(GatePolicy):
    """A Zipf law in which the hottest expert has ``ratio`` times the mean popularity.

    Of a DeepSeek-R1 layer under ShareGPT prompts arXiv 2508.02520 (figure 11a) says that the
    hottest expert sees 30 times the mean and 20 % of the experts more than the mean. A Zipf law
    of 256 experts with a ratio of 30 (exponent 0.88) has 18 % above the mean.
    """

    name = "hottest"
    ratio: Annotated[Fraction, Field(ge=1)]

    def exponent(self, n_experts: int) -> float:
        """Return the Zipf exponent at which the hottest expert has the ratio.

        Raises
        ------
        SpecError
            If no expert can be that hot among so few.
        """
        if self.ratio >= n_experts:
            raise SpecError(
                f"gate: ratio: found {self.ratio:g}, allowed 1 to below {n_experts}, the experts"
            )
        numbers = np.arange(1, n_experts + 1, dtype=np.float64)
        low, high = 0.0, 1.0
        while n_experts / (numbers**-high).sum() < self.ratio:
            high *= 2
        for _ in range(60):  # bisection to the last bit
            middle = (low + high) / 2
            is_below = n_experts / (numbers**-middle).sum() < self.ratio
            low, high = (middle, high) if is_below else (low, middle)
        return high

    def prepare(self, n_experts: int, folder: Path, step: int = 0) -> LayerPopularity:
        """Return Zipf shares in a random order; see :meth:`GatePolicy.prepare`."""
        zipf = ZipfGate(policy="zipf", exponent=self.exponent(n_experts))
        return zipf.prepare(n_experts, folder, step)


@register_gate
class DirichletGate(GatePolicy):
    """Popularity drawn for each layer from a symmetric Dirichlet distribution.

    ``concentration`` is the parameter of each expert: the relative spread (standard deviation
    over mean) of popularity is about ``concentration ** -0.5``.
    """

    name = "dirichlet"
    concentration: Annotated[Fraction, Field(gt=0)]

    def prepare(self, n_experts: int, folder: Path, step: int = 0) -> LayerPopularity:
        """Return Dirichlet shares; see :meth:`GatePolicy.prepare`."""
        return lambda layer, rng: rng.dirichlet(np.full(n_experts, self.concentration))


@register_gate
class FileGate(GatePolicy):
    """Popularity measured elsewhere, such as a serving system's expert counters.

    A ``.csv`` file has the columns ``expert`` and ``tokens`` (any number in proportion to the
    tokens the expert received) and may have ``layer``. A ``.json`` file holds
    ``{"tokens": [...]}`` with one number an expert, or ``{"layers": {"3": [...], ...}}``.
    A layer beyond the last one given (the MTP layer, as a rule) takes the last one's numbers.
    """

    name = "file"
    file: str

    def prepare(self, n_experts: int, folder: Path, step: int = 0) -> LayerPopularity:
        """Return the file's shares; see :meth:`GatePolicy.prepare`.

        Raises
        ------
        SpecError
            If the file is missing or malformed, or does not fit the number of experts.
        """
        path = folder / self.file
        try:
            by_layer = _read_json(path) if path.suffix == ".json" else _read_csv(path)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise SpecError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
        shares: dict[int | None, np.ndarray] = {}
        for layer, tokens in by_layer.items():
            place = str(path) if layer is None else f"{path}: layer {layer}"
            for expert, value in tokens.items():
                if not 0 <= expert < n_experts:
                    raise SpecError(f"{place}: found expert {expert}, allowed 0 to {n_experts - 1}")
                if not (0 <= value < float("inf")):
                    raise SpecError(
                        f"{place}: expert {expert}: found {value} tokens, allowed 0 or more"
                    )
            missing = [expert for expert in range(n_experts) if expert not in tokens]
            if missing:
                raise SpecError(
                    f"{place}: expert {missing[0]} is missing; "
                    f"all {n_experts} experts must be given"
                )
            values = np.array([tokens[expert] for expert in range(n_experts)], np.float64)
            if values.sum() <= 0:
                raise SpecError(f"{place}: found no tokens at all, allowed a sum above 0")
            shares[layer] = values / values.sum()
        everywhere = shares.pop(None, None)
        last = max((layer for layer in shares if layer is not None), default=-1)

        def popularity(layer: int, rng: np.random.Generator) -> np.ndarray:
            if everywhere is not None:
                return everywhere
            if layer not in shares and layer < last:
                given = ", ".join(map(str, shares))
                raise SpecError(f"{path}: layer {layer} is missing; found layers {given}")
            return shares[min(layer, last)]

        return popularity


@register_gate
class DriftingGate(GatePolicy):
    """Popularity that moves from expert to expert over the steps of a run.

    In each layer the shares of policy ``of`` stay what they are, and which expert has which of
    them follows the order of hidden scores, one an expert: independent first-order autoregressive
    processes, whose correlation falls to a half in ``half_life_steps`` steps.
    """

    name = "drifting"
    of: Annotated[SerializeAsAny[GatePolicy], BeforeValidator(lambda raw: parse_gate(raw))]
    half_life_steps: Annotated[Fraction, Field(gt=0)]

    def prepare(self, n_experts: int, folder: Path, step: int = 0) -> LayerPopularity:
        """Return the shares of ``of`` in the order of a step; see :meth:`GatePolicy.prepare`."""
        shares_of = self.of.prepare(n_experts, folder, step)
        kept = 0.5 ** (1 / self.half_life_steps)
        added = (1 - kept**2) ** 0.5

        def popularity(layer: int, rng: np.random.Generator) -> np.ndarray:
            shares = np.sort(shares_of(layer, rng))
            scores = rng.standard_normal(n_experts)
            for _ in range(step):
                scores = kept * scores + added * rng.standard_normal(n_experts)
            moved = np.empty(n_experts)
            moved[np.argsort(scores, kind="stable")] = shares
            return moved

        return popularity


@register_gate
class RecordedGate(GatePolicy):
    """The experts that tokens visited in a serving system, as vLLM and SGLang return them.

    ``.npz``: an array ``experts`` of shape (tokens, layers, top_k), and, unless its layers are
    all of the model's or all of its MoE layers, an array ``layers`` with the number of each.
    ``.parquet`` and ``.csv``: one row a token and layer, columns ``token``, ``layer`` and
    ``experts``, a list of ``top_k`` (in CSV ``3;17;40``). Every token needs every layer. Dense
    layers are ignored; layers after the last recorded one (the MTP layer) take its experts.
    """

    name = "recorded"
    file: str

    def prepare(self, n_experts: int, folder: Path, step: int = 0) -> LayerPopularity:
        """Refuse: a record says which experts, not with which probability."""
        raise SpecError(
            "gate: policy: found 'recorded' inside another policy, allowed on its own only"
        )

    def recorded(self, model: RoutedModel, folder: Path) -> LayerRecord:
        """Return the record; see :meth:`GatePolicy.recorded`."""
        path = folder / self.file
        readers = {".npz": _read_npz, ".parquet": _read_table, ".csv": _read_table}
        if path.suffix not in readers:
            raise SpecError(f"{path}: found ending {path.suffix!r}, allowed: {', '.join(readers)}")
        try:
            layers, experts = readers[path.suffix](path, model)
        except (OSError, UnicodeDecodeError, csv.Error, zipfile.BadZipFile, pa.ArrowException) as e:
            raise SpecError(f"{path}: cannot be read: {' '.join(str(e).split())}") from None
        position = {int(layer): index for index, layer in enumerate(layers)}
        last = max(position)
        _check_record(path, model, layers, experts)

        def record(layer: int) -> np.ndarray:
            if layer not in position and layer < last:
                given = ", ".join(map(str, sorted(position)))
                raise SpecError(f"{path}: layer {layer} is missing; found layers {given}")
            of_layer: np.ndarray = experts[:, position[min(layer, last)]]
            return of_layer

        return record


def _read_npz(path: Path, model: RoutedModel) -> tuple[np.ndarray, np.ndarray]:
    """Return layer numbers, and experts of shape (tokens, layers, top_k)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except ValueError as error:
        raise SpecError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    experts = found.get("experts")
    if experts is None or not {"experts"} <= found.keys() <= {"experts", "layers"}:
        raise SpecError(
            f"{path}: found arrays {', '.join(found) or '(none)'}, "
            "allowed: experts, and optionally layers"
        )
    if experts.ndim != 3 or experts.dtype.kind not in "iu" or not experts.size:
        raise SpecError(
            f"{path}: experts: found {experts.dtype} of shape {experts.shape}, "
            "allowed integers of shape (tokens, layers, top_k)"
        )
    count = experts.shape[1]
    moe = model.layers - model.dense_layers
    if "layers" in found:
        layers = found["layers"]
        if layers.shape != (count,) or layers.dtype.kind not in "iu":
            raise SpecError(
                f"{path}: layers: found {layers.dtype} of shape {layers.shape}, "
                f"allowed integers of shape ({count},)"
            )
    elif count in (model.layers, moe):
        layers = np.arange(model.layers - count, model.layers)
    else:
        raise SpecError(
            f"{path}: experts: found {count} layers, allowed {model.layers} or {moe}; or name them "
            "in an array 'layers'"
        )
    return layers, experts


def _read_table(path: Path, model: RoutedModel) -> tuple[np.ndarray, np.ndarray]:
    """Return layer numbers, and experts of shape (tokens, layers, top_k)."""
    if path.suffix == ".csv":
        columns, token, layer, lists = _csv_record(path)
    else:
        table = pq.read_table(path)
        columns = table.column_names
        token, layer, lists = (
            table[name].to_pylist() if name in columns else [] for name in _RECORD_COLUMNS
        )
    if sorted(columns) != sorted(_RECORD_COLUMNS):
        raise SpecError(
            f"{path}: found columns {', '.join(columns) or '(none)'}, "
            f"allowed: {', '.join(_RECORD_COLUMNS)}"
        )
    if not token:
        raise SpecError(f"{path}: found no rows, allowed one a token and layer")
    for number, row in enumerate(zip(token, layer, lists, strict=True), start=1):
        whole = [x for x in (*row[:2], *(row[2] or [])) if isinstance(x, int) and x >= 0]
        if row[2] is None or len(row[2]) != model.top_k or len(whole) != 2 + model.top_k:
            raise SpecError(
                f"{path}: row {number}: found token {row[0]}, layer {row[1]}, experts {row[2]}; "
                f"allowed integers from 0, and {model.top_k} experts, the model's top_k"
            )
    tokens, token_index = np.unique(token, return_inverse=True)
    layers, layer_index = np.unique(layer, return_inverse=True)
    cells = token_index * len(layers) + layer_index
    counts = np.bincount(cells, minlength=len(tokens) * len(layers))
    if (counts != 1).any():
        cell = int(np.argmax(counts != 1))
        raise SpecError(
            f"{path}: token {tokens[cell // len(layers)]}: found layer "
            f"{layers[cell % len(layers)]} {counts[cell]} times, allowed once"
        )
    experts = np.empty((len(cells), model.top_k), np.int64)
    experts[cells] = lists
    return layers, experts.reshape(len(tokens), len(layers), model.top_k)


_RECORD_COLUMNS = ("token", "layer", "experts")


def _csv_record(path: Path) -> tuple[list[str], list[Any], list[Any], list[Any]]:
    """Return the columns of a CSV record, numbers where they are numbers."""

    def number(text: str | None) -> Any:
        return int(text) if text and text.isascii() and text.isdigit() else text

    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        columns = list(reader.fieldnames or [])
    token, layer = ([number(row.get(name)) for row in rows] for name in _RECORD_COLUMNS[:2])
    lists = [[number(part) for part in (row.get("experts") or "").split(";")] for row in rows]
    return columns, token, layer, lists


def _check_record(path: Path, model: RoutedModel, layers: np.ndarray, experts: np.ndarray) -> None:
    """Check what every token of a record must be, in its MoE layers."""
    if experts.shape[2] != model.top_k:
        raise SpecError(
            f"{path}: experts: found {experts.shape[2]} a token, "
            f"allowed {model.top_k}, the model's top_k"
        )
    for index, layer in enumerate(layers.tolist()):
        if layer < model.dense_layers:
            continue
        of_layer = experts[:, index]
        ordered = np.sort(of_layer, axis=1)
        bad = (ordered[:, 0] < 0) | (ordered[:, -1] >= model.n_experts)
        bad |= (np.diff(ordered, axis=1) == 0).any(axis=1)
        if bad.any():
            token = int(np.argmax(bad))
            raise SpecError(
                f"{path}: layer {layer}: token {token} in order: found experts "
                f"{of_layer[token].tolist()}, allowed different ones of 0 to {model.n_experts - 1}"
            )


def _read_csv(path: Path) -> dict[int | None, dict[int, float]]:
    """Return tokens by layer (None: all layers) and expert."""
    result: dict[int | None, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if not {"expert", "tokens"} <= set(columns) <= {"layer", "expert", "tokens"}:
            raise SpecError(
                f"{path}: found columns {', '.join(columns) or '(none)'}, "
                "allowed: expert, tokens, and optionally layer"
            )
        for number, row in enumerate(reader, start=1):
            try:
                layer = int(row["layer"]) if "layer" in columns else None
                expert, tokens = int(row["expert"]), float(row["tokens"])
            except (TypeError, ValueError):
                found = ",".join(str(row[column]) for column in columns)
                raise SpecError(f"{path}: row {number}: found {found!r}, allowed numbers") from None
            if expert in result.setdefault(layer, {}):
                raise SpecError(f"{path}: row {number}: found expert {expert} a second time")
            result[layer][expert] = tokens
    if not result:
        raise SpecError(f"{path}: found no rows, allowed one a layer and expert")
    return result


def _read_json(path: Path) -> dict[int | None, dict[int, float]]:
    """Return tokens by layer (None: all layers) and expert."""
    allowed = '{"tokens": [numbers]} or {"layers": {"3": [numbers], ...}}'
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        lists = {None: raw["tokens"]} if "tokens" in raw else raw["layers"]
        return {
            None if layer is None else int(layer): dict(enumerate(map(float, numbers)))
            for layer, numbers in lists.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpecError(f"{path}: found {_one_line(error)}, allowed {allowed}") from None


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def selection_weights(popularity: np.ndarray, top_k: int) -> np.ndarray:
    """Return the weights that make a draw without replacement reproduce a popularity.

    Drawing ``top_k`` different experts a token flattens popularity: an expert cannot be
    visited twice. With weights ``-log(1 - top_k * share)`` each expert is drawn with
    probability ``top_k * share`` to good approximation (order sampling, B. Rosen, "On sampling
    with probability proportional to size", J. Stat. Plan. Inference 62, 1997). A share
    above ``1 / top_k`` is impossible; what exceeds it is spread over the other experts.

    Parameters
    ----------
    popularity : ndarray of float, shape (n_experts,)
        Shares of all (token, expert) pairs.
    top_k : int
        Experts a token visits.

    Returns
    -------
    ndarray of float64, shape (n_experts,)
        Positive, with a mean of one.
    """
    shares = np.maximum(popularity, popularity.mean() * _LOWEST_RELATIVE)
    inclusion = shares * (top_k / shares.sum())
    if top_k >= len(inclusion):
        return np.ones(len(inclusion))
    while (inclusion > _HIGHEST_INCLUSION).any():
        certain = inclusion >= _HIGHEST_INCLUSION
        inclusion[certain] = _HIGHEST_INCLUSION
        rest = top_k - _HIGHEST_INCLUSION * certain.sum()
        inclusion[~certain] *= rest / inclusion[~certain].sum()
    weights: np.ndarray = -np.log1p(-inclusion)
    weights /= weights.mean()
    return weights


def route_tokens(
    popularity: np.ndarray,
    n_tokens: int,
    *,
    top_k: int,
    n_groups: int,
    kept_groups: int,
    group_score_experts: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw the experts of each token: group-limited top-k over random affinities.

    Parameters
    ----------
    popularity : ndarray of float, shape (n_experts,)
        Shares of all (token, expert) pairs, before the group rule.
    n_tokens : int
        Tokens to route; they are independent of each other.
    top_k : int
        Experts a token visits, all different.
    n_groups, kept_groups : int
        Experts ``g * n_experts / n_groups`` and following form group ``g``; a token visits
        experts of its ``kept_groups`` best groups only.
    group_score_experts : int
        A group's score is the sum of its so many highest affinities.
    rng : numpy.random.Generator
        Consumed by ``n_tokens * n_experts`` numbers.

    Returns
    -------
    ndarray of uint16, shape (n_tokens, top_k)
        Experts by descending affinity.

    Notes
    -----
    Assumption: a token's affinity to an expert is the logarithm of the expert's weight
    (:func:`selection_weights`) plus independent Gumbel noise; the top-k of that is a draw
    without replacement in proportion to the weights. Tokens are independent, and so are the
    experts of one token apart from the group rule: co-activation that real text shows is not
    modelled. With skewed popularity the group rule itself shifts some load to experts that
    share a group with a popular one.

    Computed as an exponential race: the affinity is minus the logarithm of ``E / weight``
    with ``E`` standard exponential, so the largest affinity is the smallest ratio and the
    largest sum of affinities the smallest product. Ratios are compared as the integers that
    their float32 bits form, the lowest bits replaced by the expert's number: no ties, so that
    every CPU picks the same experts, at a relative error of 2**-16 for 256 experts.
    """
    weights = selection_weights(popularity, top_k)
    inverse = None if weights.min() == weights.max() else (1.0 / weights).astype(np.float32)
    experts = np.empty((n_tokens, top_k), np.uint16)
    for start in range(0, n_tokens, _TOKENS_A_BLOCK):
        block = experts[start : start + _TOKENS_A_BLOCK]
        ratios = rng.standard_exponential((len(block), len(popularity)), dtype=np.float32)
        if inverse is not None:
            ratios *= inverse
        block[:] = _smallest_ratios(ratios, top_k, n_groups, kept_groups, group_score_experts)
    return experts


def _smallest_ratios(
    ratios: np.ndarray, top_k: int, n_groups: int, kept_groups: int, group_score_experts: int
) -> np.ndarray:
    """Return the experts with the smallest ratios in each row's kept groups, in order.

    The ratios are overwritten.
    """
    n_tokens, n_experts = ratios.shape
    group_size = n_experts // n_groups
    keys = _number_ratios(ratios, n_experts)
    expert_mask = np.uint32((1 << (n_experts - 1).bit_length()) - 1)
    if kept_groups < n_groups:
        keys = keys.reshape(n_tokens, n_groups, group_size)
        n_best = min(group_score_experts, group_size)
        if n_best < group_size:
            keys.partition(n_best - 1, axis=2)  # a key has the expert's number, wherever it stands
        factors = keys[:, :, :n_best].view(np.float32)
        products = factors[:, :, 0].copy()
        for place in range(1, n_best):  # np.prod takes ten times as long for a few each
            products *= factors[:, :, place]
        numbered = _number_ratios(products, n_groups)
        limit = np.partition(numbered, kept_groups - 1, axis=1)[:, kept_groups - 1, None]
        kept = np.flatnonzero(numbered <= limit)
        keys = keys.reshape(-1, group_size).take(kept, axis=0).reshape(n_tokens, -1)
    if top_k < keys.shape[1]:
        keys.partition(top_k - 1, axis=1)
    experts: np.ndarray = np.sort(keys[:, :top_k], axis=1) & expert_mask
    return experts


def _number_ratios(ratios: np.ndarray, count: int) -> np.ndarray:
    """Return float32 bits as ordered integers whose lowest bits are the last axis' index."""
    bits = (count - 1).bit_length()
    keys = ratios.view(np.uint32)
    keys &= np.uint32(0xFFFFFFFF << bits & 0xFFFFFFFF)
    keys |= np.arange(count, dtype=np.uint32)
    return keys
