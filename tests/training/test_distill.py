"""What `distill` does: the teacher's part, the student's part, and the student as a checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from trained_caches import import_set
from transformers import LlamaConfig, LlamaForCausalLM
from zoo import QWEN3_VL, Animal
from zoo_wide import GEMMA3, GEMMA4, LFM2_VL, QWEN3_5_MOE

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search.selection import Selection
from cogcache.cli import main
from cogcache.errors import CheckpointError, ConfigError
from cogcache.models.adapters import Adapter
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.cogvlm2.other_decoder import PROJECTOR, read_decoder
from cogcache.models.halves.identity import identify
from cogcache.models.halves.load import WholeModel, load_half, load_whole
from cogcache.models.registry import family_of
from cogcache.models.rewritten import (
    layers_of,
    named_as_stored,
    num_layers_of,
    with_decoder,
    with_layers,
    write_with_language,
)
from cogcache.settings.settings import load_settings
from cogcache.stages.caption import caption
from cogcache.stages.distill import StudentChoice, study, teach
from cogcache.stages.extract import extract
from cogcache.stages.train import train
from cogcache.training.teacher import Thoughts, divergence
from cogcache.training.trainer import CaptionTrainer


def rewritten(folder: Path, out: Path, layers: str) -> WholeModel:
    whole = WholeModel.of(Checkpoint.open(str(folder)))
    config, tensors = with_layers(whole, layers_of(layers, num_layers_of(whole)))
    write_with_language(whole, out, tensors, config)
    return WholeModel.of(Checkpoint.open(str(out)))


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- the loss -----------------------------------------------------------------------------------


def thoughts(logits: torch.Tensor, top_k: int) -> Thoughts:
    kept = torch.log_softmax(logits, dim=-1).topk(top_k)
    return Thoughts(kept.indices.int(), kept.values)


def test_the_divergence_is_never_negative_and_nothing_where_both_agree():
    torch.manual_seed(0)
    teacher, student = 5 * torch.randn(2, 200, 50)
    for top_k in (1, 5, 50):
        assert float(divergence(student, thoughts(teacher, top_k)).min()) >= 0
        same = divergence(teacher, thoughts(teacher, top_k))
        assert float(same.max()) < 1e-5


def test_the_divergence_of_all_tokens_is_the_textbooks():
    torch.manual_seed(1)
    teacher, student = torch.randn(2, 20, 50)
    wanted = torch.nn.functional.kl_div(
        torch.log_softmax(student, -1), torch.log_softmax(teacher, -1),
        log_target=True, reduction="none",
    ).sum(-1)  # fmt: skip
    assert torch.allclose(divergence(student, thoughts(teacher, 50)), wanted, atol=1e-4)


def test_a_student_comes_nearer_to_its_teacher_in_what_was_not_kept_too():
    """Renormalised over the kept tokens alone, this student would be perfect."""
    teacher = torch.tensor([[0.0, 0.0, -2.0, -2.0]])
    student = torch.tensor([[0.0, 0.0, 5.0, 5.0]])
    assert float(divergence(student, thoughts(teacher, 2))) > 1


# ---- fewer layers -------------------------------------------------------------------------------


def test_layers_are_spread_evenly_or_listed():
    assert layers_of("16", 32)[:3] == [0, 2, 4]
    assert layers_of("16", 32)[-1] == 31
    assert layers_of("0, 2", 3) == [0, 2]
    for bad in ("0", "4", "1,0", "1,3", "half"):
        with pytest.raises(ConfigError, match="--layers"):
            layers_of(bad, 3)


def test_a_student_of_all_layers_is_its_teacher(tmp_path):
    teacher = WholeModel.of(Checkpoint.open("tiny"))
    student = rewritten(teacher.checkpoint.folder, tmp_path / "student", "3")
    ours, theirs = (load_half(w, "language").model.state_dict() for w in (student, teacher))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "animal", [QWEN3_VL, GEMMA3, GEMMA4, LFM2_VL, QWEN3_5_MOE], ids=lambda a: a.name
)
def test_a_student_has_the_layers_that_were_kept_under_new_numbers(tmp_path, animal: Animal):
    folder = animal.write(tmp_path / "teacher")
    teacher = WholeModel.of(Checkpoint.open(str(folder)))
    last = num_layers_of(teacher) - 1
    student = rewritten(folder, tmp_path / "student", str(last))
    ours, theirs = (load_half(w, "language").model for w in (student, teacher))
    numbers = {m.layer_idx for m in ours.get_decoder().modules() if hasattr(m, "layer_idx")}
    assert numbers == {0} or last > 1
    norm = next(n for n in ours.state_dict() if "layers.0" in n and "norm" in n)
    kept = layers_of(str(last), last + 1)[0]
    wanted = theirs.state_dict()[norm.replace("layers.0", f"layers.{kept}")]
    assert torch.equal(ours.state_dict()[norm], wanted)
    names = [w.partition.names("vision") for w in (student, teacher)]
    digests = [
        w.checkpoint.digest(n, digest_of) for w, n in zip((student, teacher), names, strict=True)
    ]
    assert digests[0] == digests[1], "its features would have to be made anew"


def test_a_model_with_another_decoder_is_the_same_whether_loaded_whole_or_in_halves(tmp_path):
    """Its vision half shares a shard with the original's decoder, which must not come back."""
    teacher = WholeModel.of(Checkpoint.open("tiny"))
    half = load_half(teacher, "language").model
    with torch.no_grad():
        for parameter in half.parameters():
            parameter.add_(1)
    write_with_language(teacher, tmp_path / "other", named_as_stored(teacher, half))
    made = WholeModel.of(Checkpoint.open(str(tmp_path / "other")))
    whole, ours = load_whole(made).state_dict(), half.state_dict()
    assert all(torch.equal(whole[name], each) for name, each in ours.items())
    seen = load_half(teacher, "vision").model.state_dict()
    assert all(torch.equal(whole[name], each) for name, each in seen.items())


