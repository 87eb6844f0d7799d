"""What a teacher thinks at each place of a caption: its likeliest tokens, sealed in files.

The probabilities are those after the softmax over the whole vocabulary. What the kept tokens leave
over is kept too, as one number, so that a comparison with a student never comes out negative.

Imported where models run; it needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cogcache.keys import Field, digest
from cogcache.models import raised_products
from cogcache.store import FeatureStore
from cogcache.system import CachePaths
from cogcache.training.batches import cut
from cogcache.training.examples import Example
from cogcache.training.loss import Batch, Collator, logits_of, token_losses

EPOCH: Final = 1
"""Part of the key; raised whenever the content of these files changes."""
_LEAST: Final = 1e-8
"""Smaller probabilities are raised to this: the logarithm of 0 is not finite."""


@dataclass(frozen=True, slots=True, eq=False)
class Thoughts:
    """What a teacher thinks at the L places of a caption.

    Args:
        ids: its likeliest tokens, best first. int32 [L, K].
        log_probabilities: of these, after the softmax over all. float32 [L, K].
    """

    ids: Tensor
    log_probabilities: Tensor

    @property
    def covered(self) -> float:
        """Share of the probability that the kept tokens have, over all places."""
        return float(self.log_probabilities.exp().sum(-1).mean())


@dataclass
class Teacher:
    """The thoughts of one teacher about the captions of a cache.

    Args:
        cache: folder of the cache.
        depends_on: the teacher's digest, its precision, and whatever else its thoughts depend on.
    """

    cache: Path
    depends_on: Mapping[str, Field]
    _store: FeatureStore = field(init=False)

    def __post_init__(self) -> None:
        self._store = FeatureStore.create_or_open(CachePaths(self.cache).teachers)

    def key(self, example: Example) -> str:
        """Return the name under which the thoughts about a caption are kept."""
        fields = {**self.depends_on, "epoch": EPOCH, "content": example.chosen.content}
        return digest({**fields, "tokens": digest({"ids": example.answer})})

    def knows(self, example: Example) -> bool:
        """Say whether the probabilities for a caption are stored."""
        return self.key(example) in self._store

    def read(self, example: Example) -> Thoughts:
        """Return the thoughts about a caption.

        Raises:
            CacheError: they are not there, or damaged.
        """
        tensors = self._store.read(self.key(example)).tensors
        return Thoughts(tensors["ids"], tensors["log_probabilities"])

    def think(
        self, model: PreTrainedModel, collate: Collator, examples: Sequence[Example], tokens: int
    ) -> Iterator[float]:
        """Keep the thoughts about captions, and yield the share that was kept of each.

        Args:
            model: the teacher's language half.
            collate: makes batches.
            examples: the captions.
            tokens: most of a batch.
        """
        top_k = min(int(str(self.depends_on["top_k"])), _vocabulary(model))
        ordered = sorted(examples, key=lambda example: example.length)
        for some in cut([each for each in ordered if not self.knows(each)], tokens):
            batch = collate.batch(some)
            with torch.inference_mode(), raised_products(model):
                thoughts = torch.log_softmax(logits_of(model, batch).float(), dim=-1).topk(top_k)
            for index, example in enumerate(some):
                places = batch.labels[index] >= 0
                kept = Thoughts(
                    thoughts.indices[index, places].int().cpu(),
                    thoughts.values[index, places].cpu(),
                )
                self._seal(example, kept)
                yield kept.covered

    def _seal(self, example: Example, kept: Thoughts) -> None:
        tensors = {"ids": kept.ids, "log_probabilities": kept.log_probabilities}
        about: dict[str, Field] = {"caption": example.chosen.caption_key, **self.depends_on}
        self._store.write(self.key(example), tensors, about)


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)


def divergence(logits: Tensor, thoughts: Thoughts) -> Tensor:
    """Return how far a student is from its teacher at each place: KL, never negative. float32 [L].

    All tokens that were not kept count as one.

    Args:
        logits: the student's, over the whole vocabulary. [L, V].
        thoughts: the teacher's.
    """
    ids = thoughts.ids.long().to(logits.device)
    teacher = thoughts.log_probabilities.to(logits.device)
    student = torch.log_softmax(logits.float(), dim=-1).gather(-1, ids)
    rest_teacher = (1 - teacher.exp().sum(-1)).clamp(min=_LEAST)
    rest_student = (1 - student.exp().sum(-1)).clamp(min=_LEAST)
    kept = (teacher.exp() * (teacher - student)).sum(-1)
    return (kept + rest_teacher * (rest_teacher.log() - rest_student.log())).clamp(min=0)


@dataclass(frozen=True)
class Distilled:
    """The loss of a student: its captions' and its teacher's part, mixed.

    Args:
        teacher: has thought about the captions.
        weight: of the teacher's part, 0 to 1.
    """

    teacher: Teacher
    weight: float

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each token. float32 [B, K]."""
        captions = token_losses(logits, batch.labels)
        if not self.weight:
            return captions
        taught = torch.zeros_like(captions)
        for index, example in enumerate(batch.examples):
            places = batch.labels[index] >= 0
            taught[index, places] = divergence(logits[index, places], self.teacher.read(example))
        return (1 - self.weight) * captions + self.weight * taught
