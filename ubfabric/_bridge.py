"""The only door to the C++ world: nothing else in the package imports cppyy.

:func:`load` brings up the parts of ns-3 that are needed and our own library, in the
order that keeps picosecond time exact. It takes about a second, against 11 to 24 s
for ``from ns import ns``, which includes every header of ns-3. Both can be used in one
process, in either order; the classes of this package then show under ``ns`` as well.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ubfabric.errors import BridgeError

if TYPE_CHECKING:
    from ubfabric.routing import FabricArrays

#: Version in the file names of ns-3's libraries; ours is linked to them by name.
NS3_VERSION = "3.44"
#: Release of the ``ns3`` Python package that the library is built against.
NS3_RELEASE = "3.44.post0"

#: ns-3 modules in the order they need each other. ``network`` needs ``stats``.
_NS3_MODULES = ("core", "stats", "network")
_LIBRARY = "libubfabric.so"

_lock = threading.Lock()
_namespace: Any = None


def load() -> Any:
    """Return the C++ namespace ``ns3``, with ns-3 and this package's module loaded.

    Returns
    -------
    cppyy namespace
        ``load().UbVersion`` is the C++ class ``ns3::UbVersion``, and so on. The same
        object on every call.

    Raises
    ------
    BridgeError
        If the ``ns3`` package is missing or of another version, if the compiled
        library is missing or belongs to another version of this package, or if a
        simulation has already run in this process in another time resolution.

    Notes
    -----
    Time counts picoseconds from then on, in the whole process. ns-3 cuts the ``Time``
    defaults of attributes to the resolution in force when a class is registered, so
    the resolution is set after ns-3's libraries are loaded and before ours is.
    """
    global _namespace
    with _lock:
        if _namespace is None:
            _namespace = _load()
        return _namespace


def library_path() -> Path:
    """Return the path of the compiled library.

    Raises
    ------
    BridgeError
        If it is not there, as in a source checkout that was not installed.
    """
    import ubfabric

    for folder in ubfabric.__path__:
        library = Path(folder) / "_lib" / _LIBRARY
        if library.is_file():
            return library
    raise BridgeError(
        f"{_LIBRARY}: not found in {', '.join(ubfabric.__path__)}; this is a source folder, not an "
        "installed package: run 'pip install .' and start Python outside of the source folder, or "
        "run 'pip install -e .'"
    )


def ns3_path() -> Path:
    """Return the folder of the installed ``ns3`` package, without importing it.

    Raises
    ------
    BridgeError
        If the package is missing or of another version.
    """
    wanted = f"pip install 'ns3=={NS3_RELEASE}'"
    spec = importlib.util.find_spec("ns3")
    # Without an __init__.py the package is a namespace: any folder called ns3 on the
    # path is a part of it, such as the build folder of an ns-3 source tree.
    folders = [Path(f) for f in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        if (folder / "lib64" / f"libns{NS3_VERSION}-core.so").is_file():
            return folder
    try:
        found = metadata.version("ns3")
    except metadata.PackageNotFoundError:
        raise BridgeError(f"ns3: the package is not installed; {wanted}") from None
    raise BridgeError(f"ns3: found version {found}, need {NS3_RELEASE}; {wanted}")


def _load() -> Any:
    """Load everything; called once."""
    ns3_folder = ns3_path()
    library = library_path()

    try:
        import cppyy
        import libcppyy
    except ImportError as error:
        raise BridgeError(
            f"cppyy: cannot be imported ({error}); pip install --force-reinstall cppyy==3.5.0"
        ) from None

    # Ptr<T> must be known as a smart pointer before the first class that uses it is
    # seen; `from ns import ns` does the same.
    libcppyy.AddSmartPtrType("Ptr")
    cppyy.add_include_path(str(ns3_folder / "include"))
    cppyy.add_include_path(str(library.parent / "include"))
    try:
        for module in _NS3_MODULES:
            cppyy.load_library(str(_ns3_library(ns3_folder, module)))
        cppyy.include("ns3/nstime.h")
        _set_picoseconds(cppyy.gbl.ns3, ns3_folder)
        cppyy.load_library(str(library))
        cppyy.include("ns3/ub-fabric-module.h")
    except (RuntimeError, ImportError) as error:
        raise BridgeError(
            f"{library.name}: cannot be loaded: {' '.join(str(error).split())}"
        ) from None

    namespace = cppyy.gbl.ns3
    _check_same_version(str(namespace.UbVersion.GetPackageVersion()), library)
    namespace.UbRun.Run.__release_gil__ = True  # others prepare and write tables meanwhile
    return namespace


def _ns3_library(ns3_folder: Path, module: str) -> Path:
    """Return the path of one of ns-3's libraries."""
    return ns3_folder / "lib64" / f"libns{NS3_VERSION}-{module}.so"


