"""The model of the package learns other words for what it sees."""

from __future__ import annotations

from trained_caches import trained


def test_after_a_few_steps_an_unseen_clip_is_described_in_the_new_words(made, tmp_path):
    options = {"learning_rate": 0.01, "max_steps": 24, "eval_every": 12, "max_new_tokens": 4}
    done = trained(made, tmp_path / "adapter", **options, gradient_checkpointing=False)
    [sample] = done.report.training["samples"]
    assert not sample["before"].startswith("Slowly")
    assert sample["now"].startswith("Slowly or quickly")
    assert sample["wanted"].startswith("Slowly or quickly")
