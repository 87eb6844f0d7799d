"""A batch of captions as the model takes it, and the loss on their tokens alone.

Imported where models are trained; it needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cogcache.generation import take_positions
from cogcache.models import ClipTensors, Family, PromptRow
from cogcache.store import FeatureStore
from cogcache.training.examples import Example, as_row, clip_tensors

IGNORED = -100
"""A label that says that nothing is to be learnt at a place; torch's own number for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some captions, ready for the model.

    Args:
        inputs: arguments of the model's forward pass, positions among them.
        places: where logits are wanted: before each label of any row. int64 [K].
        labels: the next token at each of these places, -100 where none is learnt. int64 [B, K].
        examples: what the rows are.
    """

    inputs: dict[str, Any]
    places: Tensor
    labels: Tensor
    examples: Sequence[Example]


@dataclass(frozen=True)
class Collator:
    """Makes batches: features from the store, rows filled up on the right, positions given.

    Args:
        family: lays rows out.
        model: the language half; it says where tokens stand.
        store: has the features.
    """

    family: Family
    model: PreTrainedModel
    store: FeatureStore

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return a batch as transformers' Trainer hands it on."""
        batch = self.batch(examples)
        return {"batch": batch, "labels": batch.labels}

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Read the features of some examples and lay them out together."""
        read = {each.chosen.feature_key: None for each in examples}
        features = {key: clip_tensors(self.store.read(key)) for key in read}
        return self.laid_out(examples, [features[each.chosen.feature_key] for each in examples])

    def laid_out(self, examples: Sequence[Example], features: Sequence[ClipTensors]) -> Batch:
        """Lay out some examples whose features are at hand."""
        width = max(example.length for example in examples)
        pairs = list(zip(examples, features, strict=True))
        rows = [as_row(example, clip, width, self.family.pad_id) for example, clip in pairs]
        inputs = self.family.model_inputs(rows, self.model)
        mask = inputs["attention_mask"]
        for index, example in enumerate(examples):
            mask[index, example.length :] = 0
        alone = [PromptRow(clip, example.sequences) for example, clip in pairs]
        inputs["position_ids"] = self._positions(alone, width).to(mask.device)
        places, labels = _labels(examples, width)
        return Batch(inputs, places.to(mask.device), labels.to(mask.device), examples)

    def _positions(self, rows: Sequence[PromptRow], width: int) -> Tensor:
        """Return where tokens stand, as stage two has it of each row alone. [..., B, L]."""
        found = []
        for row in rows:
            inputs = self.family.model_inputs([row], self.model)
            positions = take_positions(inputs, self.model)
            missing = width - positions.shape[-1]
            found.append(nn.functional.pad(positions, (0, missing), value=0))
        return torch.cat(found, dim=-2)


def _labels(examples: Sequence[Example], width: int) -> tuple[Tensor, Tensor]:
    """Return the places before the tokens that are learnt, and these tokens."""
    next_ids = torch.full((len(examples), width), IGNORED)
    for index, example in enumerate(examples):
        # By place, not by id: where padding and the end are one token, the end is learnt too.
        start, end = example.prompt_length, example.length
        next_ids[index, start - 1 : end - 1] = example.sequences["input_ids"][start:end]
    places = (next_ids != IGNORED).any(dim=0).nonzero()[:, 0]
    return places, next_ids[:, places]


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits at the places of a batch's labels, and nowhere else. [B, K, V]."""
    output = model(**batch.inputs, use_cache=False, logits_to_keep=batch.places)
    logits: Tensor = output.logits
    # Some classes take no `logits_to_keep` and give logits everywhere, the prompt included.
    return logits if logits.shape[1] == len(batch.places) else logits[:, batch.places]


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each label in float32, 0 where nothing is learnt. [B, K]."""
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(labels.shape)
