"""Processes to simulate in: a scheduler that runs somewhere, or a cluster of our own."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ubfabric.errors import SpecError

if TYPE_CHECKING:
    from distributed import Client

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
#: ns-3 has one clock a process: tasks of one process take turns.
one_at_a_time = threading.Lock()


@contextlib.contextmanager
def connected(workers: int | None = None, scheduler: str | None = None) -> Iterator[Client]:
    """Yield a client of a scheduler, or of a cluster that lasts as long as the context.

    Parameters
    ----------
    workers : int, optional
        Processes of the local cluster, of one thread each; one a core by default. Their memory
        has no limit, since one run may need most of it.
    scheduler : str, optional
        Address of a running scheduler, in place of a local cluster.

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
        dask.config.set(
            {
                "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
                "distributed.worker.profile.enabled": False,
                "distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT,
            }
        ),
        LocalCluster(
            n_workers=workers or len(os.sched_getaffinity(0)),
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


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
