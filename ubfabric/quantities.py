"""Numbers with units, as they stand in YAML, and the integers used inside.

A quantity is written ``28 GB/s`` or, with its provenance,
``{value: 28 GB/s, source: "...", strength: read}``. Inside ubfabric time is integer
picoseconds, size integer bytes, rate integer bytes per second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, Strict

#: How far a number can be trusted; see the README's "Sources" section.
STRENGTHS = ("read", "secondary", "recalled", "derived", "assumed", "fitted")

_TIME_PS = {
    "ps": Decimal(1),
    "ns": Decimal(10) ** 3,
    "us": Decimal(10) ** 6,
    "ms": Decimal(10) ** 9,
    "s": Decimal(10) ** 12,
    "min": Decimal(60) * 10**12,
    "h": Decimal(3600) * 10**12,
}
_SIZE_BYTES = {
    "B": Decimal(1),
    "kB": Decimal(10) ** 3,
    "MB": Decimal(10) ** 6,
    "GB": Decimal(10) ** 9,
    "TB": Decimal(10) ** 12,
    "KiB": Decimal(2) ** 10,
    "MiB": Decimal(2) ** 20,
    "GiB": Decimal(2) ** 30,
}
_RATE_BYTES_PER_S = {f"{unit}/s": scale for unit, scale in _SIZE_BYTES.items()} | {
    "Mbit/s": Decimal(10) ** 6 / 8,
    "Gbit/s": Decimal(10) ** 9 / 8,
    "Tbit/s": Decimal(10) ** 12 / 8,
}
_RATE_OPS_PER_S = {
    "op/s": Decimal(1),
    "Gop/s": Decimal(10) ** 9,
    "Top/s": Decimal(10) ** 12,
    "Pop/s": Decimal(10) ** 15,
}
_QUANTITY = re.compile(
    r"\s*([-+]?[0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z/]*)\s*"
)


def _parse(text: Any, units: Mapping[str, Decimal], example: str) -> int:
    allowed = f"a number with one of the units {', '.join(units)}, such as '{example}'"
    if not isinstance(text, str):
        raise ValueError(f"found {text!r}, which has no unit; expected {allowed}")
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        raise ValueError(f"found {text!r}; expected {allowed}")
    try:
        value = Decimal(match[1].replace("_", "").replace(",", "")) * units[match[2]]
    except InvalidOperation as error:  # pragma: no cover - the pattern admits numbers only
        raise ValueError(f"found {text!r}; expected {allowed}") from error
    if value < 0:
        raise ValueError(f"found {text!r}, which is negative; expected {allowed}")
    return int(value.to_integral_value())


def parse_time_ps(text: str) -> int:
    """Return a duration such as ``'200 ns'`` in integer picoseconds.

    Raises
    ------
    ValueError
        If the text has no unit of time or is negative.

    Examples
    --------
    >>> parse_time_ps("1.5 us")
    1500000
    """
    return _parse(text, _TIME_PS, "200 ns")


def parse_size_bytes(text: str) -> int:
    """Return a size such as ``'4 KiB'`` in integer bytes.

    Raises
    ------
    ValueError
        If the text has no unit of size or is negative.

    Examples
    --------
    >>> parse_size_bytes("64 KiB")
    65536
    """
    return _parse(text, _SIZE_BYTES, "4096 B")


def parse_rate_bytes_per_s(text: str) -> int:
    """Return a rate such as ``'28 GB/s'`` or ``'200 Gbit/s'`` in integer bytes per second.

    Raises
    ------
    ValueError
        If the text has no unit of rate or is negative.

    Examples
    --------
    >>> parse_rate_bytes_per_s("200 Gbit/s")
    25000000000
    """
    return _parse(text, _RATE_BYTES_PER_S, "28 GB/s")


def parse_rate_ops_per_s(text: str) -> int:
    """Return a rate of arithmetic such as ``'752 Top/s'`` in operations per second.

    A multiplication and an addition are two operations.

    Raises
    ------
    ValueError
        If the text has no unit of operations per second or is negative.

    Examples
    --------
    >>> parse_rate_ops_per_s("752 Top/s")
    752000000000000
    """
    return _parse(text, _RATE_OPS_PER_S, "752 Top/s")


def unwrap(value: Any) -> Any:
    """Return the bare value of ``{value: ..., source: ...}``, or the value itself.

    Raises
    ------
    ValueError
        If the mapping has unknown keys, no source, or an unknown strength.
    """
    if not (isinstance(value, Mapping) and "value" in value):
        return value
    unknown = set(value) - {"value", "source", "strength", "note"}
    if unknown:
        raise ValueError(f"unknown key {min(unknown)!r}; allowed: value, source, strength, note")
    if not value.get("source"):
        raise ValueError("'source' is missing; say where the number comes from")
    if value.get("strength") not in STRENGTHS:
        raise ValueError(
            f"'strength' is {value.get('strength')!r}; expected one of {', '.join(STRENGTHS)}"
        )
    return value["value"]


def _quantity(parse: Callable[[Any], int]) -> BeforeValidator:
    def validate(value: Any) -> int:
        value = unwrap(value)
        return parse(value)

    return BeforeValidator(validate)


def _unit(unit: str) -> PlainSerializer:
    return PlainSerializer(lambda value: f"{value} {unit}", return_type=str, when_used="json")


#: Field types for specifications. Each accepts the bare form or the form with a source.
#: ``model_dump(mode="json")`` writes the unit again, so that its output is a specification.
Picoseconds = Annotated[int, _quantity(parse_time_ps), _unit("ps")]
Bytes = Annotated[int, _quantity(parse_size_bytes), _unit("B")]
BytesPerSecond = Annotated[int, _quantity(parse_rate_bytes_per_s), _unit("B/s")]
OpsPerSecond = Annotated[int, _quantity(parse_rate_ops_per_s), _unit("op/s")]
#: For plain numbers that also may carry a source, such as counts and fractions.
#: Strict: neither text nor true or false is a number, and 6.0 is not a count.
Count = Annotated[int, Strict(), BeforeValidator(unwrap)]
Fraction = Annotated[float, Strict(), BeforeValidator(unwrap)]


def provenance(raw: Any, path: str = "") -> list[dict[str, str]]:
    """List every sourced number of a loaded YAML document.

    Returns
    -------
    list of dict
        Keys ``key``, ``value``, ``source``, ``strength``, ``note``; in document order.
    """
    if isinstance(raw, Mapping):
        if "value" in raw and "source" in raw:
            row = {"key": path, "value": str(raw["value"])}
            row |= {name: str(raw.get(name, "")) for name in ("source", "strength", "note")}
            return [row]
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in raw.items()]
    elif isinstance(raw, list):
        items = [(f"{path}[{index}]", item) for index, item in enumerate(raw)]
    else:
        return []
    return [row for key, item in items for row in provenance(item, key)]
