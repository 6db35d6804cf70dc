"""What users install: the wheel, the source distribution, the shipped names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from ubfabric import specs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytest.importorskip("scikit_build_core", reason="building needs the build requirements")


def build(source_root: Path, hook: str, target: Path, config: dict[str, str]) -> Path:
    """Call a hook of the build backend, as pip does, and return the file it made."""
    code = (
        "import sys; from scikit_build_core import build;"
        f"print(build.{hook}(sys.argv[1], {config!r}))"
    )
    # The tools from PyPI first on the path, as in an activated environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        cwd=source_root,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(source_root, tmp_path_factory):
    """Build the wheel, reusing what `make` has compiled."""
    made = source_root / "build" / "venv"
    folder = made if made.is_dir() else tmp_path_factory.mktemp("build")
    file = build(
        source_root, "build_wheel", tmp_path_factory.mktemp("wheel"), {"build-dir": str(folder)}
    )
    with zipfile.ZipFile(file) as archive:
        yield archive


@pytest.fixture(scope="module")
def project(source_root):
    """Return pyproject.toml as a mapping."""
    return tomllib.loads((source_root / "pyproject.toml").read_text(encoding="utf-8"))


def module_files(source_root: Path) -> list[str]:
    """Return the files that the C++ module's CMakeLists.txt names."""
    text = (source_root / "ubfabric" / "ns3" / "CMakeLists.txt").read_text(encoding="utf-8")
    text = re.sub(r"#.*", "", text)
    return re.findall(r"[\w-]+/[\w-]+\.(?:cc|h)\b", text)


def public_headers(source_root: Path) -> set[str]:
    """Return the names of the headers that the module gives to others, without an MPI."""
    text = (source_root / "ubfabric" / "ns3" / "CMakeLists.txt").read_text(encoding="utf-8")
    (block,) = re.findall(r"^  HEADER_FILES\n((?:    \S+\n)+)", text, re.MULTILINE)
    return {Path(file).name for file in block.split() if file != "${mpi_headers}"}


def test_wheel_has_the_library_once(wheel):
    libraries = [name for name in wheel.namelist() if ".so" in name]
    assert libraries == ["ubfabric/_lib/libubfabric.so"]


def test_no_path_looks_like_a_part_of_ns3(wheel):
    """A path with 'libns3' breaks `from ns import ns` for the whole environment."""
    assert not [name for name in wheel.namelist() if "libns3" in name]


def test_wheel_has_every_public_header(wheel, source_root):
    listed = public_headers(source_root)
    prefix = "ubfabric/_lib/include/ns3/"
    shipped = {n.removeprefix(prefix) for n in wheel.namelist() if n.startswith(prefix)}
    assert shipped == listed | {"ub-fabric-module.h"}
    text = wheel.read(f"{prefix}ub-fabric-module.h").decode()
    assert {name for name in listed if f'#include "ns3/{name}"' in text} == listed


def test_every_cpp_file_is_listed(source_root):
    """A file left out of the list is compiled nowhere and shipped to no one."""
    folder = source_root / "ubfabric" / "ns3"
    present = {
        str(file.relative_to(folder))
        for kind in ("model", "helper", "test")
        for file in (folder / kind).glob("*.*")
        if file.suffix == ".cc" or (file.suffix == ".h" and kind != "test")
    }
    listed = module_files(source_root)
    assert len(listed) == len(set(listed))
    assert set(listed) == present


def test_wheel_has_no_sources_and_no_tests(wheel):
    names = wheel.namelist()
    assert not [name for name in names if name.endswith((".cc", "CMakeLists.txt"))]
    assert not [name for name in names if name.startswith("ubfabric/ns3/")]
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ubfabric"}


def test_wheel_has_every_module_and_every_spec(wheel, source_root):
    names = set(wheel.namelist())
    modules = {f"ubfabric/{f.name}" for f in (source_root / "ubfabric").glob("*.py")}
    data = {
        f"ubfabric/{file.relative_to(source_root)}"
        for folder in ("topologies", "traffic")
        for file in (source_root / folder).rglob("*")
        if file.is_file()
    }
    assert data
    assert modules | data | {"ubfabric/py.typed"} <= names


