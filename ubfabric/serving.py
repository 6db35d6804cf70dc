"""A serving system under requests: queues, batches, caches and steps as discrete events.

A request goes through these instants; every metric is an expression in them::

    arrival -> prefill start -> prefill end = first token -> admitted -> transfer end -> finish

    TTFT = first token - arrival
    TPOT = (finish - first token) / (output tokens - 1)       none for one output token
    E2E  = finish - arrival

**Prefill.** A request goes to the instance with the fewest tokens queued or under way. An instance
that is free takes requests from its queue, the first first, while the tokens to compute fit in
``batch_tokens``; a batch has one at least. The context cache is looked up then: the leading blocks
that it holds are read before the batch computes the rest, at least one token of each prompt: by all
dies, the blocks of one request after another, or by one die for each request at the same time. The
time of the batch is that of a batch of equal prompts with as many tokens to compute, as many cached
tokens and as many pairs of query and key. At its end every request has its first token, and what of
its blocks was not there goes to the cache, where it is found when the transfer is over.

**Decode.** The request then waits, the first first, for the instance with the fewest requests. It
is admitted when a die has a free slot and room in its memory for all tokens that the request will
have, and when the next step would not exceed the objective of TPOT: predicted step time over the
mean tokens of a step. It gets the die with the fewest requests. A request that by itself exceeds
the objective is admitted to an empty instance. Its KV cache then moves from prefill to its die and
it joins the next step that begins. The time of a step is that of its fullest die: the most requests
of a die, and the most KV tokens of a die. In a step a request gets one token and its MTP guesses up
to the first that is not accepted; what would go beyond its last token is not counted.

Luck is a hash of seed, request and step, so it does not depend on who else is served.

**Not modelled.** Preemption and eviction of running requests; chunked prefill; work of CPUs for
scheduling, tokenising and sampling; transfers that begin before prefill ends, and a transfer's time
changing while it is under way; interference of transfers with dispatch and combine; the prompt's
pass through MTP layers; reading of cached blocks while the batch before computes; on which nodes
the blocks of one reading lie, which the times of transfers take to be spread evenly; limits of
memory in prefill; failures.
"""

from __future__ import annotations

import heapq
import sys
import warnings
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ubfabric.errors import TraceError, UbfabricWarning
from ubfabric.hashing import mix
from ubfabric.pool import block_home
from ubfabric.requests import Requests
from ubfabric.serving_results import (
    ServingResult,
    check_target,
    request_table,
    summarise,
    write_serving,
)
from ubfabric.serving_spec import ServingSystem, flatten, load_serving
from ubfabric.step_times import StepTimes, measure_step_times, tokens_per_step
from ubfabric.topology import load_topology

