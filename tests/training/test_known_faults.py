"""Known faults of trainers of language models, and which test shows what holds here.

Each was told in the trackers of other projects.
"""

from __future__ import annotations

import re
from pathlib import Path

FAULTS = {
    "Frozen weights with re-entrant gradient checkpointing: no gradients": (
        "not re-entrant; every second LoRA matrix gets a gradient",
        "test_every_second_matrix_gets_a_gradient_through_checkpointed_layers",
    ),
    "Hooks on the embedding that features never pass": (
        "none is needed: checkpointing is not re-entrant",
        "test_every_second_matrix_gets_a_gradient_through_checkpointed_layers",
    ),
    "transformers renamed gradient checkpointing": (
        "both names are looked for, and warnings are errors in all tests",
        "test_every_second_matrix_gets_a_gradient_through_checkpointed_layers",
    ),
    "Several processes with checkpointing: a parameter is ready twice": (
        "one device; several processes are refused",
        "test_several_processes_are_refused",
    ),
    "Unquantised weights raised to float32": (
        "they stay in 16 bits; only adapters are float32",
        "test_what_is_not_trained_stays_in_16_bits",
    ),
    "LoRA names match vision layers too": (
        "whole paths in the language half; the adapter fits the whole model",
        "test_peft_puts_the_adapter_onto_the_whole_model_with_the_same_logits",
    ),
    "Other names of keys: an adapter that does nothing, without a word": (
        "missing keys and an adapter without effect are errors",
        "test_an_adapter_that_lacks_a_tensor_or_does_nothing_is_refused",
    ),
    "A tied output head trained apart": (
        "embedding and head stay as they are",
        "test_all_of_a_decoder_is_trained_into_a_checkpoint",
    ),
    "Merging into 4 bits rounds twice": (
        "refused",
        "test_an_adapter_is_not_merged_into_4_bits",
    ),
    "Trained on 4 bits, merged into 16: usually right, not always": (
        "adapters stay beside the model; `split` says how far logits move",
        "test_an_adapter_is_merged_into_16_bits_and_says_the_same",
    ),
    "A merge that changed nothing": (
        "the merged half's logits are those of the adapter",
        "test_an_adapter_is_merged_into_16_bits_and_says_the_same",
    ),
    "Padding and end are one token: the end is never learnt": (
        "labels go by place",
        "test_the_end_is_learnt_where_it_is_the_padding_token_too",
    ),
    "An end token that the model never learnt": (
        "the one that stage two stops at",
        "test_the_models_own_captions_cost_it_next_to_nothing",
    ),
    "Two begin tokens": (
        "stage two's own layout",
        "test_the_loss_on_captions_is_that_of_the_whole_model",
    ),
    "Cutting a row cuts the video": (
        "too long captions are left out and counted",
        "test_a_caption_that_does_not_fit_is_left_out_and_counted",
    ),
    "Left padding with positions counted from it": (
        "filled up on the right, positions given",
        "test_the_loss_on_captions_is_that_of_the_whole_model",
    ),
    "Positions of several dimensions lost with features as inputs": (
        "positions of each row as stage two has them",
        "test_the_loss_on_captions_is_that_of_the_whole_model",
    ),
    "Features of deeper levels dropped": (
        "cached and given to the model",
        "test_the_loss_on_captions_is_that_of_the_whole_model",
    ),
    "The number of tokens of a step is dropped": (
        "own loss over all of a step's tokens",
        "test_four_batches_of_one_give_the_gradients_of_one_batch_of_four",
    ),
    "Evaluation keeps all logits": (
        "logits where labels are, and none kept",
        "test_logits_are_made_where_labels_are",
    ),
    "Going on in mid-epoch in another order": (
        "order from seed and epoch alone",
        "test_a_run_that_was_killed_goes_on_as_if_it_had_not_been",
    ),
    "Paged optimizers fail or diverge": (
        "AdamW; the 8-bit one where asked for",
        "test_8_bit_adamw_goes_on_bit_for_bit_too",
    ),
    "The optimizer or the best loss forgotten": (
        "all in whole checkpoints",
        "test_a_run_whose_hours_are_over_saves_and_goes_on_later",
    ),
    "Models with `add_adapter` do not go on": (
        "`get_peft_model`",
        "test_a_run_that_was_killed_goes_on_as_if_it_had_not_been",
    ),
    "A divergence of cut-off probabilities below zero": (
        "the rest counts as one token; mixed with captions",
        "test_the_divergence_is_never_negative_and_nothing_where_both_agree",
    ),
    "Layers keep their old numbers": (
        "a new config, and layers numbered anew",
        "test_a_student_has_the_layers_that_were_kept_under_new_numbers",
    ),
    "The captioner still holds memory": (
        "teacher and student are processes of their own",
        "test_the_teacher_is_gone_when_the_student_starts",
    ),
}
"""The fault: what holds here, and the test."""


def test_each_known_fault_has_a_test_that_there_is():
    assert len(FAULTS) == 27
    files = [*Path(__file__).parents[1].rglob("*.py")]
    there = set(re.findall(r"def (test_\w+)", "".join(each.read_text() for each in files)))
    assert {test for _, test in FAULTS.values()} <= there
