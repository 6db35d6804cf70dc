"""Gate policies and the routing of tokens to experts."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ubfabric.errors import SpecError
from ubfabric.gate import GATE_POLICIES, RoutedModel, parse_gate, route_tokens, selection_weights

DEEPSEEK = {"top_k": 8, "n_groups": 8, "kept_groups": 4, "group_score_experts": 2}


def rng(seed=0):
    return np.random.default_rng(seed)


def shares(policy, n_experts=256, layer=3, folder=Path(), seed=0, step=0):
    return parse_gate(policy).prepare(n_experts, folder, step)(layer, rng(seed))


def affinity_winners(popularity, n_tokens, top_k, n_groups, kept_groups, best, generator):
    """Follow the documented rule literally: log weight plus Gumbel, group sums, top-k."""
    weights = selection_weights(popularity, top_k)
    race = generator.standard_exponential((n_tokens, len(popularity)), dtype=np.float32)
    affinity = np.log(weights) - np.log(race.astype(np.float64))
    groups = affinity.reshape(n_tokens, n_groups, -1)
    scores = np.sort(groups, axis=2)[:, :, -best:].sum(axis=2)
    kept = np.argsort(-scores, axis=1)[:, :kept_groups]
    masked = np.full_like(groups, -np.inf)
    token = np.arange(n_tokens)[:, None]
    masked[token, kept] = groups[token, kept]
    return np.argsort(-masked.reshape(n_tokens, -1), axis=1)[:, :top_k]


@pytest.mark.parametrize("policy", [{"policy": "uniform"}, {"policy": "zipf", "exponent": 0.8}])
def test_routing_equals_the_documented_rule(policy):
    popularity = shares(policy)
    fast = route_tokens(popularity, 2_000, **DEEPSEEK, rng=rng(5))
    slow = affinity_winners(popularity, 2_000, 8, 8, 4, 2, rng(5))
    # The fast form compares at a precision of 2**-16, so a few near-ties may fall otherwise.
    assert (fast == slow).all(axis=1).mean() > 0.99


def test_experts_of_a_token_differ_and_lie_in_at_most_four_groups():
    experts = route_tokens(
        shares({"policy": "zipf", "exponent": 1.2}), 3_000, **DEEPSEEK, rng=rng()
    )
    assert experts.shape == (3_000, 8)
    assert all(len(set(row)) == 8 for row in experts.tolist())
    assert max(len(set(row)) for row in (experts // 32).tolist()) == 4


def test_uniform_popularity_loads_experts_evenly():
    experts = route_tokens(shares({"policy": "uniform"}), 40_000, **DEEPSEEK, rng=rng())
    tokens = np.bincount(experts.ravel(), minlength=256)
    mean = 40_000 * 8 / 256
    assert abs(tokens - mean).max() < 5 * mean**0.5


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_routing_without_groups_reproduces_popularity(exponent):
    popularity = shares({"policy": "zipf", "exponent": exponent})
    no_groups = {"top_k": 8, "n_groups": 1, "kept_groups": 1, "group_score_experts": 1}
    experts = route_tokens(popularity, 40_000, **no_groups, rng=rng())
    got = np.bincount(experts.ravel(), minlength=256) / experts.size
    possible = np.minimum(popularity, 1 / 8)
    possible += (
        (1 - possible.sum())
        * np.where(popularity < 1 / 8, popularity, 0)
        / (popularity[popularity < 1 / 8].sum())
    )
    assert abs(got - possible).sum() / 2 < 0.02


def test_groups_move_little_of_the_popularity():
    popularity = shares({"policy": "dirichlet", "concentration": 1.0})
    experts = route_tokens(popularity, 40_000, **DEEPSEEK, rng=rng())
    got = np.bincount(experts.ravel(), minlength=256) / experts.size
    assert abs(got - popularity).sum() / 2 < 0.05


def test_share_above_one_expert_a_token_is_cut():
    popularity = np.full(16, 0.2 / 15)
    popularity[3] = 0.8
    weights = selection_weights(popularity, 4)
    assert np.isfinite(weights).all() and weights.argmax() == 3
    assert selection_weights(popularity, 16) == pytest.approx(np.ones(16))


def test_same_seed_gives_same_experts_and_another_seed_others():
    popularity = shares({"policy": "uniform"})
    first, again, other = (
        route_tokens(popularity, 500, **DEEPSEEK, rng=rng(seed)) for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_zipf_shares_follow_the_exponent_in_an_order_drawn_for_each_layer():
    first = shares({"policy": "zipf", "exponent": 0.5}, seed=0)
    second = shares({"policy": "zipf", "exponent": 0.5}, seed=1)
    assert sorted(first) == sorted(second)
    assert (first != second).any()
    descending = np.sort(first)[::-1]
    assert descending[0] / descending[99] == pytest.approx(10.0)


def test_dirichlet_spread_follows_the_concentration():
    for concentration in (1.0, 16.0):
        popularity = shares({"policy": "dirichlet", "concentration": concentration}, n_experts=4096)
        spread = popularity.std() / popularity.mean()
        assert spread == pytest.approx(concentration**-0.5, rel=0.1)


def write(folder, name, text):
    (folder / name).write_text(text)
    return {"policy": "file", "file": name}


def test_file_gives_popularity_by_expert(tmp_path):
    policy = write(tmp_path, "e.csv", "expert,tokens\n0,10\n1,30\n2,0\n3,60\n")
    assert shares(policy, 4, 7, tmp_path) == pytest.approx([0.1, 0.3, 0.0, 0.6])


def test_file_gives_popularity_by_layer_and_the_last_serves_later_ones(tmp_path):
    layers = {"layers": {"3": [1, 3], "4": [1, 1]}}
    policy = write(tmp_path, "e.json", json.dumps(layers))
    assert shares(policy, 2, 3, tmp_path) == pytest.approx([0.25, 0.75])
    assert shares(policy, 2, 61, tmp_path) == pytest.approx([0.5, 0.5])
    with pytest.raises(SpecError, match=r"e\.json: layer 2 is missing; found layers 3, 4"):
        shares(policy, 2, 2, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expert,load\n0,1\n", r"found columns expert, load, allowed: expert, tokens"),
        ("expert,tokens\n0,1\n", r"expert 1 is missing; all 2 experts"),
        ("expert,tokens\n0,1\n1,1\n2,1\n", r"found expert 2, allowed 0 to 1"),
        ("expert,tokens\n0,1\n1,-4\n", r"expert 1: found -4\.0 tokens, allowed 0 or more"),
        ("expert,tokens\n0,1\n1,many\n", r"row 2: found '1,many', allowed numbers"),
        ("expert,tokens\n0,1\n0,1\n", r"row 2: found expert 0 a second time"),
        ("expert,tokens\n0,0\n1,0\n", r"found no tokens at all"),
        ("expert,tokens\n", r"found no rows"),
        ("", r"found columns \(none\)"),
    ],
)
def test_malformed_file_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(SpecError, match=message) as caught:
        shares(write(tmp_path, "e.csv", text), 2, 3, tmp_path)
    assert "e.csv" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"tokens": "many"}', '{"layers": [1]}'])
def test_malformed_json_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(SpecError, match=r"e\.json: found .*, allowed .*tokens"):
        shares(write(tmp_path, "e.json", text), 2, 3, tmp_path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"none\.csv: cannot be read"):
        shares({"policy": "file", "file": "none.csv"}, 2, 3, tmp_path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("zipf", r"found 'zipf', allowed a mapping with 'policy'"),
        ({"policy": "pareto"}, r"found 'pareto', allowed: dirichlet, drifting, file, hottest, "),
        ({"policy": "zipf"}, r"exponent: .*required"),
        ({"policy": "zipf", "exponent": -1.0}, r"exponent: found -1\.0"),
        (
            {"policy": "uniform", "skew": 1},
            r"skew: found with policy 'uniform', which allows: policy",
        ),
        ({"policy": "dirichlet", "concentration": 0}, r"concentration: found 0"),
    ],
)
def test_malformed_policy_is_refused(raw, message):
    with pytest.raises(ValueError, match=message):
        parse_gate(raw)


def test_policies_are_found_by_name():
    names = {"uniform", "zipf", "hottest", "dirichlet", "drifting", "file", "recorded"}
    assert set(GATE_POLICIES) >= names
    assert all(cls.name == name for name, cls in GATE_POLICIES.items())


@pytest.mark.parametrize("ratio", [1.0, 5.0, 30.0, 200.0])
def test_hottest_expert_has_its_ratio_to_the_mean(ratio):
    popularity = shares({"policy": "hottest", "ratio": ratio})
    assert popularity.max() / popularity.mean() == pytest.approx(ratio)


def test_thirty_times_the_mean_leaves_a_fifth_of_the_experts_above_it():
    popularity = shares({"policy": "hottest", "ratio": 30.0})
    assert (popularity > popularity.mean()).mean() == pytest.approx(0.20, abs=0.025)


def test_no_expert_is_hotter_than_all_together():
    with pytest.raises(SpecError, match=r"gate: ratio: found 256, allowed 1 to below 256"):
        shares({"policy": "hottest", "ratio": 256.0})


DRIFTING = {
    "policy": "drifting",
    "of": {"policy": "zipf", "exponent": 1.0},
    "half_life_steps": 10.0,
}


def test_drift_moves_shares_between_experts_and_forgets_at_its_half_life():
    first = shares(DRIFTING, n_experts=4096)
    assert sorted(first) == pytest.approx(sorted(shares(DRIFTING["of"], n_experts=4096)))

    def correlation(step):
        later = shares(DRIFTING, n_experts=4096, step=step)
        assert sorted(later) == pytest.approx(sorted(first))
        ranks = (np.argsort(np.argsort(x)) for x in (first, later))
        return np.corrcoef(*ranks)[0, 1]

    # of ranks, the correlation of a Gaussian pair is 6 / pi x arcsin(rho / 2)
    for step, rho in ((1, 0.5**0.1), (10, 0.5), (40, 0.0625)):
        expected = 6 / np.pi * np.arcsin(rho / 2)
        assert correlation(step) == pytest.approx(expected, abs=0.04)


def test_drift_of_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match=r"of: .*found 'pareto', allowed: dirichlet"):
        parse_gate(DRIFTING | {"of": {"policy": "pareto"}})
    with pytest.raises(SpecError, match=r"'recorded' inside another policy"):
        shares(DRIFTING | {"of": {"policy": "recorded", "file": "x.npz"}})


TINY = RoutedModel(layers=3, dense_layers=1, n_experts=4, top_k=2)
EXPERTS = np.array([[[0, 1], [2, 3]], [[3, 0], [1, 2]], [[1, 2], [0, 1]]], np.int16)


def recorded(folder, name):
    return parse_gate({"policy": "recorded", "file": name}).recorded(TINY, folder)


def record_rows(experts=EXPERTS, first_layer=1):
    return [
        {"token": 7 * token, "layer": first_layer + layer, "experts": of.tolist()}
        for token, layers in enumerate(experts)
        for layer, of in enumerate(layers)
    ]


def test_npz_parquet_and_csv_hold_the_same_record(tmp_path):
    np.savez(tmp_path / "moe.npz", experts=EXPERTS)
    with_dense = np.concatenate([np.zeros((3, 1, 2), np.int16), EXPERTS], axis=1)
    np.savez(tmp_path / "all.npz", experts=with_dense)
    np.savez(tmp_path / "named.npz", experts=EXPERTS[:, ::-1], layers=np.array([2, 1]))
    rows = record_rows()
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "r.parquet")
    lines = [f"{r['token']},{r['layer']},{';'.join(map(str, r['experts']))}" for r in rows]
    (tmp_path / "r.csv").write_text("\n".join(["token,layer,experts", *lines]))
    for name in ("moe.npz", "all.npz", "named.npz", "r.parquet", "r.csv"):
        record = recorded(tmp_path, name)
        assert record(1).tolist() == EXPERTS[:, 0].tolist(), name
        assert record(2).tolist() == record(3).tolist() == EXPERTS[:, 1].tolist(), name


def save(folder, name, **arrays):
    np.savez(folder / name, **arrays)
    return name


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": EXPERTS}, r"found arrays ids, allowed: experts, and optionally layers"),
        ({"experts": EXPERTS[0]}, r"found int16 of shape \(2, 2\), allowed integers of shape"),
        ({"experts": EXPERTS * 0.5}, r"experts: found float\d+ of shape \(3, 2, 2\)"),
        ({"experts": EXPERTS[:, :1]}, r"experts: found 1 layers, allowed 3 or 2; or name them"),
        ({"experts": EXPERTS, "layers": np.arange(3)}, r"layers: found int64 of shape \(3,\)"),
        ({"experts": EXPERTS[:, :, :1]}, r"experts: found 1 a token, allowed 2, the model's top_k"),
        ({"experts": EXPERTS + 1}, r"layer 1: token 1 in order: found experts \[4, 1\]"),
        ({"experts": EXPERTS * 0}, r"found experts \[0, 0\], allowed different ones of 0 to 3"),
    ],
)
def test_malformed_npz_is_refused_in_one_line(tmp_path, arrays, message):
    with pytest.raises(SpecError, match=message) as caught:
        recorded(tmp_path, save(tmp_path, "r.npz", **arrays))
    assert "r.npz" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("token,experts\n0,1;2\n", r"found columns token, experts, allowed: token, layer, exp"),
        ("token,layer,experts\n", r"found no rows"),
        ("token,layer,experts\n0,1,1\n", r"row 1: found token 0, layer 1, experts \[1\]"),
        ("token,layer,experts\n0,1,1;x\n", r"row 1: found token 0, layer 1, experts \[1, 'x'\]"),
        ("token,layer,experts\n-1,1,1;2\n", r"row 1: found token -1"),
        (
            "token,layer,experts\n0,1,1;2\n0,1,1;2\n",
            r"token 0: found layer 1 2 times, allowed once",
        ),
        ("token,layer,experts\n0,1,1;2\n0,2,1;2\n4,1,1;2\n", r"token 4: found layer 2 0 times"),
        ("token,layer,experts\n0,1,1;9\n", r"layer 1: token 0 in order: found experts \[1, 9\]"),
    ],
)
def test_malformed_record_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        recorded(tmp_path, "r.csv")
    assert "r.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_record_that_is_no_record_is_refused(tmp_path):
    (tmp_path / "r.npz").write_text("no archive")
    (tmp_path / "r.parquet").write_text("no table")
    for name in ("none.npz", "r.npz", "r.parquet"):
        with pytest.raises(SpecError, match=rf"{name}: cannot be read"):
            recorded(tmp_path, name)
    with pytest.raises(SpecError, match=r"found ending '\.json', allowed: \.npz, \.parquet, \.csv"):
        recorded(tmp_path, "r.json")


def test_record_without_an_earlier_layer_is_refused(tmp_path):
    save(tmp_path, "r.npz", experts=EXPERTS[:, :1], layers=np.array([2]))
    record = recorded(tmp_path, "r.npz")
    with pytest.raises(SpecError, match=r"layer 1 is missing; found layers 2"):
        record(1)