def _set_picoseconds(namespace: Any, ns3_folder: Path) -> None:
    """Set ns-3's time resolution to picoseconds, once a process.

    ns-3 keeps a list of all ``Time`` objects until the resolution is set or a simulation
    starts, and rescales them. Without that list ``SetResolution`` ends the process, so
    its presence is checked first.
    """
    time = namespace.Time
    if time.GetResolution() == time.PS:
        return
    core = ctypes.CDLL(str(_ns3_library(ns3_folder, "core")))
    if not ctypes.c_void_p.in_dll(core, "_ZN3ns34Time14g_markingTimesE").value:
        raise BridgeError(
            "ns-3 time resolution: this process has already run a simulation in another resolution "
            "than picoseconds, which ns-3 cannot change afterwards; call ubfabric first, or "
            "ns.Time.SetResolution(ns.Time.PS) before that simulation, or use a new process"
        )
    time.SetResolution(time.PS)


def _check_same_version(built_for: str, library: Path) -> None:
    """Refuse a library left over from another version of this package."""
    installed = metadata.version("ubfabric")
    if built_for != installed:
        raise BridgeError(
            f"{library}: built for ubfabric {built_for}, found ubfabric {installed}; "
            "run 'pip install --force-reinstall .' in the source folder"
        )


#: No task, no link: the C++ constant ``UB_NONE``.
NONE = 0xFFFFFFFF

#: One flow, laid out as the C++ ``UbFlowRecord``; the engine works in place.
FLOW_RECORD = np.dtype(
    [
        ("src", np.uint32),
        ("dst", np.uint32),
        ("messages", np.uint32),
        ("message_bytes", np.uint32),
        ("send_task", np.uint32),
        ("wait_task", np.uint32),
        ("start_ps", np.int64),
        ("first_byte_ps", np.int64),
        ("finish_ps", np.int64),
        ("queueing_ps", np.int64),
        ("packets_left", np.uint32),
        ("network", np.uint8),
        ("lane", np.uint8),
        ("hops", np.uint8),
        ("operation", np.uint8),
    ]
)

#: One task, laid out as the C++ ``UbTaskRecord``.
TASK_RECORD = np.dtype(
    [
        ("duration_ps", np.int64),
        ("ready_ps", np.int64),
        ("start_ps", np.int64),
        ("finish_ps", np.int64),
        ("issued_ps", np.int64),
        ("arrived_ps", np.int64),
        ("endpoint", np.uint32),
        ("stream", np.uint32),
        ("deps_left", np.uint32),
        ("flows_left", np.uint32),
        ("send_first", np.uint32),
        ("send_count", np.uint32),
        ("next", np.uint32),
        ("successor", np.uint32),
        ("state", np.uint32),
        ("message_ps", np.uint32),
    ]
)

#: Where the time of a flow's packets went, laid out as the C++ ``UbFlowAccount``.
ACCOUNT_RECORD = np.dtype(
    [
        ("issue_ps", np.int64),
        ("source_wait_ps", np.int64),
        ("first_wait_ps", np.int64),
        ("second_wait_ps", np.int64),
        ("further_wait_ps", np.int64),
        ("serialise_ps", np.int64),
        ("propagate_ps", np.int64),
        ("switch_ps", np.int64),
    ]
)