#: An instant that a request never came to.
NEVER = -1
# Kinds of events; of those at the same time the lower first, so that what has ended makes room.
_PREFILL_END, _TRANSFER_END, _STEP_END, _WRITE_END, _ARRIVAL = range(5)
#: Requests between two looks at the progress bar.
_SLICE_REQUESTS = 1000
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Pools:
    """What requests meet, without times.

    Attributes
    ----------
    prefill_instances, prefill_npus : int
        Instances, and NPUs of each.
    batch_tokens : int
        Most tokens to compute in a batch of prefill; a longer request has a batch for itself.
    decode_instances, decode_dies, decode_npus : int
        Instances, and dies and NPUs of each.
    batch_per_die : int
        Most requests of a die.
    kv_capacity_tokens : int
        Most KV tokens of a die.
    mtp_tokens : int
        Guesses of a request in a step.
    mtp_acceptance : float
        Chance that a guess is accepted if those before it were.
    every_die_reads : bool
        Whether all dies of a prefill instance read each cached block, or one of them does.
    block_tokens : int
        Tokens of a block of the context cache; overruled by that of the requests' ids.
    cache_blocks : int or None
        Most blocks in the cache, the least recently used leave; None: no limit.
    cache_nodes : tuple of str
        Nodes whose memory holds the cache.
    ttft_objective_ps, tpot_objective_ps : int or None
    sample_interval_ps : int
        Time between looks at the pools.
    seed : int
    """

    prefill_instances: int
    prefill_npus: int
    batch_tokens: int
    decode_instances: int
    decode_dies: int
    decode_npus: int
    batch_per_die: int
    kv_capacity_tokens: int
    mtp_tokens: int
    mtp_acceptance: float
    every_die_reads: bool
    block_tokens: int
    cache_blocks: int | None
    cache_nodes: tuple[str, ...]
    ttft_objective_ps: int | None
    tpot_objective_ps: int | None
    sample_interval_ps: int
    seed: int

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens of a request in a step."""
        return tokens_per_step(self.mtp_tokens, self.mtp_acceptance)


def pools_of(system: ServingSystem, cache_nodes: tuple[str, ...], block_tokens: int) -> Pools:
    """Return the pools of a specification.

    Parameters
    ----------
    system : ServingSystem
    cache_nodes : tuple of str
        Nodes whose memory holds the context cache.
    block_tokens : int
        Tokens of a block: those of the requests' ids where they have some.
    """
    spec, decode, prefill = system.spec, system.decode_spec, system.prefill_spec
    capacity = spec.cache.capacity
    if capacity is not None:
        capacity //= system.kv_bytes_per_token * block_tokens
    return Pools(
        prefill_instances=spec.prefill.instances,
        prefill_npus=prefill.npus,
        batch_tokens=spec.prefill.batch_tokens,
        decode_instances=spec.decode.instances,
        decode_dies=decode.deployment.ranks,
        decode_npus=decode.npus,
        batch_per_die=spec.decode.batch_per_die,
        kv_capacity_tokens=system.kv_capacity_tokens,
        mtp_tokens=decode.serving.mtp_tokens,
        mtp_acceptance=decode.serving.mtp_acceptance,
        every_die_reads=system.every_die_reads,
        block_tokens=block_tokens,
        cache_blocks=capacity,
        cache_nodes=cache_nodes,
        ttft_objective_ps=spec.objectives.ttft,
        tpot_objective_ps=spec.objectives.tpot,
        sample_interval_ps=spec.sample_interval,
        seed=spec.seed,
    )


# --------------------------------------------------------------------------- luck


class Acceptance:
    """How many MTP guesses of a request are accepted in a step: a hash, the same in any order.

    Parameters
    ----------
    mtp_tokens : int
    acceptance : float
        Chance of each guess if those before it were accepted.
    seed : int
    """

    def __init__(self, mtp_tokens: int, acceptance: float, seed: int) -> None:
        chances = [acceptance**guess for guess in range(1, mtp_tokens + 1)]
        self._certain = sum(chance >= 1 for chance in chances)
        self._below = [np.uint64(int(c * 2.0**64)) for c in chances if 0 < c < 1]
        self._key = mix(np.array([seed & _MASK], np.uint64) + np.uint64(1))[0]

    def tokens(self, requests: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Return the tokens that requests get, one and the accepted guesses.

        Parameters
        ----------
        requests, steps : ndarray of int64, shape (n,)
            Number of each request, and of its own step.

        Returns
        -------
        ndarray of int64, shape (n,)
        """
        tokens = np.full(len(requests), 1 + self._certain, np.int64)
        if self._below:
            keys = requests.astype(np.uint64) << np.uint64(32)
            keys |= steps.astype(np.uint64)
            keys += np.uint64(1)
            keys ^= self._key
            luck = mix(keys)
            for chance in self._below:
                tokens += luck < chance
        return tokens


# --------------------------------------------------------------------------- the cache


