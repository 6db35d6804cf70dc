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
from importlib import metadata
from pathlib import Path
from typing import Any

from ubfabric.errors import BridgeError

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
