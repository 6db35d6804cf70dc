"""Choose the fitted parameters of a machine from the measured rows of role "fitted".

python analysis/fit_fabric.py [TOPOLOGY] [--measured FILE]

Ten parameters, one row each but for the seventh, found one after the other since none moves an
earlier row, but 5 and 6, and 7 to 10, which are found in turns:

1. forward latency of the UB switches      read latency, other server less same server
2. latency between port and core or memory of a die      read latency, same server
3. the same of a CPU                       read latency of a CPU, same server
4. share of the link rate that memory takes writes at    write bandwidth, same server
5. cost of a message of a fused operator   dispatch at EP8
6. cost of a flag of dispatch              dispatch at EP256
7. start of a transfer by SDMA             read of a CPU, other server, 16 and 128 KiB blocks
8. rate of an SDMA engine                  write to a die, other server, 2 MiB blocks
9. rate at which it reads a CPU            read of a CPU, other server, 2 MiB blocks
10. rate at which it writes to a CPU       write to a CPU, other server, 2 MiB blocks

What a transfer costs beside its bytes is not the same for all sizes, so that the seventh leaves one
of its rows as much too fast as the other too slow. The last four are left out where nothing is
measured of SDMA.

Prints the values for the topology's YAML and for measured.yaml; changes no file.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import networkx as nx

from ubfabric.errors import UbfabricError
from ubfabric.quantities import parse_rate_bytes_per_s, parse_time_ps
from ubfabric.topology import build_topology
from ubfabric.validation import (
    FusedRow,
    MemoryRow,
    SdmaRow,
    load_measured,
    simulate_fused,
    simulate_memory,
    simulate_sdma,
)

MEASURED = Path(__file__).with_name("measured.yaml")
Row = TypeVar("Row", MemoryRow, SdmaRow, FusedRow)


class Fit(NamedTuple):
    """A parameter of SDMA, and the rows that it is fitted on."""

    name: str
    kind: str  # of the nodes that have it
    title: str
    unit: str
    highest: int  # in units
    operation: str
    peer: str
    blocks: tuple[int, ...]


UNITS = {"us": 1_000_000, "GB/s": 1_000_000_000}
SDMA = [
    Fit(
        "sdma_start_ps",
        "die",
        "start of a transfer by SDMA",
        "us",
        200,
        "read",
        "cpu",
        (16 << 10, 128 << 10),
    ),
    Fit(
        "sdma_bytes_per_s", "die", "rate of an SDMA engine", "GB/s", 40, "write", "die", (2 << 20,)
    ),
    Fit(
        "sdma_read_bytes_per_s",
        "cpu",
        "the same, reading a CPU",
        "GB/s",
        40,
        "read",
        "cpu",
        (2 << 20,),
    ),
    Fit(
        "sdma_write_bytes_per_s",
        "cpu",
        "the same, writing to a CPU",
        "GB/s",
        40,
        "write",
        "cpu",
        (2 << 20,),
    ),
]
LATENCIES = ("receive_latency_ps", "memory_read_latency_ps", "acknowledge_latency_ps")


def fitted_row(rows: Sequence[Row], **wanted: object) -> Row:
    """Return the row of role "fitted" that has these values."""
    for row in rows:
        if row.role == "fitted" and all(getattr(row, k) == v for k, v in wanted.items()):
            return row
    raise UbfabricError(f"measured figures: found no fitted row with {wanted}; add one")


def solve(change: Callable[[int], float], target: float, low: int, high: int, step: int) -> int:
    """Return the value between low and high, to a step, at which a rising function meets target."""
    rises = change(high) > change(low)
    while high - low > step:
        middle = (low + high) // 2
        low, high = (low, middle) if (change(middle) > target) == rises else (middle, high)
    return (low + high) // 2


def set_all(graph: nx.Graph, kinds: tuple[str, ...], names: tuple[str, ...], value: int) -> None:
    """Set attributes of all nodes of some kinds."""
    for _, node in graph.nodes(data=True):
        if node["kind"] in kinds:
            node.update(dict.fromkeys(names, value))


def main() -> None:
    """Fit, and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("topology", nargs="?", default="cloudmatrix384", help="(%(default)s)")
    parser.add_argument("--measured", default=str(MEASURED), help="measured figures, YAML")
    args = parser.parse_args()

    graph, measured = build_topology(args.topology), load_measured(args.measured)
    read = {"what": "latency", "operation": "read"}
    near = fitted_row(measured.memory, **read, peer="die", far=False)
    far = fitted_row(measured.memory, **read, peer="die", far=True)
    cpu = fitted_row(measured.memory, **read, peer="cpu", far=False)
    write = fitted_row(measured.memory, what="bandwidth", operation="write", peer="die", far=False)
    few, many = (fitted_row(measured.fused.rows, phase="dispatch", ranks=n) for n in (8, 256))
    sdma = [
        (
            fit,
            [
                fitted_row(
                    measured.sdma, operation=fit.operation, peer=fit.peer, far=True, block=block
                )
                for block in fit.blocks
            ],
        )
        for fit in SDMA
        if measured.sdma
    ]

    def crossing_us(value: int) -> float:
        set_all(graph, ("l1", "l2", "l3"), ("forward_latency_ps",), value)
        return simulate_memory(graph, far) - simulate_memory(graph, near)

    target = (parse_time_ps(far.value) - parse_time_ps(near.value)) / 1e6
    forward = solve(crossing_us, target, 1_000, 1_000_000, 500)
    set_all(graph, ("l1", "l2", "l3"), ("forward_latency_ps",), forward)
    print(f"forward latency of UB switches   {forward / 1e3:8.1f} ns")

    for kind, row in (("die", near), ("cpu", cpu)):

        def latency_us(value: int, kind: str = kind, row: MemoryRow = row) -> float:
            set_all(graph, (kind,), LATENCIES, value)
            return simulate_memory(graph, row)

        latency = solve(latency_us, parse_time_ps(row.value) / 1e6, 1_000, 2_000_000, 500)
        set_all(graph, (kind,), LATENCIES, latency)
        print(f"port to core or memory, {kind}      {latency / 1e3:8.1f} ns")

    def written_gb_per_s(value: int) -> float:
        set_all(graph, ("die", "cpu"), ("memory_write_share_ppm",), value)
        return simulate_memory(graph, write)

    share = solve(
        written_gb_per_s, parse_rate_bytes_per_s(write.value) / 1e9, 100_000, 1_000_000, 500
    )
    set_all(graph, ("die", "cpu"), ("memory_write_share_ppm",), share)
    print(f"share of rate of memory writes   {share / 1e6:8.4f}")

    fused = measured.fused

    def fused_us(value: int, name: str, row: FusedRow) -> float:
        return simulate_fused(graph, fused.model_copy(update={name: value}), row)

    for _ in range(2):  # each has a small part in the other's row
        for name, row_of in (("message_cost", few), ("flag_cost", many)):
            of_value = partial(fused_us, name=name, row=row_of)
            cost = solve(of_value, row_of.value / 1e6, 0, 20_000_000, 5_000)
            fused = fused.model_copy(update={name: cost})
    print(f"cost of a message of an operator {fused.message_cost / 1e6:8.3f} us")
    print(f"cost of a flag of dispatch       {fused.flag_cost / 1e6:8.3f} us")

    def errors(value: int, fit: Fit, rows: list[SdmaRow]) -> float:
        """Return the largest error over and the largest under, added; 0 for a row that is met."""
        set_all(graph, (fit.kind,), (fit.name,), value)
        each = [simulate_sdma(graph, row) / (row.value / 1e9) - 1 for row in rows]
        return max(each) + min(each)

    found = {}
    for _ in range(3):
        for fit, rows in sdma:
            highest = fit.highest * UNITS[fit.unit]
            step = highest // 20_000
            value = solve(partial(errors, fit=fit, rows=rows), 0, step, highest, step)
            set_all(graph, (fit.kind,), (fit.name,), value)
            found[fit.name] = value
    for fit, _ in sdma:
        print(f"{fit.title:<33}{found[fit.name] / UNITS[fit.unit]:8.3f} {fit.unit}")


if __name__ == "__main__":
    try:
        main()
    except UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
