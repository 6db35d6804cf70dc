"""The only door to the C++ world: nothing else in the package loads it.

Two ways lead through it. A replay takes the C functions of the compiled library, ``ub-run.h``,
by ctypes: numbers, strings and flat arrays; that takes a hundredth of a second and 8 MB.
:func:`load` brings up the classes of ns-3 and of this package by cppyy, for those who attach
devices or trace sinks: its compiler and the headers take half a second and 190 MB, against 11 to
24 s for ``from ns import ns``, which includes every header of ns-3. All can be used in one
process, in any order; the classes of this package then show under ``ns`` as well.
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

#: What :func:`load` includes: our module, and the values of attributes of its classes.
_HEADERS = ("ns3/string.h", "ns3/uinteger.h", "ns3/ub-fabric-module.h")
#: ``ns3::Time::PS`` of the C++ enumeration ``ns3::Time::Unit``.
_PICOSECONDS = 8

_lock = threading.RLock()
_library: ctypes.CDLL | None = None
_namespace: Any = None


def load_library() -> ctypes.CDLL:
    """Return the compiled library, with ns-3's own that it needs, ready for a simulation.

    Returns
    -------
    ctypes.CDLL
        The C functions of ``ub-run.h`` by name. The same object on every call.

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
    global _library
    with _lock:
        if _library is None:
            _library = _load_library()
        return _library


def load() -> Any:
    """Return the C++ namespace ``ns3``, with the classes of ns-3 and of this package.

    Returns
    -------
    cppyy namespace
        ``load().UbFabric`` is the C++ class ``ns3::UbFabric``, and so on. The same
        object on every call.

    Raises
    ------
    BridgeError
        As :func:`load_library`, or if cppyy is missing.
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


def _load_library() -> ctypes.CDLL:
    """Load ns-3 and our library; called once."""
    ns3_folder = ns3_path()
    path = library_path()
    try:
        # Found by those who come later: ns-3's and cppyy's own loaders share symbols as well.
        core, *_ = [
            ctypes.CDLL(str(_ns3_library(ns3_folder, module)), ctypes.RTLD_GLOBAL)
            for module in _NS3_MODULES
        ]
        _set_picoseconds(core)
        library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BridgeError(
            f"{path.name}: cannot be loaded: {' '.join(str(error).split())}"
        ) from None
    for name, (result, *arguments) in _FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise BridgeError(
                f"{path}: built from earlier sources, {name} is missing; run "
                "'pip install --force-reinstall .' in the source folder"
            ) from None
        function.restype, function.argtypes = result, arguments
    _check_same_version(library.UbRunPackageVersion().decode(), path)
    return library


def _load() -> Any:
    """Have cppyy read the headers; called once."""
    load_library()  # picoseconds before any class is seen
    ns3_folder, path = ns3_path(), library_path()
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
    cppyy.add_include_path(str(path.parent / "include"))
    try:
        for library in [*(_ns3_library(ns3_folder, module) for module in _NS3_MODULES), path]:
            cppyy.load_library(str(library))
        for header in _HEADERS:
            cppyy.include(header)
    except (RuntimeError, ImportError) as error:
        raise BridgeError(f"{path.name}: cannot be read: {' '.join(str(error).split())}") from None
    return cppyy.gbl.ns3


def _ns3_library(ns3_folder: Path, module: str) -> Path:
    """Return the path of one of ns-3's libraries."""
    return ns3_folder / "lib64" / f"libns{NS3_VERSION}-{module}.so"