class BlockStore:
    """Blocks of KV cache and the node in whose memory each lies.

    A block is written to the node that a hash of its id names, and read from there. The last
    blocks of a prompt leave before its first ones, without which they are no use.

    Parameters
    ----------
    n_nodes : int
    capacity : int or None
        Most blocks; the least recently used leave. None: no limit.
    seed : int
    """

    def __init__(self, n_nodes: int, capacity: int | None, seed: int) -> None:
        self.n_nodes = n_nodes
        self.capacity = capacity
        self.seed = seed
        self._node: OrderedDict[int, int] = OrderedDict()
        self.written = np.zeros(n_nodes, np.int64)
        self.read_from = np.zeros(n_nodes, np.int64)
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._node)

    def node_of(self, block: int) -> int | None:
        """Return the node that holds a block, or None."""
        return self._node.get(block)

    def leading(self, blocks: list[int]) -> int:
        """Return how many of a prompt's blocks are there, up to the first that is not."""
        held = self._node
        for number, block in enumerate(blocks):
            if block not in held:
                return number
        return len(blocks)

    def read(self, blocks: list[int]) -> list[int]:
        """Return the node of each block; it counts as used now, the first last.

        Raises
        ------
        KeyError
            If one is not there.
        """
        nodes = [self._node[block] for block in blocks]
        for node in nodes:
            self.read_from[node] += 1
        for block in reversed(blocks):
            self._node.move_to_end(block)
        return nodes

    def write(self, blocks: list[int]) -> list[int]:
        """Put blocks in and return the node of each; what is there already stays where it is."""
        fresh = [block for block in blocks if block not in self._node]
        homes = block_home(self.seed, np.array(fresh, np.int64).reshape(-1, 1), self.n_nodes)
        home = dict(zip(fresh, homes.tolist(), strict=True))
        nodes = []
        for block in reversed(blocks):
            if block not in self._node:
                self._node[block] = home[block]
                self.written[home[block]] += 1
            self._node.move_to_end(block)
            nodes.append(self._node[block])
        while self.capacity is not None and len(self._node) > self.capacity:
            self._node.popitem(last=False)
            self.evicted += 1
        return nodes[::-1]


# --------------------------------------------------------------------------- instances


@dataclass
class _Prefill:
    """An instance of prefill."""

    queue: deque[int] = field(default_factory=deque)
    #: Tokens of the prompts queued, and of those under way.
    queued_tokens: int = 0
    running_tokens: int = 0
    running: list[int] = field(default_factory=list)
    #: Blocks of each running prompt that go to the cache.
    fresh: list[list[int]] = field(default_factory=list)
    started_ps: int = 0
    busy_ps: int = 0
    tokens: int = 0
    batches: int = 0
    transfers: int = 0


class _Decode:
    """An instance of decode; requests under way are rows of arrays, in no particular order."""

    def __init__(self, pools: Pools) -> None:
        most = pools.decode_dies * pools.batch_per_die
        self.n = 0
        self.request = np.zeros(most, np.int64)
        self.die = np.zeros(most, np.int64)
        self.left = np.zeros(most, np.int64)
        self.steps = np.zeros(most, np.int64)
        dies = pools.decode_dies
        #: Requests and KV tokens of each die, those whose cache is on its way included, and the KV
        #: tokens that they will have in the end.
        self.held = np.zeros(dies, np.int64)
        self.kv = np.zeros(dies, np.int64)
        self.reserved = np.zeros(dies, np.int64)
        #: Requests and KV tokens of each die that take part in steps.
        self.active = np.zeros(dies, np.int64)
        self.active_kv = np.zeros(dies, np.int64)
        self.waiting: deque[int] = deque()
        self.arriving: list[int] = []
        self.n_held = 0
        self.stepping = False
        self.step_ps = 0
        self.started_ps = 0
        self.busy_ps = 0
        self.tokens = 0
        self.n_steps = 0

    @property
    def load(self) -> int:
        """Requests that are here or wait to be."""
        return self.n_held + len(self.waiting)


@dataclass(frozen=True)
class Served:
    """What came of the requests.

    Attributes
    ----------
    columns : dict of str to ndarray of int64, shape (n_requests,)
        ``cached_tokens``, ``prefill_instance``, ``prefill_start_ps``, ``prefill_end_ps``,
        ``admitted_ps``, ``transfer_end_ps``, ``decode_instance``, ``die``, ``steps``,
        ``finish_ps``; :data:`NEVER` where a request has none.
    samples : dict of str to list
        Columns of the pools over time; see :data:`ubfabric.serving_results.POOL_SCHEMA`.
    counters : dict
        Sums over the run, JSON-able.
    """

    columns: dict[str, np.ndarray]
    samples: dict[str, list[Any]]
    counters: dict[str, Any]


