"""The C++ side loads in picoseconds, beside ``from ns import ns``, or says why not."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fabrics import star
from pace import pace_s

import ubfabric
from ubfabric import _bridge
from ubfabric.errors import BridgeError
from ubfabric.routing import compile_fabric

# Two packets cross a stock ns-3 link of 100 bit/s and 2 ms; then our own class is made.
STOCK_SIMULATION = """
nodes = ns.NodeContainer()
nodes.Create(2)
link = ns.PointToPointHelper()
link.SetDeviceAttribute("DataRate", ns.StringValue("5Mbps"))
link.SetChannelAttribute("Delay", ns.StringValue("2ms"))
devices = link.Install(nodes)
stack = ns.InternetStackHelper()
stack.Install(nodes)
addresses = ns.Ipv4AddressHelper()
addresses.SetBase(ns.Ipv4Address("10.1.1.0"), ns.Ipv4Mask("255.255.255.0"))
interfaces = addresses.Assign(devices)
server = ns.UdpEchoServerHelper(9).Install(nodes.Get(1))
client_helper = ns.UdpEchoClientHelper(interfaces.GetAddress(1).ConvertTo(), 9)
client_helper.SetAttribute("MaxPackets", ns.UintegerValue(1))
client = client_helper.Install(nodes.Get(0))
client.Start(ns.Seconds(2))
ns.Simulator.Run()
assert ns.Simulator.GetEventCount() > 10, ns.Simulator.GetEventCount()
# The last event is the echo's arrival, some milliseconds after its departure.
assert ns.Simulator.Now() > ns.Seconds(2), ns.Simulator.Now()
ns.Simulator.Destroy()
assert ns.Time.GetResolution() == ns.Time.PS
assert ns.UbVersion.GetRegistrationResolution() == ns.Time.PS
assert ns.CreateObject[ns.UbVersion]().GetInstanceTypeId().GetName() == "ns3::UbVersion"
print("done")
"""

# The ns3 package's own loader drops every library whose path contains this word.
needs_stock_loader = pytest.mark.skipif(
    "test" in str(_bridge.ns3_path()),
    reason="`from ns import ns` fails in any environment whose path contains 'test'",
)


@needs_stock_loader
@pytest.mark.parametrize(
    "order",
    [
        "from ns import ns; from ubfabric import _bridge; ours = _bridge.load()",
        "from ubfabric import _bridge; ours = _bridge.load(); from ns import ns",
        "from ubfabric import _bridge; _bridge.load_library(); from ns import ns;"
        "ours = _bridge.load()",
    ],
    ids=["ns first", "ours first", "library first"],
)
def test_works_beside_the_stock_loader(order, python):
    assert python(f"{order}\nassert ours is ns\n{STOCK_SIMULATION}").endswith("done\n")


def test_classes_are_registered_in_picoseconds():
    ns3 = _bridge.load()
    assert ns3.Time.GetResolution() == ns3.Time.PS
    assert ns3.UbVersion.GetRegistrationResolution() == ns3.Time.PS
    assert ns3.PicoSeconds(1).GetTimeStep() == 1


def test_loading_again_returns_the_same():
    assert _bridge.load_library() is _bridge.load_library()
    assert _bridge.load() is _bridge.load()


def test_library_is_of_this_version():
    version = metadata.version("ubfabric")
    assert _bridge.load_library().UbRunPackageVersion().decode() == version
    assert str(_bridge.load().UbVersion.GetPackageVersion()) == version


def header(name: str) -> str:
    """Return a header of the library without its comments, white space as single blanks."""
    text = (_bridge.library_path().parent / "include" / "ns3" / name).read_text(encoding="utf-8")
    return " ".join(re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S).split())


def c_type(written: str) -> Any:
    """Return what a type of the C++ headers is in Python, a pointer to numbers as their type."""
    kind, star = re.fullmatch(r"(?:const )?(\w+)(\*?)", written).groups()
    if star:
        return {"char": ctypes.c_char_p, "UbRun": _bridge._Run}.get(kind, kind)
    return None if kind == "void" else getattr(ctypes, f"c_{kind.removesuffix('_t')}")


#: Arrays that a chunk points to are checked by the engine, before their addresses are taken.
LONG_LIVED = {"UbFlowRecord", "UbTaskRecord", "UbFlowAccount", "uint32_t", "uint64_t"}


def test_functions_are_declared_as_in_the_header():
    """ctypes would pass anything: a wrong width shows as nonsense or ends the process."""
    found = re.findall(r"((?:const )?\w+\*?) (UbRun\w+)\(([^)]*)\);", header("ub-run.h"))
    assert [name for _, name, _ in found] == list(_bridge._FUNCTIONS)
    for result, name, parameters in found:
        written = [part.strip().rpartition(" ")[0] for part in parameters.split(",") if part]
        for ours, cpp in zip(_bridge._FUNCTIONS[name], [result, *written], strict=True):
            expected = c_type(cpp)
            if (name == "UbRunAddChunk" and expected in LONG_LIVED) or expected == "UbFabric":
                expected = ctypes.c_void_p
            elif expected == "UbFabricArrays":
                expected = ctypes.POINTER(_bridge._FabricArrays)
            elif isinstance(expected, str):
                assert ours._dtype_ == np.dtype(expected.removesuffix("_t")), (name, cpp)
                continue
            assert ours is expected, (name, cpp)


def test_fabric_arrays_are_laid_out_as_in_the_header():
    found = re.findall(r"((?:const )?\w+\*?) (\w+)\{\w+\};", header("ub-fabric-arrays.h"))
    assert [name for _, name in found] == list(_bridge._FABRIC_ARRAYS)
    for written, name in found:
        ours, expected = _bridge._FABRIC_ARRAYS[name], c_type(written)
        if isinstance(expected, str):
            assert np.dtype(ours[0]) == np.dtype(expected.removesuffix("_t")), name
        else:
            assert ours is expected, name


def test_load_is_quick_when_warm(python):
    """Some 12 times the yardstick, 0.6 s where it takes 0.05."""
    code = (
        "import time; t = time.process_time(); from ubfabric import _bridge; _bridge.load();"
        "print(time.process_time() - t)"
    )
    assert min(float(python(code)) for _ in range(2)) < 40 * pace_s()


def test_load_works_when_the_user_has_set_picoseconds(python):
    code = f"""
