"""The command line: every stage, its help, and one line for every mistake."""

import json
from pathlib import Path

import pytest

COMMANDS = [
    ["topology", "build"],
    ["topology", "describe"],
    ["topology", "draw"],
    ["trace"],
    ["replay"],
    ["tokens"],
    ["plot"],
    ["run"],
    ["sweep"],
    ["info"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example(ubfabric, command):
    code, out, _ = ubfabric(*command, "--help")
    assert code == 0
    assert "Example:" in out and f"ubfabric {' '.join(command)}" in " ".join(out.split())


def test_stages_hand_their_files_on(ubfabric):
    assert ubfabric("topology", "build", "one-node", "-o", "node.graphml")[0] == 0
    code, out, _ = ubfabric("topology", "describe", "node.graphml")
    assert code == 0 and "die" in out
    assert ubfabric("topology", "draw", "node.graphml", "-o", "node.png")[0] == 0
    code, out, _ = ubfabric("trace", "decode-ep8-sample", "--layers", "1", "-o", "trace")
    assert code == 0 and "8 ranks" in out
    code, out, _ = ubfabric("replay", "node.graphml", "trace", "-o", "run", "--lanes", "2")
    assert code == 0 and "packet-hops" in out
    code, out, _ = ubfabric("tokens", "run", "--json")
    assert code == 0 and json.loads(out)["tpot_ms"] > 0
    assert ubfabric("plot", "fct", "run", "-o", "fct.pdf")[0] == 0
    assert Path("fct.pdf").read_bytes().startswith(b"%PDF")


def test_run_does_the_whole_chain(ubfabric):
    arguments = ["run", "--topology", "one-node", "--workload", "decode-ep8-sample"]
    arguments += ["--layers", "2", "--out", "runs/a", "--set", "serving.batch_per_npu=8"]
    code, out, _ = ubfabric(*arguments)
    assert code == 0
    assert "TPOT" in out and "packet-hops" in out
    written = {file.name for file in Path("runs/a").iterdir()}
    assert {"flows.parquet", "tasks.parquet", "links.parquet", "summary.json"} <= written
    assert {"tokens.json", "fct.png", "timeline.png", "links.png", "tokens.png"} <= written
    metadata = json.loads(Path("runs/a/summary.json").read_text())["trace"]
    assert metadata["batch_per_npu"] == 8
    code, _, err = ubfabric(*arguments)
    assert code == 2 and "runs/a" in err
    assert ubfabric(*arguments, "--overwrite")[0] == 0


def test_info_lists_sources_and_strengths(ubfabric):
    code, out, _ = ubfabric("info", "--topology", "one-node", "--workload", "decode-ep8-sample")
    assert code == 0
    assert "2506.12708" in out and "assumed" in out


TINY = "name: tiny\nbase: one-node\n"
MISTAKES = {
    "unknown topology": (["topology", "build", "nowhere", "-o", "x.json"], "nowhere"),
    "unknown ending": (["topology", "build", "one-node", "-o", "x.txt"], ".json, .graphml"),
    "missing folder": (["topology", "draw", "one-node", "-o", "no/x.png"], "no"),
    "unknown key": (["topology", "describe", "bad-key.yaml"], "colour"),
    "missing unit": (["topology", "describe", "bad-unit.yaml"], "unit"),
    "unknown workload": (["trace", "nothing", "-o", "t"], "nothing"),
    "unknown gate": (["trace", "decode-ep8-sample", "-o", "t", "--set", "gate.policy=x"], "gate"),
    "set without value": (["trace", "decode-ep8-sample", "-o", "t", "--set", "seed"], "KEY=VALUE"),
    "too many layers": (["trace", "decode-ep8-sample", "-o", "t", "--layers", "99"], "99"),
    "no trace": (["replay", "one-node", "missing", "-o", "r"], "missing"),
    "bad trace": (["replay", "one-node", "bad-trace", "-o", "r"], "messages"),
    "bad policy": (["replay", "one-node", "ok-trace", "-o", "r", "--path-policy", "x"], "allowed"),
    "bad lanes": (["replay", "one-node", "ok-trace", "-o", "r", "--lanes", "17"], "1 to 16"),
    "bad payload": (["replay", "one-node", "ok-trace", "-o", "r", "--payload-bytes", "0"], "0"),
    "too few dies": (["replay", "one-node", "big-trace", "-o", "r"], "rank without a die"),
    "no run": (["tokens", "missing"], "missing"),
    "unknown plot": (["plot", "pie", "missing", "-o", "x.png"], "missing"),
    "more ranks than dies": (["run", "--topology", "one-node", "-o", "r"], "rank without a die"),
}
FLOWS = "phase,layer,src,dst,messages,message_bytes,start_ps\n"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_gets_one_line_and_code_2_and_writes_nothing(ubfabric, mistake):
    Path("bad-key.yaml").write_text(TINY + "colour: red\n")
    Path("bad-unit.yaml").write_text(TINY + "ub: {port: {bandwidth: 28}}\n")
    for name, row in {
        "ok-trace": "a,0,0,1,1,100,0",
        "bad-trace": "a,0,0,1,0,100,0",
        "big-trace": "a,0,0,99,1,100,0",
    }.items():
        Path(name).mkdir()
        Path(name, "flows.csv").write_text(FLOWS + row + "\n")
    before = sorted(Path().rglob("*"))
    arguments, named = MISTAKES[mistake]
    code, out, err = ubfabric(*arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("ubfabric: error: ")
    assert named in err
    assert sorted(Path().rglob("*")) == before
