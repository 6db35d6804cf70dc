"""Requests: files by their columns, arrivals and lengths that are drawn, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ubfabric.errors import SpecError, TraceError
from ubfabric.requests import (
    PS_PER_S,
    LognormalLengths,
    load_requests,
    make_requests,
    parse_arrivals,
)
from ubfabric.serving_spec import load_serving

LENGTHS = {
    "prompt_tokens": {"policy": "constant", "tokens": 1000},
    "output_tokens": {"policy": "lognormal", "median": 100, "sigma": 0.5, "highest": 200},
}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def drawn(duration_s=100.0, seed=1, **changes):
    policy = parse_arrivals(LENGTHS | changes)
    return policy.requests(Path(), round(duration_s * PS_PER_S), 128, seed)


# --------------------------------------------------------------------------- files


def test_own_columns_are_read_with_times_in_seconds_or_with_a_unit(tmp_path):
    text = "time,prompt_tokens,output_tokens,reused_tokens\n0.5,100,1,64\n750 ms,200,7,0\n"
    found = load_requests(write(tmp_path / "r.csv", text))
    assert found.arrival_ps.tolist() == [500_000_000_000, 750_000_000_000]
    assert found.prompt_tokens.tolist() == [100, 200]
    assert found.output_tokens.tolist() == [1, 7]
    assert found.reused_tokens.tolist() == [64, 0]
    assert found.block_tokens == 0


def test_prefix_hashes_are_the_same_block_wherever_they_occur(tmp_path):
    text = "time,prompt_tokens,output_tokens,prefix_hashes\n0,300,1,a;b;c\n1,256,1,a;b\n2,10,1,\n"
    found = load_requests(write(tmp_path / "r.csv", text), block_tokens=128)
    assert found.block_tokens == 128
    assert [found.blocks(i) for i in range(3)] == [[0, 1, 2], [0, 1], []]


def test_azure_columns_are_read_to_a_tenth_of_a_microsecond(tmp_path):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951691,396,109\n"
    )
    found = load_requests(write(tmp_path / "azure.csv", text))
    assert found.arrival_ps.tolist() == [0, 4_314_579_100_000]
    assert found.prompt_tokens.tolist() == [374, 396]
    assert found.output_tokens.tolist() == [44, 109]


def test_azure_times_may_have_a_zone(tmp_path):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n"
        "2024-05-10 00:00:01+00:00,2399,6\n"
    )
    found = load_requests(write(tmp_path / "azure.csv", text))
    assert found.arrival_ps.tolist() == [0, 990_070_000_000]


def test_mooncake_lines_are_read_with_blocks_of_512_tokens(tmp_path):
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]},
        {"timestamp": 3000, "input_length": 1025, "output_length": 1, "hash_ids": [46, 47, 99, 7]},
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    found = load_requests(write(tmp_path / "trace.jsonl", text + "\n"))
    assert found.arrival_ps.tolist() == [0, 3 * PS_PER_S]
    assert found.block_tokens == 512
    # the fourth id of 1,025 tokens stands for nothing
    assert [found.blocks(i) for i in range(2)] == [[0, 1, 2], [0, 1, 3]]


def test_parquet_holds_the_same_as_csv(tmp_path):
    table = pd.DataFrame({"time": [0.25], "prompt_tokens": [5], "output_tokens": [6]})
    table["prefix_hashes"] = [[9, 8]]
    table.to_parquet(tmp_path / "r.parquet")
    found = load_requests(tmp_path / "r.parquet", block_tokens=4)
    assert found.arrival_ps.tolist() == [250_000_000_000]
    assert found.blocks(0) == [0, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.csv", "time,prompt_tokens\n0,1\n", r"column 'output_tokens' is missing; .*ubfabric"),
        ("r.csv", "TIMESTAMP,ContextTokens\n0,1\n", r"column 'GeneratedTokens' is missing"),
        ("r.csv", "a,b\n0,1\n", r"found the columns a, b; allowed are those of ubfabric: time"),
        ("r.csv", "time,prompt_tokens,output_tokens\n", "found no requests, allowed one or more"),
        (
            "r.csv",
            "time,prompt_tokens,output_tokens\n1,1,1\n0.5,1,1\n",
            r"row 2: time: found 0\.5 s after 1 s, allowed times in ascending order",
        ),
        (
            "r.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:01,1,1\n"
            "2023-11-16 18:00:00,1,1\n",
            r"row 2: TIMESTAMP: found 2023-11-16 18:00:00 after .*ascending",
        ),
        (
            "r.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n",
            r"row 1: TIMESTAMP: found yesterday, allowed a time such as",
        ),
        (
            "r.csv",
            "time,prompt_tokens,output_tokens\n0,1,1\n1,0,1\n",
            r"row 2: prompt_tokens: found 0, allowed 1 to 16,777,216",
        ),
        (
            "r.csv",
            "time,prompt_tokens,output_tokens\n0,1,-4\n",
            r"row 1: output_tokens: found -4, allowed 1",
        ),
        (
            "r.csv",
            "time,prompt_tokens,output_tokens\n0,1.5,4\n",
            r"row 1: prompt_tokens: found 1\.5, allowed a whole number",
        ),
        (
            "r.csv",
            "time,prompt_tokens,output_tokens\n-1,1,4\n",
            r"row 1: time: found -1\.0, allowed 0 s or later",
        ),
        (
            "r.csv",
            "time,prompt_tokens,output_tokens\nsoon,1,4\n",
            r"row 1: time: found 'soon', allowed seconds, or text with a unit",
        ),
        (
            "r.csv",
            "time,prompt_tokens,output_tokens,reused_tokens\n0,8,4,9\n",
            r"row 1: reused_tokens: found 9, allowed 0 to the prompt's tokens",
        ),
        (
            "r.csv",
            "time,prompt_tokens,output_tokens,reused_tokens,prefix_hashes\n0,8,4,8,1\n",
            r"found both reused_tokens and prefix_hashes",
        ),
        ("r.jsonl", "{'a': 1}\n", r"line 1: found .*allowed a JSON object"),
        (
            "r.jsonl",
            '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": 5}\n',
            r"row 1: hash_ids: found 5, allowed a list of ids",
        ),
        ("r.txt", "time\n", r"found ending '\.txt', allowed \.csv, \.jsonl, \.parquet"),
        ("r.parquet", "time\n", r"cannot be read"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_with_its_row(tmp_path, name, text, message):
    with pytest.raises(TraceError, match=message) as caught:
        load_requests(write(tmp_path / name, text))
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


def test_ids_need_a_size_of_block(tmp_path):
    text = "time,prompt_tokens,output_tokens,prefix_hashes\n0,9,1,a\n"
    with pytest.raises(TraceError, match=r"block_tokens: found 0, allowed 1 or more"):
        load_requests(write(tmp_path / "r.csv", text), block_tokens=0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TraceError, match=r"nothing\.csv: no such file"):
        load_requests(tmp_path / "nothing.csv")


def test_a_file_is_cut_at_the_duration(tmp_path):
    text = "time,prompt_tokens,output_tokens,prefix_hashes\n0,9,1,a\n1,9,1,b\n2,9,1,c\n"
    write(tmp_path / "r.csv", text)
    policy = parse_arrivals({"policy": "file", "file": "r.csv"})
    assert len(policy.requests(tmp_path, None, 128, 1)) == 3
    cut = policy.requests(tmp_path, 2 * PS_PER_S, 128, 1)
    assert len(cut) == 2 and cut.blocks(1) == [1] and len(cut.block_ids) == 2


# --------------------------------------------------------------------------- drawn


def test_poisson_arrivals_have_the_rate_and_the_gaps_of_a_poisson_process():
    found = drawn(1000.0, policy="poisson", rate_per_s=20.0)
    # mean 20,000, standard deviation 141
    assert abs(len(found) - 20_000) < 5 * 141
    gaps_s = np.diff(found.arrival_ps) / PS_PER_S
    assert gaps_s.min() >= 0
    assert gaps_s.mean() == pytest.approx(1 / 20, rel=0.05)
    assert gaps_s.std() == pytest.approx(1 / 20, rel=0.05)  # as wide as the mean: exponential


def test_bursts_keep_the_mean_rate_and_scatter_more_than_poisson():
    bursts = {
        "policy": "bursts",
        "burst_rate_per_s": 100.0,
        "lull_rate_per_s": 10.0,
        "mean_burst": "2 s",
        "mean_lull": "8 s",
    }
    found = drawn(5000.0, **bursts)
    assert len(found) / 5000 == pytest.approx(28.0, rel=0.1)
    counts = np.bincount(found.arrival_ps // PS_PER_S, minlength=5000)
    # in seconds of a Poisson process the variance is the mean; here bursts of 100 among lulls of 10
    assert counts.var() > 10 * counts.mean()
    assert np.quantile(counts, 0.95) > 80 and np.quantile(counts, 0.3) < 20


def test_a_seed_gives_the_same_requests_and_another_seed_others():
    first, again = (drawn(seed=3, policy="poisson", rate_per_s=5.0) for _ in range(2))
    other = drawn(seed=4, policy="poisson", rate_per_s=5.0)
    assert first.arrival_ps.tolist() == again.arrival_ps.tolist()
    assert first.output_tokens.tolist() == again.output_tokens.tolist()
    assert first.arrival_ps.tolist() != other.arrival_ps.tolist()


def test_lengths_follow_their_policies():
    found = drawn(2000.0, policy="poisson", rate_per_s=5.0, reused_share=0.3)
    assert set(found.prompt_tokens.tolist()) == {1000}
    assert set(found.reused_tokens.tolist()) == {300}
    assert found.output_tokens.max() == 200 and found.output_tokens.min() >= 1
    assert np.median(found.output_tokens) == pytest.approx(100, rel=0.05)
    unbounded = LognormalLengths(policy="lognormal", median=100, sigma=0.5)
    logs = np.log(unbounded.draw(20_000, np.random.default_rng(1)))
    assert logs.std() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "often"}, r"policy: found 'often', allowed: bursts, file, poisson"),
        ({"policy": "poisson"}, "rate_per_s: found nothing, the key is required"),
        ({"policy": "poisson", "rate_per_s": -1.0}, r"rate_per_s: found -1\.0; .*greater than 0"),
        (
            {"policy": "poisson", "rate_per_s": 1.0, "x": 1},
            r"x: found with policy 'poisson', which allows",
        ),
        (
            {"policy": "poisson", "rate_per_s": 1.0, "prompt_tokens": {"policy": "odd"}},
            r"prompt_tokens: policy: found 'odd', allowed: constant, lognormal",
        ),
    ],
)
def test_a_bad_policy_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        parse_arrivals(LENGTHS | changes)


def test_too_many_requests_are_refused_before_they_are_drawn():
    with pytest.raises(TraceError, match=r"found about 1,000,000,000 requests, allowed up to"):
        drawn(1000.0, policy="poisson", rate_per_s=1e6)


def test_drawn_arrivals_need_a_duration():
    policy = parse_arrivals(LENGTHS | {"policy": "poisson", "rate_per_s": 1.0})
    with pytest.raises(TraceError, match="duration: required"):
        policy.requests(Path(), None, 128, 1)


def test_a_policy_error_in_a_specification_is_one_line():
    expected = r"serving-sample\.yaml: arrivals: found 5, allowed a mapping with 'policy'"
    with pytest.raises(SpecError, match=expected) as caught:
        load_serving("serving-sample", {"arrivals": 5})
    assert "\n" not in str(caught.value)


def test_requests_are_checked_however_they_are_made():
    with pytest.raises(TraceError, match=r"requests: row 2: time"):
        make_requests(np.array([5, 4]), np.array([1, 1]), np.array([1, 1]))
