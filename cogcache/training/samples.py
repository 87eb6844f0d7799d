"""A few captions made while training: beside the untrained model's, and what was wanted.

Imported where models are trained; it needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from cogcache.generation import flags_of, generate
from cogcache.models import Family, PromptRow
from cogcache.settings import Generation
from cogcache.store import FeatureStore
from cogcache.training.examples import Example, clip_tensors


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip's caption by the untrained model, by the trained one, and as it is wanted."""

    clip: str
    prompt: str
    before: str
    now: str
    wanted: str
    flags: tuple[str, ...]
    """What is suspicious about the caption that is made now."""


class Sampler:
    """Captions the same clips again and again.

    Args:
        family: lays rows out.
        model: the language half, whatever is on it at the time.
        store: has the features.
        examples: the clips, their prompts and the captions that are wanted.
        generation: how tokens are chosen.
    """

    def __init__(
        self,
        family: Family,
        model: PreTrainedModel,
        store: FeatureStore,
        examples: Sequence[Example],
        generation: Generation,
    ) -> None:
        self.family, self.model, self.store = family, model, store
        self.examples, self.generation = examples, generation
        self.before: list[str] = []
        self.found: list[Sample] = []

    def look(self) -> list[Sample]:
        """Caption the clips as the model is now; the first time is before training."""
        made = [self._caption(example) for example in self.examples]
        self.before = self.before or [text for text, _ in made]
        self.found = [
            Sample(chosen.clip, chosen.prompt, before, text, chosen.caption, flags)
            for chosen, before, (text, flags) in zip(
                (example.chosen for example in self.examples), self.before, made, strict=True
            )
        ]
        return self.found

    def _caption(self, example: Example) -> tuple[str, tuple[str, ...]]:
        features = clip_tensors(self.store.read(example.chosen.feature_key))
        prompt = {name: each[: example.prompt_length] for name, each in example.sequences.items()}
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            [tokens] = generate(
                self.model, self.family, [PromptRow(features, prompt)], self.generation
            )
        self.model.train(was_training)
        ended = bool(tokens) and tokens[-1] in self.family.stop_ids
        kept = tokens[:-1] if ended else tokens
        text = self.family.text_of(kept)
        return text, flags_of(text, kept, ended=ended)

    def lines(self) -> list[str]:
        """Return the newest captions for a reader."""
        lines = []
        for each in self.found:
            flags = f" ({', '.join(each.flags)})" if each.flags else ""
            lines += [
                f"  {each.clip}: {each.prompt}",
                f"    before: {each.before}",
                f"    now:    {each.now}{flags}",
                f"    wanted: {each.wanted}",
            ]
        return lines

    def rows(self) -> list[dict[str, Any]]:
        """Return the newest captions for the catalog."""
        return [asdict(each) for each in self.found]

    def flag_rates(self) -> dict[str, float]:
        """Return the share of the newest captions that bear each flag."""
        names = {flag for each in self.found for flag in each.flags}
        return {
            name: sum(name in each.flags for each in self.found) / len(self.found)
            for name in sorted(names)
        }
