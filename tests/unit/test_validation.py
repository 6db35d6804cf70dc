"""Measured figures: what a file of them may say, and how a row is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ubfabric.errors import SpecError
from ubfabric.validation import SdmaRow, _size, compare, load_measured

MEASURED = Path(__file__).parents[2] / "analysis" / "measured.yaml"
ROW = {
    "operation": "read",
    "peer": "cpu",
    "far": True,
    "block": "16 KiB",
    "value": "4.5 GB/s",
    "strength": "read",
    "role": "predicted",
    "source": "a test",
}


def written(tmp_path, **changes):
    """Return the path of a file with the shipped figures and changes to its keys."""
    measured = YAML(typ="safe").load(MEASURED) | changes
    path = tmp_path / "measured.yaml"
    YAML().dump({key: value for key, value in measured.items() if value is not None}, path)
    return path


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"operation": "send"}, r"sdma\.1\.operation: .*'send'"),
        ({"peer": "package"}, r"sdma\.1\.peer: .*'package'"),
        ({"block": "16384"}, r"sdma\.1\.block: found '16384'"),
        ({"block": "0 B"}, r"sdma\.1\.block: .*0"),
        ({"value": "4.5 us"}, r"sdma\.1\.value: found '4.5 us'"),
        ({"value": "0 GB/s"}, r"sdma\.1\.value: .*0"),
        ({"role": "guessed"}, r"sdma\.1\.role: .*'guessed'"),
        ({"strength": "hearsay"}, r"sdma\.1\.strength: .*'hearsay'"),
        ({"network": "ethernet"}, r"sdma\.1\.network: .*'ethernet'"),
        ({"cores": 3}, r"sdma\.1\.cores: "),
    ],
)
def test_a_wrong_row_of_sdma_gets_one_line_with_file_and_key(tmp_path, wrong, message):
    path = written(tmp_path, sdma=[ROW, ROW | wrong])
    with pytest.raises(SpecError, match=message) as caught:
        load_measured(path)
    line = str(caught.value)
    assert line.startswith(str(path)) and "\n" not in line


@pytest.mark.parametrize("key", ["operation", "peer", "far", "block", "value", "role", "source"])
def test_a_row_of_sdma_without_a_key_names_it(tmp_path, key):
    row = {name: value for name, value in ROW.items() if name != key}
    with pytest.raises(SpecError, match=rf"sdma\.0\.{key}: ") as caught:
        load_measured(written(tmp_path, sdma=[row]))
    assert "\n" not in str(caught.value)


def test_rows_of_sdma_may_be_left_out(tmp_path):
    assert load_measured(written(tmp_path, sdma=None)).sdma == []


def test_rows_of_sdma_are_named_by_peer_network_operation_and_block(monkeypatch):
    rows = [ROW, ROW | {"network": "rdma", "peer": "die", "block": "2 MiB", "far": False}]
    measured = load_measured(MEASURED)
    fused = measured.fused.model_copy(update={"rows": []})
    only = {"memory": [], "sdma": [SdmaRow(**row) for row in rows], "fused": fused}
    monkeypatch.setattr("ubfabric.validation.simulate_sdma", lambda graph, row: 9.0)
    table = compare(None, measured.model_copy(update=only))
    assert table["quantity"].tolist() == [
        "die to cpu, other server: SDMA read, 16 KiB",
        "die to die, server: RDMA read, 2 MiB",
    ]
    assert table["measured"].tolist() == [4.5, 4.5] and table["error"].tolist() == [1.0, 1.0]
    assert set(table["unit"]) == {"GB/s"} and set(table["source"]) == {"a test"}


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(1, "1 B"), (1_536, "1536 B"), (3 << 10, "3 KiB"), (5 << 20, "5 MiB")]
)
def test_sizes_are_written_in_the_unit_that_divides_them(n_bytes, text):
    assert _size(n_bytes) == text