def test_a_damaged_copy_of_vision_weights_is_named(tmp_path):
    student = rewritten(Checkpoint.open("tiny").folder, tmp_path / "student", "2").checkpoint
    [copied] = student.copied
    path = tmp_path / "student" / copied
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=f"{copied} does not hold the bytes"):
        student.digest(WholeModel.of(student).partition.names("vision"), digest_of)


# ---- both parts ---------------------------------------------------------------------------------


OPTIONS = {
    "device": "cpu", "quantization": "none", "precision": "fp32", "method": "full",
    "tokens_per_batch": 800, "accumulate": 1, "max_steps": 3, "eval_share": 0.2, "samples": 1,
    "learning_rate": 1e-3, "max_new_tokens": 24,
}  # fmt: skip


def test_a_student_learns_and_is_a_checkpoint_like_any_other(cache, tmp_path):
    settings = load_settings(None, OPTIONS)
    chosen = Selection(models=("other",))
    lines = teach(cache, settings, chosen, StudentChoice(layers="2"))
    assert "8 captions thought about, 0 there already" in lines[0]
    assert "the 32 kept tokens cover" in lines[1]
    assert (
        "0 captions thought about, 8 there already"
        in teach(cache, settings, chosen, StudentChoice(layers="2"))[0]
    )
    out = tmp_path / "student"
    done = study(cache, out, settings, chosen, StudentChoice(layers="2"))
    first, *_, last = done.report.training["evaluation"]
    assert last["loss"] < first["loss"]
    family = family_of(Checkpoint.open(str(out)))
    with Catalog(cache / "catalog.sqlite") as catalog:
        ours = identify(family, "vision", catalog.files)
        theirs = identify(family_of(Checkpoint.open("tiny")), "vision", catalog.files)
    assert ours.digest == theirs.digest
    report = caption(cache, load_settings(None, {"device": "cpu", "model": str(out)}))
    assert report.counts.done == 8
    half = load_half(WholeModel.of(family.checkpoint), "language").model
    start = WholeModel.of(Checkpoint.open(str(out / "training" / "start")))
    before = load_half(start, "language").model
    moved = [
        not torch.equal(one, other)
        for one, other in zip(half.parameters(), before.parameters(), strict=True)
    ]
    assert any(moved)
    _is_taken_by_other_commands(cache, out, tmp_path)


