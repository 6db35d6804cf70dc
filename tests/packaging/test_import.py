"""Importing the package stays cheap and free of C++, and layers stay apart."""

from __future__ import annotations

import ast
import pkgutil
from pathlib import Path

import pytest
from pace import pace_s

import ubfabric


def sources() -> list[Path]:
    """Return the package's Python files, wherever it is installed."""
    return sorted(file for folder in ubfabric.__path__ for file in Path(folder).glob("*.py"))


def imports(file: Path, *, top_level: bool) -> set[str]:
    """Return the first names of the modules that a file imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_import_loads_no_heavy_package(python):
    loaded = python("import ubfabric, sys; print(*sys.modules)").split()
    heavy = {"cppyy", "libcppyy", "ns", "matplotlib", "pandas", "pyarrow", "networkx"}
    heavy |= {"dask", "distributed", "bokeh", "scipy"}
    assert heavy.isdisjoint(loaded)


def test_import_is_quick(python):
    """Some 0.2 times the yardstick."""
    code = "import time; t = time.process_time(); import ubfabric; print(time.process_time() - t)"
    assert min(float(python(code)) for _ in range(3)) < 2 * pace_s()


def test_no_module_loads_cppyy_when_imported(python):
    names = {module.name for module in pkgutil.iter_modules(ubfabric.__path__)}
    modules = [f"ubfabric.{name}" for name in sorted(names - {"__main__"})]
    assert "ubfabric._bridge" in modules
    loaded = python(f"import sys, {', '.join(modules)}; print(*sys.modules)").split()
    assert {"cppyy", "libcppyy", "ns", "distributed", "scipy"}.isdisjoint(loaded)


def test_a_replay_takes_the_library_alone(python):
    """cppyy, its compiler and the headers of ns-3 would nearly double the memory it takes."""
    code = """
import sys
from pathlib import Path
import ubfabric
from ubfabric import _bridge

def found():
    mapped = Path("/proc/self/maps").read_text()
    return [
        *(name for name in ("cppyy", "libcppyy", "ns") if name in sys.modules),
        *(name for name in ("libubfabric", "libCling") if name in mapped),
    ]

graph, trace = ubfabric.build_topology("one-node"), ubfabric.all_to_all_trace(2, 512)
ubfabric.replay(graph, trace, "run", progress=False)
print(*found())
_bridge.load()
print(*found())
"""
    after_replay, after_load = python(code).splitlines()
    assert after_replay == "libubfabric"
    assert after_load == "cppyy libcppyy libubfabric libCling"


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("cppyy", {"_bridge.py"}),
        ("ctypes", {"_bridge.py"}),
        ("matplotlib", {"plot.py", "plot_topology.py"}),
    ],
)
def test_only_its_own_file_imports(package, allowed):
    assert {f.name for f in sources() if package in imports(f, top_level=False)} <= allowed


def test_package_under_test_has_its_library():
    """Else the source folder shadows the installed package and C++ tests mean nothing."""
    from ubfabric import _bridge

    assert _bridge.library_path().is_file()


def test_package_states_that_it_is_typed():
    assert any((Path(folder) / "py.typed").is_file() for folder in ubfabric.__path__)


def test_public_names_win_over_modules_of_the_same_name(python):
    """``import ubfabric.replay`` binds the module where users expect the function."""
    code = """
import types
import ubfabric
names = ubfabric.__all__
before = {name: getattr(ubfabric, name) for name in names}
import ubfabric.replay, ubfabric.trace, ubfabric.describe
assert {name: getattr(ubfabric, name) for name in names} == before
assert not any(isinstance(value, types.ModuleType) for value in before.values())
assert isinstance(ubfabric.trace, types.ModuleType)
print(callable(ubfabric.replay))
"""
    assert python(code) == "True\n"
    # The other order: the module comes first.
    assert python("import ubfabric.replay; print(callable(ubfabric.replay))") == "True\n"
