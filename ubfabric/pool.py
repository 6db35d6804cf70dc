"""The serving pool around one step: what prefill, decode and caches move beside it.

A specification of kind ``pool`` holds a step of decode or prefill, and what the rest of the pool
sends through the same fabric while it runs (arXiv 2506.12708, sections 4.3.3 and 4.4):

``kv-transfer``
    The KV cache of a request, from a prefill die to the decode die that goes on with it. Every
    prefill rank has the latents of all tokens once they were gathered, so one rank can serve a
    request alone: with ``g = decode ranks / prefill ranks`` decode rank ``d`` is served by
    rank ``d // g`` of the instance. (Section 4.3.3 has ratio = prefill TP / decode TP, group size
    = decode DP / ratio. With prefill TP 32, decode TP 1 and DP 320 that is g = 10 as well.)
``cache-read``, ``cache-write``
    Blocks of 128 to 512 tokens of the context cache, between prefill dies and the memory of CPUs.
    A hash of the block says which CPU of which server holds it (:func:`block_home`). Each tensor of
    each layer lies there by itself and is a message; those of a layer are taken to be of one size,
    as their cost is one of messages and one of bytes. A request reads the blocks of its prefix if
    they lie there. Every rank of its instance does, since each has its heads of all tokens; with
    ``prefill.cached_at`` ``share`` each block goes to one of them. New blocks are written once,
    each by another die. Around a step of prefill with data-parallel attention a request is one
    die's alone, which reads and writes all of its blocks.
``model-load``
    Weights of dies that start, from the memory of CPUs (warm), at a steady rate.
``cached``
    With a step of prefill whose prompts reuse tokens: latents for which its ranks wait before
    attention. With ``cache.step_reads`` ``whole`` those of all layers of a microbatch before its
    first attention; with ``layer`` those of each layer, in the order of layers, at most
    ``cache.ahead_layers`` ahead of the step.
``stored``
    New blocks of the batch before such a step, which follows at once: its reads begin when these
    are stored. As many as the step will have itself, each sent by one die or, with
    ``cache.step_writes`` ``every``, by every die that holds it.

**Networks.** Dies have ports of ``ub`` and ``rdma``, one CPU of each server one of ``vpc``. What
goes over ``vpc`` therefore goes die, CPU (ub), CPU of the other server (vpc), die (ub), and each
part begins when the one before has arrived. Phases are ``<kind>`` over one network, else
``<kind>-up``, ``<kind>-vpc`` and ``<kind>-down``. Blocks then lie on the CPUs with a vpc port only.
One that all dies of an instance want comes to each of their servers once, and they read it from the
server's CPUs in turn, as the mesh between these is not modelled; with ``cache.vpc_memory`` ``card``
all from the CPU that it came to.

**Time.** Requests arrive by a clock (a stream of the first CPU) at ``requests.rate``. A request is
read, written and handed over at times of their own: prefill takes longer than a step, so in a
step these belong to different requests. The length of a step is not known in advance; each layer
of the trace, dense ones and the head included, stands for ``layer_time`` of the clock. A step that
is faster ends before the pool does, one that is slower outlasts it; with few layers simulated,
the pool runs for as many.

Ranks of the step come first, then the other dies in order, then the CPUs; all tasks of the pool are
on streams of their own, one a kind: a rank sends transfers of a kind one after another.

Not modelled: look-up of blocks and their registration, eviction, decode that pulls instead of
prefill that pushes, SSDs behind the memory, and a rank's cores being busy otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pyarrow as pa

from ubfabric.errors import SpecError
from ubfabric.hashing import mix
from ubfabric.placement import place_ranks
from ubfabric.prefill import CACHED, PrefillStep
from ubfabric.steps import PS_PER_S, Step
from ubfabric.trace import FLOW_SCHEMA, READS, TASK_SCHEMA, TraceChunk
from ubfabric.workload import PoolSpec, Prompt, TransferSpec, Workload

KV_TRANSFER, CACHE_READ, CACHE_WRITE = "kv-transfer", "cache-read", "cache-write"
MODEL_LOAD = "model-load"
#: Kinds of transfers of the pool.
POOL_KINDS = (KV_TRANSFER, CACHE_READ, CACHE_WRITE, MODEL_LOAD)
#: Parts of a transfer over vpc: die to CPU of its server, CPU to CPU, CPU to die.
UP, VPC, DOWN = "up", "vpc", "down"
#: Streams of the pool; those of a step are below.
CLOCK_STREAM = 8
#: Streams of the reads that the step itself waits for.
CACHED_STREAM, CACHED_FORWARD_STREAM = 9, 10
#: First of the streams of transfers, three a kind: sending, waiting, sending on what arrived.
FIRST_TRANSFER_STREAM = 11
SEND, RECEIVE, FORWARD = 0, 1, 2
#: Kind of the tasks that move the reads of the step, and phase of the stores before them.
CACHED_MOVE, STORED = f"{CACHED}-move", "stored"
#: Kinds of the tasks that only keep time.
TICK, HOLD = "tick", "hold"
#: Most transfers of a kind in one layer; a microbatch number tells them apart.
_MAX_NUMBER = 127
# What a random generator is for; part of its seed, beside the purposes of steps.
_FOR_TIMES, _FOR_CHOICE = 11, 12
#: Serial of blocks of a prefix; new blocks have a serial of their own.
_PREFIX = 0


def stream_of(kind: str, does: int) -> int:
    """Return the stream on which a rank sends, awaits or forwards transfers of a kind."""
    return FIRST_TRANSFER_STREAM + 3 * POOL_KINDS.index(kind) + does


def block_home(seed: int, keys: np.ndarray, n_homes: int) -> np.ndarray:
    """Return which of ``n_homes`` memories holds each block: a hash of its key, alike spread.

    Parameters
    ----------
    seed : int
    keys : ndarray of int64, shape (n, 3)
        Prefix, serial and index of each block.
    n_homes : int

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    mixed = np.full(len(keys), np.uint64(seed & (2**64 - 1)), np.uint64)
    for column in np.asarray(keys, np.int64).T:
        mixed = mix(mixed ^ column.astype(np.uint64))
    homes: np.ndarray = (mixed % np.uint64(n_homes)).astype(np.int64)
    return homes


