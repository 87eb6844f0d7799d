"""The decoding loop gives what `generate` gives row by row, whoever shares the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checkpoints import write_checkpoint

from cogcache.generation.batches import generate
from cogcache.generation.decoder import Decoder, can_decode
from cogcache.generation.prefixes import forward
from cogcache.generation.requests import Finished, Request
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.family import ClipTensors, Family
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.registry import family_of
from cogcache.settings.stage_two import Generation

PROMPTS = ("What?", "What is it that one sees here?", "Say.")
GREEDY = Generation(max_new_tokens=20)


@pytest.fixture(scope="module", params=["tiny", "random"])
def lab(request, tmp_path_factory) -> tuple[Family, torch.nn.Module]:
    """A language half in float32. The random one never ends by itself."""
    name = request.param
    if name == "random":
        name = str(write_checkpoint(tmp_path_factory.mktemp("random") / "model"))
    family = family_of(Checkpoint.open(name))
    whole = WholeModel.of(family.checkpoint)
    return family, load_half(whole, "language", dtype=torch.float32).model


def requests(
    family: Family, generation: Generation = GREEDY, prompts: tuple[str, ...] = PROMPTS
) -> list[list[Request]]:
    """Ask all prompts about five clips of 2 to 6 frames."""
    config = family.checkpoint.config
    slots = (config["vision_config"]["image_size"] // 28) ** 2 + 2
    groups = []
    for number in range(5):
        random = torch.Generator().manual_seed(number)
        shape = (2 + (3 * number) % 5, slots, config["hidden_size"])
        clip = ClipTensors({"features": torch.randn(shape, generator=random)})
        rows = [family.row(clip, prompt, "chat") for prompt in prompts]
        groups.append(
            [
                Request(row, str(number), 100 * number + index, generation, (number, index))
                for index, row in enumerate(rows)
            ]
        )
    return groups


def decode(family, model, groups, rows_at_once=4) -> dict[tuple[int, int], Finished]:
    return {each.request.task: each for each in Decoder(model, family, rows_at_once).run(groups)}


def tokens(finished: dict[tuple[int, int], Finished]) -> dict[tuple[int, int], list[int]]:
    return {task: each.tokens for task, each in sorted(finished.items())}


def one_by_one(family, model, groups) -> dict[tuple[int, int], list[int]]:
    """What transformers gives for each row alone, its video part prefilled for it alone."""
    rows = [request for group in groups for request in group]
    return {r.task: generate(model, family, [r.row], r.generation)[0] for r in rows}


@pytest.mark.parametrize("rows_at_once", [1, 2, 4, 32])
def test_tokens_are_those_of_generate_row_by_row(lab, rows_at_once):
    groups = requests(lab[0])
    found = tokens(decode(*lab, groups, rows_at_once))
    assert found == one_by_one(*lab, groups)


def test_rows_give_different_tokens(lab):
    assert len({tuple(each) for each in tokens(decode(*lab, requests(lab[0]))).values()}) > 5


def test_a_penalty_on_repetition_is_that_of_generate(lab):
    groups = requests(lab[0], Generation(max_new_tokens=12, repetition_penalty=1.3))
    assert tokens(decode(*lab, groups)) == one_by_one(*lab, groups)


def test_drawn_captions_do_not_depend_on_their_batch(lab):
    drawing = Generation(max_new_tokens=12, do_sample=True, temperature=2.0, top_p=0.9)
    groups = requests(lab[0], drawing)
    alone = tokens(decode(*lab, groups, 1))
    assert tokens(decode(*lab, groups[::-1], 5)) == alone
    others = [[replace(r, seed=r.seed + 1) for r in group] for group in groups]
    assert tokens(decode(*lab, others, 5)) != alone


def test_a_clip_is_prefilled_once_for_all_its_prompts(lab):
    decoder = Decoder(lab[1], lab[0], 4)
    groups = requests(lab[0])
    assert sum(1 for _ in decoder.run(groups)) == 15
    assert decoder.statistics.prefixes == len(groups)


def test_no_step_is_spent_on_a_row_that_has_ended(lab):
    decoder = Decoder(lab[1], lab[0], 4)
    made = [len(each.tokens) for each in decoder.run(requests(lab[0]))]
    # The prefill gives a row its first token, each step one of the others.
    assert decoder.statistics.row_steps == sum(made) - len(made)


def test_prompts_that_differ_before_the_video_share_nothing(lab):
    family, model = lab
    [first, *_], *_ = requests(family)
    ids = first.row.sequences["input_ids"].clone()
    ids[0] += 5
    changed = {**first.row.sequences, "input_ids": ids}
    other = replace(first, row=replace(first.row, sequences=changed), task=(9, 9))
    decoder = Decoder(model, family, 4)
    found = [each.tokens for each in decoder.run([[first, other]])]
    assert decoder.statistics.prefixes == 2
    alone = [generate(model, family, [r.row], GREEDY)[0] for r in (first, other)]
    assert sorted(found) == sorted(alone)


def test_a_stop_text_ends_a_row(lab):
    family, model = lab
    [first, *_], *_ = requests(family)
    text = family.text_of(generate(model, family, [first.row], GREEDY)[0])
    stop = text[1:3]
    request = replace(first, generation=Generation(max_new_tokens=20, stop=stop))
    [found] = Decoder(model, family, 1).run([[request]])
    assert stop in family.text_of(found.tokens)
    assert stop not in family.text_of(found.tokens[:-1])


def test_new_tokens_stay_within_the_context(lab):
    family, model = lab
    [first, *_], *_ = requests(family)
    decoder = Decoder(model, family, 1)
    decoder.context = 40
    [found] = decoder.run([[replace(first, generation=Generation(max_new_tokens=500))]])
    ended = found.tokens[-1] in family.stop_ids
    assert ended or found.over_context
    assert len(found.tokens) < 40


def test_running_out_of_memory_halves_the_batch_and_loses_nothing(lab, monkeypatch):
    family, model = lab
    groups = requests(family)
    expected = tokens(decode(family, model, groups))
    decoder = Decoder(model, family, 4)

    def scarce(model, cache, **inputs):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, cache, **inputs)

    monkeypatch.setattr("cogcache.generation.decoder.forward", scarce)
    found = {each.request.task: each.tokens for each in decoder.run(groups)}
    assert found == expected
    assert decoder.rows_at_once == 2


def test_a_request_put_in_later_is_answered_too(lab):
    family, model = lab
    groups = requests(family)
    decoder = Decoder(model, family, 3)
    again = []
    for each in decoder.run(groups):
        if each.request.task == (0, 0):
            decoder.submit(replace(each.request, task="again"))
            first = each.tokens
        again += [each.tokens] if each.request.task == "again" else []
    assert again == [first]


@pytest.mark.parametrize("limit", [1, 20])
@pytest.mark.parametrize("rows_at_once", [1, 4])
def test_a_second_try_repeats_no_prefill(lab, rows_at_once, limit):
    family, model = lab
    groups = requests(family, Generation(max_new_tokens=limit))
    decoder = Decoder(model, family, rows_at_once)
    found = {}
    for each in decoder.run(groups):
        task = each.request.task
        if len(task) == 2:
            again = Generation(max_new_tokens=limit, repetition_penalty=1.3)
            decoder.submit(replace(each.request, generation=again, task=(*task, "again")))
        else:
            found[task[:2]] = each.tokens
    assert decoder.statistics.prefixes == len(groups)
    penalised = requests(family, Generation(max_new_tokens=limit, repetition_penalty=1.3))
    assert dict(sorted(found.items())) == one_by_one(family, model, penalised)


def test_a_sliding_window_is_not_cut_up():
    from types import SimpleNamespace

    from transformers import GPT2Config, MistralConfig

    models = [
        SimpleNamespace(config=config)
        for config in (GPT2Config(), MistralConfig(sliding_window=8, num_hidden_layers=1))
    ]
    assert [can_decode(model) for model in models] == [True, False]
