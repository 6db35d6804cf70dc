"""Schedules of faults: what they change, when routes follow, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from fabrics import GB, US, FabricBuilder, star

from ubfabric.errors import SpecError, TopologyError
from ubfabric.faults import DEFAULT_DETECTION_TIME, load_faults, plan_faults
from ubfabric.quantities import provenance
from ubfabric.routing import FabricArrays, compile_fabric
from ubfabric.topology import build_topology


@pytest.fixture(scope="module")
def machine() -> FabricArrays:
    return compile_fabric(build_topology("two-nodes"))


def between(fabric: FabricArrays, u: str, v: str) -> list[int]:
    """Return the links from u to v and back, cable by cable."""
    a, b = fabric.node_names.index(u), fabric.node_names.index(v)
    return [
        at
        for at in range(fabric.n_links)
        if {int(fabric.link_src[at]), int(fabric.link_dst[at])} == {a, b}
    ]


def schedule(*faults: dict, **more) -> dict:
    return {"faults": list(faults), "detection_time": "50 us"} | more


def event(at: str, element: dict, event: str, **more) -> dict:
    return {"at": at, "element": element, "event": event} | more


UPLINK = {"link": ["l1-0-3", "l2-3-5"]}


def changes(plan) -> list[tuple[int, int, int, float]]:
    columns = plan.time_ps, plan.link, plan.rate_bytes_per_s, plan.bit_error_rate
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_a_link_fails_and_comes_back_in_both_directions(machine):
    plan = plan_faults(
        machine, schedule(event("300 us", UPLINK, "up"), event("100 us", UPLINK, "down"))
    )
    links = between(machine, "l1-0-3", "l2-3-5")
    full = 28 * GB * 120 // 128
    assert changes(plan) == [(100 * US, link, 0, 0.0) for link in links] + [
        (300 * US, link, full, 0.0) for link in links
    ]
    assert [array.dtype.name for array in (plan.time_ps, plan.link, plan.rate_bytes_per_s)] == [
        "int64", "uint32", "uint64",
    ]  # fmt: skip
    assert plan.node.size == 0
    (first, without), (second, whole) = plan.routes
    assert (first, second) == (150 * US, 350 * US)
    assert not set(links) & set(without.group_link.tolist())
    assert whole.same_as(machine)
    # The fifteen other chips of the plane carry what went over the dead link.
    die, far = (machine.node_names.index(name) for name in ("l1-0-3", "die-1-0"))
    plane = machine.plane_names.index("ub3")
    assert len(machine.next_links(die, plane, far)) == 16
    assert len(without.next_links(die, plane, far)) == 15


def test_a_chip_takes_all_its_links_with_it_and_what_it_holds(machine):
    plan = plan_faults(machine, schedule(event("1 ms", {"switch": "l1-1-2"}, "down")))
    chip = machine.node_names.index("l1-1-2")
    links = np.flatnonzero((machine.link_src == chip) | (machine.link_dst == chip))
    assert plan.link.tolist() == links.tolist()
    assert set(plan.rate_bytes_per_s.tolist()) == {0}
    assert (plan.node_time_ps.tolist(), plan.node.tolist(), plan.node_is_dead.tolist()) == (
        [1_000 * US], [chip], [1],
    )  # fmt: skip
    _, routes = plan.routes[0]
    plane = machine.plane_names.index("ub2")
    below = [machine.node_names.index(f"die-1-{n}") for n in range(16)]
    assert set(routes.endpoint_class[plane, below].tolist()) == {-1}
    assert set(routes.endpoint_out[plane, below].tolist()) == {-1}
    # Its row stays, so that nothing can read beside the table, and leads nowhere.
    row = routes.switch_row[chip]
    assert row >= 0
    n_classes = routes.plane_n_classes[plane]
    assert set(routes.table[row : row + n_classes].tolist()) == {-1}


def test_lanes_that_fail_lower_the_rate_and_the_weight_of_a_link(machine):
    plan = plan_faults(machine, schedule(event("1 us", UPLINK, "degrade", lanes=1)))
    links = between(machine, "l1-0-3", "l2-3-5")
    half = 28 * GB * 120 // 128 // 2
    assert changes(plan) == [(US, link, half, 0.0) for link in links]
    time_ps, routes = plan.routes[0]
    assert time_ps == 51 * US
    chip, far = (machine.node_names.index(name) for name in ("l1-0-3", "die-1-0"))
    choice = routes.next_links(chip, machine.plane_names.index("ub3"), far).tolist()
    assert len(choice) == 31
    assert sorted(map(choice.count, set(choice))) == [1] + [2] * 15
    assert choice.count(links[0] if links[0] in choice else links[1]) == 1
    assert routes.link_rate_bytes_per_s[links].tolist() == [half, half]


def test_noise_changes_no_route(machine):
    plan = plan_faults(
        machine,
        schedule(
            event("1 us", UPLINK, "noise", bit_error_rate=1e-9),
            event("2 us", UPLINK, "down"),
            event("3 us", UPLINK, "up"),
            event("4 us", UPLINK, "noise", bit_error_rate=0.0),
        ),
    )
    first, full = between(machine, "l1-0-3", "l2-3-5")[0], 28 * GB * 120 // 128
    assert [row for row in changes(plan) if row[1] == first] == [
        (US, first, full, 1e-9),
        (2 * US, first, 0, 1e-9),
        (3 * US, first, full, 1e-9),
        (4 * US, first, full, 0.0),
    ]
    assert [time for time, _ in plan.routes] == [52 * US, 53 * US]


def test_a_link_stays_down_until_both_it_and_its_chip_are_back(machine):
    chip = {"switch": "l2-3-5"}
    plan = plan_faults(
        machine,
        schedule(
            event("1 us", UPLINK, "down"),
            event("2 us", chip, "down"),
            event("3 us", chip, "up"),
            event("4 us", UPLINK, "up"),
        ),
    )
    link = between(machine, "l1-0-3", "l2-3-5")[0]
    assert [(time, rate > 0) for time, at, rate, _ in changes(plan) if at == link] == [
        (US, False),
        (4 * US, True),
    ]
    other = between(machine, "l1-1-3", "l2-3-5")[0]
    assert [(time, rate > 0) for time, at, rate, _ in changes(plan) if at == other] == [
        (2 * US, False),
        (3 * US, True),
    ]
    assert plan.node_is_dead.tolist() == [1, 0]


def test_events_of_one_time_take_effect_together(machine):
    plan = plan_faults(
        machine,
        schedule(
            event("1 us", {"switch": "l2-3-5"}, "down"), event("1 us", {"switch": "l2-3-6"}, "down")
        ),
    )
    assert [time for time, _ in plan.routes] == [51 * US]
    assert plan.link.tolist() == sorted(plan.link.tolist())
    assert plan.node.size == 2
    # Down and up in the same instant changes nothing at all.
    nothing = plan_faults(
        machine, schedule(event("1 us", UPLINK, "down"), event("1 us", UPLINK, "up"))
    )
    assert (nothing.link.size, len(nothing.routes)) == (0, 0)
    assert len(nothing.faults) == 2


def two_cables() -> FabricArrays:
    builder = FabricBuilder()
    a, b = builder.dies(2)
    for plane in ("ub0", "ub1"):
        hub = builder.switch(f"hub-{plane}", plane)
        for end in (a, b, a):
            builder.link(end, hub, plane=plane)
    builder.link(a, b, plane="package")
    builder.link(a, b, plane="bus")
    return compile_fabric(builder.build())


def test_one_of_several_cables_can_be_named():
    fabric = two_cables()
    both = plan_faults(fabric, schedule(event("1 us", {"link": ["die-0", "hub-ub0"]}, "down")))
    assert both.link.tolist() == between(fabric, "die-0", "hub-ub0")
    assert both.faults[0].n_cables == 2
    one = {"link": ["hub-ub0", "die-0", "ub0", 1]}
    plan = plan_faults(fabric, schedule(event("1 us", one, "down")))
    assert plan.link.tolist() == between(fabric, "die-0", "hub-ub0")[2:]
    direct = {"link": ["die-0", "die-1", "bus"]}
    plan = plan_faults(fabric, schedule(event("1 us", direct, "down")))
    assert [fabric.plane_names[fabric.link_plane[link]] for link in plan.link] == ["bus"] * 2
    assert set(plan.link.tolist()).isdisjoint(plan.routes[0][1].direct_link.tolist())


def test_a_dead_die_is_cut_off_and_named_with_its_fault(machine):
    plan = plan_faults(
        machine,
        schedule(
            event("10 us", UPLINK, "down"),
            event("100 us", {"die": "die-0-3"}, "down"),
            event("300 us", {"die": "die-0-3"}, "up"),
        ),
    )
    number = machine.node_names.index
    src = np.array([number("die-0-1"), number("die-0-3"), number("die-0-3")])
    dst = np.array([number("die-1-2"), number("die-0-3"), number("die-1-2")])
    expected = (
        "no way from die-0-3 to die-1-2 in network ub from 150 us on, after die die-0-3 down at "
        "100 us"
    )
    assert plan.cut_off("ub", src, dst) == expected
    assert plan.cut_off("ub", src, dst, 200 * US) == expected
    assert plan.cut_off("ub", src, dst, 149 * US) is None
    assert plan.cut_off("ub", src, dst, 350 * US) is None
    assert plan.cut_off("ub", src[:2], dst[:2]) is None
    assert "network rdma" in (plan.cut_off("rdma", src, dst) or "")


def test_a_server_without_uplinks_in_a_plane_is_left_apart_there_only(machine):
    faults = [event("1 us", {"link": ["l1-0-3", f"l2-3-{chip}"]}, "down") for chip in range(16)]
    plan = plan_faults(machine, schedule(*faults))
    _, routes = plan.routes[0]
    near, far, other = (machine.node_names.index(f"die-{at}") for at in ("0-0", "1-0", "0-1"))
    plane = machine.plane_names.index("ub3")
    # The source knows, before a packet sits in a chip without a way on.
    assert routes.next_links(near, plane, far).size == 0
    assert routes.next_links(near, plane, other).size == 1
    assert plan.cut_off("ub", np.array([near]), np.array([far])) is None


def test_routes_after_faults_are_checked_for_deadlock():
    builder = FabricBuilder()
    dies = builder.dies(4)
    for at, die in enumerate(dies):
        builder.switch(f"s{at}")
        builder.link(die, f"s{at}")
    for u, v in ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3)):
        builder.link(f"s{u}", f"s{v}")
    plan = plan_faults(
        compile_fabric(builder.build()),
        schedule(
            event("1 us", {"link": ["s0", "s2"]}, "down"),
            event("2 us", {"link": ["s1", "s3"]}, "down"),
        ),
    )
    with pytest.raises(
        TopologyError, match=r"after link s1 - s3 \(ub0\) down at 2 us: plane ub0: "
    ):
        plan.check_deadlock_free()


def test_a_schedule_is_described_line_by_line(machine, tmp_path):
    path = tmp_path / "faults.yaml"
    path.write_text(
        "detection_time: {value: 20 us, source: measured here, strength: assumed}\n"
        "faults:\n"
        "  - {at: 100 us, element: {link: [l1-0-3, l2-3-5]}, event: degrade, lanes: 1}\n"
        "  - {at: 120.5 us, element: {link: [l1-0-3, l2-3-5]}, event: noise,\n"
        "     bit_error_rate: 1.0e-9}\n"
        "  - {at: 1 ms, element: {switch: l1-0-3}, event: down}\n"
    )
    assert plan_faults(machine, path).describe() == [
        "at 100 us: link l1-0-3 - l2-3-5 (ub3) degrade to 1 lane, 1 cable; new routes at 120 us",
        "at 120.5 us: link l1-0-3 - l2-3-5 (ub3) noise, bit error rate 1e-09, 1 cable",
        "at 1000 us: switch l1-0-3 down, 36 cables; new routes at 1020 us",
    ]


def test_the_detection_time_has_a_default_with_a_source():
    spec, label = load_faults({"faults": []})
    assert (spec.detection_time, label) == (50 * US, "faults")
    (row,) = provenance(DEFAULT_DETECTION_TIME)
    assert row["strength"] == "assumed"
    assert row["note"]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"at": "-5 us"}, r"faults\.0\.at: found '-5 us', which is negative"),
        ({"at": 5}, r"faults\.0\.at: found 5, which has no unit"),
        ({"event": "explode"}, r"event: found 'explode'; input should be 'down', 'degrade'"),
        ({"lanes": 1}, r"faults\.0: found lanes with event down; degrade needs it"),
        ({"event": "degrade"}, r"found no lanes with event degrade"),
        ({"event": "noise"}, r"found no bit_error_rate with event noise"),
        ({"event": "noise", "bit_error_rate": 1.0}, r"bit_error_rate: found 1\.0; .*less than 1"),
        ({"event": "noise", "bit_error_rate": -0.1}, r"bit_error_rate: found -0\.1"),
        ({"event": "degrade", "lanes": 0}, r"lanes: found 0"),
        ({"event": "degrade", "lanes": 2}, r"found 2 lanes left .* l2-3-5; allowed lanes: 1 to 1"),
        ({"event": "up"}, r"\(ub3\): found event up while it is neither down nor degraded"),
        ({"element": {"switch": "l2-3-5"}, "event": "up"}, r"switch l2-3-5: found event up"),
        ({"element": {}}, r"element: found nothing; allowed: one of link, switch, die"),
        ({"element": {"switch": "x", "die": "y"}}, r"found switch and die; allowed: one of"),
        ({"element": {"chip": "x"}}, r"element\.chip: unknown key; allowed here: die, link, sw"),
        ({"element": {"link": ["l1-0-3"]}}, r"link: found \['l1-0-3'\]; allowed: \[node, node\]"),
        ({"element": {"link": ["l1-0-3", "l2-3-5", 3]}}, r"allowed: \[node, node\]"),
        ({"element": {"switch": "l2-3-16"}}, r"switch: found 'l2-3-16'; allowed: a node .* l2-3-1"),
        ({"element": {"switch": "die-0-3"}}, r"element\.switch: found 'die-0-3'; allowed: a node"),
        ({"element": {"die": "l1-0-0"}}, r"element\.die: found 'l1-0-0'; .* such as die-"),
        ({"element": {"link": ["l1-0-3", "l2-3-55"]}}, r"link: found 'l2-3-55'; .* l2-3-5"),
        (
            {"element": {"link": ["l1-0-3", "l2-4-5"]}},
            r"found no link of l1-0-3 to l2-4-5; .* l2-3-5",
        ),
        ({"element": {"link": ["l1-0-3", "l2-3-5", "ub4"]}}, r"found plane 'ub4'; allowed: ub3"),
        (
            {"element": {"link": ["l1-0-3", "l2-3-5", "ub3", 1]}},
            r"found cable 1; allowed 0 to 0",
        ),
        ({"element": {"link": ["die-0-0", "die-0-1"]}, "event": "degrade", "lanes": 1},
         r"die-0-0 - die-0-1; allowed down, as it has a single lane"),
    ],
)  # fmt: skip
def test_a_wrong_fault_gives_one_line(machine, faults, message):
    row = {"at": "1 us", "element": UPLINK, "event": "down"} | faults
    with pytest.raises(SpecError, match=message) as caught:
        plan_faults(machine, {"faults": [row]})
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("faults: faults")


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (["down", "down"], r"faults\[1\]: .* found event down while it is down; expected up"),
        (["up", "down"], r"faults\[0\]: .* found event up while it is neither"),
        (["down", "up", "up"], r"faults\[2\]: .* found event up while it is neither"),
        (["down", "degrade"], r"faults\[1\]: .* found event degrade while it is down"),
    ],
)
@pytest.mark.parametrize("element", [UPLINK, {"switch": "l2-3-5"}])
def test_events_out_of_order_give_one_line(machine, element, events, message):
    rows = [
        event(f"{at + 1} us", element, name, **({"lanes": 1} if name == "degrade" else {}))
        for at, name in enumerate(events)
    ]
    with pytest.raises(SpecError, match=message):
        plan_faults(machine, schedule(*rows))


def test_a_file_that_cannot_be_read_gives_one_line(tmp_path):
    with pytest.raises(SpecError, match=r"none\.yaml: no such file"):
        load_faults(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match=r"cloudmatrix384: found no \.yaml ending"):
        load_faults("cloudmatrix384")
    with pytest.raises(SpecError, match=r"faults: required key is missing"):
        load_faults({"detection_time": "1 us"})
    with pytest.raises(SpecError, match=r"detection_time: found '-1 us', which is negative"):
        load_faults({"detection_time": "-1 us", "faults": []})


def test_a_schedule_may_be_empty(machine):
    plan = plan_faults(compile_fabric(star(2)), {"faults": []})
    assert (plan.link.size, plan.node.size, plan.routes, plan.describe()) == (0, 0, [], [])
    assert plan.cut_off("ub", np.array([0]), np.array([1])) is None
