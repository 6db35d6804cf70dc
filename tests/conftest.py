"""Shared by all tests.

Rules of the suite
------------------
- Tests see the *installed* package: start ``pytest`` itself (``make test``), not
  ``python -m pytest``, which puts the source folder first on the path.
- A test's name says what must hold. No test depends on another, on the order, on the
  clock or on the network.
- ``unit`` checks a docstring, ``property`` a law over random input, ``golden`` that
  nothing moved, ``validation`` a published figure, ``packaging`` what users install.
- Over five seconds is ``slow``; speed is measured only under ``benchmark``.
- ns-3 ends the process on a fatal error: what may do so runs in a subprocess.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Before anything imports matplotlib: there is no screen where tests run.
os.environ["MPLBACKEND"] = "Agg"

from hypothesis import settings

# The same examples every time, so that a red run can be repeated; HYPOTHESIS_PROFILE=explore
# looks for new ones. No deadline: the machine is shared.
settings.register_profile("default", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", derandomize=False, deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_report_header() -> str:
    """Say which package is under test: a stale or shadowing one is the first suspect."""
    import ubfabric
    from ubfabric import _bridge
    from ubfabric.errors import BridgeError

    try:
        library = str(_bridge.library_path())
    except BridgeError as error:
        library = str(error)
    return f"ubfabric: {Path(ubfabric.__file__).parent}\nlibrary: {library}"


@pytest.fixture(scope="session")
def source_root() -> Path:
    """Return the root of the source tree the tests belong to."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def python(tmp_path) -> Callable[..., str]:
    """Return a function that runs code in a fresh interpreter and returns what it printed.

    It runs in an empty folder: no source folder shadows the installed package, and the
    loader of the ns3 package, which searches the working folder to any depth for
    libraries, has nothing to search.
    """

    def run(code: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def ubfabric(monkeypatch, capsys, tmp_path):
    """Run a command line in an empty folder; return exit code, output and error output."""
    from ubfabric.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ubfabric", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return call
