"""The discrete events of serving: times by hand, and each rule of queue, batch, cache and step."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from serving_systems import MS, ms, pools, requests, run, table, times

from ubfabric.errors import TraceError
from ubfabric.serving import NEVER, Acceptance, BlockStore, simulate_requests
from ubfabric.serving_results import _plain, _render
from ubfabric.step_times import MeasuredTransfers, TimeTable

# --------------------------------------------------------------------------- times by hand


def test_a_lone_request_takes_what_its_parts_take():
    served = run(requests([1]), pools(), times())
    assert ms(served, "prefill_start_ps") == [1]
    assert ms(served, "prefill_end_ps") == [101]
    assert ms(served, "admitted_ps") == [101]
    assert ms(served, "transfer_end_ps") == [106]
    assert ms(served, "finish_ps") == [126]  # the second and third token: two steps of 10 ms
    assert served.columns["steps"].tolist() == [2]
    assert served.counters["decode"][0] == {"busy_ps": 20 * MS, "steps": 2, "output_tokens": 2}


def test_a_request_of_one_token_ends_with_prefill():
    served = run(requests([0], output=1), pools(), times())
    assert ms(served, "finish_ps") == [100]
    for name in ("admitted_ps", "transfer_end_ps", "decode_instance", "die"):
        assert served.columns[name].tolist() == [NEVER]


def test_a_request_joins_the_next_step_that_begins():
    # The second arrives in decode at 205 + 5 ms, in the midst of a step that began at 205 ms.
    served = run(requests([0, 100.5], output=[20, 2]), pools(), times())
    assert ms(served, "prefill_start_ps") == [0, 100.5]
    assert ms(served, "transfer_end_ps") == [105, 205.5]
    assert ms(served, "finish_ps") == [105 + 190, 225]  # steps begin at 105, 115, ...; joins at 215


def test_a_batch_takes_what_waits_and_fits():
    asked = requests([0, 1, 2, 3], prompt=[100, 600, 400, 10])
    served = run(asked, pools(batch_tokens=1000), times())
    # The first is alone, since nobody else is there; then 600 + 400, and the rest waits.
    assert ms(served, "prefill_start_ps") == [0, 100, 100, 200]


def test_a_prompt_beyond_the_budget_has_a_batch_for_itself():
    asked = requests([0, 1, 2], prompt=[10, 5000, 10])
    served = run(asked, pools(batch_tokens=1000), times())
    assert ms(served, "prefill_start_ps") == [0, 100, 200]


def test_the_time_of_a_batch_is_that_of_its_tokens_and_pairs():
    # The time of a prompt's length is 1 ms a token: of 100 and 300 tokens the equal length is that
    # which has as many pairs a token: (100 * 101 + 300 * 301) / 400 - 1 = 250.
    of_length = table(
        "prefill",
        [[[1.0], [1001.0]]],
        tokens=[1],
        prompt_tokens=[1, 1001],
        cached_share=[0.0],
    )
    asked = requests([0, 0.5, 0.6], prompt=[1, 100, 300])
    served = run(asked, pools(), times(prefill=of_length))
    assert ms(served, "prefill_end_ps") == pytest.approx([1, 251, 251])


def test_a_request_goes_to_the_instance_with_the_fewest_tokens():
    asked = requests([0, 1, 2, 3, 4], prompt=[500, 100, 100, 400, 100])
    served = run(asked, pools(prefill_instances=2), times())
    # 500 | 100 | 100 + 100 | 200 + 400 | then 500 against 600
    assert served.columns["prefill_instance"].tolist() == [0, 1, 1, 1, 0]


# --------------------------------------------------------------------------- decode


def test_requests_spread_over_dies_and_wait_for_a_slot():
    asked = requests([0] * 3, output=[10, 2, 4])
    served = run(asked, pools(batch_per_die=1, batch_tokens=10**6), times())
    assert ms(served, "prefill_end_ps") == [100, 200, 200]
    # Finished at 105 + 90 ms, the first has left its die to the second.
    assert served.columns["die"].tolist() == [0, 0, 1]
    assert ms(served, "admitted_ps") == [100, 200, 200]
    waiting = run(requests([0] * 3, output=[50, 50, 4]), pools(batch_per_die=1), times())
    first_free = 105 + 49 * 10
    assert ms(waiting, "admitted_ps") == [100, 200, first_free]
    assert waiting.columns["die"].tolist() == [0, 1, 0]


def test_memory_admits_what_a_request_will_have_in_the_end():
    # 100 + 50 tokens each; a die has room for 299, so for one and not for two.
    asked = requests([0] * 3, output=50)
    served = run(asked, pools(kv_capacity_tokens=299), times())
    assert served.columns["die"].tolist() == [0, 1, 0]
    assert ms(served, "admitted_ps")[2] == ms(served, "finish_ps")[0]
    with_room = run(asked, pools(kv_capacity_tokens=300), times())
    assert ms(with_room, "admitted_ps") == [100, 200, 200]


def test_a_request_that_no_die_has_room_for_is_refused_with_its_row():
    asked = requests([0, 1], prompt=[10, 200])
    with pytest.raises(
        TraceError, match=r"row 2: found 203 tokens of prompt and answer.*up to 202"
    ):
        simulate_requests(asked, pools(kv_capacity_tokens=202), times())


def test_the_step_is_that_of_the_fullest_die():
    # 1 ms a request of the fullest die, and 1 ms a 100 KV tokens of its requests.
    of_batch = table("decode", [[2, 12], [6, 16]], batch_per_die=[1, 5], kv_tokens=[100, 1100])
    asked = requests([0, 0, 0], prompt=[99, 199, 399], output=[100, 100, 2])
    served = run(asked, pools(batch_tokens=10**6), times(decode=of_batch))
    # First alone: one request, 100 tokens. The others come together, to dies 1 and 0.
    assert served.columns["die"].tolist() == [0, 1, 0]
    at = {
        time: step / MS
        for time, pool, step in zip(
            *(served.samples[name] for name in ("time_ps", "pool", "step_ps")), strict=True
        )
        if pool == "decode"
    }
    # The first has one KV token more in each step.
    now, kv, under_way = 105.0, 100, 0.0
    while now < 205:
        step = 1 + kv / 100
        if now <= 200 < now + step:
            under_way = step
        now += step
        kv += 1
    assert at[200 * MS] == pytest.approx(under_way)
    # Then die 0 holds two: (kv + 400) / 2 each, one more request 1 ms more.
    end = served.columns["finish_ps"][2] / MS
    assert end == pytest.approx(now + 2 + (kv + 400) / 2 / 100)


def test_admission_keeps_the_predicted_step_within_the_objective():
    # 4 ms and 4 ms a request of the fullest die: two on a die make 12 ms, three 16 ms.
    of_batch = table("decode", [[8], [24]], batch_per_die=[1, 5], kv_tokens=[1])
    asked = requests([0] * 9, output=20)
    few = pools(batch_tokens=10**6, decode_dies=1, batch_per_die=5, tpot_objective_ps=12 * MS)
    served = run(asked, few, times(decode=of_batch))
    held = held_at_once(served)
    assert held == 2
    more = pools(batch_tokens=10**6, decode_dies=1, batch_per_die=5, tpot_objective_ps=16 * MS)
    assert held_at_once(run(asked, more, times(decode=of_batch))) == 3
    free = pools(batch_tokens=10**6, decode_dies=1, batch_per_die=5)
    assert held_at_once(run(asked, free, times(decode=of_batch))) == 5
    assert served.counters["admitted_beyond_objective"] == 0


def test_mtp_raises_what_the_objective_allows():
    # All guesses right: two tokens a step, so a step may take twice the objective.
    of_batch = table("decode", [[8], [24]], batch_per_die=[1, 5], kv_tokens=[1])
    asked = requests([0] * 9, output=21)
    of = pools(
        batch_tokens=10**6,
        decode_dies=1,
        batch_per_die=5,
        tpot_objective_ps=8 * MS,
        mtp_tokens=1,
        mtp_acceptance=1.0,
    )
    served = run(asked, of, times(decode=of_batch))
    assert held_at_once(served) == 3
    assert set(served.columns["steps"].tolist()) == {10}


def test_a_request_that_alone_exceeds_the_objective_is_served_alone():
    of_kv = table("decode", [[1, 100]], batch_per_die=[1], kv_tokens=[10, 1000])
    asked = requests([0, 0, 0], prompt=[1000, 20, 20], output=5)
    of = pools(tpot_objective_ps=20 * MS, batch_tokens=10**6)
    served = run(asked, of, times(decode=of_kv))
    assert served.counters["admitted_beyond_objective"] == 1
    assert ms(served, "admitted_ps")[1] >= ms(served, "finish_ps")[0]
    assert (served.columns["finish_ps"] > 0).all()


def held_at_once(served) -> int:
    """Return the most requests between admission and finish at the same time."""
    admitted, finish = served.columns["admitted_ps"], served.columns["finish_ps"]
    return max(int(((admitted <= t) & (finish > t)).sum()) for t in admitted)


# --------------------------------------------------------------------------- MTP


def test_guesses_are_accepted_as_often_as_said_and_in_any_order():
    luck = Acceptance(3, 0.7, 5)
    request, step = (part.ravel() for part in np.indices((400, 200)))
    tokens = luck.tokens(request, step)
    share = [float((tokens > k).mean()) for k in range(4)]
    assert share == pytest.approx([1, 0.7, 0.49, 0.343], abs=0.01)  # 4 standard errors are 0.007
    order = np.random.default_rng(1).permutation(len(request))
    assert luck.tokens(request[order], step[order]).tolist() == tokens[order].tolist()
    assert Acceptance(3, 0.7, 6).tokens(request, step).tolist() != tokens.tolist()
    # neither a request nor a step decides it alone
    by_request = tokens.reshape(400, 200)
    assert by_request.mean(axis=1).std() < 3 * tokens.std() / np.sqrt(200)
    assert by_request.mean(axis=0).std() < 3 * tokens.std() / np.sqrt(400)


@pytest.mark.parametrize(("acceptance", "expected"), [(0.0, 1), (1.0, 3)])
def test_luck_is_certain_at_the_ends(acceptance, expected):
    number = np.arange(1000)
    assert set(Acceptance(2, acceptance, 1).tokens(number, number).tolist()) == {expected}


def test_what_goes_beyond_the_last_token_is_not_counted():
    served = run(requests([0], output=4), pools(mtp_tokens=1, mtp_acceptance=1.0), times())
    assert served.columns["steps"].tolist() == [2]  # two tokens, then one of two
    assert served.counters["decode"][0]["output_tokens"] == 3


# --------------------------------------------------------------------------- the cache


def test_a_block_is_where_it_was_written_and_the_least_recently_used_leaves():
    store = BlockStore(5, 3, 1)
    where = store.write([1, 2, 3])
    assert [store.node_of(b) for b in (1, 2, 3)] == where
    assert store.read([1, 2]) == where[:2]
    store.write([4])
    assert store.leading([1, 2, 3]) == 2 and store.node_of(3) is None and store.evicted == 1
    assert store.leading([4]) == 1 and store.leading([7, 1]) == 0
    with pytest.raises(KeyError):
        store.read([3])
    assert store.written.sum() == 4 and store.read_from.sum() == 2


def test_what_was_read_leaves_after_what_was_not():
    store = BlockStore(5, 4, 1)
    store.write([1, 2])
    store.write([3, 4])
    store.read([1, 2])
    store.write([5, 6, 7])
    assert [block for block in range(1, 8) if store.node_of(block) is not None] == [1, 5, 6, 7]


def test_the_end_of_a_prompt_leaves_before_its_beginning():
    store = BlockStore(5, 2, 1)
    store.write([1, 2, 3])
    assert store.leading([1, 2, 3]) == 2


def test_blocks_spread_over_the_nodes():
    store = BlockStore(8, None, 1)
    store.write(list(range(8000)))
    assert store.written.min() > 850 and store.written.max() < 1150  # 1,000 +- 5 deviations


def test_cached_blocks_are_read_and_not_computed():
    # A prompt of 100 tokens in ten blocks; a second with the same first eight, after the write.
    asked = requests(
        [0, 200, 400],
        blocks=[list(range(10)), [*range(8), 98, 99], list(range(10))],
        block_tokens=10,
    )
    computed = table(
        "prefill",
        [[[1.0]], [[1001.0]]],
        tokens=[1, 1001],
        prompt_tokens=[1],
        cached_share=[0.0],
    )
    served = run(asked, pools(), times(prefill=computed))
    # The third has all blocks, of which the last is computed: a prompt needs one token at least.
    assert served.columns["cached_tokens"].tolist() == [0, 80, 90]
    assert ms(served, "prefill_end_ps") == [100, 200 + 20 + 20, 400 + 10 + 20]
    assert served.counters["cache"]["blocks_read"] == 17
    assert served.counters["cache"]["blocks_written"] == 12
    assert sum(served.counters["cache"]["read_by_node"].values()) == 17


def test_blocks_are_found_when_their_write_is_over():
    def cached(gap_ms):
        asked = requests([0, gap_ms], blocks=[[1, 2], [1, 2]], block_tokens=50)
        return run(asked, pools(), times()).columns["cached_tokens"].tolist()

    assert cached(106.9) == [0, 0]  # prefill ends at 100, the write at 107 ms
    assert cached(107) == [0, 50]


@pytest.mark.parametrize(("every_die_reads", "read_ms"), [(True, 20), (False, 14)])
def test_dies_that_all_read_read_one_request_after_another(every_die_reads, read_ms):
    # a tenth of a millisecond a token, and two thirds of that for both at the same time
    reads = MeasuredTransfers(table("read", [[0, 0], [20, 28]], tokens=[0, 200], concurrent=[1, 2]))
    reused = np.array([0, 100, 100])
    asked = requests([0, 50, 50], prompt=200, reused_tokens=reused)
    served = run(
        asked,
        pools(every_die_reads=every_die_reads),
        replace(times(), cache_read=reads),
    )
    assert ms(served, "prefill_end_ps") == [100, 200 + read_ms, 200 + read_ms]


def test_transfers_know_how_many_are_under_way():
    # 5 ms each and 5 ms more for each that is under way from the same instance.
    slower = MeasuredTransfers(
        table("kv", [[5.0, 10.0, 15.0]], tokens=[1_000_000], concurrent=[1, 2, 3])
    )
    at = replace(times(), kv_transfer=slower)
    asked = requests([0, 50, 50, 203], prompt=[100, 100, 100, 100], output=2)
    served = run(asked, pools(batch_tokens=200), at)
    # The second and third end prefill together; the last begins when both have come.
    assert ms(served, "prefill_end_ps") == [100, 200, 200, 303]
    assert ms(served, "transfer_end_ps") == [105, 205, 210, 308]


def test_the_shape_of_a_batch_has_its_cached_tokens_and_pairs():
    seen = []

    class Watched(TimeTable):
        def time_ps(self, *at):
            seen.append(at)
            return super().time_ps(*at)

    watched = Watched(
        "prefill", {"tokens": [1], "prompt_tokens": [1], "cached_share": [0.0]}, [[[MS]]]
    )
    asked = requests([0, 0.5, 0.5], prompt=[1, 100, 300], reused_tokens=[0, 0, 200])
    run(asked, pools(), times(prefill=watched))
    tokens, length, share = seen[1]
    assert tokens == 100 + 100 and share == 200 / 400
    # As many pairs: 100 queries see 1 to 100 keys, 100 more see 201 to 300.
    pairs = 100 * 101 / 2 + (300 * 301 - 200 * 201) / 2
    cached = length * share
    prompts = tokens / (length - cached)
    assert prompts * (length * (length + 1) - cached * (cached + 1)) / 2 == pytest.approx(pairs)


def test_a_given_reuse_counts_in_whole_blocks():
    served = run(requests([0, 500], reused_tokens=[57, 9]), pools(block_tokens=10), times())
    assert served.columns["cached_tokens"].tolist() == [50, 0]
    assert ms(served, "prefill_end_ps") == [120, 600]


def test_pools_are_looked_at_in_time():
    served = run(requests([0, 10, 20], output=1), pools(batch_tokens=100), times())
    rows = [
        row[2:]
        for row in zip(*served.samples.values(), strict=True)
        if row[0] == 100 * MS and row[1] == "prefill"
    ]
    # At 100 ms the first batch has ended: one runs and one waits.
    assert rows == [(0, 1, 100, 1, 100, 0)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.345, "12.35"),
        (0, "0"),
        (100, "100"),
        (999.94, "999.9"),
        (999.96, "1,000"),
        (1_337.7, "1,338"),
        (23_071.4, "23,071"),
        (1_234_567, "1,234,567"),
        (0.000_05, "0.00005"),
    ],
)
def test_numbers_for_people_have_no_exponents(value, text):
    assert _plain(value) == text


@pytest.mark.parametrize("width", [50, 60, 80])
def test_a_narrow_terminal_cuts_no_number(width):
    numbers = {"mean": 23_071.4, "p50": 1.5, "p90": 212.64, "p99": 1e4, "max": 3_580_123.0}
    pool = {"npus": 4, "tokens_per_s_per_npu": 12_345.0, "tokens_per_s_per_npu_while_busy": 2.0}
    report = {"leave_one_out": {"mean": 0.1, "max": 0.9}, "asked": 1_234_567, "times_ps": [1]}
    summary = {
        "name": "x",
        "requests": 9,
        "window_s": 60.0,
        "objectives": {"ttft_ps": 10**15, "tpot_ps": None},
        "within_objectives": {"ttft": 0.5, "both": 0.5, "requests_per_s": 10_310.2},
        "step_times": {"decode": report | {"below": {"x": 0}, "above": {"x": 0}}},
        "cached_tokens": 0,
        "admitted_beyond_objective": 0,
        **{f"{name}_ms": numbers for name in ("ttft", "e2e", "prefill_wait", "decode_wait")},
        "tpot_ms": None,
        "transfer_ms": None,
        **{name: pool | {"busy_share": 0.5} for name in ("prefill", "decode")},
    }
    console = Console(width=width, file=io.StringIO())
    console.print(_render(summary))
    text = console.file.getvalue()
    assert "…" not in text and "e+" not in text
    assert "10,310 a second" in " ".join(text.split())
