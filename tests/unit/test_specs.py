"""Quantities with units, and the strictness and error lines of specifications."""

from __future__ import annotations

import pytest

from ubfabric.errors import SpecError
from ubfabric.quantities import (
    Bytes,
    BytesPerSecond,
    Count,
    Fraction,
    Picoseconds,
    parse_rate_bytes_per_s,
    parse_size_bytes,
    parse_time_ps,
    provenance,
    unwrap,
)
from ubfabric.specs import Spec, load_yaml, shipped, validate_spec


class Inner(Spec):
    rate: BytesPerSecond
    delay: Picoseconds


class Outer(Spec):
    count: Count
    size: Bytes
    share: Fraction = 0.5
    inner: Inner | None = None
    parts: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (parse_time_ps, "200 ns", 200_000),
        (parse_time_ps, "1.2us", 1_200_000),
        (parse_time_ps, "49.4 ms", 49_400_000_000),
        (parse_time_ps, "0 ps", 0),
        (parse_size_bytes, "64 KiB", 65_536),
        (parse_size_bytes, "10,176 B", 10_176),
        (parse_size_bytes, "7_680 B", 7_680),
        (parse_rate_bytes_per_s, "28 GB/s", 28_000_000_000),
        (parse_rate_bytes_per_s, "200 Gbit/s", 25_000_000_000),
        (parse_rate_bytes_per_s, "22.857142857 GB/s", 22_857_142_857),
    ],
)
def test_a_quantity_is_exact_in_the_inner_unit(parse, text, expected):
    value = parse(text)
    assert value == expected
    assert type(value) is int


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_time_ps, "200"),
        (parse_time_ps, 200),
        (parse_time_ps, "200 B"),
        (parse_time_ps, "-1 ns"),
        (parse_time_ps, "ns"),
        (parse_size_bytes, "4 kb"),
        (parse_rate_bytes_per_s, "28 GB"),
        (parse_rate_bytes_per_s, None),
    ],
)
def test_a_quantity_without_its_unit_is_refused_with_what_was_found(parse, text):
    with pytest.raises(ValueError, match=r"found .*expected a number with one of the units"):
        parse(text)


def test_a_sourced_value_needs_source_and_known_strength():
    good = {"value": "28 GB/s", "source": "a paper", "strength": "read", "note": "n"}
    assert unwrap(good) == "28 GB/s"
    with pytest.raises(ValueError, match="'source' is missing"):
        unwrap({"value": 1, "strength": "read"})
    with pytest.raises(ValueError, match="'strength' is 'sure'; expected one of read"):
        unwrap({"value": 1, "source": "a paper", "strength": "sure"})
    with pytest.raises(ValueError, match="unknown key 'sauce'"):
        unwrap({"value": 1, "sauce": "a paper"})


def test_provenance_lists_every_sourced_number_in_order():
    raw = {
        "a": {"value": "1 ns", "source": "s1", "strength": "read"},
        "b": {"c": [{"value": 2, "source": "s2", "strength": "assumed", "note": "why"}]},
        "d": 3,
    }
    assert provenance(raw) == [
        {"key": "a", "value": "1 ns", "source": "s1", "strength": "read", "note": ""},
        {"key": "b.c[0]", "value": "2", "source": "s2", "strength": "assumed", "note": "why"},
    ]


def test_a_specification_written_as_json_reads_back_equal():
    raw = {"count": 3, "size": "4 KiB", "inner": {"rate": "28 GB/s", "delay": "5 ns"}}
    spec = validate_spec(Outer, raw, "x.yaml")
    dumped = spec.model_dump(mode="json")
    assert dumped["size"] == "4096 B"
    assert dumped["inner"] == {"rate": "28000000000 B/s", "delay": "5000 ps"}
    assert validate_spec(Outer, dumped, "x.yaml") == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cuont": 1},
            "x.yaml: cuont: unknown key; allowed here: count, inner, parts, share, size",
        ),
        (
            {"inner": {"rate": "1 B/s", "delay": "0 ps", "lag": 1}},
            "x.yaml: inner.lag: unknown key; allowed here: delay, rate",
        ),
        (
            {"parts": [{"rate": "1 B/s", "delay": "0 ps", "lag": 1}]},
            "x.yaml: parts.0.lag: unknown key; allowed here: delay, rate",
        ),
        ({"inner": {"rate": "1 B/s"}}, "x.yaml: inner.delay: required key is missing"),
        ({"inner": 3}, "x.yaml: inner: found 3; expected the keys delay, rate"),
        ({"count": "3"}, "x.yaml: count: found '3'; input should be a valid integer"),
        ({"count": True}, "x.yaml: count: found True; input should be a valid integer"),
        ({"count": 3.0}, "x.yaml: count: found 3.0; input should be a valid integer"),
        ({"share": "half"}, "x.yaml: share: found 'half'; input should be a valid number"),
        ({"size": 4096}, "x.yaml: size: found 4096, which has no unit; expected a number with"),
        (
            {"size": {"value": "1 B", "source": "s", "strength": "sure"}},
            "'strength' is 'sure'; expected one of read, secondary",
        ),
    ],
)
def test_a_wrong_specification_gives_one_line_with_file_key_and_what_is_allowed(change, message):
    with pytest.raises(SpecError) as caught:
        validate_spec(Outer, {"count": 1, "size": "1 B"} | change, "x.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_whole_number_is_a_fraction_too():
    assert validate_spec(Outer, {"count": 1, "size": "1 B", "share": 1}, "x").share == 1.0


def test_shipped_names_resolve_and_unknown_ones_list_them():
    assert {"cloudmatrix384", "one-node", "supernode-8192"} <= set(shipped("topologies"))
    label, raw = load_yaml("cloudmatrix384", "topologies")
    assert (label, raw["name"]) == ("topologies/cloudmatrix384.yaml", "cloudmatrix384")
    with pytest.raises(SpecError, match="shipped in topologies: cloudmatrix384, leaf-spine-384"):
        load_yaml("cloudmatrix", "topologies")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "found list, expected a mapping of keys"),
        ("a: [1\n", "not valid YAML"),
        ("a: 1\na: 2\n", "not valid YAML"),
        ("a: !!python/object:os.system 1\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_specification_gives_one_line(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        load_yaml(path, "topologies")
    assert "\n" not in str(caught.value)
    with pytest.raises(SpecError, match="no such file"):
        load_yaml(tmp_path / "none.yaml", "topologies")