def _is_taken_by_other_commands(made: Path, student: Path, tmp_path: Path) -> None:
    """`plan` finds fewer layers, `split` gives the same half, and `train` puts an adapter on it."""
    told = f"--model={student}"
    plan = CliRunner().invoke(main, ["plan", told, "--train", "--json", "--device=cpu"])
    whole = CliRunner().invoke(main, ["plan", "--model=tiny", "--train", "--json", "--device=cpu"])
    sizes = [json.loads(each.output)["training"]["weights_bytes"] for each in (plan, whole)]
    assert sizes[0] < sizes[1]
    parts = tmp_path / "split"
    result = CliRunner().invoke(main, ["split", str(student), str(parts), "--quantization=none"])
    assert result.exit_code == 0, result.output
    ours, theirs = (
        load_half(str(each), "language").model.state_dict() for each in (parts, student)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    adapted = load_settings(None, {**OPTIONS, "method": "lora", "model": str(student)})
    done = train(made, tmp_path / "adapter", adapted, Selection(models=("other",)))
    assert any("the adapter is in" in line for line in done.lines)
    assert Adapter.open(tmp_path / "adapter")


@pytest.mark.slow
def test_the_teacher_is_gone_when_the_student_starts(made, tmp_path, monkeypatch):
    from cogcache import stages

    run, started = stages.run_stage, []

    def watched(arguments, **more):
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        started.append((arguments[1], children))
        return run(arguments, **more)

    monkeypatch.setattr(stages, "run_stage", watched)
    cache = tmp_path / "cache"
    shutil.copytree(made, cache)
    told = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    given = [f"--cache={cache}", f"--out={tmp_path / 'student'}", "--teacher=tiny", "--layers=2"]
    result = CliRunner().invoke(main, ["distill", *given, "--captions-of=other", *told])
    assert result.exit_code == 0, result.output
    assert [part for part, _ in started] == ["--part=teacher", "--part=student"]
    assert started[0][1] == started[1][1], "a process is left of the teacher"


def test_it_must_be_clear_who_is_to_learn(made, tmp_path):
    arguments = ["distill", f"--cache={made}", f"--out={tmp_path / 'student'}"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "give --layers 16, or --student CHECKPOINT" in result.output


# ---- another decoder ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pooled(made, tmp_path_factory, truths) -> Path:
    """A cache with features from before the projector."""
    cache = tmp_path_factory.mktemp("pooled") / "cache"
    options = {"decode_workers": 1, "cache_point": "pooled"}
    extract([str(made.parent / "videos")], cache, load_settings(None, options))
    import_set(cache, "other", lambda name: truths[name])
    return cache


def write_llama(folder: Path, *, tokenizer: bool = True) -> Path:
    """Write a Llama of other sizes than tiny's, with scaled rotary frequencies and tied ends."""
    rope = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 256,
    }  # fmt: skip
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=True,
        rope_parameters=rope,
    )  # fmt: skip
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(folder)
    if tokenizer:
        shutil.copy(Checkpoint.open("tiny").folder / "tokenizer.json", folder)
    return folder


def test_another_decoder_says_of_words_alone_what_it_said_before(tmp_path):
    folder = write_llama(tmp_path / "llama")
    decoder = read_decoder(str(folder))
    with_decoder(Checkpoint.open("tiny"), decoder, tmp_path / "student", folder, 0)
    whole = WholeModel.of(
        Checkpoint.open(str(tmp_path / "student")), cache_point="pooled", rotary_dtype="float32"
    )
    half = load_half(whole, "language", dtype=torch.float32).model
    ids = torch.tensor([[0, 5, 9, 30, 200, 7]])
    with torch.inference_mode():
        found, wanted = (model(input_ids=ids).logits for model in (half, decoder.float()))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_another_decoder_learns_to_read_features(pooled, tmp_path):
    folder = write_llama(tmp_path / "llama")
    more = {"cache_point": "pooled", "method": "lora", "projector_steps": 2, "learning_rate": 3e-3}
    settings = load_settings(None, {**OPTIONS, **more, "max_steps": 5})
    choice = StudentChoice(checkpoint=str(folder))
    teach(pooled, settings, Selection(models=("other",)), choice)
    out = tmp_path / "student"
    done = study(pooled, out, settings, Selection(models=("other",)), choice)
    first, *_, last = done.report.training["evaluation"]
    assert last["loss"] < first["loss"]
    told = {"device": "cpu", "model": str(out), "cache_point": "pooled", "max_new_tokens": 8}
    assert caption(pooled, load_settings(None, told)).counts.done == 8
    start, end = (
        load_half(WholeModel.of(Checkpoint.open(str(f)), cache_point="pooled"), "language").model
        for f in (out / "training" / "start", out)
    )
    before, after = start.state_dict(), end.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.vision.boi" in moved
    assert any("self_attn.q_proj" in name for name in moved)


def test_an_adapter_for_features_from_before_the_projector_is_merged(pooled, tmp_path):
    more = {"cache_point": "pooled", "method": "lora", "learning_rate": 3e-3, "max_steps": 2}
    adapter, out = tmp_path / "adapter", tmp_path / "merged"
    train(pooled, adapter, load_settings(None, {**OPTIONS, **more}), Selection(models=("other",)))
    given = [str(out), f"--adapter={adapter}", "--quantization=none"]
    result = CliRunner().invoke(main, ["split", "tiny", *given])
    assert result.exit_code == 0, result.output
    assert "21 weights changed by the adapter" in result.output
    told = {"device": "cpu", "model": str(out), "cache_point": "pooled", "max_new_tokens": 8}
    assert caption(pooled, load_settings(None, told)).counts.done == 8


