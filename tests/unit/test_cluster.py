"""Processes of a local cluster: how they begin, and that nothing of them is left."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest

from ubfabric.cluster import connected, fork_server

forks = pytest.mark.skipif(sys.version_info < (3, 11), reason="workers are spawned")


def ask(workers, question):
    with connected(workers) as client:
        return list(client.run(question).values())


def parents(workers):
    """Return for each worker the process it is a copy of and how many threads that one has."""

    def parent():  # within a function, so that a worker gets it and not the name of this module
        status = Path(f"/proc/{os.getppid()}/status").read_text().split()
        return os.getppid(), int(status[status.index("Threads:") + 1])

    return ask(workers, parent)


@forks
def test_workers_are_copies_of_one_process_of_one_thread():
    answers = parents(2)
    assert len(answers) == 2
    assert len(set(answers)) == 1
    pid, threads = answers[0]
    assert pid != os.getpid()
    assert threads == 1, "a lock that a second thread holds stays locked in a copy"
    assert not Path(f"/proc/{pid}").exists()


@forks
def test_the_process_that_is_copied_lasts_as_long_as_somebody_needs_it():
    with fork_server() as method:
        assert method == "forkserver"
        pids = {pid for _ in range(2) for pid, _ in parents(1)}
        assert len(pids) == 1
        assert Path(f"/proc/{pids.pop()}").exists()
    assert forkserver._forkserver._forkserver_pid is None


@forks
def test_workers_have_their_environment_and_our_modules(tmp_path, monkeypatch):
    (tmp_path / "pandas.py").write_text("raise RuntimeError('a module of the current folder')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)

    def tell():
        return dict(os.environ), sys.modules["ubfabric.sweep"].__file__, gc.get_freeze_count()

    ((environment, where, frozen),) = ask(1, tell)
    assert environment["MALLOC_TRIM_THRESHOLD_"] == str(1 << 32)
    assert frozen > 100_000  # objects of the imports are not looked through for garbage
    assert where == sys.modules["ubfabric.cluster"].__file__.replace("cluster.py", "sweep.py")
    assert "PYTHONSAFEPATH" not in os.environ


@forks
def test_a_fork_server_of_somebody_else_is_left_alone():
    process = multiprocessing.get_context("forkserver").Process(target=os.getpid)
    process.start()
    process.join()
    theirs = forkserver._forkserver._forkserver_pid
    try:
        assert parents(1)[0][0] == os.getpid()
        assert forkserver._forkserver._forkserver_pid == theirs
    finally:
        forkserver._forkserver._stop()


def test_with_a_scheduler_nothing_is_started():
    with fork_server("tcp://127.0.0.1:1") as method:
        assert method == "spawn"
        assert forkserver._forkserver._forkserver_pid is None