def _set_picoseconds(core: ctypes.CDLL) -> None:
    """Set ns-3's time resolution to picoseconds, once a process.

    ns-3 keeps a list of all ``Time`` objects until the resolution is set or a simulation
    starts, and rescales them. Without that list ``SetResolution`` ends the process, so
    its presence is checked first.
    """
    # Time::GetResolution(), Time::g_markingTimes and Time::SetResolution(Time::Unit)
    if core["_ZN3ns34Time13GetResolutionEv"]() == _PICOSECONDS:
        return
    if not ctypes.c_void_p.in_dll(core, "_ZN3ns34Time14g_markingTimesE").value:
        raise BridgeError(
            "ns-3 time resolution: this process has already run a simulation in another resolution "
            "than picoseconds, which ns-3 cannot change afterwards; call ubfabric first, or "
            "ns.Time.SetResolution(ns.Time.PS) before that simulation, or use a new process"
        )
    core["_ZN3ns34Time13SetResolutionENS0_4UnitE"](_PICOSECONDS)


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


def flow_records(n: int) -> np.ndarray:
    """Return records of flows, all zero, each of them one cache line.

    Arrays that NumPy makes begin where they like; then a record is in two lines.

    Parameters
    ----------
    n : int
        Number of flows.

    Returns
    -------
    ndarray of FLOW_RECORD, shape (n,)
    """
    line = FLOW_RECORD.itemsize
    room = np.zeros((n + 1) * line, np.uint8)
    begin = -room.ctypes.data % line
    return room[begin : begin + n * line].view(FLOW_RECORD)


