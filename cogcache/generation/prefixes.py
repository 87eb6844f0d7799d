"""A clip's video part: how far it goes, who shares it, and how its keys and values are got.

    the system prompt, once a run → the rest up to the end of the video, once a clip

Imported where rows are decoded; it needs torch and transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from cogcache.generation.kv_cache import Prefix
from cogcache.generation.prefix_files import KeptPrefixes
from cogcache.generation.requests import Request, Statistics, laid_out
from cogcache.models import Family, raised_products

FEWEST_SHARED = 4
"""A text before the video that is shorter than this is not worth a pass of its own."""
MOST_HEADS = 8
"""Different texts before the video that are remembered; a run has one or two."""


class Prefixes:
    """Makes prefixes, or reads them where they were kept.

    Args:
        model: the language half, or the whole model.
        family: lays rows out.
        statistics: is told what was prefilled.
        kept: where prefixes are kept between runs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        statistics: Statistics,
        kept: KeptPrefixes | None = None,
    ) -> None:
        self.model, self.family, self.statistics, self.kept = model, family, statistics, kept
        self.heads: list[tuple[Mapping[str, Tensor], Prefix]] = []

    def of(self, request: Request) -> Prefix:
        """Return the keys and values of everything up to the end of the request's video."""
        if self.kept is None or not request.row.features.tensors:
            return self._computed(request)
        tokens = prefix_digest(request, self.family)
        if found := self.kept.read(request.clip, tokens, self.model.device):
            return found
        prefix = self._computed(request)
        self.kept.keep(request.clip, tokens, prefix)
        return prefix

    def _computed(self, request: Request) -> Prefix:
        inputs, positions = laid_out(request, self.family, self.model)
        cut, head = cut_of(request, self.family), self._head(request, inputs, positions)
        start = head.length if head else 0
        for name in request.row.sequences:
            inputs[name] = inputs[name][:, start:cut]
        inputs["attention_mask"] = inputs["attention_mask"][:, :cut]
        cache = head.for_rows() if head else DynamicCache(config=self.model.config)
        output = forward(self.model, cache, position_ids=positions[..., start:cut], **inputs)
        self.statistics.prefixes += bool(request.row.features.tensors)  # words alone have none
        self.statistics.prefix_tokens += cut - start
        prefix = Prefix.of(output.past_key_values)
        return prefix.behind(head) if head else prefix

    def _head(
        self, request: Request, inputs: dict[str, Tensor], positions: Tensor
    ) -> Prefix | None:
        """Return what stands before the video, as far as another clip had it; None if too little.

        What stands before the video sees nothing of it, so that it is the same for all clips.
        """
        length = self.family.head_length(request.row)
        if length < FEWEST_SHARED:
            return None
        own = {name: values[:length] for name, values in request.row.sequences.items()}
        common, head = max(
            ((_common(own, its), of) for its, of in self.heads),
            key=itemgetter(0),
            default=(0, None),
        )
        if head is None or common < FEWEST_SHARED:
            given = {name: inputs[name][:, :length] for name in (*own, "attention_mask")}
            cache = DynamicCache(config=self.model.config)
            output = forward(self.model, cache, position_ids=positions[..., :length], **given)
            common, head = length, Prefix.of(output.past_key_values)
            self.heads = [*self.heads[1 - MOST_HEADS :], (own, head)]
            self.statistics.heads += 1
        return head.first(common)


def forward(model: PreTrainedModel, cache: Cache, **inputs: Any) -> Any:
    """Run the model on top of a cache; only the last position has logits."""
    with raised_products(model, inputs["input_ids"].numel()):
        return model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)


def cut_of(request: Request, family: Family) -> int:
    """Return where the prefix ends: behind the video, but never behind the last token."""
    row = request.row
    shared = family.prefix_length(row) or row.length
    return min(shared, row.length - 1)


def prefix_digest(request: Request, family: Family) -> str:
    """Return the SHA-256 of all that a row has up to the end of the video, features left out."""
    return _digest(request, cut_of(request, family))


def sharing(group: Sequence[Request], family: Family) -> list[list[Request]]:
    """Split a clip's requests into those that have the same tokens up to the end of the video."""
    found: dict[str, list[Request]] = {}
    for request in group:
        found.setdefault(prefix_digest(request, family), []).append(request)
    return list(found.values())


def _common(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> int:
    """Return how many tokens two texts have in common, from the first on."""
    length = min(len(values) for each in (some, others) for values in each.values())
    differ = [(some[name][:length] != others[name][:length]).nonzero() for name in some]
    return min([length, *(int(places.min()) for places in differ if len(places))])


def _digest(request: Request, length: int) -> str:
    found = hashlib.sha256(str(length).encode())
    for name, values in sorted(request.row.sequences.items()):
        found.update(name.encode())
        found.update(values[:length].numpy().tobytes())
    return found.hexdigest()
