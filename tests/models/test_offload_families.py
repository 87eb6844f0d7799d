"""What waits elsewhere changes no bit: features and logits of every family, in every precision."""

from __future__ import annotations

import pytest
import torch
import zoo
import zoo_wide
from contracts import QUESTIONS, Lab
from torch import Tensor
from zoo import Animal

from cogcache.models.halves.load import LoadedHalf, load_half
from cogcache.models.halves.offload import Offload
from cogcache.models.halves.sizes import embedding_can_wait
from cogcache.models.halves.waiting import Parked
from cogcache.models.quantization.layers import Quantization
from cogcache.models.registry import FAMILIES

ANIMALS = {
    animal.name: animal
    for module in (zoo, zoo_wide)
    for animal in vars(module).values()
    if isinstance(animal, Animal)
}
SUPPORTED = sorted({entry.name for entry in FAMILIES} & {*ANIMALS})
PRECISIONS = {
    "none": Quantization(kind="none"),
    "nf4, head in nf4": Quantization(head="nf4"),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


@pytest.fixture(scope="module", params=SUPPORTED)
def lab(request, tmp_path_factory) -> Lab:
    return Lab(ANIMALS[request.param], tmp_path_factory.mktemp(request.param))


def encoded(lab: Lab, loaded: LoadedHalf) -> list[dict[str, Tensor]]:
    prepared = [lab.family.prepare(frames, torch.bfloat16) for frames in lab.clips]
    return [dict(each.tensors) for each in lab.family.encode(loaded.model, prepared, 48)]


def logits(lab: Lab, loaded: LoadedHalf) -> list[Tensor]:
    model, found = loaded.model, []
    for frames in lab.clips:
        row = lab.family.row(lab.features(frames, "bfloat16"), QUESTIONS[0], "")
        with torch.inference_mode():
            found.append(model(**lab.family.model_inputs([row], model)).logits)
    return found


def equal(found: list[dict[str, Tensor]], wanted: list[dict[str, Tensor]]) -> bool:
    return len(found) == len(wanted) and all(
        torch.equal(one[name], other[name])
        for one, other in zip(found, wanted, strict=True)
        for name in other
    )


def fetched(loaded: LoadedHalf) -> int:
    """Count the blocks that wait, by accelerate's hooks or by ours."""
    hooks = [getattr(module, "_hf_hook", None) for module in loaded.model.modules()]
    return sum(isinstance(hook, Parked) or bool(getattr(hook, "offload", False)) for hook in hooks)


def test_features_are_those_of_the_resident_half(lab):
    offloaded = load_half(lab.whole, "vision", offload=Offload(0))
    assert fetched(offloaded)
    resident = load_half(lab.whole, "vision")
    assert equal(encoded(lab, offloaded), encoded(lab, resident))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_those_of_the_resident_half(lab, precision):
    quantization, waits = PRECISIONS[precision], embedding_can_wait(lab.whole.meta)
    assert waits
    arguments = {"quantization": quantization}
    resident = logits(lab, load_half(lab.whole, "language", **arguments))
    one_stays = load_half(lab.whole, "language", offload=Offload(1, waits), **arguments)
    assert fetched(one_stays)
    found = logits(lab, one_stays)
    assert all(torch.equal(one, other) for one, other in zip(found, resident, strict=True))


def test_every_animal_of_a_supported_family_is_tried():
    assert {entry.name for entry in FAMILIES} - {*ANIMALS} <= {"cogvlm2"}