#: One task, laid out as the C++ ``UbTaskRecord``.
TASK_RECORD = np.dtype(
    [
        ("duration_ps", np.int64),
        ("memory_ps", np.int64),
        ("ready_ps", np.int64),
        ("start_ps", np.int64),
        ("finish_ps", np.int64),
        ("issued_ps", np.int64),
        ("arrived_ps", np.int64),
        ("left_ps", np.float64),
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

#: Members of the C++ ``UbFabricArrays`` in their order: a number by its type, an array by the
#: type of its values and the array of :class:`FabricArrays` that it is.
_FABRIC_ARRAYS: dict[str, Any] = {
    "nNodes": ctypes.c_uint32,
    "nodeIsEndpoint": (np.uint8, "node_is_endpoint"),
    "nodeForwardLatencyPs": (np.int64, "node_forward_latency_ps"),
    "nodeBufferBytes": (np.int64, "node_buffer_bytes"),
    "nodeIssueEngines": (np.uint32, "node_issue_engines"),
    "nodeIssueCostPs": (np.int64, "node_issue_cost_ps"),
    "nodeEngineBytesPerS": (np.uint64, "node_engine_bytes_per_s"),
    "nodeEgressBytesPerS": (np.uint64, "node_egress_bytes_per_s"),
    "nodeReceiveLatencyPs": (np.int64, "node_receive_latency_ps"),
    "nodeCopyBytesPerS": (np.uint64, "node_copy_bytes_per_s"),
    "nodeMemoryReadLatencyPs": (np.int64, "node_memory_read_latency_ps"),
    "nodeAcknowledgeLatencyPs": (np.int64, "node_acknowledge_latency_ps"),
    "nodeOverlapsIssue": (np.uint8, "node_overlaps_issue"),
    "nodeSdmaEngines": (np.uint32, "node_sdma_engines"),
    "nodeSdmaStartPs": (np.int64, "node_sdma_start_ps"),
    "nodeSdmaBytesPerS": (np.uint64, "node_sdma_bytes_per_s"),
    "nodeSdmaReadBytesPerS": (np.uint64, "node_sdma_read_bytes_per_s"),
    "nodeSdmaWriteBytesPerS": (np.uint64, "node_sdma_write_bytes_per_s"),
    "nodeMemoryWritePpm": (np.uint32, "node_memory_write_ppm"),
    "nLinks": ctypes.c_uint32,
    "linkSrc": (np.uint32, "link_src"),
    "linkDst": (np.uint32, "link_dst"),
    "linkPlane": (np.uint32, "link_plane"),
    "linkBytesPerS": (np.uint64, "link_rate_bytes_per_s"),
    "linkDelayPs": (np.int64, "link_delay_ps"),
    "linkBitErrorRate": (np.float64, "link_bit_error_rate"),
    "nPlanes": ctypes.c_uint32,
    "planeNetwork": (np.uint32, "plane_network"),
    "planeNClasses": (np.uint32, "plane_n_classes"),
    "endpointClass": (np.int32, "endpoint_class"),
    "endpointSlot": (np.int32, "endpoint_slot"),
    "endpointOut": (np.int64, "endpoint_out"),
    "switchRow": (np.int64, "switch_row"),
    "nTable": ctypes.c_uint64,
    "table": (np.int32, "table"),
    "nLocal": ctypes.c_uint64,
    "local": (np.int32, "local"),
    "nGroups": ctypes.c_uint32,
    "groupStart": (np.uint32, "group_start"),
    "groupLink": (np.uint32, "group_link"),
    "directStart": (np.uint32, "direct_start"),
    "directDst": (np.uint32, "direct_dst"),
    "directLink": (np.uint32, "direct_link"),
}


class _FabricArrays(ctypes.Structure):
    """The C++ ``UbFabricArrays``."""

    _fields_ = tuple(
        (name, ctypes.c_void_p if isinstance(member, tuple) else member)
        for name, member in _FABRIC_ARRAYS.items()
    )


def _array(dtype: Any) -> Any:
    """Return the C type of a pointer to the values of an array, which must be of that type."""
    return np.ctypeslib.ndpointer(dtype, flags="C_CONTIGUOUS")


class _Run(ctypes.c_void_p):
    """A pointer to the C++ ``UbRun``, which is gone once the engine is closed."""

    @classmethod
    def from_param(cls, value: Any) -> Any:
        if value is None:
            raise TypeError("the simulation is closed")
        return super().from_param(value)


#: The C functions of ``ub-run.h``: type of the result, types of the arguments.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "UbRunPackageVersion": (ctypes.c_char_p,),
    "UbRunCreate": (_Run,),
    "UbRunDestroy": (None, _Run),
    "UbRunSetAttribute": (None, _Run, ctypes.c_char_p, ctypes.c_char_p),
    "UbRunBuild": (None, _Run, ctypes.POINTER(_FabricArrays)),
    "UbRunGetFabric": (ctypes.c_void_p, _Run),
    "UbRunAddChunk": (
        ctypes.c_int64,
        _Run,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_uint64,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_void_p,
        ctypes.c_bool,
    ),
    "UbRunRun": (None, _Run, ctypes.c_uint64),
    "UbRunTakeCompleteChunk": (ctypes.c_int64, _Run),
    "UbRunNeedsChunk": (ctypes.c_bool, _Run),
    "UbRunIsFinished": (ctypes.c_bool, _Run),
    "UbRunLeftover": (ctypes.c_char_p, _Run),
    "UbRunGetNowPs": (ctypes.c_int64, _Run),
    "UbRunGetPacketHops": (ctypes.c_uint64, _Run),
    "UbRunGetPacketsSent": (ctypes.c_uint64, _Run),
    "UbRunGetPacketsLost": (ctypes.c_uint64, _Run),
    "UbRunGetFabricEvents": (ctypes.c_uint64, _Run),
    "UbRunGetBytesSent": (ctypes.c_uint64, _Run),
    "UbRunGetBytesDelivered": (ctypes.c_uint64, _Run),
    "UbRunReadLinkStats": (
        None,
        _Run,
        _array(np.uint64),
        _array(np.uint64),
        _array(np.int64),
        _array(np.uint64),
        _array(np.int64),
        _array(np.uint64),
    ),
    "UbRunScheduleLink": (
        None,
        _Run,
        ctypes.c_int64,
        ctypes.c_uint32,
        ctypes.c_uint64,
        ctypes.c_double,
    ),
    "UbRunScheduleSwitch": (None, _Run, ctypes.c_int64, ctypes.c_uint32, ctypes.c_bool),
    "UbRunScheduleRoutes": (None, _Run, ctypes.c_int64, ctypes.POINTER(_FabricArrays)),
    "UbRunReportBrokenLinks": (None, _Run),
    "UbRunCountBroken": (ctypes.c_uint32, _Run),
    "UbRunReadBroken": (None, _Run, _array(np.uint32), _array(np.int64)),
    "UbRunIsStalled": (ctypes.c_bool, _Run),
    "UbRunCountStalledLinks": (ctypes.c_uint32, _Run),
    "UbRunReadStalledLinks": (None, _Run, _array(np.uint32)),
    "UbRunCountSamples": (ctypes.c_uint32, _Run),
    "UbRunReadSamples": (None, _Run, _array(np.int64), _array(np.uint64), _array(np.uint64)),
    "UbRunHasFailed": (ctypes.c_bool, _Run),
    "UbRunReadFailure": (None, _Run, _array(np.int64)),
}

_engine_alive = False


def _fabric_arrays(arrays: FabricArrays) -> tuple[_FabricArrays, list[np.ndarray]]:
    """Return the C++ ``UbFabricArrays`` that points to arrays, and those arrays."""
    cpp = _FabricArrays(
        nNodes=arrays.n_nodes,
        nLinks=arrays.n_links,
        nPlanes=arrays.n_planes,
        nTable=len(arrays.table),
        nLocal=len(arrays.local),
        nGroups=len(arrays.group_start) - 1,
    )
    keep = []
    for member, kind in _FABRIC_ARRAYS.items():
        if isinstance(kind, tuple):
            dtype, name = kind
            values = np.ascontiguousarray(getattr(arrays, name))
            if values.dtype != dtype:
                raise TypeError(f"{name}: found {values.dtype}, expected {np.dtype(dtype)}")
            keep.append(values)
            setattr(cpp, member, values.ctypes.data)
    return cpp, keep


class Engine:
    """One packet-level simulation: the C functions of ``ub-run.h`` with NumPy arrays.

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
        self._library = load_library()
        if _engine_alive:
            raise BridgeError("a simulation is at work in this process; close it first")
        self._run: _Run | None = self._library.UbRunCreate()
        _engine_alive = True
        self._chunks: dict[int, tuple[np.ndarray, ...]] = {}
        self._n_links = arrays.n_links
        try:
            for name, value in attributes.items():
                self._library.UbRunSetAttribute(self._run, name.encode(), str(value).encode())
            cpp, keep = _fabric_arrays(arrays)
            self._library.UbRunBuild(self._run, cpp)
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
            self._library.UbRunDestroy(self._run)
            self._run = None
            self._chunks.clear()
            _engine_alive = False

    @property
    def fabric(self) -> Any:
        """The C++ ``Ptr<UbFabric>``, for ns-3 users who attach devices or trace sinks."""
        namespace = load()
        import cppyy

        address = self._library.UbRunGetFabric(self._run)
        return namespace.Ptr[namespace.UbFabric](cppyy.bind_object(address, namespace.UbFabric))

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
            self._library.UbRunAddChunk(
                self._run,
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
        self._library.UbRunScheduleLink(self._run, time_ps, link, bytes_per_s, bit_error_rate)

    def schedule_switch(self, time_ps: int, node: int, *, is_dead: bool) -> None:
        """Let a switch lose all it holds, or be alive again, at a time to come."""
        self._library.UbRunScheduleSwitch(self._run, time_ps, node, is_dead)

    def schedule_routes(self, time_ps: int, arrays: FabricArrays) -> None:
        """Let routes change at a time to come; nodes, links and planes stay as they are."""
        cpp, keep = _fabric_arrays(arrays)
        self._library.UbRunScheduleRoutes(self._run, time_ps, cpp)
        del keep

    def report_broken_links(self) -> None:
        """Let :meth:`run` return when a link has given up for bit errors."""
        self._library.UbRunReportBrokenLinks(self._run)

    def take_broken(self) -> list[tuple[int, int]]:
        """Return the links that gave up, and when in picoseconds, each once."""
        count = int(self._library.UbRunCountBroken(self._run))
        if not count:
            return []
        links, times = np.zeros(count, np.uint32), np.zeros(count, np.int64)
        self._library.UbRunReadBroken(self._run, links, times)
        return [(int(link), int(time)) for link, time in zip(links, times, strict=True)]

    def failure(self) -> tuple[int, int, int, int, bool] | None:
        """Return the packet that a source gave up: src, dst, network, time, and why.

        Returns
        -------
        tuple of int, int, int, int, bool, or None
            Nodes, position in ``NETWORKS``, picoseconds, and whether there was a way and no
            answer; None if no source gave up.
        """
        if not self._library.UbRunHasFailed(self._run):
            return None
        found = np.zeros(5, np.int64)
        self._library.UbRunReadFailure(self._run, found)
        src, dst, network, time, has_way = (int(value) for value in found)
        return src, dst, network, time, bool(has_way)

    def is_stalled(self) -> bool:
        """Return whether the watchdog stopped the run, since no packet moved for long."""
        return bool(self._library.UbRunIsStalled(self._run))

    def stalled_links(self) -> np.ndarray:
        """Return the directed links that hold packets and cannot send them, uint32."""
        links = np.zeros(int(self._library.UbRunCountStalledLinks(self._run)), np.uint32)
        if len(links):
            self._library.UbRunReadStalledLinks(self._run, links)
        return links

    def take_samples(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the samples since the last call; see the attribute ``SampleInterval``.

        Returns
        -------
        times_ps : ndarray of int64, shape (n,)
        bytes_sent, waiting_bytes : ndarray of uint64, shape (n, n_links)
            Bytes that each link has sent since time 0, and that wait for it.
        """
        count = int(self._library.UbRunCountSamples(self._run))
        times = np.zeros(count, np.int64)
        sent, waiting = (np.zeros((count, self._n_links), np.uint64) for _ in range(2))
        if count and self._n_links:
            self._library.UbRunReadSamples(self._run, times, sent.reshape(-1), waiting.reshape(-1))
        return times, sent, waiting

    def run(self, packet_hops: int = 0) -> None:
        """Simulate until a chunk is needed, so many packet-hops are done, or nothing is left."""
        self._library.UbRunRun(self._run, packet_hops)

    def take_complete(self) -> list[int]:
        """Return the numbers of chunks that have become complete, ascending, each once."""
        complete = []
        while (number := int(self._library.UbRunTakeCompleteChunk(self._run))) >= 0:
            del self._chunks[number]
            complete.append(number)
        return complete

    def needs_chunk(self) -> bool:
        """Return whether the run stands still because tasks of the next chunk are needed."""
        return bool(self._library.UbRunNeedsChunk(self._run))

    def is_finished(self) -> bool:
        """Return whether the last :meth:`run` ended because no event was left."""
        return bool(self._library.UbRunIsFinished(self._run))

    def leftover(self) -> str:
        """Return what is not delivered, not returned or not finished; empty if nothing."""
        return str(self._library.UbRunLeftover(self._run).decode())

    @property
    def now_ps(self) -> int:
        """Simulated time."""
        return int(self._library.UbRunGetNowPs(self._run))

    @property
    def counters(self) -> dict[str, int]:
        """Packets, packet-hops, fabric events, and payload bytes sent and delivered so far."""
        library, run = self._library, self._run
        return {
            "packets": library.UbRunGetPacketsSent(run),
            "packet_hops": library.UbRunGetPacketHops(run),
            "packets_lost": library.UbRunGetPacketsLost(run),
            "fabric_events": library.UbRunGetFabricEvents(run),
            "bytes_sent": library.UbRunGetBytesSent(run),
            "bytes_delivered": library.UbRunGetBytesDelivered(run),
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
            self._library.UbRunReadLinkStats(
                self._run, unsigned[0], unsigned[1], signed[0], unsigned[2], signed[1], unsigned[3]
            )
        return {
            "packets": unsigned[0].astype(np.int64),
            "bytes": unsigned[1].astype(np.int64),
            "busy_ps": signed[0],
            "max_queue_bytes": unsigned[2].astype(np.int64),
            "no_credit_ps": signed[1],
            "retries": unsigned[3].astype(np.int64),
        }
