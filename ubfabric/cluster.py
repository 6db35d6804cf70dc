"""Processes to simulate in: a scheduler that runs somewhere, or a cluster of our own."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any

from ubfabric.errors import SpecError

if TYPE_CHECKING:
    from distributed import Client, Worker

#: How often a task is begun on a local cluster if its process dies each time.
ATTEMPTS = 3
#: How long a scheduler may take to answer, in seconds.
CONNECT_TIMEOUT_S = 10
#: Environment of the processes of a local cluster. Dask's own makes the allocator give memory back
#: at once: a run then spends a tenth of its time on page faults, more when all cores do.
_WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": 1 << 32,
    "MALLOC_MMAP_THRESHOLD_": 1 << 30,
    "OMP_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
}
#: What the processes of a local cluster need, imported once and before any of them begins.
_PRELOADED = ["distributed", "distributed.nanny", "scipy.special", "ubfabric.sweep"]
#: A process that forks must have no second thread: one that holds a lock would hold it for ever in
#: the copy. The allocator in pyarrow starts one, those of the environment above are not started.
_ONE_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
#: ns-3 has one clock a process: tasks of one process take turns.
one_at_a_time = threading.Lock()


@contextlib.contextmanager
def connected(
    workers: int | None = None, scheduler: str | None = None, *, dashboard: bool = False
) -> Iterator[Client]:
    """Yield a client of a scheduler, or of a cluster that lasts as long as the context.

    Parameters
    ----------
    workers : int, optional
        Processes of the local cluster, of one thread each; one a core by default. Their memory
        has no limit, since one run may need most of it.
    scheduler : str, optional
        Address of a running scheduler, in place of a local cluster.
    dashboard : bool, default False
        Whether a local cluster has one; bokeh takes longer to import than a worker to begin.

    Raises
    ------
    SpecError
        If the scheduler cannot be reached, or both are given.
    """
    import dask
    from distributed import Client, LocalCluster

    check_cluster(workers, scheduler)
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SpecError(f"scheduler {scheduler}: cannot be reached: {reason}") from None
        with client, _quiet():
            yield client
        return
    with (
        fork_server(scheduler) as method,
        dask.config.set(
            {
                "distributed.worker.multiprocessing-method": method,
                "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
                # a task that waits in a process waits for that one, whichever is free first
                "distributed.scheduler.worker-saturation": 1.0,
                "distributed.worker.profile.enabled": False,
                # each process looks 50 times a second how late its event loop is, and twice at
                # what it uses: together a fiftieth of two cores
                "distributed.admin.tick.interval": "1s",
                "distributed.admin.system-monitor.interval": "5s",
                "distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT,
            }
        ),
        LocalCluster(
            n_workers=workers or len(os.sched_getaffinity(0)),
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",  # a free port; without, a port that may be taken
            scheduler_kwargs={"dashboard": dashboard},
            silence_logs=logging.CRITICAL,
            preload=[__name__],
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def dask_setup(worker: Worker) -> None:
    """Prepare a process of a local cluster; Dask calls this in each as it begins.

    What was imported stays for good, so that it need not be looked through for garbage, nor, where
    the process is a copy, its pages be copied.
    """
    gc.freeze()


class _Server:
    """The process that copies itself for workers, and how many wait for its end."""

    lock = threading.Lock()
    users = 0


@contextlib.contextmanager
def fork_server(scheduler: str | None = None) -> Iterator[str]:
    """Have the imports of a local cluster's processes done meanwhile, and once for all of them.

    A process is started that imports what workers need; workers are then copies of it. Whoever has
    something to do before :func:`connected` enters this first, and both go on at the same time.

    Parameters
    ----------
    scheduler : str, optional
        As for :func:`connected`; nothing is started if it is given.

    Yields
    ------
    str
        How ``multiprocessing`` is to start workers.
    """
    server: Any = forkserver._forkserver
    with _Server.lock:
        # Python 3.10 cannot be kept from importing what lies in the current folder, and another's
        # server has another environment.
        usable = scheduler is None and sys.version_info >= (3, 11)
        usable = usable and (_Server.users > 0 or server._forkserver_pid is None)
        if usable:
            if not _Server.users:
                _start(server)
            _Server.users += 1
    if not usable:
        yield "spawn"
        return
    try:
        yield "forkserver"
    finally:
        with _Server.lock:
            _Server.users -= 1
            if not _Server.users:
                # it would last as long as this process, with 100 MB; nothing in it needs an end
                # of its own, and taking its modules apart takes a tenth of a second
                os.kill(server._forkserver_pid, signal.SIGTERM)
                server._stop()


def _start(server: Any) -> None:
    """Start the process that is copied, with the environment of workers and our module path."""
    place = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"}
    environment = {key: str(value) for key, value in _WORKER_ENVIRONMENT.items()}
    environment |= _ONE_THREAD | place
    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    try:
        server.set_forkserver_preload(_PRELOADED)
        server.ensure_running()
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's own words about a lost scheduler from standing beside ours."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_cluster(workers: int | None, scheduler: str | None) -> None:
    """Refuse what :func:`connected` cannot do, before anything else is done.

    Raises
    ------
    SpecError
        If workers and a scheduler are given, or fewer than one worker.
    """
    if workers is not None and scheduler is not None:
        raise SpecError("found both workers and a scheduler; allowed: one of them")
    if workers is not None and workers < 1:
        raise SpecError(f"workers: found {workers}, allowed 1 or more")