def test_library_finds_ns3_by_a_relative_path(wheel, source_root):
    library = wheel.read("ubfabric/_lib/libubfabric.so")
    assert b"$ORIGIN/../../ns3/lib64\0" in library
    assert b"site-packages" not in library
    assert str(source_root).encode() not in library


def test_wheel_serves_all_python_versions_of_a_platform(wheel):
    assert re.search(r"-py3-none-(linux|manylinux)\w+\.whl$", wheel.filename)


def test_wheel_metadata(wheel, project):
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["License-Expression"] == "GPL-2.0-only"
    assert metadata["Version"] == project["project"]["version"]
    assert set(metadata["Requires-Python"].split(",")) == {">=3.10", "<3.14"}
    licence = wheel.read(name.replace("METADATA", "licenses/LICENSE")).decode()
    assert "GNU GENERAL PUBLIC LICENSE" in licence
    entry = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "ubfabric = ubfabric.cli:main" in entry.replace("=", " = ").replace("  ", " ")


def test_sdist_has_all_that_a_build_needs(source_root, tmp_path):
    file = build(source_root, "build_sdist", tmp_path, {})
    with tarfile.open(file) as archive:
        root, *_ = archive.getnames()[0].split("/")
        names = {n.removeprefix(f"{root}/") for n in archive.getnames()}
    needed = {"CMakeLists.txt", "pyproject.toml", "LICENSE", "PKG-INFO"}
    for folder in ("ubfabric", "topologies", "traffic"):
        needed |= {
            str(f.relative_to(source_root))
            for f in (source_root / folder).rglob("*")
            if f.is_file() and f.suffix not in {".pyc", ".pyo"}
        }
    assert needed <= names
    assert not [n for n in names if n.startswith(("build/", ".venv", "runs/"))]


@pytest.mark.parametrize("folder", ["topologies", "traffic"])
def test_shipped_names_resolve(folder, source_root):
    expected = {file.stem for file in (source_root / folder).glob("*.yaml")}
    assert expected
    assert set(specs.shipped(folder)) == expected
    for name in expected:
        label, content = specs.load_yaml(name, folder)
        assert label == f"{folder}/{name}.yaml"
        assert content


def test_makefile_installs_the_build_requirements(source_root, project):
    text = (source_root / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^BUILD_REQUIRES := (.*)$", text, flags=re.MULTILINE)
    assert re.findall(r'"([^"]+)"', line) == project["build-system"]["requires"]


def test_ns3_is_pinned_alike_everywhere(source_root, project):
    from ubfabric import _bridge

    pin = f"ns3=={_bridge.NS3_RELEASE}"
    assert pin in project["build-system"]["requires"]
    assert pin in project["project"]["dependencies"]
    cmake = (source_root / "CMakeLists.txt").read_text(encoding="utf-8")
    assert f"set(NS3_WHEEL_VERSION {_bridge.NS3_VERSION})" in cmake


def test_unsupported_python_is_named(source_root, tmp_path):
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\ncase "$2" in *platform*) echo CPython 3.9.1;; *) exit 1;; esac\n')
    fake.chmod(0o755)
    target = tmp_path / "venv"
    done = subprocess.run(
        ["bash", str(source_root / ".ci" / "make-venv"), str(target), str(fake)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: CPython 3.10 to 3.13 is needed; found: ")
    assert "CPython 3.9.1" in done.stderr
    assert not target.exists()


def test_shell_scripts_are_valid(source_root):
    bash = shutil.which("bash")
    for script in ("run", "make-venv"):
        text = (source_root / ".ci" / script).read_text(encoding="utf-8")
        assert "set -euo pipefail" in text
        subprocess.run([bash, "-n", str(source_root / ".ci" / script)], check=True)
