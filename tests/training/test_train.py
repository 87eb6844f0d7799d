"""What `train` does: what it learns from, how it goes on, what it writes, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from trained_caches import NUM_CLIPS, PROMPT, QUICK, import_set, same, settings, trained, weights

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search.selection import Selection
from cogcache.cli import main
from cogcache.errors import ConfigError, TensorMismatchError, TrainingError
from cogcache.models.adapters import RECORD, WEIGHTS, Adapter, model_name, put_on
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import WholeModel, load_half, load_whole
from cogcache.models.halves.raised import raised_features
from cogcache.models.quantization.layers import Quantization
from cogcache.models.registry import family_of
from cogcache.settings.settings import load_settings
from cogcache.stages.caption import caption
from cogcache.stages.train import train
from cogcache.store.store import FeatureStore
from cogcache.system.signals import Stop
from cogcache.training import checkpoints
from cogcache.training.batches import batches_of
from cogcache.training.examples import Chosen, choose, lay_out, split_by_video
from cogcache.training.lora import prepare, trained_parameters
from cogcache.training.loss import Collator, logits_of, token_losses
from cogcache.training.trainer import CaptionTrainer, Data, arguments_for
from cogcache.video.reading import read_clip
from cogcache.web.report import write_report


@pytest.fixture(scope="module")
def lab(made):
    """The loaded half of `tiny` and its captions, laid out."""
    family = family_of(Checkpoint.open("tiny"))
    whole = WholeModel.of(family.checkpoint)
    chosen = choose(made / "catalog.sqlite", Selection(), {}, {})
    store = FeatureStore.open(made)
    laid = lay_out(chosen, family, store, "chat", 2048)
    return family, whole, store, laid.examples


def language(lab, **options: Any):
    _, whole, *_ = lab
    return load_half(whole, "language", **{"dtype": torch.float32, **options}).model


# ---- what is learnt -----------------------------------------------------------------------------


def test_the_models_own_captions_cost_it_next_to_nothing(lab, truths):
    """Were a blank or the end laid out otherwise than it makes them, they would."""
    family, _, store, examples = lab
    half = language(lab)
    own = [
        Chosen("k", each.chosen.feature_key, "v", each.chosen.clip, "detail", PROMPT, text)
        for each in examples
        if (text := truths[Path(each.chosen.clip).name])
    ]
    batch = Collator(family, half, store).batch(lay_out(own, family, store, "chat", 2048).examples)
    with torch.inference_mode():
        losses = token_losses(logits_of(half, batch), batch.labels)
    assert float(losses.sum() / (batch.labels >= 0).sum()) < 0.3


def test_the_loss_is_that_of_the_whole_model_on_the_frames(lab, made):
    family, whole, store, examples = lab
    batch = Collator(family, language(lab), store).batch(examples[:3])
    with torch.inference_mode():
        losses = token_losses(logits_of(language(lab), batch), batch.labels).sum(dim=1)
    model = load_whole(whole, dtype=torch.float32)
    for example, loss in zip(examples, losses, strict=False):
        video = made.parent / "videos" / Path(example.chosen.clip).name
        frames = read_clip(video, settings().sampling, 0.0, None)
        inputs = {name: each[None] for name, each in example.sequences.items()}
        pixels = family.prepare(frames, torch.bfloat16).tensors["pixel_values_videos"]
        half = load_half(whole, "vision", dtype=torch.bfloat16).model  # as the cache was made
        with torch.inference_mode():
            with raised_features(half):
                seen = half.get_video_features(pixels)
            logits = model(**inputs, mm_encoder_outputs={"video": seen}).logits[0]
        places = range(example.prompt_length - 1, example.length - 1)
        wanted = torch.nn.functional.cross_entropy(
            logits[list(places)], torch.tensor(example.answer), reduction="sum"
        )
        assert float(loss) == pytest.approx(float(wanted), rel=1e-5)


def test_four_batches_of_one_give_the_gradients_of_one_batch_of_four(lab, tmp_path):
    family, _, store, examples = lab
    gradients = []
    for size in (1, 4):
        half = language(lab)
        chosen = settings(dropout=0.0, gradient_checkpointing=False).training
        model = prepare(half, chosen)
        data = Data(examples, [], Collator(family, half, store), 1)
        arguments = arguments_for(chosen, tmp_path, data, "cpu")
        trainer = CaptionTrainer(model, arguments, chosen, data, tmp_path, Stop())
        batches = [data.collate(examples[start : start + size]) for start in range(0, 4, size)]
        count = sum((batch["labels"] >= 0).sum() for batch in batches)
        for batch in batches:
            trainer.compute_loss(model, batch, num_items_in_batch=count).backward()
        gradients.append({n: p.grad for n, p in trained_parameters(model).items()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_every_second_matrix_gets_a_gradient_through_checkpointed_layers(lab, kind):
    family, _, store, examples = lab
    half = language(lab, dtype=torch.bfloat16, quantization=Quantization(kind=kind))
    model = prepare(half, settings().training)
    collate = Collator(family, half, store)
    model.eval()
    with torch.no_grad():  # as an evaluation before the first step does
        logits_of(model, collate.batch(examples[:1]))
    model.train()
    batch = collate.batch(examples[:2])
    token_losses(logits_of(model, batch), batch.labels).sum().backward()
    seconds = {n: p.grad for n, p in model.named_parameters() if "lora_B" in n}
    assert len(seconds) == 21
    for name, gradient in seconds.items():
        assert torch.isfinite(gradient).all(), name
        assert gradient.abs().max() > 0, name


def test_gradients_are_the_same_after_an_evaluation_in_4_bits(lab):
    """Laid out for the CPU, 4-bit layers would pass none on to the layers before them."""
    family, _, store, examples = lab
    found = []
    for evaluates in (False, True):
        half = language(lab, dtype=torch.bfloat16, quantization=Quantization())
        model = prepare(half, settings(dropout=0.0).training)
        batch = Collator(family, half, store).batch(examples[:2])
        if evaluates:
            model.eval()
            with torch.no_grad():
                logits_of(model, batch)
        model.train()
        token_losses(logits_of(model, batch), batch.labels).sum().backward()
        found.append({n: p.grad for n, p in trained_parameters(model).items()})
    assert same(*found)


def test_what_is_not_trained_stays_in_16_bits(lab):
    half = language(lab, dtype=torch.bfloat16, quantization=Quantization())
    model = prepare(half, settings().training)
    plain = {p.dtype for n, p in model.named_parameters() if "lora_" not in n and p.ndim > 1}
    assert plain == {torch.bfloat16, torch.uint8}
    assert {p.dtype for p in trained_parameters(model).values()} == {torch.float32}
    assert all("lora_" in name for name in trained_parameters(model))


def test_an_epoch_has_each_caption_once_in_an_order_of_its_own(lab):
    *_, examples = lab
    orders = [batches_of(examples, 400, 0, epoch) for epoch in (0, 1, 0)]
    for order in orders:
        assert sorted(id(each) for some in order for each in some) == sorted(map(id, examples))
        assert all(max(e.length for e in some) * len(some) <= 400 for some in order)
    ids = [[[id(each) for each in some] for some in order] for order in orders]
    assert ids[0] == ids[2] != ids[1]


def test_a_video_stays_on_its_side_when_others_are_added():
    chosen = [
        Chosen(str(n), str(n), f"video {n}", "a clip", "p", "What?", "A ball.") for n in range(60)
    ]
    for count in (20, 40, 60):
        _, held = split_by_video(chosen[:count], 0.2)
        assert {each.video_digest for each in held} == {
            each.video_digest for each in split_by_video(chosen, 0.2)[1] if each in chosen[:count]
        }
        assert 0 < len(held) < count / 2


# ---- going on -----------------------------------------------------------------------------------


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(cache, done, tmp_path, monkeypatch):
    out = tmp_path / "adapter"
    write = checkpoints.write

    def write_and_die(*arguments: Any) -> None:
        write(*arguments)
        raise SystemExit(9)

    monkeypatch.setattr("cogcache.training.checkpoints.write", write_and_die)
    with pytest.raises(SystemExit):
        trained(cache, out)
    monkeypatch.undo()
    assert checkpoints.last(out) == checkpoints.folder_of(out, 2)
    assert not (out / WEIGHTS).exists()
    trained(cache, out)
    assert same(weights(out), weights(done))
    # Evaluations of before it was killed, too: the loss at first is that of the base.
    assert (out / RECORD).read_text() == (done / RECORD).read_text()


def test_a_run_whose_hours_are_over_saves_and_goes_on_later(cache, done, tmp_path):
    out = tmp_path / "adapter"
    first = trained(cache, out, max_hours=1e-9)
    assert first.report.stopped == "--max-hours 1e-09 are over"
    assert checkpoints.last(out) == checkpoints.folder_of(out, 1)
    assert trained(cache, out).report.stopped is None
    assert same(weights(out), weights(done))


def test_a_checkpoint_holds_no_pickle(done):
    files = [path for path in done.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}
    for path in files:
        assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04"), path


def test_a_changed_caption_is_named_when_a_run_is_to_go_on(cache, tmp_path):
    trained(cache, tmp_path / "adapter", max_steps=1, eval_share=0.0)
    import_set(cache, "other", lambda name: f"Quickly {name}.", overwrite=True)
    with pytest.raises(TrainingError, match=r"the caption of .*mp4, prompt 'detail' has changed"):
        trained(cache, tmp_path / "adapter", max_steps=1, eval_share=0.0)


def test_other_settings_are_named_when_a_run_is_to_go_on(cache, done, tmp_path):
    shutil.copytree(done, tmp_path / "adapter")
    with pytest.raises(TrainingError, match=r"learning_rate was 0\.001, is 0\.01 now"):
        trained(cache, tmp_path / "adapter", learning_rate=0.01)


def test_a_loss_that_is_no_number_names_the_caption_and_keeps_the_last_checkpoint(cache, tmp_path):
    out = tmp_path / "adapter"
    wild = {"learning_rate": 1e30, "clip_norm": 0.0, "save_every": 1, "eval_every": 100}
    with pytest.raises(TrainingError, match=r"the loss of .*mp4, prompt 'detail' is no finite"):
        trained(cache, out, **wild, warmup=0.9, eval_share=0.0)
    assert checkpoints.last(out) is not None


# ---- what is written ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_peft_puts_the_adapter_onto_the_whole_model_with_the_same_logits(done, lab):
    from peft import PeftModel

    family, whole, store, examples = lab
    half = language(lab)
    put_on(half, Adapter.open(done))
    onto = PeftModel.from_pretrained(load_whole(whole, dtype=torch.float32), done).eval()
    batch = Collator(family, half, store).batch(examples[:2])
    with torch.inference_mode():
        assert torch.equal(logits_of(half, batch), logits_of(onto, batch))
        with onto.disable_adapter():
            assert not torch.equal(logits_of(half, batch), logits_of(onto, batch))


def test_captions_with_an_adapter_stand_beside_the_old_ones(cache, done):
    plain = load_settings(None, {"device": "cpu", "prompts": {"detail": PROMPT}})
    caption(cache, plain)
    caption(cache, load_settings(None, {"device": "cpu", "adapter": str(done),
                                        "prompts": {"detail": PROMPT}}))  # fmt: skip
    with Catalog(cache / "catalog.sqlite") as catalog:
        models = [row["model"] for row in catalog.captions.rows()]
    name = model_name("tiny", str(done))
    assert {model: models.count(model) for model in {*models}} == {
        "other": NUM_CLIPS, "tiny": NUM_CLIPS, name: NUM_CLIPS
    }  # fmt: skip
    assert caption(cache, plain).counts.cached == NUM_CLIPS


def test_an_adapter_that_lacks_a_tensor_or_does_nothing_is_refused(lab, done, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(done, bad)
    stored = dict(weights(done))
    first = next(iter(stored))
    save_file({n: t for n, t in stored.items() if n != first}, bad / WEIGHTS)
    with pytest.raises(TensorMismatchError, match="differ in 1 tensors"):
        put_on(language(lab), Adapter.open(bad))
    save_file({n: torch.zeros_like(t) for n, t in stored.items()}, bad / WEIGHTS)
    with pytest.raises(TensorMismatchError, match="changes nothing"):
        put_on(language(lab), Adapter.open(bad))


def test_an_adapter_of_another_language_half_is_refused(done):
    with pytest.raises(ConfigError, match="was trained on tiny"):
        Adapter.open(done).check_base("0" * 64)


def test_the_report_shows_captions_before_and_after(cache, tmp_path):
    done = trained(cache, tmp_path / "adapter", max_steps=1)
    told = "\n".join(done.lines)
    assert "before:" in told
    assert "wanted: Slowly or quickly:" in told
    with Catalog(cache / "catalog.sqlite") as catalog:
        run = catalog.runs.rows()[-1]
    assert run["command"] == "train"
    assert run["report"]["training"]["samples"][0]["wanted"].startswith("Slowly or quickly")
    page = write_report(cache, tmp_path / "report.html").read_text()
    assert "What training changed" in page
    assert "Slowly or quickly: " in page


def test_no_byte_of_the_vision_half_is_read(cache, tmp_path):
    """Its shards need not even be there."""
    model = tmp_path / "model"
    shutil.copytree(Checkpoint.open("tiny").folder, model)
    family = family_of(Checkpoint.open(str(model)))
    parts = WholeModel.of(family.checkpoint).partition
    vision, language_ = (
        set(family.checkpoint.shards_of(parts.names(h))) for h in ("vision", "language")
    )
    for shard in vision - language_:
        (model / shard).unlink()
    assert vision - language_
    done = trained(cache, tmp_path / "adapter", model=str(model), max_steps=1, samples=0)
    assert set(done.report.bytes_by_shard) <= language_


# ---- what is refused ----------------------------------------------------------------------------


def test_bad_choices_are_refused_by_name(cache, tmp_path):
    out = tmp_path / "adapter"
    with pytest.raises(TrainingError, match="no caption passes the filters") as caught:
        train(cache, out, settings(), Selection(models=("nobody",)))
    assert caught.value.exit_status == 1
    import_set(cache, "second", lambda name: "A ball.")
    with pytest.raises(TrainingError, match="captions of several models") as caught:
        train(cache, out, settings(), Selection())
    assert "--captions-of other" in caught.value.hint
    with Catalog(cache / "catalog.sqlite") as catalog:
        video = Path(catalog.clips.rows()[0]["video"])
    one = Selection(models=("other",), folders=(video,))
    with pytest.raises(TrainingError, match="all captions are of one video"):
        train(cache, out, settings(), one)
    with pytest.raises(ConfigError, match="cannot train weights in nf4"):
        trained(cache, out, method="full", quantization="nf4")
    assert not out.exists()


def test_captions_of_another_models_features_are_refused(made):
    with pytest.raises(TrainingError, match="features of another model"):
        choose(made / "catalog.sqlite", Selection(), {}, {"vision_digest": "0" * 64})


def test_a_caption_that_does_not_fit_is_left_out_and_counted(lab, made):
    family, _, store, examples = lab
    chosen = choose(made / "catalog.sqlite", Selection(), {}, {})
    longest = max(example.length for example in examples)
    laid = lay_out(chosen, family, store, "chat", longest - 1)
    [(reason, names)] = laid.left_out.items()
    assert reason == f"longer than the model's {longest - 1} tokens"
    assert len(names) + len(laid.examples) == NUM_CLIPS


def test_the_command_prints_what_was_learnt(cache, tmp_path):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    arguments = ["train", f"--cache={cache}", f"--out={tmp_path / 'a'}", "--captions-of=other"]
    result = CliRunner().invoke(main, [*arguments, *options, "--max-steps=1"])
    assert result.exit_code == 0, result.output
    assert "the adapter is in" in result.output


# ---- memory, and merging ------------------------------------------------------------------------


def test_plan_adds_up_what_training_holds_before_anything_is_loaded():
    arguments = ["plan", "--model=tiny", "--train", "--json", "--frames=4", "--device=cpu"]
    plans = []
    for more in (
        [],
        ["--no-gradient-checkpointing"],
        ["--precision=fp32"],
        ["--rank=32"],
        ["--teacher-top-k=64"],
    ):
        result = CliRunner().invoke(main, [*arguments, *more])
        assert result.exit_code == 0, result.output
        plans.append(json.loads(result.output)["training"])
    usual, plain, wide, higher, teaching = plans
    assert usual["activations_plain_bytes"] == plain["activations_bytes"]
    assert plain["activations_bytes"] > usual["activations_bytes"]
    assert wide["activations_bytes"] > usual["activations_bytes"]
    assert higher["adapters_bytes"] == 2 * usual["adapters_bytes"]
    assert usual["optimizer_bytes"] == 3 * usual["adapters_bytes"]
    assert teaching["teacher_bytes"] == 2 * usual["teacher_bytes"] > 0
    assert teaching["peak_bytes"] == usual["peak_bytes"]


def test_what_does_not_fit_is_refused_before_a_weight_is_read(cache, tmp_path, monkeypatch):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("cogcache.training.learning.load_half", never)
    with pytest.raises(TrainingError, match=r"training: .* for batches of .* tokens") as caught:
        trained(cache, tmp_path / "adapter", memory="1MiB")
    assert "does not fit 1MiB, of which the process itself holds" in caught.value.problem
    enough = re.search(r"give --memory (\d+MiB) or more", caught.value.hint)
    assert enough is not None
    with pytest.raises(AssertionError):  # enough: it is on its way to the weights
        trained(cache, tmp_path / "adapter", memory=f"{int(enough[1].removesuffix('MiB')) + 64}MiB")
    assert "--quantization nf4" in caught.value.hint
    with pytest.raises(TrainingError) as caught:
        trained(cache, tmp_path / "model", memory="1MiB", method="full")
    assert "--quantization nf4" not in caught.value.hint
    assert "--method lora" in caught.value.hint


def test_an_adapter_is_merged_into_16_bits_and_says_the_same(lab, done, tmp_path):
    family, _, store, examples = lab
    out = tmp_path / "merged"
    given = [str(out), f"--adapter={done}", "--quantization=none"]
    result = CliRunner().invoke(main, ["split", "tiny", *given])
    assert result.exit_code == 0, result.output
    assert "21 weights changed by the adapter" in result.output
    assert "its logits move by" in result.output
    half = language(lab, dtype=torch.bfloat16)
    batch = Collator(family, half, store).batch(examples[:2])
    with torch.inference_mode():
        plain = logits_of(half, batch).float()
        put_on(half, Adapter.open(done))
        wanted = logits_of(half, batch).float()
        merged = load_half(str(out), "language", dtype=torch.bfloat16).model
        found = logits_of(merged, batch).float()
    assert (found - wanted).abs().mean() < 0.3 * (plain - wanted).abs().mean()


def test_an_adapter_is_not_merged_into_4_bits(done, tmp_path):
    given = [str(tmp_path / "merged"), f"--adapter={done}", "--quantization=nf4"]
    result = CliRunner().invoke(main, ["split", "tiny", *given])
    assert result.exit_code == 2
    assert "an adapter is merged into 16 bits, not into nf4" in result.output
    assert not (tmp_path / "merged").exists()


def test_all_of_a_decoder_is_trained_into_a_checkpoint(cache, tmp_path):
    out = tmp_path / "model"
    trained(cache, out, method="full", max_steps=1, samples=0)
    before, after = (
        load_half(model, "language").model.state_dict() for model in ("tiny", str(out))
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("layers.2.mlp" in name for name in moved)
    assert not any("embed_tokens" in name or "lm_head" in name for name in moved)
