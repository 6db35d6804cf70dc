"""What the benchmarks share: the compiled comparisons, and the report of the session."""

from __future__ import annotations

import csv
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
from bench import bench_engine


class Report:
    """Rows of all benchmarks of a session, by group; written and printed when it ends."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.processes: list[tuple[str, float, str]] = []

    def markdown(self) -> str:
        """Return all tables."""
        parts = [
            f"Processor time on {platform.machine()}, Python {platform.python_version()}. "
            "`stock ns-3` and `bare loop`: time of the same packets over stock point-to-point "
            "links and through a bare event loop, in the same run, over that of the engine."
        ]
        for group in dict.fromkeys(row["group"] for row in self.rows):
            rows = [row for row in self.rows if row["group"] == group]
            parts.append(f"**{group}**\n\n{bench_engine.markdown(rows)}")
        if self.processes:
            lines = [f"| {what} | {value:,.2f} {unit} |" for what, value, unit in self.processes]
            parts.append("\n".join(["**a fresh process**\n", "| | |", "| --- | --- |", *lines]))
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> None:
        """Write ``engine.csv``, ``process.csv`` and ``report.md``."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.rows:
            with (folder / "engine.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)
        if self.processes:
            with (folder / "process.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("what", "value", "unit"), *self.processes])
        (folder / "report.md").write_text(self.markdown(), encoding="utf-8")


_REPORT = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def report(request) -> Report:
    """Return the report; it is printed and written to ``build/bench`` when the session ends."""
    return request.config.stash.setdefault(_REPORT, Report())


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """Print and write the report, after the tables of pytest-benchmark."""
    result = config.stash.get(_REPORT, Report())
    if result.rows or result.processes:
        folder = config.rootpath / "build" / "bench"
        result.write(folder)
        terminalreporter.write_line("")
        terminalreporter.write(result.markdown())
        terminalreporter.write_line(f"wrote {folder}")


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> dict[str, Path]:
    """Return the compiled comparisons."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    return bench_engine.compile_programs(tmp_path_factory.mktemp("programs"))
