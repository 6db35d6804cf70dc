"""The results of a paper beside the simulated ones, row by row.

``analysis/paper.yaml`` holds the published figures with their sources, and the points (topology,
workload) at which each is simulated; ``analysis/reproduce_paper.py`` runs the points as a sweep,
prints the rows and draws them.

A row is the value of a figure at a point, or, with a ``base``, its change from that point to this
one in percent. A paper's figure may be a range: the error is then the distance from its nearer end,
and none within it. Dispatch and combine by themselves, without a step around them, are rows of
``analysis/measured.yaml`` (:mod:`ubfabric.validation`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import networkx as nx
import pandas as pd
from pydantic import Field, model_validator

from ubfabric.quantities import STRENGTHS, Count
from ubfabric.specs import Spec, load_yaml, validate_spec
from ubfabric.validation import FUSED_SOURCE, FusedRow, FusedSpec, simulate_fused

#: Figures whose rows have an interval, and the columns of a sweep that hold it.
_INTERVALS = {
    "tpot_ms": ("tpot_low_ms", "tpot_high_ms"),
    "tokens_per_s_per_npu": ("tokens_per_s_per_npu_low", "tokens_per_s_per_npu_high"),
}


class PointSpec(Spec):
    """A point to simulate."""

    topology: str
    #: A name, or a mapping with ``base`` and what differs.
    workload: str | dict[str, Any]
    payload_bytes: Annotated[Count, Field(ge=1)] | None = None
    #: MoE layers to simulate even if fewer are asked for: where layers differ much.
    least_layers: Annotated[Count, Field(ge=1)] = 1


class PaperRow(Spec):
    """A published figure and where the simulated one comes from."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    quantity: str
    unit: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    #: Column of the data set of a sweep.
    figure: str
    point: str
    #: Point from which the change is meant.
    base: str | None = None
    role: Literal["fitted", "predicted"]
    strength: Annotated[str, Field(pattern="|".join(STRENGTHS))]
    source: str
    note: str = ""

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest value that the paper gives."""
        if self.value is not None:
            return self.value, self.value
        assert self.low is not None and self.high is not None
        return self.low, self.high

    @property
    def points(self) -> list[str]:
        """Points that the row needs."""
        return [name for name in (self.base, self.point) if name]

    @model_validator(mode="after")
    def _check(self) -> PaperRow:
        ends = (self.low, self.high)
        if (self.value is None) == (None in ends) or (
            self.value is not None and ends != (None, None)
        ):
            raise ValueError(
                f"row {self.name}: found value {self.value}, low {self.low}, high {self.high}; "
                "allowed a value, or low and high"
            )
        return self


class PaperSpec(Spec):
    """Published results and the points at which they are simulated."""

    points: dict[str, PointSpec]
    rows: Annotated[list[PaperRow], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> PaperSpec:
        names = [row.name for row in self.rows]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"rows: found {twice[0]} twice, allowed names that differ")
        for row in self.rows:
            for point in row.points:
                if point not in self.points:
                    raise ValueError(
                        f"row {row.name}: found point {point!r}, allowed {', '.join(self.points)}"
                    )
        return self


def load_paper(source: str | Path) -> PaperSpec:
    """Read published results from a YAML file.

    Raises
    ------
    SpecError
        One line with file, key, what was found and what is allowed.
    """
    label, raw = load_yaml(source, "topologies")
    return validate_spec(PaperSpec, raw, label)


def sweep_of(
    spec: PaperSpec, rows: Iterable[PaperRow], layers: int, seed: int
) -> tuple[list[str], dict[str, Any]]:
    """Return the points that some rows need, in order, and a sweep over them.

    The keys that vary are the same whatever rows are wanted, so sweeps of different rows share a
    folder.
    """
    needed = {name for row in rows for name in row.points}
    names = [name for name in spec.points if name in needed]
    points = [
        {
            "topology": spec.points[name].topology,
            "workload": spec.points[name].workload,
            "run.layers": max(layers, spec.points[name].least_layers),
            "run.seed": seed,
            "run.payload_bytes": spec.points[name].payload_bytes,
        }
        for name in names
    ]
    base = {"topology": "cloudmatrix384", "workload": "deepseek-r1-decode-ep320"}
    return names, base | {"list": points}


def compare_rows(
    rows: Iterable[PaperRow], figures: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """Put simulated figures beside the paper's.

    Parameters
    ----------
    rows : iterable of PaperRow
    figures : mapping of str to mapping
        Row of a sweep's data set by name of the point.

    Returns
    -------
    DataFrame
        One row a row: ``name``, ``quantity``, ``unit``, ``paper_low``, ``paper_high``,
        ``simulated``, ``simulated_low``, ``simulated_high`` (95 % of what the layers that were
        not simulated leave open, NaN if not known), ``error``, ``error_unit`` (``%`` of the
        paper's figure, or ``points`` for a change in percent), ``role``, ``strength``,
        ``source``, ``note``.
    """
    records = []
    for row in rows:
        low = high = math.nan
        if row.base is not None:
            before, after = (float(figures[name][row.figure]) for name in row.points)
            simulated = 100 * (after / before - 1)
        else:
            simulated = float(figures[row.point][row.figure])
            if row.figure in _INTERVALS:
                ends = (figures[row.point][name] for name in _INTERVALS[row.figure])
                low, high = (math.nan if end is None else float(end) for end in ends)
        records.append(
            _record(row.name, row.quantity, row.unit, row.ends, simulated, (low, high), row)
        )
    return pd.DataFrame(records)


def compare_fused(graph: nx.Graph, fused: FusedSpec, rows: Iterable[FusedRow]) -> pd.DataFrame:
    """Put dispatch and combine by themselves beside the measured times; columns as above."""
    records = []
    for row in rows:
        measured = row.value / 1e6
        simulated = simulate_fused(graph, fused, row)
        quantity = f"{row.phase} by itself, EP{row.ranks}"
        ends = (measured, measured)
        unknown = (math.nan, math.nan)
        records.append(_record(fused_name(row), quantity, "us", ends, simulated, unknown, row))
    return pd.DataFrame(records)


def fused_name(row: FusedRow) -> str:
    """Return the name by which a row is chosen."""
    return f"{row.phase}-ep{row.ranks}"


def _record(
    name: str,
    quantity: str,
    unit: str,
    paper: tuple[float, float],
    simulated: float,
    interval: tuple[float, float],
    row: PaperRow | FusedRow,
) -> dict[str, Any]:
    nearest = min(max(simulated, paper[0]), paper[1])
    is_change = isinstance(row, PaperRow) and row.base is not None
    difference = simulated - nearest
    return {
        "name": name,
        "quantity": quantity,
        "unit": unit,
        "paper_low": paper[0],
        "paper_high": paper[1],
        "simulated": simulated,
        "simulated_low": interval[0],
        "simulated_high": interval[1],
        "error": difference if is_change else 100 * difference / nearest,
        "error_unit": "points" if is_change else "%",
        "role": row.role,
        "strength": row.strength,
        "source": row.source if isinstance(row, PaperRow) else FUSED_SOURCE,
        "note": row.note if isinstance(row, PaperRow) else "",
    }
