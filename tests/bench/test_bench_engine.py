"""The engine's benchmark under pytest, and that what it compares is comparable."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """Load the script beside this file; it is no package."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    path = Path(__file__).with_name("bench_engine.py")
    spec = importlib.util.spec_from_file_location("bench_engine", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ["small", "full"])
def test_print_packet_hops_per_second(bench, name):
    """Numbers, no pass or fail: ``make bench`` shows them."""
    print(f"\n\n{bench.table(bench.measure(name, payload_bytes=4_096, repeat=3))}\n")


@pytest.mark.slow
def test_engine_stock_links_and_bare_loop_move_the_same_packets_in_similar_time(bench):
    # measure() refuses if packets, bytes or packet-hops differ.
    result = bench.measure("small", payload_bytes=4_096, repeat=1, share=0.5)
    engine = result["engine"]
    assert engine["packets"] > 1_000
    assert engine["packet_hops"] > 2 * engine["packets"]
    for mover in ("stock", "bare"):
        # The same bottlenecks; stock links store and forward, which adds 3 x 149 ns.
        assert result[mover]["simulated_ps"] == pytest.approx(engine["simulated_ps"], rel=0.2)
    assert result["bare"]["events_per_packet_hop"] == pytest.approx(3, rel=0.1)
    text = bench.table(result)
    assert "engine" in text and "stock" in text and "bare" in text and "50%" in text
