"""Gate policies: how popular each expert is, and which experts each token visits.

A policy gives, for every layer, the *popularity* of the routed experts: the share of all
(token, expert) pairs that goes to each, summing to one. :func:`route_tokens` then draws the
experts of each token under the group-limited top-k rule of DeepSeek-V3.

To add a policy, derive from :class:`GatePolicy`, give it a ``policy`` name and decorate it
with :func:`register_gate`; traffic specifications can then name it.
"""

from __future__ import annotations

import csv
import json
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, ValidationError

from ubfabric.errors import SpecError
from ubfabric.quantities import Fraction
from ubfabric.specs import Spec

#: ``popularity(layer, rng)`` returns float64 shares of shape (n_experts,), summing to one.
LayerPopularity = Callable[[int, np.random.Generator], np.ndarray]

#: Policies by name; filled by :func:`register_gate`.
GATE_POLICIES: dict[str, type[GatePolicy]] = {}

#: Share of a token that no expert can exceed: it is certain to be chosen.
_HIGHEST_INCLUSION = 0.999
#: Popularity of the least popular expert, relative to the mean, so that none is impossible.
_LOWEST_RELATIVE = 1e-6
#: Tokens routed at a time: about a megabyte that stays in the cache.
_TOKENS_A_BLOCK = 1024


class GatePolicy(Spec):
    """One way to tell how popular experts are."""

    policy: str
    #: Name under which a specification asks for this policy.
    name: ClassVar[str] = ""

    @abstractmethod
    def prepare(self, n_experts: int, folder: Path) -> LayerPopularity:
        """Return the popularity of ``n_experts`` experts as a function of the layer.

        Parameters
        ----------
        n_experts : int
            Number of routed experts of a layer.
        folder : Path
            Where relative file names of the specification start.

        Returns
        -------
        callable
            ``(layer, rng) -> ndarray of float64, shape (n_experts,)``, summing to one. The
            generator is seeded by run and layer, so layers do not depend on their order.
        """


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
    names = ", ".join(sorted(GATE_POLICIES))
    if not isinstance(raw, dict) or "policy" not in raw:
        raise ValueError(f"found {raw!r}, allowed a mapping with 'policy': one of {names}")
    cls = GATE_POLICIES.get(raw["policy"])
    if cls is None:
        raise ValueError(f"policy: found {raw['policy']!r}, allowed: {names}")
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key; allowed: {', '.join(sorted(cls.model_fields))}"
        raise ValueError(f"{key}: found {first['input']!r}; {message}") from None


@register_gate
class UniformGate(GatePolicy):
    """All experts equally popular."""

    name = "uniform"

    def prepare(self, n_experts: int, folder: Path) -> LayerPopularity:
        """Return equal shares; see :meth:`GatePolicy.prepare`."""
        return lambda layer, rng: np.full(n_experts, 1.0 / n_experts)


@register_gate
class ZipfGate(GatePolicy):
    """The i-th most popular expert has popularity proportional to ``i ** -exponent``.

    Which expert is the i-th is drawn anew for each layer.
    """

    name = "zipf"
    exponent: Annotated[Fraction, Field(ge=0)]

    def prepare(self, n_experts: int, folder: Path) -> LayerPopularity:
        """Return Zipf shares in a random order; see :meth:`GatePolicy.prepare`."""
        shares = np.arange(1, n_experts + 1, dtype=np.float64) ** -self.exponent
        shares /= shares.sum()
        return lambda layer, rng: shares[rng.permutation(n_experts)]


@register_gate
class DirichletGate(GatePolicy):
    """Popularity drawn for each layer from a symmetric Dirichlet distribution.

    ``concentration`` is the parameter of each expert: the relative spread (standard deviation
    over mean) of popularity is about ``concentration ** -0.5``.
    """

    name = "dirichlet"
    concentration: Annotated[Fraction, Field(gt=0)]

    def prepare(self, n_experts: int, folder: Path) -> LayerPopularity:
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

    def prepare(self, n_experts: int, folder: Path) -> LayerPopularity:
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
    """Return the experts with the smallest ratios in each row's kept groups, in order."""
    n_tokens, n_experts = ratios.shape
    group_size = n_experts // n_groups
    keys = _number_ratios(ratios, n_experts)
    expert_mask = np.uint32((1 << (n_experts - 1).bit_length()) - 1)
    if kept_groups < n_groups:
        keys = keys.reshape(n_tokens, n_groups, group_size)
        n_best = min(group_score_experts, group_size)
        best = keys
        if n_best < group_size:
            best = np.partition(keys, n_best - 1, axis=2)[:, :, :n_best]
        products = np.prod(best.view(np.float32), axis=2, dtype=np.float32)
        numbered = _number_ratios(products, n_groups)
        limit = np.partition(numbered, kept_groups - 1, axis=1)[:, kept_groups - 1, None]
        keys = keys[numbered <= limit].reshape(n_tokens, kept_groups * group_size)
    if top_k < keys.shape[1]:
        keys = np.partition(keys, top_k - 1, axis=1)[:, :top_k]
    experts: np.ndarray = np.sort(keys, axis=1) & expert_mask
    return experts


def _number_ratios(ratios: np.ndarray, count: int) -> np.ndarray:
    """Return float32 bits as ordered integers whose lowest bits are the last axis' index."""
    bits = (count - 1).bit_length()
    keys = ratios.view(np.uint32)
    keys &= np.uint32(0xFFFFFFFF << bits & 0xFFFFFFFF)
    keys |= np.arange(count, dtype=np.uint32)
    return keys