#: Members of the C++ ``UbFabricArrays`` and the array of :class:`FabricArrays` each points to.
_POINTERS = {
    "nodeIsEndpoint": "node_is_endpoint",
    "nodeForwardLatencyPs": "node_forward_latency_ps",
    "nodeBufferBytes": "node_buffer_bytes",
    "nodeIssueEngines": "node_issue_engines",
    "nodeIssueCostPs": "node_issue_cost_ps",
    "nodeEngineBytesPerS": "node_engine_bytes_per_s",
    "nodeEgressBytesPerS": "node_egress_bytes_per_s",
    "nodeReceiveLatencyPs": "node_receive_latency_ps",
    "nodeCopyBytesPerS": "node_copy_bytes_per_s",
    "nodeMemoryWritePpm": "node_memory_write_ppm",
    "nodeMemoryReadLatencyPs": "node_memory_read_latency_ps",
    "nodeAcknowledgeLatencyPs": "node_acknowledge_latency_ps",
    "nodeOverlapsIssue": "node_overlaps_issue",
    "nodeSdmaEngines": "node_sdma_engines",
    "nodeSdmaStartPs": "node_sdma_start_ps",
    "nodeSdmaBytesPerS": "node_sdma_bytes_per_s",
    "linkSrc": "link_src",
    "linkDst": "link_dst",
    "linkPlane": "link_plane",
    "linkBytesPerS": "link_rate_bytes_per_s",
    "linkDelayPs": "link_delay_ps",
    "linkBitErrorRate": "link_bit_error_rate",
    "planeNetwork": "plane_network",
    "planeNClasses": "plane_n_classes",
    "endpointClass": "endpoint_class",
    "endpointSlot": "endpoint_slot",
    "endpointOut": "endpoint_out",
    "switchRow": "switch_row",
    "table": "table",
    "local": "local",
    "groupStart": "group_start",
    "groupLink": "group_link",
    "directStart": "direct_start",
    "directDst": "direct_dst",
    "directLink": "direct_link",
}

_engine_alive = False


def _fabric_arrays(arrays: FabricArrays) -> tuple[Any, list[np.ndarray]]:
    """Return the C++ ``UbFabricArrays`` that points to arrays, and those arrays."""
    cpp = load().UbFabricArrays()
    cpp.nNodes = arrays.n_nodes
    cpp.nLinks = arrays.n_links
    cpp.nPlanes = arrays.n_planes
    cpp.nTable = len(arrays.table)
    cpp.nLocal = len(arrays.local)
    cpp.nGroups = len(arrays.group_start) - 1
    keep = []
    for pointer, name in _POINTERS.items():
        values = np.ascontiguousarray(getattr(arrays, name)).reshape(-1)
        # cppyy cannot point to nothing; a fabric may have no direct link, for one
        keep.append(values if len(values) else np.zeros(1, values.dtype))
        # and it refuses an array longer than the first that this member ever pointed
        # to, whatever object: it is shown one element, and so takes the address only
        setattr(cpp, pointer, keep[-1][:1])
    return cpp, keep


