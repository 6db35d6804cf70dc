"""A whole decode step, all layers, within the memory that is promised."""

import resource

import pytest

WHOLE_STEP = """
import ubfabric as ub
trace = ub.generate_trace("deepseek-r1-decode-ep320", seed=1)
result = ub.replay(ub.cloudmatrix384(), trace, "run")
summary = ub.rebuild_tokens(result).summary
print(summary["moe_layers_simulated"], result.summary["bytes_sent"])
assert result.summary["bytes_sent"] == result.summary["bytes_delivered"]
"""


@pytest.mark.slow
def test_all_58_layers_are_replayed_in_less_than_4_gib(python):
    layers, sent = map(int, python(WHOLE_STEP).split())
    assert layers == 58
    # 59 layers (with MTP) x 320 ranks x 96 tokens x 9 experts, there and back
    data = 59 * 320 * 96 * 9 * (7_680 + 14_336)
    # a flag of 512 B from each rank to each after dispatch of two microbatches, and one a result
    flags = 59 * (320 * 320 * 2 + 320 * 96 * 9) * 512
    assert sent == data + flags
    # the largest child so far, in KiB
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20
