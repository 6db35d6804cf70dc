"""Traffic specifications: loading, bases, overrides and what is refused."""

from pathlib import Path

import pytest

from ubfabric.errors import SpecError
from ubfabric.quantities import parse_rate_ops_per_s, provenance
from ubfabric.specs import load_yaml, shipped
from ubfabric.workload import load_workload

REFERENCE = "deepseek-r1-decode-ep320"


def changed(**changes):
    """Load the reference with dotted keys changed, dots written as two underscores."""
    return load_workload(REFERENCE, {key.replace("__", "."): v for key, v in changes.items()}).spec


def test_reference_has_the_papers_deployment():
    spec = load_workload(REFERENCE).spec
    assert (spec.npus, spec.requests_per_rank, spec.tokens_per_rank) == (160, 48, 96)
    assert spec.model.moe_layers == 58
    sizes = [getattr(spec.messages, phase).message_bytes(7168) for phase in ("dispatch", "combine")]
    assert sizes == [7_680, 14_336]
    # The buffers a die: double for dispatch and combine, for 96 tokens of each of 320 ranks.
    assert 320 * 96 * sum(sizes) == 645 * 2**20


def test_every_number_of_the_reference_has_a_source():
    raw = load_workload(REFERENCE).raw
    sourced = {row["key"] for row in provenance(raw)}
    plain = []

    def walk(value, key):
        if isinstance(value, dict):
            if key not in sourced and not ("source" in value and "strength" in value):
                for name, item in value.items():
                    walk(item, f"{key}.{name}" if key else name)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(item, f"{key}[{index}]")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            plain.append(key)

    walk(raw, "")
    assert plain == ["schema", "seed", "messages.service_level"]


@pytest.mark.parametrize("folder", ["models", "machines", "operators"])
def test_every_number_of_a_shipped_part_has_a_source(folder):
    for name in shipped(f"traffic/{folder}"):
        _, raw = load_yaml(name, f"traffic/{folder}")
        sourced = {row["key"] for row in provenance(raw)}

        def check(value, key, sourced=sourced, name=name):
            if isinstance(value, dict) and key not in sourced:
                for inner, item in value.items():
                    check(item, f"{key}.{inner}" if key else inner)
            else:
                assert key in sourced or isinstance(value, str), f"{name}: {key}"

        check(raw, "")


def kind_of(name):
    return load_yaml(name, "traffic")[1].get("kind", "decode")


# Serving systems name steps and have no trace of their own; tests/unit/test_step_times.py has them.
@pytest.mark.parametrize("name", [n for n in sorted(shipped("traffic")) if kind_of(n) != "serving"])
def test_shipped_specification_is_sound(name):
    workload = load_workload(name)
    assert workload.spec.name == name and "base" not in workload.raw


def test_overrides_apply_by_dotted_key_and_stand_in_the_raw_text():
    workload = load_workload(
        REFERENCE, {"serving.batch_per_npu": 64, "gate": {"policy": "uniform"}}
    )
    assert workload.spec.requests_per_rank == 32
    assert workload.raw["serving"]["batch_per_npu"] == 64
    assert load_workload(REFERENCE).spec.requests_per_rank == 48  # the source is left alone


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def test_base_supplies_what_a_specification_leaves_out(tmp_path):
    write(tmp_path, "a.yaml", f"base: {REFERENCE}\nname: a\nserving: {{batch_per_npu: 64}}\n")
    file = write(
        tmp_path, "b.yaml", "base: a.yaml\nname: b\ngate: {policy: dirichlet, concentration: 2.0}\n"
    )
    spec = load_workload(file).spec
    assert spec.name == "b" and spec.serving.batch_per_npu == 64
    assert spec.gate.concentration == 2.0 and spec.serving.kv_tokens == 4224


def test_base_replaces_sourced_numbers_whole(tmp_path):
    file = write(tmp_path, "a.yaml", f"base: {REFERENCE}\nserving: {{kv_tokens: 1024}}\n")
    assert load_workload(file).raw["serving"]["kv_tokens"] == 1024


def test_base_leaves_no_note_on_a_number_it_does_not_supply(tmp_path):
    number = "{value: 0.9, source: measured, strength: read}"
    text = f"base: {REFERENCE}\nmachine: {{efficiency: {{memory: {number}}}}}\n"
    efficiency = load_workload(write(tmp_path, "a.yaml", text)).raw["machine"]["efficiency"]
    assert efficiency["memory"] == {"value": 0.9, "source": "measured", "strength": "read"}
    assert efficiency["attention"]["value"] == 0.654


