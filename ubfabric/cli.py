"""The command line: each stage a command, and ``run`` for the whole chain.

Exit codes: 0 done, 1 the simulation itself failed, 2 the input is at fault (one line on
standard error says what to change; nothing is written).
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.table import Table

from ubfabric.errors import BridgeError, SimulationError, SpecError, UbfabricError

#: What Typer raises for options and arguments that it cannot take; newer ones bring Click's along.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="ubfabric",
    help="Packet-level simulation of AI supernode fabrics, from the wire to the token.\n\n"
    "topology -> trace -> replay -> tokens -> plot; 'run' does all five.",
    epilog="Example: ubfabric run --layers 4 --out runs/demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
topology_app = typer.Typer(
    help="Build, describe and draw a fabric.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(topology_app, name="topology")

TopologyName = Annotated[
    str,
    typer.Argument(
        help="A shipped name (cloudmatrix384, ...), a .yaml specification, or a saved graph "
        "(.json node-link, .graphml).",
        metavar="TOPOLOGY",
    ),
]
WorkloadName = Annotated[
    str,
    typer.Argument(help="A shipped name or a .yaml specification.", metavar="WORKLOAD"),
]
Layers = Annotated[
    int | None,
    typer.Option(help="MoE layers to simulate, drawn by the seed; 'tokens' extrapolates to all."),
]
Seed = Annotated[int | None, typer.Option(help="Seed; replaces the specification's.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a value of the workload, as key=value with dots: serving.batch_per_npu=24. "
        "May be repeated.",
        metavar="KEY=VALUE",
    ),
]
Payload = Annotated[
    int | None,
    typer.Option(help="Most bytes of a message in one packet; the topology's if not given."),
]
PlanePolicy = Annotated[
    str,
    typer.Option(
        help="How a source picks the plane of a packet: round-robin, flow-hash, random, adaptive."
    ),
]
PathPolicy = Annotated[
    str,
    typer.Option(
        help="How a switch picks among shortest paths: round-robin, flow-hash, random, "
        "load-balance, adaptive."
    ),
]
Lanes = Annotated[
    int | None,
    typer.Option(
        "--lanes", help="Virtual lanes of each port, 1 to 16; the topology's if not given."
    ),
]
FabricChanges = Annotated[
    list[str] | None,
    typer.Option(
        "--fabric",
        help="Change a value of the topology, as key=value with dots: switching.speedup=1. "
        "May be repeated.",
        metavar="KEY=VALUE",
    ),
]
Faults = Annotated[
    Path | None,
    typer.Option(help="Schedule of faults, a .yaml file; see ubfabric/faults.py.", metavar="FILE"),
]
Account = Annotated[bool, typer.Option("--account", help="Keep where the time of each flow went.")]
Sample = Annotated[
    str | None,
    typer.Option("--sample", help="Look at all links so often, such as 1us.", metavar="TIME"),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="Threads that run the planes; all usable cores if not given."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a complete run folder of that name.")
]


def _load_topology(source: str, changes: list[str] | None = None) -> Any:
    from ubfabric.topology import load_topology

    return load_topology(source, _overrides(changes, "--fabric"))


def _interval(text: str | None) -> int | None:
    from ubfabric.quantities import parse_time_ps

    if text is None:
        return None
    try:
        return parse_time_ps(text)
    except ValueError as error:
        raise SpecError(f"--sample: {error}") from None


def _overrides(pairs: list[str] | None, option: str = "--set") -> dict[str, Any]:
    """Read ``key=value`` pairs; values are YAML, as in a specification."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    changes: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SpecError(
                f"{option}: found {pair!r}, expected KEY=VALUE such as serving.batch_per_npu=24"
            )
        try:
            changes[key] = YAML(typ="safe", pure=True).load(text)
        except YAMLError:
            raise SpecError(f"{option} {key}: found {text!r}, which is not a YAML value") from None
    return changes


def _check_output(path: Path, endings: tuple[str, ...]) -> None:
    """Refuse a file name before work is done for it."""
    if path.suffix not in endings:
        raise SpecError(f"{path}: found ending {path.suffix!r}, allowed {', '.join(endings)}")
    if not path.parent.is_dir():
        raise SpecError(f"{path}: folder {path.parent} does not exist; make it first")


@topology_app.command("build")
def topology_build(
    topology: TopologyName,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .json or .graphml.")],
) -> None:
    """Build a fabric and save its graph.

    Example: `ubfabric topology build cloudmatrix384 -o cm384.json`
    """
    from ubfabric.topology import write_topology

    _check_output(out, (".json", ".graphml"))
    graph = _load_topology(topology)
    write_topology(graph, out)
    typer.echo(f"wrote {out}: {graph.number_of_nodes():,} nodes, {graph.number_of_edges():,} edges")