class Engine:
    """One packet-level simulation: the C++ ``UbRun`` with NumPy arrays.

    ns-3 has one simulator a process, so one engine can be alive at a time; use it as a context
    manager. Everything must have been validated before: ns-3 answers bad input by ending the
    process.

    Parameters
    ----------
    arrays : FabricArrays
        The fabric.
    attributes : mapping of str to str or int
        Attributes of the C++ ``UbFabric`` by name, such as ``{"PayloadBytes": 4096,
        "PathPolicy": "ns3::UbPathRoundRobin"}``; those left out keep their default.

    Raises
    ------
    BridgeError
        If the library cannot be loaded or another engine is alive.
    """

    def __init__(
        self,
        arrays: FabricArrays,
        attributes: Mapping[str, str | int],
    ) -> None:
        global _engine_alive
        namespace = load()
        if _engine_alive:
            raise BridgeError("a simulation is at work in this process; close it first")
        self._run = namespace.UbRun()
        _engine_alive = True
        self._chunks: dict[int, tuple[np.ndarray, ...]] = {}
        self._n_links = arrays.n_links
        try:
            for name, value in attributes.items():
                self._run.SetAttribute(name, str(value))
            cpp, keep = _fabric_arrays(arrays)
            self._run.Build(cpp)
            del keep
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the simulation and let another begin."""
        global _engine_alive
        if self._run is not None:
            self._run.__destruct__()
            self._run = None
            self._chunks.clear()
            _engine_alive = False

    @property
    def fabric(self) -> Any:
        """The C++ ``Ptr<UbFabric>``, for ns-3 users who attach devices or trace sinks."""
        return self._run.GetFabric()

    def add_chunk(
        self,
        flows: np.ndarray,
        tasks: np.ndarray,
        *,
        first_task: int,
        send_order: np.ndarray,
        dep_start: np.ndarray,
        deps: np.ndarray,
        open_order: np.ndarray,
        is_last: bool,
        accounts: np.ndarray | None = None,
    ) -> int | None:
        """Load flows and tasks; the engine works on the arrays until the chunk is complete.

        Parameters
        ----------
        flows : ndarray of FLOW_RECORD, shape (n_flows,)
        tasks : ndarray of TASK_RECORD, shape (n_tasks,)
        first_task : int
            Number of the first task in the trace; tasks are numbered without gaps.
        send_order : ndarray of uint32
            Flows grouped by the task that sends them.
        dep_start : ndarray of uint64, shape (n_tasks + 1,)
        deps : ndarray of uint64
            ``deps[dep_start[i]:dep_start[i + 1]]`` are the tasks that task ``i`` depends on.
        open_order : ndarray of uint32
            Open-loop flows in order of their start.
        is_last : bool
            Whether no chunk follows.
        accounts : ndarray of ACCOUNT_RECORD, shape (n_flows,), optional
            Zeros, to be filled if the attribute ``KeepAccount`` is set.

        Returns
        -------
        int or None
            Number of the chunk from 0, None if too many chunks are at work.
        """
        if accounts is None:
            accounts = np.zeros(0, ACCOUNT_RECORD)
        arrays = (flows, tasks, send_order, dep_start, deps, open_order, accounts)
        expected: list[np.dtype[Any]] = [FLOW_RECORD, TASK_RECORD]
        expected += [np.dtype(name) for name in ("uint32", "uint64", "uint64", "uint32")]
        expected += [ACCOUNT_RECORD]
        for values, dtype in zip(arrays, expected, strict=True):
            if values.dtype != dtype or not values.flags.c_contiguous:
                raise TypeError(f"expected a contiguous array of {dtype}")
        address = [values.ctypes.data for values in arrays]
        number = int(
            self._run.AddChunk(
                address[0],
                len(flows),
                address[1],
                len(tasks),
                first_task,
                address[2],
                address[3],
                address[4],
                address[5],
                len(open_order),
                address[6] if len(accounts) else 0,
                is_last,
            )
        )
        if number < 0:
            return None
        self._chunks[number] = arrays
        return number

    def schedule_link(
        self, time_ps: int, link: int, bytes_per_s: int, bit_error_rate: float = 0.0
    ) -> None:
        """Let a directed link change at a time to come; a rate of 0 is down.

        To be called before the first :meth:`run`, in order of time, like the other schedules.
        """
        self._run.ScheduleLink(time_ps, link, bytes_per_s, bit_error_rate)

    def schedule_switch(self, time_ps: int, node: int, *, is_dead: bool) -> None:
        """Let a switch lose all it holds, or be alive again, at a time to come."""
        self._run.ScheduleSwitch(time_ps, node, is_dead)

    def schedule_routes(self, time_ps: int, arrays: FabricArrays) -> None:
        """Let routes change at a time to come; nodes, links and planes stay as they are."""
        cpp, keep = _fabric_arrays(arrays)
        self._run.ScheduleRoutes(time_ps, cpp)
        del keep

    def report_broken_links(self) -> None:
        """Let :meth:`run` return when a link has given up for bit errors."""
        self._run.ReportBrokenLinks()

    def take_broken(self) -> list[tuple[int, int]]:
        """Return the links that gave up, and when in picoseconds, each once."""
        count = int(self._run.CountBroken())
        if not count:
            return []
        links, times = np.zeros(count, np.uint32), np.zeros(count, np.int64)
        self._run.ReadBroken(links, times)
        return [(int(link), int(time)) for link, time in zip(links, times, strict=True)]

    def failure(self) -> tuple[int, int, int, int, bool] | None:
        """Return the packet that a source gave up: src, dst, network, time, and why.

        Returns
        -------
        tuple of int, int, int, int, bool, or None
            Nodes, position in ``NETWORKS``, picoseconds, and whether there was a way and no
            answer; None if no source gave up.
        """
        if not self._run.HasFailed():
            return None
        found = np.zeros(5, np.int64)
        self._run.ReadFailure(found)
        src, dst, network, time, has_way = (int(value) for value in found)
        return src, dst, network, time, bool(has_way)

    def is_stalled(self) -> bool:
        """Return whether the watchdog stopped the run, since no packet moved for long."""
        return bool(self._run.IsStalled())

    def stalled_links(self) -> np.ndarray:
        """Return the directed links that hold packets and cannot send them, uint32."""
        links = np.zeros(int(self._run.CountStalledLinks()), np.uint32)
        if len(links):
            self._run.ReadStalledLinks(links)
        return links

    def take_samples(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the samples since the last call; see the attribute ``SampleInterval``.

        Returns
        -------
        times_ps : ndarray of int64, shape (n,)
        bytes_sent, waiting_bytes : ndarray of uint64, shape (n, n_links)
            Bytes that each link has sent since time 0, and that wait for it.
        """
        count = int(self._run.CountSamples())
        times = np.zeros(count, np.int64)
        sent, waiting = (np.zeros((count, self._n_links), np.uint64) for _ in range(2))
        if count and self._n_links:
            self._run.ReadSamples(times, sent.reshape(-1), waiting.reshape(-1))
        return times, sent, waiting

    def run(self, packet_hops: int = 0) -> None:
        """Simulate until a chunk is needed, so many packet-hops are done, or nothing is left."""
        self._run.Run(packet_hops)

    def take_complete(self) -> list[int]:
        """Return the numbers of chunks that have become complete, ascending, each once."""
        complete = []
        while (number := int(self._run.TakeCompleteChunk())) >= 0:
            del self._chunks[number]
            complete.append(number)
        return complete

    def needs_chunk(self) -> bool:
        """Return whether the run stands still because tasks of the next chunk are needed."""
        return bool(self._run.NeedsChunk())

    def is_finished(self) -> bool:
        """Return whether the last :meth:`run` ended because no event was left."""
        return bool(self._run.IsFinished())

    def leftover(self) -> str:
        """Return what is not delivered, not returned or not finished; empty if nothing."""
        return str(self._run.Leftover())

    @property
    def now_ps(self) -> int:
        """Simulated time."""
        return int(self._run.GetNowPs())

    @property
    def counters(self) -> dict[str, int]:
        """Packets, packet-hops, fabric events, and payload bytes sent and delivered so far."""
        run = self._run
        return {
            "packets": int(run.GetPacketsSent()),
            "packet_hops": int(run.GetPacketHops()),
            "packets_lost": int(run.GetPacketsLost()),
            "fabric_events": int(run.GetFabricEvents()),
            "bytes_sent": int(run.GetBytesSent()),
            "bytes_delivered": int(run.GetBytesDelivered()),
        }

    def link_stats(self) -> dict[str, np.ndarray]:
        """Return what each link did.

        Returns
        -------
        dict of str to ndarray of int64, shape (n_links,)
            ``packets``, ``bytes``, ``busy_ps``, ``max_queue_bytes``, ``no_credit_ps``,
            ``retries``.
        """
        unsigned = [np.zeros(self._n_links, np.uint64) for _ in range(4)]
        signed = [np.zeros(self._n_links, np.int64) for _ in range(2)]
        if self._n_links:
            self._run.ReadLinkStats(
                unsigned[0], unsigned[1], signed[0], unsigned[2], signed[1], unsigned[3]
            )
        return {
            "packets": unsigned[0].astype(np.int64),
            "bytes": unsigned[1].astype(np.int64),
            "busy_ps": signed[0],
            "max_queue_bytes": unsigned[2].astype(np.int64),
            "no_credit_ps": signed[1],
            "retries": unsigned[3].astype(np.int64),
        }