def test_model_and_machine_are_files_of_their_own(tmp_path):
    write(tmp_path, "m.yaml", "base: pangu-ultra-moe\nname: mine\nlayers: 40\n")
    file = write(tmp_path, "a.yaml", f"base: {REFERENCE}\nname: a\nmodel: m.yaml\n")
    model = load_workload(file).spec.model
    assert (model.name, model.layers, model.hidden_size) == ("mine", 40, 7680)
    # a part with a base replaces the base's part whole, one without changes single numbers of it
    write(tmp_path, "b.yaml", "base: a.yaml\nname: b\nmodel: {layers: 30}\n")
    assert load_workload(tmp_path / "b.yaml").spec.model.hidden_size == 7680
    assert load_workload(tmp_path / "b.yaml").spec.model.layers == 30
    text = "base: a.yaml\nname: c\nmodel: {base: deepseek-r1, layers: 30}\n"
    assert load_workload(write(tmp_path, "c.yaml", text)).spec.model.hidden_size == 7168
    text = f"base: {REFERENCE}\nname: d\nmodel: {{layers: 50}}\nmachine: {{host_gap: 1 ms}}\n"
    workload = load_workload(write(tmp_path, "d.yaml", text), {"model.dense_layers": 1})
    assert workload.spec.model.moe_layers == 49 and workload.spec.machine.host_gap == 10**9
    assert workload.raw["model"]["vocabulary"]["value"] == 129_280
    other = load_workload(file, {"model": "deepseek-r1"})
    assert other.spec.model.name == "DeepSeek-R1"


def test_memory_of_a_die_holds_weights_cache_and_buffers():
    parts = load_workload(REFERENCE).spec.memory_bytes()
    assert parts["message buffers"] == 645 * 2**20
    # 48 requests of 4,224 tokens, 512 + 64 numbers in BF16, 61 layers and the MTP layer
    assert parts["KV cache"] == 48 * 4224 * 576 * 2 * 62
    a_layer = 7168 * (1536 + 576) + 1536 * 128 * 192 + 128 * 128 * 7168  # INT8
    absorbed = 2 * 128 * 512 * 256  # BF16
    experts = 59 * (3 * 7168 * 2048 + 4 * 7168 * 256)
    rest = 3 * 3 * 7168 * 18432 + 2 * 2 * 7168 * 7168 + 2 * 2 * 7168 * 129280
    assert parts["weights"] == 62 * (a_layer + absorbed) + experts + rest
    halved = changed(deployment__attention_tp=2).memory_bytes()
    assert halved["weights"] == parts["weights"] - 31 * (a_layer + absorbed)
    assert halved["KV cache"] == 2 * parts["KV cache"]  # the latent is not divided among heads
    single = changed(messages__buffers=1).memory_bytes()
    assert single["message buffers"] == 420 * 2**20


def test_model_that_does_not_fit_is_refused_with_what_is_missing():
    with pytest.raises(SpecError, match=r"hbm_capacity: found 64\.0 GB a die, which DeepSeek-R1 "
                       r"exceeds by \d+\.\d GB: weights 20\.8 GB, KV cache 56\.2 GB"):  # fmt: skip
        changed(serving__kv_tokens=16_384)


