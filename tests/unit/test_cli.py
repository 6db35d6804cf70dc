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
    ["serve"],
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


#: The serving sample with few enough points to simulate at once.
SERVE = [
    "serve",
    "serving-sample",
    "--out",
    "served",
    "--cache",
    "times",
    "--workers",
    "1",
    *(
        part
        for change in (
            "decode.run.layers=1",
            "decode.batch_per_die=2",
            "decode.grid={batch_per_die: [2], kv_tokens: [1024]}",
            "prefill.run.layers=1",
            "prefill.grid={tokens: [8192], prompt_tokens: [1024], cached_share: [0.0]}",
            "transfers={tokens: [1024], concurrent: [1]}",
        )
        for part in ("--set", change)
    ),
]


def test_serve_takes_a_file_of_requests_and_its_run_is_drawn(ubfabric):
    Path("r.csv").write_text("time,prompt_tokens,output_tokens\n0,300,5\n0.5,900,1\n")
    code, out, _ = ubfabric(*SERVE, "--requests", "r.csv")
    assert code == 0
    assert "2 requests" in out and "TTFT" in out and "wrote served" in out
    assert {file.name for file in Path("served").iterdir()} == {
        "requests.parquet",
        "pools.parquet",
        "summary.json",
    }
    assert json.loads(Path("served/summary.json").read_text())["output_tokens"] == 6
    code, out, _ = ubfabric("plot", "serving", "served", "-o", "served.pdf")
    assert code == 0 and Path("served.pdf").read_bytes().startswith(b"%PDF")
    code, _, err = ubfabric("plot", "fct", "served", "-o", "fct.pdf")
    assert code == 2 and "served" in err
    assert len(list(Path("times").iterdir())) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--requests", "none.csv"], "none.csv: no such file"),
        (["--requests", "bad.csv"], "bad.csv: row 2: time: found 1 s after 2 s, allowed"),
        (["--requests", "long.csv"], "long.csv: row 1: found 9,000,001 tokens of prompt and"),
        (["--duration", "5"], "duration: found '5'; expected a number with one of the units"),
        (["--set", "decode.changes.serving.mtp=1"], "decode.workload: "),
        (["--set", "decode.changes.deployment.ranks=7"], "decode.workload: "),
        (["--set", "objectives.tpot=10us"], "objectives.tpot: found 0.01 ms, which no batch can"),
        (["--workers", "0"], "workers: found 0, allowed 1 or more"),
    ],
)
def test_a_mistake_in_serve_is_one_line_and_nothing_is_written(ubfabric, arguments, message):
    head = "time,prompt_tokens,output_tokens\n"
    Path("bad.csv").write_text(f"{head}2,1,1\n1,1,1\n")
    Path("long.csv").write_text(f"{head}0,9000000,1\n")
    code, _, err = ubfabric(*SERVE, *arguments)
    assert code == 2
    assert message in err and len(err.strip().splitlines()) == 1
    assert not Path("served").exists()


def test_info_lists_the_numbers_of_a_serving_system(ubfabric):
    code, out, _ = ubfabric("info", "--workload", "deepseek-r1-serving")
    assert code == 0 and "arrivals.rate_per_s" in out and "objectives.tpot" in out


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
    "unknown option": (["run", "--payload", "512"], "--payload-bytes"),
    "unknown command": (["sweeps"], "ubfabric --help"),
    "missing argument": (["tokens"], "RUN"),
    "number expected": (["run", "--layers", "all"], "--layers"),
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