import cppyy
from ubfabric import _bridge
folder = _bridge.ns3_path()
cppyy.add_include_path(str(folder / "include"))
cppyy.load_library(str(folder / "lib64" / "libns{_bridge.NS3_VERSION}-core.so"))
cppyy.include("ns3/simulator.h")
ns3 = cppyy.gbl.ns3
ns3.Time.SetResolution(ns3.Time.PS)
ns3.Simulator.Run()
ns3.Simulator.Destroy()
assert _bridge.load() is ns3
print("done")
"""
    assert python(code) == "done\n"


def test_load_refuses_after_a_run_in_nanoseconds(python):
    """ns-3 would end the process in SetResolution; ours must be an exception."""
    code = f"""
import cppyy
from ubfabric import _bridge
from ubfabric.errors import BridgeError
folder = _bridge.ns3_path()
cppyy.add_include_path(str(folder / "include"))
cppyy.load_library(str(folder / "lib64" / "libns{_bridge.NS3_VERSION}-core.so"))
cppyy.include("ns3/simulator.h")
ns3 = cppyy.gbl.ns3
ns3.Simulator.Run()
ns3.Simulator.Destroy()
for attempt in range(2):
    try:
        _bridge.load()
    except BridgeError as error:
        print(error)
"""
    first, second = python(code).splitlines()
    assert first == second
    assert "already run a simulation in another resolution" in first
    assert "ns.Time.SetResolution(ns.Time.PS)" in first


def test_missing_ns3_package_is_named(monkeypatch):
    def not_found(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(metadata, "version", not_found)
    with pytest.raises(BridgeError, match=r"not installed; pip install 'ns3==3\.44\.post0'"):
        _bridge.ns3_path()


def test_wrong_ns3_version_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]),
    )
    monkeypatch.setattr(metadata, "version", lambda name: "3.47")
    with pytest.raises(BridgeError, match=r"found version 3\.47, need 3\.44\.post0"):
        _bridge.ns3_path()


def test_other_folders_called_ns3_do_not_hide_the_package(monkeypatch, tmp_path, python):
    """The package has no __init__.py, so that any folder ns3 on the path joins it."""
    (tmp_path / "ns3").mkdir()
    code = "from ubfabric import _bridge; print(_bridge.ns3_path())"
    assert python(code, PYTHONPATH=str(tmp_path)).strip() == str(_bridge.ns3_path())


def test_library_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "9.9.9")
    with pytest.raises(BridgeError, match=r"built for ubfabric .*, found ubfabric 9\.9\.9"):
        _bridge._check_same_version("0.0.1", Path("libubfabric.so"))


def test_library_from_earlier_sources_is_refused(monkeypatch):
    """As when an editable install was not built anew after an update of its sources."""
    monkeypatch.setattr(_bridge, "_FUNCTIONS", {"UbRunLikeNew": (None,)})
    with pytest.raises(BridgeError, match="UbRunLikeNew is missing; run 'pip install --force"):
        _bridge._load_library()


def test_source_folder_without_library_is_explained(tmp_path, python):
    package = Path(ubfabric.__file__).parent
    copy = tmp_path / "ubfabric"
    copy.mkdir()
    for name in ("__init__.py", "errors.py", "_bridge.py"):
        shutil.copy(package / name, copy / name)
    code = f"""
import sys
# An editable install has a finder of its own, which would come first.
sys.meta_path = [f for f in sys.meta_path if "Scikit" not in type(f).__name__]
sys.path.insert(0, {str(tmp_path)!r})
from ubfabric import _bridge
from ubfabric.errors import BridgeError
try:
    _bridge.load()
except BridgeError as error:
    print(error)
"""
    message = python(code)
    assert str(copy) in message
    assert "run 'pip install .' and start Python outside of the source folder" in message


def test_a_closed_engine_is_not_touched():
    with _bridge.Engine(compile_fabric(star(2)), {}) as engine:
        assert engine.now_ps == 0
    with pytest.raises(ctypes.ArgumentError, match="the simulation is closed"):
        engine.run()


def test_arrays_of_another_type_are_refused():
    """The engine would read them as something else."""
    arrays = compile_fabric(star(2))
    wrong = replace(arrays, link_delay_ps=arrays.link_delay_ps.astype(np.int32))
    with pytest.raises(TypeError, match="link_delay_ps: found int32, expected int64"):
        _bridge.Engine(wrong, {})
    with _bridge.Engine(arrays, {}) as engine:  # the one that failed is gone
        assert engine.leftover() == ""


def test_errors_are_one_line(monkeypatch):
    monkeypatch.setattr(ubfabric, "__path__", ["/nowhere"])
    with pytest.raises(BridgeError) as caught:
        _bridge.library_path()
    assert "\n" not in str(caught.value)
