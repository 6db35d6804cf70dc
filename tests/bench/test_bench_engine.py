"""How fast packets move, and what moves the speed: numbers, no pass or fail.

``make bench`` runs them, prints a table and writes it to ``build/bench``. Every case is moved by
the engine, by stock ns-3 links and by a bare event loop in turn; see ``bench_engine.py``. The time
is processor time, except where threads are counted.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from bench.bench_engine import (
    Comparison,
    Spec,
    has_threads,
    load_case,
    markdown,
    measure,
)

#: Groups of cases; in each, one thing changes. A few seconds a case.
GROUPS: dict[str, list[Spec]] = {
    "reference": [Spec("EP320, 4,096 B, cloudmatrix384")],
    "packet size": [
        Spec(f"{payload:,} B", amount=0.2, payload_bytes=payload) for payload in (512, 1024, 4096)
    ],
    # As fast as cores issue, sources offer about two thirds of the rate of their ports; the
    # exchange of all pairs offers all of it.
    "load": [
        *(Spec(f"{load:.0%} of the ports", amount=0.5, load=load) for load in (0.1, 0.3, 0.5)),
        Spec("as cores issue", amount=0.5),
        Spec("all pairs, leaf-spine-384", "leaf-spine-384", "all-to-all", ranks=0),
    ],
    "EP degree": [
        Spec(f"EP{ranks}", ranks=ranks, amount=max(1, 256 // ranks)) for ranks in (8, 32, 128, 320)
    ],
    # All dies of a machine write to dies drawn at random. Small machines get more messages, so
    # that there is something to time. Last, a few of the dies of the largest.
    "machine size": [
        *(
            Spec(name, name, "uniform", ranks=0, amount=messages)
            for name, messages in (
                ("32 dies", 1_200),
                ("192 dies", 200),
                ("768 dies", 50),
                ("3,072 dies", 32),
                ("16,384 dies", 24),
            )
        ),
        Spec("EP320 on 16,384 dies", "16,384 dies"),
    ],
}
CASES = [pytest.param(group, spec, id=spec.name) for group in GROUPS for spec in GROUPS[group]]
#: Machines that take long to build; once is enough.
LARGE = {"3,072 dies", "16,384 dies"}


def run_benchmark(benchmark, compared: Comparison, rounds: int, *, alone: bool = False) -> None:
    """Time the engine with pytest-benchmark, the comparisons in between."""

    def setup():
        if not alone:
            compared.run_programs()
        return (compared.start_engine(),), {}

    def finish(run):
        compared.note("engine", run.finish())

    benchmark.pedantic(lambda run: run.run(), setup=setup, teardown=finish, rounds=rounds)


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize(("group", "spec"), CASES)
def test_packet_hops(benchmark, report, programs, tmp_path, group, spec):
    benchmark.group = group
    compared = Comparison(load_case(spec), programs, tmp_path)
    run_benchmark(benchmark, compared, 1 if spec.machine in LARGE else 3)
    row = compared.row(group)
    report.rows.append(row)
    benchmark.extra_info.update(row)


@pytest.mark.benchmark(timer=time.perf_counter)
@pytest.mark.parametrize("threads", [1, 2, 4, 7])
@pytest.mark.parametrize("name", ["EP320", "one plane"])
def test_packet_hops_by_threads(benchmark, report, programs, tmp_path, name, threads):
    if not has_threads():
        pytest.skip("a replay has no argument 'threads'")
    benchmark.group = "threads"
    label = f"{name}, {threads} threads" if threads > 1 else f"{name}, 1 thread"
    one_plane = Spec(label, "leaf-spine-384", "all-to-all", ranks=0)
    spec = one_plane if name == "one plane" else Spec(label)
    compared = Comparison(load_case(spec), programs, tmp_path, threads)
    run_benchmark(benchmark, compared, 3, alone=threads > 1)
    row = compared.row("threads")
    report.rows.append(row)
    benchmark.extra_info.update(row)


@pytest.mark.parametrize("spec", GROUPS["EP degree"], ids=lambda spec: spec.name)
def test_every_ep_degree_has_messages(spec):
    case = load_case(spec)
    assert len(np.unique(case.src)) == spec.ranks
    assert (case.messages > 0).all() and (case.message_bytes == 7_680).all()


@pytest.mark.slow
def test_engine_stock_links_and_bare_loop_move_the_same_packets_in_similar_time():
    # A comparison refuses reports in which packets, bytes or packet-hops differ.
    compared = measure(Spec("EP32", "32 dies", ranks=32, workload="decode-ep32-sample"), repeat=1)
    engine, stock, bare = (compared.best[mover] for mover in ("engine", "stock", "bare"))
    assert engine["packets"] > 10_000
    assert engine["packet_hops"] > 2 * engine["packets"]
    for report in (stock, bare):
        # The same bottlenecks; stock links store and forward, which adds 3 x 149 ns.
        assert report["simulated_ps"] == pytest.approx(engine["simulated_ps"], rel=0.2)
    assert bare["events_per_packet_hop"] == pytest.approx(3, rel=0.1)
    row = compared.row("small")
    assert row["stock_over_engine"] == stock["cpu_s"] / engine["cpu_s"]
    text = markdown([row, row | {"stock_over_engine": None}])
    assert f"{row['packet_hops']:,}" in text and "| - " in text


@pytest.mark.slow
def test_offered_load_is_the_one_asked_for():
    # Ports of a die: 7 x 28 GB/s less error correction. At half of it, a message of 7,680 B each
    # 83.6 ns; the last of them leaves when all have been issued.
    case = load_case(Spec("half", "32 dies", "uniform", ranks=0, amount=400, load=0.5))
    period_ps = case.message_ps + int(case.arrays.node_issue_cost_ps[0])
    assert period_ps / 16 == pytest.approx(7_680 * 10**12 / (0.5 * 7 * 28e9 * 120 / 128), rel=1e-6)
    compared = measure(case.spec, repeat=1)
    for report in compared.best.values():
        assert report["simulated_ps"] == pytest.approx(400 * period_ps / 16, rel=0.2)
