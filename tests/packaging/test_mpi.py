"""Planes over ns-3's MPI: in an ns-3 source tree only, and nothing of it elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ubfabric import _bridge


def test_the_installed_library_has_nothing_of_mpi():
    library = _bridge.library_path()
    assert b"UbPlaneExchange" in library.read_bytes()
    assert b"MPI_" not in library.read_bytes()
    assert not list((library.parent / "include" / "ns3").glob("ub-mpi-*"))


@pytest.fixture
def ns3_tree() -> Path:
    """Return an ns-3 tree with MPI and this module in it, or skip and say what is missing."""
    name = os.environ.get("UBFABRIC_NS3_TREE")
    if not name:
        pytest.skip(
            "UBFABRIC_NS3_TREE names no ns-3 source tree with this module in contrib/, "
            "configured with --enable-mpi --enable-tests"
        )
    tree = Path(name)
    cache = tree / "cmake-cache" / "CMakeCache.txt"
    if not cache.is_file() or "NS3_MPI:BOOL=ON" not in cache.read_text(encoding="utf-8"):
        pytest.skip(f"the ns-3 tree {tree} is not configured with --enable-mpi")
    return tree


def test_planes_over_mpi_give_the_times_of_one_process(ns3_tree):
    done = subprocess.run(
        [sys.executable, "ns3", "run", "test-runner --suite=ub-mpi"],
        cwd=ns3_tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS ub-mpi" in done.stdout
    skipped = [line for line in done.stdout.splitlines() if ": skipped: " in line]
    if skipped:  # a suite that skips its cases passes, as where mpiexec refuses to run for root
        pytest.skip(skipped[0])