@dataclass(frozen=True)
class Transfer:
    """One transfer of the pool.

    Attributes
    ----------
    kind : str
        One of :data:`POOL_KINDS`.
    time_ps : int
        When it begins by the pool's clock.
    ends : list of tuple of int
        Holder of the bytes, their destination, and messages, for each pair of ranks.
    message_bytes : int
    blocks : list of tuple of int
        Prefix, serial, index, die and CPU of each block read or written.
    """

    kind: str
    time_ps: int
    ends: list[tuple[int, int, int]]
    message_bytes: int
    blocks: list[tuple[int, int, int, int, int]] = field(default_factory=list)


class Machine:
    """Ranks of the pool and where they are.

    Attributes
    ----------
    nodes : list of str
        Name of each rank's node: the step's, other dies, all CPUs.
    step_ranks : int
    prefill, decode : list
        Ranks of each prefill instance, and those of decode.
    loading : list of int
        Dies that load a model.
    cpus : list of int
    """

    def __init__(self, spec: PoolSpec, label: str) -> None:
        servers, n_step = spec.servers, spec.step.deployment.ranks
        graph = nx.Graph(name=f"servers of {label}")
        for server in range(servers.count):
            for die in range(servers.dies):
                graph.add_node(f"die-{server}-{die}", kind="die", server=server, role="endpoint")
        of_step = place_ranks(graph, spec.step.deployment.rank_placement, n_step)
        taken = set(of_step)
        others = [node for node in graph if node not in taken][: spec.extra_dies]
        cpus = [
            f"cpu-{server}-{cpu}" for server in range(servers.count) for cpu in range(servers.cpus)
        ]
        self.nodes = [*of_step, *others, *cpus]
        self.step_ranks = n_step
        self._server = [int(node.split("-")[1]) for node in self.nodes]
        extra = iter(range(n_step, n_step + len(others)))

        def take(count: int) -> list[int]:
            return [next(extra) for _ in range(count)]

        step = list(range(n_step))
        self.prefill = [] if spec.is_decode else [step]
        while len(self.prefill) < spec.prefill.instances:
            self.prefill.append(take(spec.prefill.ranks))
        self.decode = step if spec.is_decode else take(spec.decode_ranks)
        self.loading = take(spec.model_load.dies) if spec.model_load else []
        first = n_step + len(others)
        self.cpus = list(range(first, len(self.nodes)))
        self._first_cpu, self._cpus_per_server = first, servers.cpus
        self._n_memories = servers.cpus if spec.cache.vpc_memory == "spread" else 1

    def gateway(self, rank: int) -> int:
        """Return the CPU of a rank's server that has a port of vpc: the first."""
        return self._first_cpu + self._server[rank] * self._cpus_per_server

    def memories(self, rank: int) -> list[int]:
        """Return the CPUs of a rank's server that hold what came over vpc, or goes there."""
        first = self.gateway(rank)
        return list(range(first, first + self._n_memories))

    def homes(self, network: str) -> list[int]:
        """Return the CPUs whose memory holds blocks: over vpc those with a port of it."""
        return self.cpus[:: self._cpus_per_server] if network == "vpc" else self.cpus

    def way(self, src: int, dst: int, network: str) -> list[tuple[str, str, int, int]]:
        """Return part, network and ranks of each part of a transfer; one part has no name."""
        if network != "vpc":
            return [("", network, src, dst)]
        out, into = self.gateway(src), self.gateway(dst)
        parts = [(UP, "ub", src, out), (VPC, "vpc", out, into), (DOWN, "ub", into, dst)]
        return [part for part in parts if part[2] != part[3]]