def test_gate_file_is_found_beside_the_specification(tmp_path):
    rows = "".join(f"{expert},{expert + 1}\n" for expert in range(256))
    write(tmp_path, "e.csv", "expert,tokens\n" + rows)
    file = write(
        tmp_path, "a.yaml", f"base: {REFERENCE}\nname: a\ngate: {{policy: file, file: e.csv}}\n"
    )
    workload = load_workload(file)
    shares = workload.spec.gate.prepare(256, workload.folder)(3, None)
    assert shares[255] / shares[0] == pytest.approx(256)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nowhere\n", r"'nowhere' is neither a \.yaml file nor a shipped name"),
        ("base: none.yaml\n", r"none\.yaml: no such file"),
        ("base: 3\n", r"base: found 3, allowed a shipped name or a YAML file"),
        ("base: a.yaml\n", r"base: found .*a\.yaml, which is based on itself"),
    ],
)
def test_bad_base_is_refused(tmp_path, text, message):
    with pytest.raises(SpecError, match=message):
        load_workload(write(tmp_path, "a.yaml", text))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "serving__batch_per_npu",
            97,
            "found 97, allowed a multiple of dies_per_npu x microbatches = 4",
        ),
        ("serving__microbatches", 3, "serving.microbatches: found 3"),
        ("serving__batch", 3, "serving.batch: unknown key; allowed here: batch_per_npu, kv_tokens"),
        ("serving__mtp_acceptance", 1.5, "serving.mtp_acceptance: found 1.5"),
        (
            "deployment__ranks",
            321,
            "deployment.ranks: found 321, allowed a multiple of dies_per_npu",
        ),
        ("deployment__ranks", 318, "deployment: found 318 ranks.*an expert without a replica"),
        ("deployment__ranks", 322, "deployment: found 322 ranks.*slots without an expert"),
        ("model__top_k", 129, "top_k: found 129, allowed 1 to 128, the experts in kept groups"),
        ("model__expert_groups", 7, "expert_groups: found 7, allowed a divisor of routed_experts"),
        ("model__kept_groups", 9, "kept_groups: found 9, allowed 1 to 8"),
        ("model__dense_layers", 61, "dense_layers: found 61, allowed below 61"),
        ("simulate_moe_layers", 59, "simulate_moe_layers: found 59, allowed 1 to 58"),
        ("machine__launch__cube", 15, "machine.launch.cube: found 15, which has no unit"),
        ("machine__launch__cube", "-1 us", "found '-1 us', which is negative"),
        (
            "operators__streams",
            {
                "policy": "listed",
                "attention": {"cube_cores": 16, "vector_cores": 32},
                "expert": {"cube_cores": 9, "vector_cores": 16},
            },
            "operators.streams: found 25 cube_cores of both .* allowed up to .*cube_cores = 24",
        ),
        (
            "operators__streams__attention",
            {"cube_cores": 16, "vector_cores": 32},
            "operators.streams: found policy 'balanced'; 'attention' and 'expert' belong to",
        ),
        (
            "operators__streams__least_cube_cores",
            13,
            "operators.streams.least_cube_cores: found 13, allowed up to 12, half of",
        ),
        (
            "machine__die__vector_cores",
            1,
            "serving.microbatches: found 2, allowed 1 on a die of 24 cube and 1 vector cores",
        ),
        (
            "machine__die__int8_rate",
            "752 TB/s",
            "machine.die.int8_rate: found '752 TB/s'; expected .* Top/s",
        ),
        ("machine__efficiency__memory", 1.2, "machine.efficiency.memory: found 1.2"),
        ("machine__efficiency__attention_spread", 1, "attention_spread: found 1"),
        ("machine__efficiency__attention_spread", -0.1, "attention_spread: found -0.1"),
        ("machine__communication__useful_cores", 0, "useful_cores: found 0"),
        ("model", "gpt", "model: base: 'gpt' is neither .* shipped in traffic/models: deep"),
        ("model__attention__kind", "mha", "model.attention: .*'mla', 'gqa'"),
        ("deployment__attention_tp", 3, "attention_tp: found 3, allowed a divisor of ranks = 320"),
        (
            "deployment__attention_tp",
            160,
            "attention_tp: found 160, allowed a divisor of model.attention.heads = 128",
        ),
        ("messages__buffers", 3, "messages.buffers: found 3"),
        ("messages__network", "ib", "messages.network: found 'ib'"),
        ("messages__dispatch__pad", "9 GB", "messages.dispatch: found a message of 9000007168 B"),
        ("gate", {"policy": "zipf"}, "gate: exponent: .*required"),
        ("gate__policy", "pareto", "gate: policy: found 'pareto', allowed: dirichlet, drift"),
        ("schema", 2, "schema: found 2"),
        ("seed", -1, "seed: found -1"),
        ("reference__rows", [{"ranks": 3}], "reference.rows.0.tokens_per_s_per_npu: required"),
        ("name__x", 1, "override 'name.x': 'name' is not a mapping"),
    ],
)
def test_bad_value_is_refused_in_one_line(key, value, message):
    with pytest.raises(SpecError, match=message) as caught:
        changed(**{key: value})
    assert str(caught.value).startswith(f"traffic/{REFERENCE}.yaml: ")
    assert "\n" not in str(caught.value)


def test_rate_of_operations_needs_its_unit():
    assert parse_rate_ops_per_s("1.5 Pop/s") == 1_500_000_000_000_000
    with pytest.raises(ValueError, match="no unit"):
        parse_rate_ops_per_s(752)


def test_samples_name_their_folder():
    assert (Path(load_workload(REFERENCE).folder) / f"{REFERENCE}.yaml").is_file()