def test_with_another_tokenizer_captions_alone_are_learnt_and_that_is_said(pooled, tmp_path):
    folder = write_llama(tmp_path / "llama", tokenizer=False)
    settings = load_settings(None, {**OPTIONS, "cache_point": "pooled"})
    choice = StudentChoice(checkpoint=str(folder))
    [line] = teach(pooled, settings, Selection(models=("other",)), choice)
    assert "another tokenizer, so it learns from captions alone" in line


def write_words(folder: Path, texts: list[str]) -> Tokenizer:
    """Give a Llama a tokenizer of its own, which splits words elsewhere than tiny's."""
    words = Tokenizer(BPE())
    words.pre_tokenizer, words.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    special = ["<s>", "</s>", "<pad>"]
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    words.train_from_iterator(texts, trainer)
    words.save(str(folder / "tokenizer.json"))
    return words


def learnt(cache: Path, out: Path, llama: Path, **more: object) -> None:
    """Have another decoder make one step."""
    more = {"cache_point": "pooled", "method": "lora", "max_steps": 1, "samples": 0, **more}
    choice = StudentChoice(checkpoint=str(llama))
    study(
        cache, out, load_settings(None, {**OPTIONS, **more}), Selection(models=("other",)), choice
    )


def test_a_run_that_ends_in_the_projectors_own_steps_keeps_the_decoder(pooled, tmp_path):
    folder = write_llama(tmp_path / "llama", tokenizer=False)
    write_words(folder, ["A ball."])
    learnt(pooled, tmp_path / "student", folder, projector_steps=200)
    before, after = (
        load_half(WholeModel.of(Checkpoint.open(str(f)), cache_point="pooled"), "language").model
        for f in (tmp_path / "student" / "training" / "start", tmp_path / "student")
    )
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    moved = {name for (name, one), other in pairs if not torch.equal(one, other)}
    assert moved
    assert all(name.startswith(PROJECTOR) for name in moved)


def test_with_another_tokenizer_captions_are_learnt_in_its_own_tokens(
    pooled, tmp_path, truths, monkeypatch
):
    folder = write_llama(tmp_path / "llama", tokenizer=False)
    words = write_words(folder, [*truths.values()])
    step, seen = CaptionTrainer.training_step, []

    def watched(trainer, model, inputs, *more):
        seen.extend(inputs["batch"].examples)
        return step(trainer, model, inputs, *more)

    monkeypatch.setattr(CaptionTrainer, "training_step", watched)
    learnt(pooled, tmp_path / "student", folder, projector_steps=0)
    assert seen
    for example in seen:
        *answer, end = example.answer
        assert words.decode(answer).strip() == truths[Path(example.chosen.clip).name]
        assert end == words.token_to_id("</s>")


def test_with_the_teachers_tokenizer_captions_end_as_the_teachers_do(pooled, tmp_path):
    folder = write_llama(tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [7, 8]}))
    teacher = Checkpoint.open("tiny")
    out = tmp_path / "student"
    with_decoder(teacher, read_decoder(str(folder)), out, folder, 0)
    ours, theirs = (family_of(each) for each in (Checkpoint.open(str(out)), teacher))
    assert ours.stop_ids == theirs.stop_ids


def test_another_decoder_needs_pooled_features(made, tmp_path):
    choice = StudentChoice(checkpoint=str(tmp_path))
    with pytest.raises(ConfigError, match="from before the teacher's projector"):
        study(made, tmp_path / "s", load_settings(None, OPTIONS), Selection(), choice)


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"vision": 3, "vision_config": {}},
        {"vision": ["a"], "vision_config": []},
        {"vision": [1], "vision_config": {}},
        {"vision": [], "vision_config": {}, "copied": []},
        {"vision": [], "vision_config": {}, "copied": {"model.safetensors": {"sha256": "a"}}},
    ],
)
def test_an_odd_manifest_of_a_student_is_refused(tmp_path, manifest):
    folder = tmp_path / "odd"
    shutil.copytree(Checkpoint.open("tiny").folder, folder)
    (folder / "cogcache-rewritten.json").write_text(json.dumps({"format": 1, **manifest}))
    with (
        Catalog(tmp_path / "catalog.sqlite") as catalog,
        pytest.raises(CheckpointError, match=r"cogcache-rewritten\.json does not say"),
    ):
        identify(family_of(Checkpoint.open(str(folder))), "vision", catalog.files)