class PoolTraffic:
    """Builds the chunks of a step together with the pool's traffic.

    Parameters
    ----------
    workload : Workload
        Checked specification of kind ``pool``.
    step : Step
        Its step.

    Raises
    ------
    SpecError
        If more transfers begin in a layer than can be told apart.
    """

    def __init__(self, workload: Workload, step: Step) -> None:
        if not isinstance(workload.spec, PoolSpec):
            raise SpecError(f"{workload.label}: kind: found no pool, allowed: pool")
        self.spec, self.step, self.label = workload.spec, step, workload.label
        self.seed = self.spec.seed
        self.machine = Machine(self.spec, self.label)
        self.n_chunks = len(step.plans)
        #: All transfers by time, but those that the step itself waits for.
        self.transfers = sorted(self._transfers(), key=lambda one: one.time_ps)
        self._tables = _Builder(self)

    @property
    def duration_ps(self) -> int:
        """Time for which the pool sends."""
        return self.n_chunks * self.spec.layer_time

    def metadata(self) -> dict[str, Any]:
        """Return what the metadata of the trace have beside those of the step."""
        deployment = self.spec.step.deployment
        return {
            "name": self.spec.name,
            "n_ranks": len(self.machine.nodes),
            "ranks": deployment.ranks,
            "rank_nodes": self.machine.nodes,
            "pool": {
                "step_ranks": deployment.ranks,
                "kinds": [*POOL_KINDS, CACHED_MOVE, TICK, HOLD],
                "phases": sorted({*self._tables.phases, CACHED}),
                "duration_ps": self.duration_ps,
                "requests_per_s": self.spec.requests.rate,
            },
        }

    def blocks(self) -> pd.DataFrame:
        """Return every block that is read or written, by time.

        Returns
        -------
        DataFrame
            ``time_ps``, ``kind``, the block (``prefix``, ``serial``, ``index``), ``die`` and
            ``cpu`` (ranks), ``bytes``.
        """
        size = self.spec.cache.block_tokens * self.spec.token_layer_bytes * self.spec.model.layers
        rows = [
            (one.time_ps, one.kind, *block, size) for one in self.transfers for block in one.blocks
        ]
        columns = ["time_ps", "kind", "prefix", "serial", "index", "die", "cpu", "bytes"]
        return pd.DataFrame(rows, columns=columns)

    # ------------------------------------------------------------------ what is sent, and when

    def _transfers(self) -> Iterator[Transfer]:
        if self.spec.kv_transfer:
            yield from self._kv_transfers()
        if self.spec.cache_read or self.spec.cache_write:
            yield from self._cache_transfers()
        if self.spec.model_load:
            yield from self._model_loads()

    def _rng(self, purpose: int, kind: str) -> np.random.Generator:
        seed = np.random.SeedSequence([self.seed, 0, purpose, POOL_KINDS.index(kind)])
        return np.random.Generator(np.random.PCG64(seed))

    def _times_ps(self, kind: str) -> list[int]:
        """Return the times at which requests reach a kind of transfer."""
        requests, end = self.spec.requests, self.duration_ps
        gap_ps = PS_PER_S / requests.rate
        if requests.arrivals == "even":
            return [round((i + 0.5) * gap_ps) for i in range(round(end / gap_ps))]
        rng = self._rng(_FOR_TIMES, kind)
        times, now = [], rng.exponential(gap_ps)
        while now < end:
            times.append(int(now))
            now += rng.exponential(gap_ps)
        return times

    def _kv_transfers(self) -> Iterator[Transfer]:
        spec, machine = self.spec, self.machine
        assert spec.kv_transfer is not None
        group = -(-len(machine.decode) // spec.prefill.ranks)
        whole = spec.requests.prompt_tokens * spec.token_layer_bytes
        messages = spec.kv_transfer.messages(spec.model.layers)
        rng = self._rng(_FOR_CHOICE, KV_TRANSFER)
        for number, time_ps in enumerate(self._times_ps(KV_TRANSFER)):
            to = int(rng.integers(len(machine.decode)))
            instance = machine.prefill[number % len(machine.prefill)]
            ends = [(instance[to // group], machine.decode[to], messages)]
            yield Transfer(KV_TRANSFER, time_ps, ends, whole * spec.model.layers // messages)

    def _cache_transfers(self) -> Iterator[Transfer]:
        """Return reads and writes in the order in which the cache sees them."""
        spec, cache = self.spec, self.spec.cache
        known = set(range(cache.prefixes)) if cache.warm else set()
        n_blocks = spec.requests.prompt_tokens // cache.block_tokens
        of_prefix = round(n_blocks * spec.requests.reused)
        # A step of prefill reads for itself; its instance is not among those around it.
        instances = self.machine.prefill[0 if spec.is_decode else 1 :]
        events = []
        for kind, wanted in ((CACHE_READ, spec.cache_read), (CACHE_WRITE, spec.cache_write)):
            rng = self._rng(_FOR_CHOICE, kind)
            for number, time_ps in enumerate(self._times_ps(kind) if wanted else []):
                prefix, turn = int(rng.integers(cache.prefixes)), int(rng.integers(n_blocks))
                events.append((time_ps, kind, number, prefix, turn))
        for time_ps, kind, number, prefix, turn in sorted(events):
            if not instances:
                return
            instance = instances[number % len(instances)]
            old = [(prefix, _PREFIX, index) for index in range(of_prefix)]
            new = [(prefix, 1 + number, index) for index in range(of_prefix, n_blocks)]
            if kind == CACHE_READ:
                if prefix in known and old:
                    yield self._block_transfer(kind, time_ps, old, instance, turn)
            else:
                keys = new if prefix in known else old + new
                known.add(prefix)
                yield self._block_transfer(kind, time_ps, keys, instance, turn)

    def _block_transfer(
        self,
        kind: str,
        time_ps: int,
        keys: list[tuple[int, int, int]],
        instance: list[int],
        turn: int,
    ) -> Transfer:
        """Return the transfer of blocks between the dies of an instance and their homes."""
        # Reads and writes of a block must agree on where it lies, whatever network each takes.
        homes = self.machine.homes(self._cache_network())
        at = block_home(self.seed, np.array(keys), len(homes))
        blocks: list[tuple[int, int, int, int, int]] = []
        pairs: dict[tuple[int, int], int] = defaultdict(int)
        for number, (key, home) in enumerate(zip(keys, at.tolist(), strict=True)):
            at_turn = turn if self.spec.is_data_parallel else turn + number
            dies, cpu = [instance[at_turn % len(instance)]], homes[home]
            if kind == CACHE_READ and self.spec.every_rank_reads_blocks:
                dies = instance
            for die in dies:
                blocks.append((*key, die, cpu))
                pairs[(cpu, die) if kind == CACHE_READ else (die, cpu)] += self.spec.block_messages
        ends = [(src, dst, messages) for (src, dst), messages in pairs.items()]
        return Transfer(kind, time_ps, ends, self.spec.piece_bytes, blocks)

    def _cache_network(self) -> str:
        """Return vpc if blocks are moved over it in either direction."""
        parts = (self.spec.cache_read, self.spec.cache_write)
        return "vpc" if any(part and part.network == "vpc" for part in parts) else "ub"

    def _model_loads(self) -> Iterator[Transfer]:
        load, homes = self.spec.model_load, self.machine.homes(self._load_network())
        assert load is not None
        share = load.model * self.spec.layer_time / load.dies / load.time  # of a die and layer
        messages = max(1, round(share / load.message))
        dies = np.array(self.machine.loading)
        for chunk in range(self.n_chunks):
            keys = np.stack([dies, np.full(len(dies), -1), np.full(len(dies), chunk)], axis=1)
            at = block_home(self.seed, keys, len(homes))
            ends = [(homes[home], die, messages) for home, die in zip(at, dies, strict=True)]
            yield Transfer(MODEL_LOAD, chunk * self.spec.layer_time, ends, round(share / messages))

    def _load_network(self) -> str:
        return self.spec.model_load.network if self.spec.model_load else "ub"

    def transport(self, kind: str) -> TransferSpec:
        """Return network and operation of a kind of transfer."""
        part: TransferSpec = getattr(self.spec, kind.replace("-", "_"))
        return part

    def cached_blocks(self, microbatch: int) -> list[tuple[int, list[int]]]:
        """Return where each cached block of a microbatch lies, and for which ranks it is."""
        step = self.step
        if not isinstance(step, PrefillStep):
            return []
        every = self.spec.every_rank_reads_blocks
        return self._step_blocks(step, microbatch, every, lambda prompt: (0, prompt.reused))

    def stored_blocks(self) -> list[tuple[int, list[int]]]:
        """Return where each block that is stored before the step goes, and who sends it."""
        step, writes = self.step, self.spec.cache.step_writes
        if not isinstance(step, PrefillStep) or writes == "none":
            return []
        return [
            block
            for microbatch in range(step.microbatches)
            for block in self._step_blocks(
                step,
                microbatch,
                writes == "every",
                lambda prompt: (prompt.reused, prompt.reused + prompt.computed),
            )
        ]

    def _step_blocks(
        self,
        step: PrefillStep,
        microbatch: int,
        every: bool,
        tokens: Callable[[Prompt], tuple[int, int]],
    ) -> list[tuple[int, list[int]]]:
        """Return home and ranks of the whole blocks of some tokens of each prompt."""
        homes = self.machine.homes(self._cache_network())
        size = self.spec.cache.block_tokens
        prompts = step.prompts[microbatch]
        ranks = list(range(step.n_ranks))
        blocks: list[tuple[int, list[int]]] = []
        for share in range(1 if step.is_staged else step.n_ranks):
            for number_of, prompt in enumerate(prompts):
                serial = -2 - number_of - len(prompts) * share
                begin, end = (token // size for token in tokens(prompt))
                keys = [(microbatch, serial, index) for index in range(begin, end)]
                if not keys:
                    continue
                for home in block_home(self.seed, np.array(keys), len(homes)).tolist():
                    dies = [share]
                    if step.is_staged:
                        number = len(blocks) % step.n_ranks
                        dies = ranks if every else [number]
                    blocks.append((homes[home], dies))
        return blocks

    # ------------------------------------------------------------------ tables

    def chunks(self) -> Iterator[TraceChunk]:
        """Yield all chunks in order."""
        for position in range(self.n_chunks):
            yield self._tables.chunk(position, self.step.chunk(position))


@dataclass
class _Task:
    """A task of the pool; ``needs`` are positions (chunk, number) of other tasks of the pool."""

    rank: int
    stream: int
    kind: str
    microbatch: int = 0
    duration_ps: int = 0
    sends: str = ""
    waits: str = ""
    needs: list[tuple[int, int]] = field(default_factory=list)
    #: Chunk whose first task of the step this one waits for, or None.
    after_step: int | None = None


class _Builder:
    """Turns transfers into flows and tasks, layer by layer.

    Ids of tasks ascend over the trace, so those of the step are spread to leave room for the pool's
    behind each layer.
    """

    def __init__(self, traffic: PoolTraffic) -> None:
        self.traffic = traffic
        self.flows: list[list[tuple[Any, ...]]] = [[] for _ in range(traffic.n_chunks)]
        self.tasks: list[list[_Task]] = [[] for _ in range(traffic.n_chunks)]
        self.phases: set[str] = set()
        #: Tasks that wait for what the step's reads wait for.
        self._stored: list[tuple[int, int]] = []
        #: The task that waited for each block which was written.
        self._written: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._fill()
        self.stride = 1 + max(len(tasks) for tasks in self.tasks)

    def _fill(self) -> None:
        traffic = self.traffic
        layer_time, clock = traffic.spec.layer_time, traffic.machine.cpus[0]
        self._store()
        coming = iter(traffic.transfers)
        one = next(coming, None)
        now = 0
        for chunk in range(traffic.n_chunks):
            count: dict[str, int] = defaultdict(int)
            last = (chunk + 1) * layer_time
            while one is not None and one.time_ps < last:
                tick = self._add(chunk, _Task(clock, CLOCK_STREAM, TICK, -1, one.time_ps - now))
                now = one.time_ps
                self._transfer(chunk, tick, one, count)
                one = next(coming, None)
            self._add(chunk, _Task(clock, CLOCK_STREAM, TICK, -1, last - now))
            now = last
            for microbatch in range(traffic.step.microbatches):
                self._cached(chunk, microbatch)
        # A stream that runs out of tasks calls for the next layer. None does before the clock has
        # passed the layer, so layers are loaded no earlier than clock and step need them. Reads of
        # the step keep to the step and not to the clock.
        every = {(task.rank, task.stream) for tasks in self.tasks for task in tasks}
        streams = sorted(one for one in every if one[1] >= FIRST_TRANSFER_STREAM)
        for chunk, tasks in enumerate(self.tasks):
            end = max(i for i, task in enumerate(tasks) if task.stream == CLOCK_STREAM)
            for rank, stream in streams:
                self._add(chunk, _Task(rank, stream, HOLD, -1, needs=[(chunk, end)]))

    def _add(self, chunk: int, task: _Task) -> tuple[int, int]:
        self.tasks[chunk].append(task)
        return chunk, len(self.tasks[chunk]) - 1

    def _flow(
        self,
        chunk: int,
        phase: str,
        number: int,
        ends: tuple[int, int, int],
        size: int,
        how: tuple[str, str],
    ) -> None:
        self.phases.add(phase)
        self.flows[chunk].append((phase, number, *ends, size, *how))

    def _transfer(
        self, chunk: int, tick: tuple[int, int], one: Transfer, count: dict[str, int]
    ) -> None:
        """Add a transfer: over one network at once, over several each pair by itself."""
        traffic = self.traffic
        how = traffic.transport(one.kind)
        groups = self._vpc_groups(one) if how.network == "vpc" else [one.ends]
        for pairs in groups:
            number = count[one.kind]
            count[one.kind] += 1
            if number > _MAX_NUMBER:
                raise SpecError(
                    f"{traffic.label}: requests: found more than {_MAX_NUMBER + 1} transfers of "
                    f"kind {one.kind} in one layer_time, allowed {_MAX_NUMBER + 1}; a lower rate, "
                    "larger blocks or a shorter layer_time"
                )
            if how.network != "vpc":
                ended = self._part(chunk, [tick], one, pairs, number, ("", how.network))
            else:
                ended = self._chain(chunk, tick, one, pairs, number)
            dies = {src for src, _, _ in pairs}
            for block in one.blocks if one.kind == CACHE_WRITE else ():
                if block[3] in dies and block[4] in ended:
                    self._written[block[:3]] = ended[block[4]]

    def _vpc_groups(self, one: Transfer) -> list[list[tuple[int, int, int]]]:
        """Return the pairs that go together over vpc: those that want the same of one CPU."""
        if one.kind != CACHE_READ or not self.traffic.spec.every_rank_reads_blocks:
            return [[pair] for pair in one.ends]
        groups: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        for pair in one.ends:
            groups[pair[0], self.traffic.machine.gateway(pair[1])].append(pair)
        return list(groups.values())

    def _part(
        self,
        chunk: int,
        after: list[tuple[int, int]],
        one: Transfer,
        pairs: Sequence[tuple[int, int, int]],
        number: int,
        part: tuple[str, str],
    ) -> dict[int, tuple[int, int]]:
        """Add a transfer over one network; return the task that waits for it at each rank."""
        name, network = part
        phase = f"{one.kind}-{name}" if name else one.kind
        operation = self.traffic.transport(one.kind).operation
        cpus = self.traffic.machine.cpus[0]
        is_read = operation in READS and pairs[0][1] < cpus  # dies read, CPUs push
        for src, dst, messages in pairs:
            ends = (dst, src, messages) if is_read else (src, dst, messages)
            pushed = not is_read and (operation in READS or src >= cpus)
            how = (network, "write" if pushed else operation)
            self._flow(chunk, phase, number, ends, one.message_bytes, how)
        waits: dict[int, tuple[int, int]] = {}
        if is_read:
            for rank in sorted({dst for _, dst, _ in pairs}):
                needs = [
                    *after,
                    *self._written_before(one, [src for src, dst, _ in pairs if dst == rank]),
                ]
                stream = stream_of(one.kind, SEND)
                task = _Task(rank, stream, one.kind, number, 0, phase, phase, needs)
                waits[rank] = self._add(chunk, task)
            return waits
        forwards = name in (VPC, DOWN) and len(after) == 1 and self._is_wait(after[0])
        for rank in sorted({src for src, _, _ in pairs}):
            stream = stream_of(one.kind, FORWARD if forwards else SEND)
            needs = [*after, *([] if forwards else self._written_before(one, [rank]))]
            self._add(chunk, _Task(rank, stream, one.kind, number, 0, phase, "", needs))
        for rank in sorted({dst for _, dst, _ in pairs}):
            task = _Task(rank, stream_of(one.kind, RECEIVE), one.kind, number, 0, "", phase)
            waits[rank] = self._add(chunk, task)
        return waits

    def _is_wait(self, place: tuple[int, int]) -> bool:
        return bool(self.tasks[place[0]][place[1]].waits)

    def _written_before(self, one: Transfer, homes: list[int]) -> list[tuple[int, int]]:
        """Return the tasks that waited for the blocks that are read from these CPUs."""
        if one.kind != CACHE_READ:
            return []
        found = {
            self._written[block[:3]]
            for block in one.blocks
            if block[4] in homes and block[:3] in self._written
        }
        return sorted(found)

    def _chain(
        self,
        chunk: int,
        tick: tuple[int, int],
        one: Transfer,
        group: Sequence[tuple[int, int, int]],
        number: int,
    ) -> dict[int, tuple[int, int]]:
        """Add the parts of a transfer over vpc, each after the one before."""
        machine = self.traffic.machine
        reads = self.traffic.transport(one.kind).operation in READS
        src, dst, messages = group[0]
        after, waits = tick, {}
        for name, network, begin, end in machine.way(src, dst, "vpc"):
            pairs = [(begin, end, messages)]
            if end == dst:
                near = machine.memories(dst) if reads else [begin]
                pairs = [
                    (cpu, die, (count + turn) // len(near))
                    for _, die, count in group
                    for turn, cpu in enumerate(near)
                    if count + turn >= len(near)
                ]
            waits = self._part(chunk, [after], one, pairs, number, (name, network))
            after = waits.get(end, after)
        return waits

    def _cached(self, chunk: int, microbatch: int) -> None:
        """Add the reads of a prefill step for one microbatch of a layer."""
        traffic = self.traffic
        if traffic.step.plans[chunk].label == "head":
            return
        spec, machine = traffic.spec, traffic.machine
        is_whole = spec.cache.step_reads == "whole"
        if is_whole and chunk > 0:
            self._keep_cached(chunk, microbatch)
            return
        blocks = traffic.cached_blocks(microbatch)
        if not blocks:
            return
        assert spec.cache_read is not None
        ahead = chunk - 1 - spec.cache.ahead_layers
        after_step = ahead if ahead >= 0 else None
        messages = spec.block_messages // (1 if is_whole else spec.model.layers)
        is_vpc = spec.cache_read.network == "vpc"
        reads = spec.cache_read.operation in READS
        over_vpc: dict[tuple[int, int], int] = defaultdict(int)
        last: dict[tuple[int, int], int] = defaultdict(int)
        for number, (home, dies) in enumerate(blocks):
            for gateway in {machine.gateway(die) for die in dies} - {home} if is_vpc else ():
                over_vpc[home, gateway] += messages
            for die in dies:
                source = home
                if is_vpc:
                    near = machine.memories(die)
                    source = near[number % len(near)] if reads else machine.gateway(die)
                last[source, die] += messages
        phase = f"{CACHED}-{VPC}"
        self._cached_flows(chunk, phase, microbatch, over_vpc, ("vpc", "write"))
        for cpu in sorted({cpu for cpu, _ in over_vpc}):
            task = _Task(cpu, CACHED_STREAM, CACHED_MOVE, microbatch, sends=phase)
            task.needs, task.after_step = self._stored, after_step
            self._add(chunk, task)
        forwards: dict[int, list[tuple[int, int]]] = {}
        for gateway in sorted({gateway for _, gateway in over_vpc}):
            task = _Task(gateway, CACHED_FORWARD_STREAM, CACHED_MOVE, microbatch, waits=phase)
            forwards[gateway] = [self._add(chunk, task)]
        self._cached_flows(chunk, CACHED, microbatch, last, ("ub", spec.cache_read.operation))
        for rank in sorted({die if reads else cpu for cpu, die in last}):
            came = forwards.get(machine.gateway(rank) if is_vpc else rank, [])
            stream = CACHED_STREAM if reads or not came else CACHED_FORWARD_STREAM
            needs = came or self._stored
            task = _Task(rank, stream, CACHED_MOVE, microbatch, sends=CACHED, needs=needs)
            task.after_step = None if came else after_step
            self._add(chunk, task)

    def _store(self) -> None:
        """Add what is stored before the step: over vpc to a server's CPUs, and from there once."""
        traffic, machine = self.traffic, self.traffic.machine
        blocks = traffic.stored_blocks()
        if not blocks:
            return
        write = traffic.spec.cache_write
        assert write is not None
        is_vpc = write.network == "vpc"
        messages = traffic.spec.block_messages
        first: dict[tuple[int, int], int] = defaultdict(int)
        second: dict[tuple[int, int], int] = defaultdict(int)
        for number, (home, dies) in enumerate(blocks):
            for die in dies:
                near = machine.memories(die) if is_vpc else [home]
                first[die, near[number % len(near)]] += messages
            for gateway in {machine.gateway(die) for die in dies} - {home} if is_vpc else ():
                second[gateway, home] += messages
        parts = [(f"{STORED}-{UP}" if is_vpc else STORED, first, ("ub", write.operation))]
        if second:
            parts.append((f"{STORED}-{VPC}", second, ("vpc", "write")))
        came: dict[int, list[tuple[int, int]]] = defaultdict(list)  # by server's first CPU
        for phase, pairs, how in parts:
            self._cached_flows(0, phase, 0, pairs, how)
            for rank in sorted({src for src, _ in pairs}):
                needs = list(came[rank])
                stream = CACHED_FORWARD_STREAM if needs else CACHED_STREAM
                self._add(0, _Task(rank, stream, CACHED_MOVE, sends=phase, needs=needs))
            for rank in sorted({dst for _, dst in pairs}):
                task = _Task(rank, CACHED_FORWARD_STREAM, CACHED_MOVE, waits=phase)
                place = self._add(0, task)
                came[machine.gateway(rank)].append(place)
                self._stored.append(place)

    def _cached_flows(
        self,
        chunk: int,
        phase: str,
        microbatch: int,
        pairs: Mapping[tuple[int, int], int],
        how: tuple[str, str],
    ) -> None:
        """Add the flows of blocks from who holds them to whom they are for."""
        for (holder, to), count in sorted(pairs.items()):
            ends = (to, holder, count) if how[1] in READS else (holder, to, count)
            self._flow(chunk, phase, microbatch, ends, self.traffic.spec.piece_bytes, how)

    def _keep_cached(self, chunk: int, microbatch: int) -> None:
        """Keep streams that have read all at first from calling for layers before the step does."""
        if microbatch > 0:
            return
        mine = (CACHED_STREAM, CACHED_FORWARD_STREAM)
        first = {(task.rank, task.stream) for task in self.tasks[0] if task.stream in mine}
        for rank, stream in sorted(first):
            self._add(chunk, _Task(rank, stream, HOLD, -1, after_step=chunk - 1))

    def chunk(self, position: int, chunk: TraceChunk) -> TraceChunk:
        """Return a chunk of the step with the pool's flows and tasks."""
        flows = pa.concat_tables([chunk.flows, self._flow_table(position, chunk.layer)])
        tasks = pa.concat_tables([self._spread(chunk.tasks), self._task_table(position, chunk)])
        return TraceChunk(
            chunk.layer,
            chunk.label,
            flows.unify_dictionaries().combine_chunks(),
            tasks.combine_chunks(),
        )

    def _spread(self, tasks: pa.Table) -> pa.Table:
        """Return the step's tasks with their ids spread."""
        ids = tasks["task"].to_numpy() * self.stride
        lists = tasks["depends_on"].combine_chunks()
        needs = np.asarray(lists.flatten(), np.int64) * self.stride
        spread = pa.ListArray.from_arrays(lists.offsets, pa.array(needs))
        columns = {"task": pa.array(ids), "depends_on": spread}
        arrays = [columns.get(name, tasks[name]) for name in TASK_SCHEMA.names]
        return pa.Table.from_arrays(arrays, schema=TASK_SCHEMA)

    def _id(self, place: tuple[int, int]) -> int:
        """Return the id of a task of the pool."""
        chunk, number = place
        plans, step = self.traffic.step.plans, self.traffic.step
        plan = plans[chunk]
        behind = plan.first_task + len(step.stages_of(plan)) * step.n_ranks - 1
        return behind * self.stride + 1 + number

    def _flow_table(self, position: int, layer: int) -> pa.Table:
        rows = [
            {
                "phase": phase,
                "layer": layer,
                "microbatch": number,
                "src": src,
                "dst": dst,
                "messages": messages,
                "message_bytes": size,
                "network": network,
                "service_level": 0,
                "start_ps": -1,
                "operation": operation,
            }
            for phase, number, src, dst, messages, size, network, operation in self.flows[position]
        ]
        return pa.Table.from_pylist(rows, schema=FLOW_SCHEMA)

    def _task_table(self, position: int, chunk: TraceChunk) -> pa.Table:
        plans = self.traffic.step.plans
        rows = []
        for number, task in enumerate(self.tasks[position]):
            needs = [self._id(place) for place in task.needs]
            if task.after_step is not None:
                needs.append(plans[task.after_step].first_task * self.stride)
            rows.append(
                {
                    "task": self._id((position, number)),
                    "rank": task.rank,
                    "stream": task.stream,
                    "kind": task.kind,
                    "layer": chunk.layer,
                    "microbatch": task.microbatch,
                    "duration_ps": task.duration_ps,
                    "sends": task.sends,
                    "waits": task.waits,
                    "depends_on": needs,
                    "message_cost_ps": 0,
                    "memory_ps": 0,
                }
            )
        return pa.Table.from_pylist(rows, schema=TASK_SCHEMA)


def pool_table(flows: pd.DataFrame, metadata: Mapping[str, Any]) -> pd.DataFrame:
    """Return completion times of the pool's transfers, by kind.

    Parameters
    ----------
    flows : DataFrame
        Flows of a run: ``phase``, ``layer``, ``microbatch``, ``src``, ``dst``, ``network``,
        ``bytes``, ``start_ps``, ``finish_ps``.
    metadata : mapping
        Of the trace.

    Returns
    -------
    DataFrame
        One row a kind: ``kind``, ``network`` (all that it used), ``transfers`` (over vpc each pair
        of ranks is one, or what all dies of a server read of one CPU; else all that a request
        moves), ``bytes`` (counted once however many parts a transfer has), and ``mean_ps``,
        ``p50_ps``, ``p99_ps``, ``max_ps`` from the first byte that a rank hands over to the last
        one that arrives, and ``bytes_per_s``, the mean over transfers. Time that a transfer waits
        for earlier ones of its ranks is not in it; time that part of a read waits for blocks that
        are still being written is. Empty if the trace has no pool.
    """
    phases = (metadata.get("pool") or {}).get("phases", [])
    columns = ["kind", "network", "transfers", "bytes"]
    columns += ["mean_ps", "p50_ps", "p99_ps", "max_ps", "bytes_per_s"]
    mine = flows[flows["phase"].isin(phases)].copy()
    if mine.empty:
        return pd.DataFrame(columns=columns)
    text = mine["phase"].astype(str)
    part = text.str.extract(rf"-({UP}|{VPC}|{DOWN})$")[0].fillna("")
    mine["kind"] = [
        name.removesuffix(f"-{end}") if end else name for name, end in zip(text, part, strict=True)
    ]
    mine["part"] = part.to_numpy()
    rows = []
    for kind, of_kind in mine.groupby("kind", sort=True):
        one = of_kind.groupby(["layer", "microbatch"])
        took = (one["finish_ps"].max() - one["start_ps"].min()).to_numpy()
        # The parts of a way carry the same bytes; the last or only one has all of them.
        moved = of_kind.groupby(["layer", "microbatch", "part"])["bytes"].sum()
        moved = moved.groupby(level=[0, 1]).max().to_numpy()
        quantiles = np.quantile(took, [0.5, 0.99], method="inverted_cdf")
        rows.append(
            {
                "kind": kind,
                "network": " + ".join(sorted(of_kind["network"].astype(str).unique())),
                "transfers": len(took),
                "bytes": int(moved.sum()),
                "mean_ps": float(took.mean()),
                "p50_ps": int(quantiles[0]),
                "p99_ps": int(quantiles[1]),
                "max_ps": int(took.max()),
                "bytes_per_s": float((moved / took).mean() * PS_PER_S),
            }
        )
    return pd.DataFrame(rows, columns=columns)