@topology_app.command("describe")
def topology_describe(
    topology: TopologyName,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    sources: Annotated[
        bool, typer.Option("--sources", help="List each number with its source and strength.")
    ] = False,
) -> None:
    """Report counts, ports, bandwidths, oversubscription, bisection, diameter and paths.

    Example: `ubfabric topology describe cloudmatrix384 --sources`
    """
    from ubfabric.describe import describe_topology, render_description, spec_sources

    graph = _load_topology(topology)
    if sources:
        _print_sources(spec_sources(graph))
        return
    description = describe_topology(graph)
    typer.echo(json.dumps(description, indent=1) if as_json else render_description(description))


@topology_app.command("draw")
def topology_draw(
    topology: TopologyName,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .png or .pdf.")],
) -> None:
    """Draw planes and levels.

    Example: `ubfabric topology draw cloudmatrix384 -o cm384.png`
    """
    from ubfabric.plot_topology import draw_topology

    _check_output(out, (".png", ".pdf"))
    draw_topology(_load_topology(topology), out)
    typer.echo(f"wrote {out}")


@app.command()
def trace(
    workload: WorkloadName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    layers: Layers = None,
    seed: Seed = None,
    overrides: Overrides = None,
    csv: Annotated[bool, typer.Option("--csv", help="Write CSV instead of Parquet.")] = False,
) -> None:
    """Generate the traffic of a decode step: flows and tasks, layer by layer.

    Example: `ubfabric trace deepseek-r1-decode-ep320 --layers 4 -o traces/ep320`
    """
    from ubfabric.decode import generate_trace
    from ubfabric.trace import write_trace

    generated = generate_trace(workload, layers=layers, seed=seed, overrides=_overrides(overrides))
    write_trace(generated, out, file_format="csv" if csv else "parquet")
    typer.echo(f"wrote {out}: {generated.n_ranks} ranks, {generated.n_chunks} layers")