_COLUMNS = (
    "cached_tokens",
    "prefill_instance",
    "prefill_start_ps",
    "prefill_end_ps",
    "admitted_ps",
    "transfer_end_ps",
    "decode_instance",
    "die",
    "steps",
    "finish_ps",
)


def check_requests(requests: Requests, pools: Pools) -> None:
    """Check that every request can be served at all.

    Raises
    ------
    TraceError
        One line with the first request that no die has room for.
    """
    needed = requests.prompt_tokens + requests.output_tokens
    rows = np.flatnonzero(needed > pools.kv_capacity_tokens)
    if len(rows):
        row = int(rows[0])
        raise TraceError(
            f"{requests.label}: row {row + 1}: found {needed[row]:,} tokens of prompt and answer, "
            f"allowed up to {pools.kv_capacity_tokens:,}, for which a die of decode has memory"
        )


class Simulation:
    """A run of requests through pools; use :func:`simulate_requests`.

    Parameters
    ----------
    requests : Requests
    pools : Pools
    times : StepTimes
    window_ps : int
        Throughput counts what is done before this.
    """

    def __init__(self, requests: Requests, pools: Pools, times: StepTimes, window_ps: int) -> None:
        check_requests(requests, pools)
        self.requests, self.pools, self.times = requests, pools, times
        self.window_ps = window_ps
        n = len(requests)
        # Lists: single elements of an array are slow to read and write.
        self.column = {name: [NEVER] * n for name in _COLUMNS}
        self.column["cached_tokens"] = [0] * n
        self.column["steps"] = [0] * n
        self.prompt = requests.prompt_tokens.tolist()
        self.output = requests.output_tokens.tolist()
        self.reused = requests.reused_tokens.tolist()
        self.prefill = [_Prefill() for _ in range(pools.prefill_instances)]
        self.decode = [_Decode(pools) for _ in range(pools.decode_instances)]
        self.has_ids = requests.block_tokens > 0
        self.block_tokens = requests.block_tokens or pools.block_tokens
        self.store = BlockStore(len(pools.cache_nodes), pools.cache_blocks, pools.seed)
        self.luck = Acceptance(pools.mtp_tokens, pools.mtp_acceptance, pools.seed)
        self.most_step_ps: float | None = None
        if pools.tpot_objective_ps is not None:
            self.most_step_ps = pools.tpot_objective_ps * pools.tokens_per_step
        self.events: list[tuple[int, int, int, int]] = []
        self.numbered = 0
        self.on_their_way: dict[int, list[int]] = {}
        self.finished = 0
        self.beyond_objective = 0
        self.window_prompt_tokens = 0
        self.window_decode_tokens = 0
        self.blocks_read = 0
        self.samples: dict[str, list[Any]] = {
            name: []
            for name in (
                "time_ps",
                "pool",
                "instance",
                "queued_requests",
                "queued_tokens",
                "running_requests",
                "running_tokens",
                "step_ps",
            )
        }

    # ----------------------------------------------------------------- events

    def _push(self, time_ps: int, kind: int, what: int) -> None:
        """Add an event; those of one time and kind come in the order in which they were added."""
        heapq.heappush(self.events, (time_ps, kind, self.numbered, what))
        self.numbered += 1

    def run(self, progress: bool | None = None) -> Served:
        """Serve all requests."""
        arrivals = self.requests.arrival_ps.tolist()
        n, at = len(arrivals), 0
        interval, next_sample = self.pools.sample_interval_ps, 0
        handlers = {
            _PREFILL_END: self._prefill_end,
            _TRANSFER_END: self._transfer_end,
            _STEP_END: self._step_end,
            _WRITE_END: self._write_end,
        }
        shown = sys.stderr.isatty() if progress is None else progress
        bar = Progress(
            TextColumn("requests"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not shown,
        )
        now, told = 0, 0
        with bar:
            line = bar.add_task("", total=n)
            while at < n or self.events:
                is_arrival = at < n and (
                    not self.events or (arrivals[at], _ARRIVAL) < self.events[0][:2]
                )
                now = arrivals[at] if is_arrival else self.events[0][0]
                while next_sample < now:
                    self._sample(next_sample)
                    next_sample += interval
                if is_arrival:
                    self._arrive(at, now)
                    at += 1
                else:
                    _, kind, _, what = heapq.heappop(self.events)
                    handlers[kind](what, now)
                if self.finished - told >= _SLICE_REQUESTS:
                    told = self.finished
                    bar.update(line, completed=told)
            self._sample(now)
        return self._served(now)

    # ----------------------------------------------------------------- prefill

    def _arrive(self, request: int, now: int) -> None:
        instances = self.prefill
        place = min(
            range(len(instances)),
            key=lambda i: instances[i].queued_tokens + instances[i].running_tokens,
        )
        instance = instances[place]
        self.column["prefill_instance"][request] = place
        instance.queue.append(request)
        instance.queued_tokens += self.prompt[request]
        if not instance.running:
            self._start_batch(place, now)

    def _cached(self, request: int) -> tuple[int, list[int]]:
        """Return the tokens of a prompt that the cache holds, and all ids of its blocks."""
        size, prompt = self.block_tokens, self.prompt[request]
        if self.has_ids:
            ids = self.requests.blocks(request)
            held = self.store.leading(ids)
            return min(held * size, prompt), ids
        return self.reused[request] // size * size, []

    def _start_batch(self, place: int, now: int) -> None:
        instance = self.prefill[place]
        batch: list[int] = []
        cached_of: list[int] = []
        fresh: list[list[int]] = []
        computed = cached = pairs = taken = 0
        while instance.queue:
            request = instance.queue[0]
            prompt = self.prompt[request]
            held, ids = self._cached(request)
            held = min(held, (prompt - 1) // self.block_tokens * self.block_tokens)
            if batch and computed + prompt - held > self.pools.batch_tokens:
                break
            instance.queue.popleft()
            batch.append(request)
            cached_of.append(held)
            n_held = held // self.block_tokens if ids else 0
            if n_held:
                self.blocks_read += len(self.store.read(ids[:n_held]))
            fresh.append(ids[n_held:])
            computed += prompt - held
            cached += held
            pairs += (prompt * (prompt + 1) - held * (held + 1)) // 2
            taken += prompt
        share = cached / (cached + computed)
        # A prompt of L tokens of which the share s is cached has (1 - s) L queries, which see
        # L (1 + s) / 2 + 1 / 2 keys each, on average.
        length = (2 * pairs / computed - 1) / (1 + share)
        time_ps = self.times.prefill.time_ps(computed, length, share)
        readers = sum(held > 0 for held in cached_of)
        if readers:
            together = (cached, 1) if self.pools.every_die_reads else (max(cached_of), readers)
            time_ps += self.times.cache_read.transfer_ps(*together)
        column = self.column
        for request, held in zip(batch, cached_of, strict=True):
            column["cached_tokens"][request] = held
            column["prefill_start_ps"][request] = now
        instance.running, instance.fresh = batch, fresh
        instance.running_tokens = taken
        instance.queued_tokens -= taken
        instance.started_ps = now
        self._push(now + time_ps, _PREFILL_END, place)

    def _prefill_end(self, place: int, now: int) -> None:
        instance = self.prefill[place]
        batch, fresh = instance.running, instance.fresh
        instance.busy_ps += now - instance.started_ps
        instance.batches += 1
        instance.tokens += instance.running_tokens
        if now <= self.window_ps:
            self.window_prompt_tokens += instance.running_tokens
        instance.running, instance.fresh, instance.running_tokens = [], [], 0
        writers = sum(map(bool, fresh))
        for request, blocks in zip(batch, fresh, strict=True):
            self.column["prefill_end_ps"][request] = now
            if blocks:
                tokens = self.prompt[request] - self.column["cached_tokens"][request]
                self.on_their_way[request] = blocks
                time_ps = self.times.cache_write.transfer_ps(tokens, writers)
                self._push(now + time_ps, _WRITE_END, request)
            if self.output[request] == 1:
                self.column["finish_ps"][request] = now
                self.finished += 1
        for request in batch:
            if self.output[request] > 1:
                target = min(range(len(self.decode)), key=lambda i: self.decode[i].load)
                self.column["decode_instance"][request] = target
                self.decode[target].waiting.append(request)
        for target in range(len(self.decode)):
            self._admit(target, now)
        if instance.queue:
            self._start_batch(place, now)

    def _write_end(self, request: int, now: int) -> None:
        self.store.write(self.on_their_way.pop(request))

    # ----------------------------------------------------------------- decode

    def _die_for(self, instance: _Decode, needed: int) -> int | None:
        """Return the die with the fewest requests that has a slot and room, or None."""
        pools = self.pools
        die = int(instance.held.argmin())
        if instance.held[die] >= pools.batch_per_die:
            return None
        if instance.reserved[die] + needed <= pools.kv_capacity_tokens:
            return die
        room = (instance.held < pools.batch_per_die) & (
            instance.reserved + needed <= pools.kv_capacity_tokens
        )
        if not room.any():
            return None
        return int(np.where(room, instance.held, pools.batch_per_die).argmin())

    def _admit(self, place: int, now: int) -> None:
        """Admit those who wait, the first first, until one does not fit."""
        instance = self.decode[place]
        while instance.waiting:
            request = instance.waiting[0]
            prompt = self.prompt[request]
            needed = prompt + self.output[request]
            die = self._die_for(instance, needed)
            if die is None:
                return
            if self.most_step_ps is not None:
                fullest = max(int(instance.held.max()), int(instance.held[die]) + 1)
                most_kv = max(int(instance.kv.max()), int(instance.kv[die]) + prompt + 1)
                step_ps = self.times.decode.time_ps(fullest, most_kv / fullest)
                if step_ps > self.most_step_ps:
                    if instance.n_held:
                        return
                    self.beyond_objective += 1
            instance.waiting.popleft()
            instance.held[die] += 1
            instance.kv[die] += prompt + 1
            instance.reserved[die] += needed
            instance.n_held += 1
            column = self.column
            column["admitted_ps"][request] = now
            column["die"][request] = die
            source = self.prefill[column["prefill_instance"][request]]
            source.transfers += 1
            time_ps = self.times.kv_transfer.transfer_ps(prompt, source.transfers)
            self._push(now + time_ps, _TRANSFER_END, request)

    def _transfer_end(self, request: int, now: int) -> None:
        column = self.column
        column["transfer_end_ps"][request] = now
        self.prefill[column["prefill_instance"][request]].transfers -= 1
        place = column["decode_instance"][request]
        instance = self.decode[place]
        instance.arriving.append(request)
        if not instance.stepping:
            self._start_step(place, now)

    def _start_step(self, place: int, now: int) -> None:
        instance = self.decode[place]
        for request in instance.arriving:
            row, die = instance.n, self.column["die"][request]
            instance.request[row] = request
            instance.die[row] = die
            instance.left[row] = self.output[request] - 1
            instance.steps[row] = 0
            instance.active[die] += 1
            instance.active_kv[die] += self.prompt[request] + 1
            instance.n += 1
        instance.arriving.clear()
        instance.stepping = instance.n > 0
        if not instance.stepping:
            instance.step_ps = 0
            return
        fullest = int(instance.active.max())
        most_kv = int(instance.active_kv.max())
        instance.step_ps = self.times.decode.time_ps(fullest, most_kv / fullest)
        instance.started_ps = now
        self._push(now + instance.step_ps, _STEP_END, place)

    def _step_end(self, place: int, now: int) -> None:
        instance = self.decode[place]
        n = instance.n
        request, left, steps = instance.request[:n], instance.left[:n], instance.steps[:n]
        die = instance.die[:n]
        tokens = np.minimum(self.luck.tokens(request, steps), left)
        left -= tokens
        steps += 1
        # Sums of whole numbers far below 2**53 are exact in the floats of bincount.
        gained = np.bincount(die, tokens, len(instance.held)).astype(np.int64)
        instance.kv += gained
        instance.active_kv += gained
        total = int(tokens.sum())
        instance.tokens += total
        instance.busy_ps += now - instance.started_ps
        instance.n_steps += 1
        if now <= self.window_ps:
            self.window_decode_tokens += total
        done = np.flatnonzero(left == 0)
        if len(done):
            self._finish(instance, done, now)
        self._admit(place, now)
        self._start_step(place, now)

    def _finish(self, instance: _Decode, done: np.ndarray, now: int) -> None:
        """Take finished requests out; the last rows fill their places."""
        column = self.column
        dies = instance.die[done].tolist()
        for request, die, steps in zip(
            instance.request[done].tolist(), dies, instance.steps[done].tolist(), strict=True
        ):
            column["finish_ps"][request] = now
            column["steps"][request] = steps
            tokens = self.prompt[request] + self.output[request]
            instance.held[die] -= 1
            instance.active[die] -= 1
            instance.kv[die] -= tokens
            instance.active_kv[die] -= tokens
            instance.reserved[die] -= tokens
        self.finished += len(done)
        instance.n_held -= len(done)
        n = instance.n - len(done)
        holes = done[done < n]
        stay = n + np.flatnonzero(instance.left[n : instance.n])
        for rows in (instance.request, instance.die, instance.left, instance.steps):
            rows[holes] = rows[stay]
        instance.n = n

    # ----------------------------------------------------------------- looking

    def _sample(self, time_ps: int) -> None:
        add = {name: values.append for name, values in self.samples.items()}

        def row(pool: str, place: int, *values: int) -> None:
            names = ("queued_requests", "queued_tokens", "running_requests", "running_tokens")
            add["time_ps"](time_ps)
            add["pool"](pool)
            add["instance"](place)
            for name, value in zip((*names, "step_ps"), values, strict=True):
                add[name](value)

        for place, instance in enumerate(self.prefill):
            row(
                "prefill",
                place,
                len(instance.queue),
                instance.queued_tokens,
                len(instance.running),
                instance.running_tokens,
                0,
            )
        for place, decode in enumerate(self.decode):
            waiting = sum(self.prompt[request] for request in decode.waiting)
            row(
                "decode",
                place,
                len(decode.waiting),
                waiting,
                decode.n_held,
                int(decode.kv.sum()),
                decode.step_ps,
            )

    def _served(self, end_ps: int) -> Served:
        nodes = self.pools.cache_nodes
        counters: dict[str, Any] = {
            "end_ps": end_ps,
            "window_ps": self.window_ps,
            "window_prompt_tokens": self.window_prompt_tokens,
            "window_decode_tokens": self.window_decode_tokens,
            "admitted_beyond_objective": self.beyond_objective,
            "prefill": [
                {"busy_ps": p.busy_ps, "batches": p.batches, "prompt_tokens": p.tokens}
                for p in self.prefill
            ],
            "decode": [
                {"busy_ps": d.busy_ps, "steps": d.n_steps, "output_tokens": d.tokens}
                for d in self.decode
            ],
            "cache": {
                "block_tokens": self.block_tokens,
                "blocks_held": len(self.store),
                "blocks_read": self.blocks_read,
                "blocks_evicted": self.store.evicted,
                "blocks_written": int(self.store.written.sum()),
                "written_by_node": _nonzero(nodes, self.store.written),
                "read_by_node": _nonzero(nodes, self.store.read_from),
            },
        }
        columns = {name: np.array(values, np.int64) for name, values in self.column.items()}
        return Served(columns, self.samples, counters)


def _nonzero(nodes: tuple[str, ...], counts: np.ndarray) -> dict[str, int]:
    return {node: int(n) for node, n in zip(nodes, counts, strict=True) if n}


def simulate_requests(
    requests: Requests,
    pools: Pools,
    times: StepTimes,
    *,
    window_ps: int | None = None,
    progress: bool | None = None,
) -> Served:
    """Serve requests.

    Parameters
    ----------
    requests : Requests
    pools : Pools
    times : StepTimes
    window_ps : int, optional
        Throughput counts what is done before this; the last arrival if not given.
    progress : bool, optional
        Show a progress bar; by default if standard error is a terminal.

    Returns
    -------
    Served

    Raises
    ------
    TraceError
        If a request does not fit in the memory of a die.
    """
    if window_ps is None:
        window_ps = int(requests.arrival_ps[-1]) if len(requests) else 0
    return Simulation(requests, pools, times, window_ps).run(progress)


# --------------------------------------------------------------------------- the whole


def serve(
    source: str | Path | Mapping[str, Any] | ServingSystem,
    out: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> ServingResult:
    """Serve the requests of a specification and write what came of them.

    Parameters
    ----------
    source : str, Path, mapping or ServingSystem
        A shipped name such as ``deepseek-r1-serving``, a YAML file, or its content.
    out : path
        Folder to write; see :mod:`ubfabric.serving_results`.
    overrides : mapping, optional
        Values to change, by dotted key: ``{"arrivals.rate_per_s": 200.0}``.
    cache : path, optional
        Folder of remembered step times; ``ubfabric/step-times`` in the user's cache folder by
        default.
    workers : int, optional
        Processes that simulate step times that are not remembered; one a core by default.
    overwrite : bool
        Replace a complete run of that name.
    progress : bool, optional
        Show progress bars; by default if standard error is a terminal.

    Returns
    -------
    ServingResult

    Raises
    ------
    SpecError
        If the specification is wrong, the model does not fit in the memory of a die, or no batch
        meets the objective of TPOT.
    TraceError
        If a file of requests is wrong, or a request does not fit in the memory of a die.
    ResultError
        If ``out`` cannot be written.
    SimulationError
        If the simulation of a step fails.

    Warns
    -----
    UbfabricWarning
        If times were asked for beyond the last point of a grid, and its edge was taken.

    Notes
    -----
    Step times may be simulated in new processes, so a script that calls this needs the usual
    ``if __name__ == "__main__":``.

    Examples
    --------
    >>> import ubfabric as ub                                               # doctest: +SKIP
    >>> result = ub.serve("serving-sample", "serving/sample")               # doctest: +SKIP
    >>> result.summary["ttft_ms"]["p99"]                                    # doctest: +SKIP
    """
    check_target(out, overwrite=overwrite)
    system = source if isinstance(source, ServingSystem) else load_serving(source, overrides)
    spec = system.spec
    requests = spec.arrivals.requests(
        system.folder, spec.duration, spec.cache.block_tokens, spec.seed
    )
    if not len(requests):
        raise TraceError(f"{requests.label}: found no request in the duration, allowed 1 or more")
    graph = load_topology(spec.topology, flatten(spec.fabric))
    cpus = tuple(node for node, kind in graph.nodes(data="kind") if kind == "cpu")
    pools = pools_of(system, cpus, requests.block_tokens or spec.cache.block_tokens)
    check_requests(requests, pools)
    times = measure_step_times(system, cache=cache, workers=workers, progress=progress)
    served = simulate_requests(requests, pools, times, window_ps=spec.duration, progress=progress)
    objectives = {"ttft_ps": spec.objectives.ttft, "tpot_ps": spec.objectives.tpot}
    table = request_table(
        requests.arrival_ps,
        requests.prompt_tokens,
        requests.output_tokens,
        served.columns,
        spec.objectives.ttft,
        spec.objectives.tpot,
    )
    npus = {
        "prefill": pools.prefill_instances * pools.prefill_npus,
        "decode": pools.decode_instances * pools.decode_npus,
    }
    about = {
        "name": spec.name,
        "ubfabric": metadata.version("ubfabric"),
        "seed": spec.seed,
        "spec": system.raw,
        "objectives": objectives,
        "kv_capacity_tokens": pools.kv_capacity_tokens,
        "step_times": times.report(),
    }
    summary = summarise(table, served.counters, npus, about)
    result = write_serving(out, table, served.samples, summary, overwrite=overwrite)
    for line in _beyond(times):
        warnings.warn(line, UbfabricWarning, stacklevel=2)
    return result


def _beyond(times: StepTimes) -> list[str]:
    """Return one line for each axis that was left above its last point."""
    lines = []
    for name, report in times.report().items():
        for axis, count in report["above"].items():
            if count:
                share = count / report["asked"]
                lines.append(
                    f"{name}: {share:.2%} of the times asked for lie above {axis} = "
                    f"{report['axes'][axis][-1]:g}, the last point of the grid; the time there was "
                    "taken, which is too short"
                )
    return lines