@app.command()
def replay(
    topology: TopologyName,
    trace: Annotated[Path, typer.Argument(help="Trace folder, Parquet or CSV.", metavar="TRACE")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")],
    payload_bytes: Payload = None,
    plane_policy: PlanePolicy = "round-robin",
    path_policy: PathPolicy = "round-robin",
    lanes: Lanes = None,
    seed: Seed = None,
    fabric: FabricChanges = None,
    faults: Faults = None,
    account: Account = False,
    sample: Sample = None,
    spread: Annotated[
        int | None,
        typer.Option(
            help="Open-loop traces: replay layers from rest each, alike ones once, in N processes.",
            metavar="N",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="The same with the workers of a running Dask scheduler.", metavar="ADDRESS"
        ),
    ] = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Move every packet of a trace through a fabric.

    Example: `ubfabric replay cloudmatrix384 traces/ep320 -o runs/ep320 --path-policy flow-hash`
    """
    from ubfabric.parts import replay_in_parts
    from ubfabric.replay import replay as run_replay
    from ubfabric.trace import read_trace

    spreading: dict[str, Any] = {}
    if spread is not None or scheduler is not None:
        spreading = {"spread": spread, "scheduler": scheduler}
    result = (replay_in_parts if spreading else run_replay)(
        _load_topology(topology, fabric),
        read_trace(trace),
        out,
        payload_bytes=payload_bytes,
        plane_policy=plane_policy,
        path_policy=path_policy,
        n_virtual_lanes=lanes,
        seed=seed,
        faults=faults,
        account=account,
        sample_interval_ps=_interval(sample),
        threads=threads,
        overwrite=overwrite,
        **spreading,
    )
    if spreading:
        parts = result.summary["parts"]
        typer.echo(f"{len(parts['layers'])} parts, {parts['simulated']} simulated, each from rest")
    for line in [*_fault_lines(result), _replay_line(result.summary)]:
        typer.echo(line)
    typer.echo(f"wrote {result.path}")


@app.command()
def tokens(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rebuild TPOT, tokens/s and shares from the flow and task tables of a run.

    Example: `ubfabric tokens runs/ep320`
    """
    from ubfabric.results import RunResult
    from ubfabric.tokens import rebuild_tokens

    rebuilt = rebuild_tokens(RunResult(run))
    if as_json:
        typer.echo(rebuilt.to_json(), nl=False)
    else:
        Console().print(rebuilt)


@app.command()
def plot(
    kind: Annotated[
        str, typer.Argument(help="fct, timeline, links, tokens or serving.", metavar="KIND")
    ],
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .png or .pdf.")],
) -> None:
    """Draw a run: FCT by phase, timeline by rank, link load by level, or token latency.

    Or, of a run of requests, latencies with their objectives, and pools over time.

    Example: `ubfabric plot fct runs/ep320 -o fct.png`
    """
    from ubfabric.plot import plot as draw
    from ubfabric.plot import plot_serving
    from ubfabric.results import RunResult
    from ubfabric.serving_results import ServingResult

    _check_output(out, (".png", ".pdf"))
    if kind == "serving":
        plot_serving(ServingResult(run), out)
    else:
        draw(RunResult(run), kind, out)
    typer.echo(f"wrote {out}")


@app.command()
def run(
    topology: Annotated[
        str, typer.Option(help="A shipped name, a .yaml specification, or a saved graph.")
    ] = "cloudmatrix384",
    workload: Annotated[
        str, typer.Option(help="A shipped name or a .yaml specification.")
    ] = "deepseek-r1-decode-ep320",
    layers: Annotated[
        int | None,
        typer.Option(
            help="MoE layers to simulate, drawn by the seed; 0 for all. The rest is extrapolated."
        ),
    ] = 4,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")] = Path(
        "runs/decode"
    ),
    seed: Seed = None,
    overrides: Overrides = None,
    payload_bytes: Payload = None,
    plane_policy: PlanePolicy = "round-robin",
    path_policy: PathPolicy = "round-robin",
    lanes: Lanes = None,
    fabric: FabricChanges = None,
    faults: Faults = None,
    account: Account = False,
    sample: Sample = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Go from a topology and a workload to the latency of a token, and draw it.

    Example: `ubfabric run --layers 0 --out runs/full --set serving.batch_per_npu=24`
    """
    from ubfabric.decode import generate_trace
    from ubfabric.plot import PLOTS
    from ubfabric.replay import replay as run_replay
    from ubfabric.tokens import rebuild_tokens

    graph = _load_topology(topology, fabric)
    generated = generate_trace(
        workload, layers=layers or None, seed=seed, overrides=_overrides(overrides)
    )
    result = run_replay(
        graph,
        generated,
        out,
        payload_bytes=payload_bytes,
        plane_policy=plane_policy,
        path_policy=path_policy,
        n_virtual_lanes=lanes,
        seed=seed,
        faults=faults,
        account=account,
        sample_interval_ps=_interval(sample),
        threads=threads,
        overwrite=overwrite,
    )
    rebuilt = rebuild_tokens(result)
    rebuilt.to_json(result.path / "tokens.json")
    pictures = []
    for kind, draw in PLOTS.items():
        pictures.append(draw(rebuilt if kind == "tokens" else result, result.path / f"{kind}.png"))
    Console().print(rebuilt)
    for line in [*_fault_lines(result), _replay_line(result.summary)]:
        typer.echo(line)
    shown = os.path.relpath(result.path)
    typer.echo(f"wrote {shown}: tables, tokens.json, {', '.join(p.name for p in pictures)}")


@app.command()
def sweep(
    spec: Annotated[Path, typer.Argument(help="Sweep, a .yaml file.", metavar="SPEC")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write, or to go on with.", metavar="DIR")
    ],
    workers: Annotated[
        int | None,
        typer.Option(help="Processes on this machine; one a core if not given.", metavar="N"),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Address of a running Dask scheduler instead.", metavar="ADDRESS"),
    ] = None,
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress", help="Bar and dashboard; shown on terminals if not given."
        ),
    ] = None,
) -> None:
    """Simulate a grid or a list of points; run it again to go on where it was stopped.

    Exit code 1 if a point failed; the others are simulated all the same.

    Example: `ubfabric sweep analysis/sweep-example.yaml -o sweeps/example --workers 2`
    """
    from ubfabric.sweep import FAILURES, POINTS, run_sweep

    table = run_sweep(spec, out, workers=workers, scheduler=scheduler, progress=progress)
    typer.echo(f"wrote {out / POINTS}: {len(table)} points")
    if (out / FAILURES).is_file():
        raise typer.Exit(1)


@app.command()
def serve(
    spec: Annotated[
        str,
        typer.Argument(
            help="A shipped name (serving-sample, ...) or a .yaml specification.", metavar="SPEC"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", metavar="DIR")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a value, as key=value with dots: arrivals.rate_per_s=200.0, "
            "decode.changes.serving.mtp_acceptance=0.9. May be repeated.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    requests: Annotated[
        Path | None,
        typer.Option(
            help="Requests of a file in place of drawn ones: our columns, Azure's or Mooncake's; "
            ".csv, .jsonl, .parquet.",
            metavar="FILE",
        ),
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option(help="Requests arrive for so long, such as 1h.", metavar="TIME"),
    ] = None,
    seed: Seed = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder of remembered step times; in the user's cache folder if not given.",
            metavar="DIR",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that simulate step times not remembered; one a core if not given.",
            metavar="N",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run of requests of that name.")
    ] = False,
) -> None:
    """Serve requests with step times from packets: TTFT, TPOT and tokens/s by request.

    Example: `ubfabric serve serving-sample -o serving/sample --duration 5min`
    """
    from ubfabric.serving import serve as run_serve

    changes = _overrides(overrides)
    if requests is not None:
        changes["arrivals"] = {"policy": "file", "file": str(requests.absolute())}
        if duration is None:
            changes["duration"] = None
    if duration is not None:
        changes["duration"] = duration
    if seed is not None:
        changes["seed"] = seed
    result = run_serve(
        spec, out, overrides=changes, cache=cache, workers=workers, overwrite=overwrite
    )
    Console().print(result)
    typer.echo(f"wrote {result.path}: requests.parquet, pools.parquet, summary.json")


@app.command()
def info(
    workload: Annotated[
        str, typer.Option(help="Workload whose numbers are listed.")
    ] = "deepseek-r1-decode-ep320",
    topology: Annotated[
        str, typer.Option(help="Topology whose numbers are listed.")
    ] = "cloudmatrix384",
) -> None:
    """List every number of a topology and a workload with its source and strength.

    Example: `ubfabric info --workload deepseek-r1-decode-ep320`
    """
    from ubfabric.quantities import provenance
    from ubfabric.serving_spec import load_serving
    from ubfabric.topology import load_topology_spec
    from ubfabric.workload import load_workload, read_spec

    is_serving = read_spec(workload, workload)[1].get("kind") == "serving"
    raw = load_serving(workload).raw if is_serving else load_workload(workload).raw
    _print_sources(provenance(load_topology_spec(topology)[1]), f"topology {topology}")
    _print_sources(provenance(raw), f"workload {workload}")


def _print_sources(rows: list[dict[str, str]], title: str | None = None) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("key", "value", "strength", "source"):
        table.add_column(column, overflow="fold")
    for row in rows:
        source = row["source"] + (f" ({row['note']})" if row["note"] else "")
        table.add_row(row["key"], row["value"], row["strength"], source)
    Console().print(table)


def _replay_line(summary: dict[str, Any]) -> str:
    return (
        f"{summary['packets']:,} packets, {summary['packet_hops']:,} packet-hops, "
        f"{summary['simulated_ps'] / 1e9:.3f} ms simulated in {summary['wall_s']:.1f} s "
        f"({summary['packet_hops_per_s'] / 1e6:.2f} M packet-hops/s)"
    )


def _fault_lines(result: Any) -> list[str]:
    """Return one line a fault, and the layers' times before, during and after."""
    if not result.summary.get("faults"):
        return []
    layers = result.layer_times()
    parts = []
    for when in ("before", "during", "after"):
        steps = layers.loc[layers["when"] == when, "step_ps"]
        if len(steps):
            longest = f", longest {steps.max() / 1e6:,.1f} us" if len(steps) > 1 else ""
            parts.append(f"{when} {steps.mean() / 1e6:,.1f} us ({len(steps)}{longest})")
    return [*result.summary["faults"], f"time of a layer: {'; '.join(parts)}"]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ubfabric {metadata.version('ubfabric')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options that stand before the command."""


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning as one line, without the place in the code."""
    print(f"ubfabric: warning: {message}", file=sys.stderr)


def main() -> None:
    """Run the command line and turn errors into one line and an exit code."""
    warnings.showwarning = _show_warning
    try:
        code = app(standalone_mode=False)
    except (SimulationError, BridgeError) as error:
        _end(str(error), 1)
    except UbfabricError as error:
        _end(str(error), 2)
    except _USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            error.show()
            sys.exit(error.exit_code)
        place = error.ctx.command_path if error.ctx else "ubfabric"
        what = " ".join(error.format_message().split()).rstrip(".")
        _end(f"{what}; see '{place} --help'", 2)
    except (typer.Abort, KeyboardInterrupt):
        _end("interrupted", 130)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, code: int) -> NoReturn:
    print(f"ubfabric: error: {message}", file=sys.stderr)
    sys.exit(code)
