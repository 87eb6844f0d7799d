"""What `--quantization auto` stands for: the kind that is there already, or the machine's fastest.

bitsandbytes multiplies NF4 in 4 bits on GPUs and with AVX512-BF16; elsewhere it dequantises a
weight for each product, which takes some 25 times as long as torch's product for int4. int4 in
groups of 64 takes 6 % more memory than NF4: what memory allows decides nothing between the two.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cogcache.models.checkpoints.checkpoint import SplitCheckpoint
from cogcache.models.quantization.layers import Kind, Quantization, group_size_for
from cogcache.models.quantization.timing import product_times_s
from cogcache.settings import Language, Settings
from cogcache.system import pick_device, processor

if TYPE_CHECKING:
    from cogcache.models.family import Family

CHOICES: tuple[Kind, ...] = ("nf4", "int4")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MadeWith:
    """What the captions of a cache were made in."""

    captions: Mapping[str, int]
    """Their number by kind."""
    group_size: int | None = None
    """Of those in int4."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What `auto` stands for here, and why."""

    settings: Settings
    """With the kind in place of `auto`."""
    reason: str = ""
    """Empty where nothing was to be chosen."""
    is_worth_saying: bool = False
    """Whether it is not what everybody has, or costs something."""
    is_untried: bool = False
    """Whether it is a cache's int4, of which it was not asked if it runs here."""

    def say(self) -> None:
        """Log which kind it is and why; for all to see where that is worth it."""
        if self.reason:
            level = logging.INFO if self.is_worth_saying else logging.DEBUG
            kind = self.settings.language.quantization
            logger.log(level, "--quantization auto is %s here: %s", kind, self.reason)


def choose_quantization(
    settings: Settings,
    family: Family,
    made: MadeWith | None = None,
    *,
    will_run: bool = True,
    prepare: Callable[[], None] | None = None,
) -> Choice:
    """Return settings with a kind in place of `auto`; others as they are.

    A split goes on with the kind that it holds, a cache with the one that its captions were made
    in, and all else with what is fastest on this machine; vLLM is given the weights as they are.

    Args:
        settings: of the run.
        family: of the checkpoint.
        made: what the cache's captions were made in; None where there is no cache.
        will_run: whether captions are to be made. To list those of a cache in int4 it is not asked
            whether this machine has products for them: that takes torch.
        prepare: is called before torch is needed.
    """
    if settings.language.quantization != "auto":
        return Choice(settings)
    if settings.inference.is_vllm:
        return _with(settings, {"quantization": "none"}, "--backend vllm quantises nothing")
    made = made or MadeWith({})
    if (held := _of_split(settings, family)) is not None:
        return held
    kind = _most_used(made)
    if prepare is not None and (kind is None or (kind == "int4" and will_run)):
        prepare()
    choice = _of_cache(settings, made) or _of_machine(settings, family)
    return runnable(settings, choice) if will_run else choice


def runnable(settings: Settings, choice: Choice) -> Choice:
    """Return NF4 in place of a cache's int4 that this machine has no product for.

    Args:
        settings: as they were, with `auto`.
        choice: made for them.
    """
    if not choice.is_untried or (why_not := _why_no_int4(settings)) is None:
        return choice
    reason = f"{choice.reason}, but {why_not}: all captions are made anew"
    return _with(settings, {"quantization": "nf4"}, reason, is_worth_saying=True)


def _of_split(settings: Settings, family: Family) -> Choice | None:
    if not isinstance(family.checkpoint, SplitCheckpoint):
        return None
    if (held := family.checkpoint.manifest.quantized) is None:
        return None
    names = {"kind": "quantization", "group_size": "group_size", "double_quant": "double_quant"}
    # What was asked for by name stays: the stage refuses a split that holds something else.
    asked = {name for name in names.values() if _is_asked(settings.language, name)}
    known = {name: held.settings.get(of_key) for of_key, name in names.items() if name not in asked}
    return _with(settings, known, "the split checkpoint holds it")


def _is_asked(language: Language, name: str) -> bool:
    default = type(language).model_fields[name].default
    return name != "quantization" and getattr(language, name) != default


def _of_cache(settings: Settings, made: MadeWith) -> Choice | None:
    """Go on with the kind of most captions that `auto` can have chosen."""
    if (kind := _most_used(made)) is None:
        return None
    there = f"{made.captions[kind]:,} captions of the cache are in {kind}"
    if kind == "nf4":
        return _with(settings, {"quantization": kind}, there)
    chosen = _with(settings, {"quantization": kind, "group_size": made.group_size}, there)
    return replace(chosen, is_untried=True)


def _most_used(made: MadeWith) -> Kind | None:
    kinds = [kind for kind in CHOICES if made.captions.get(kind)]
    return max(kinds, key=lambda kind: made.captions[kind], default=None)


def cost_of_going_on(settings: Settings, choice: Choice) -> Choice:
    """Add to a choice of NF4 what it costs, where int4 would be faster; takes a second there.

    Args:
        settings: as they were, with `auto`.
        choice: made for them.
    """
    is_nf4 = choice.settings.language.quantization == "nf4"
    if not (is_nf4 and choice.reason) or _fastest_is_known(settings) or _why_no_int4(settings):
        return choice
    times = product_times_s(CHOICES)
    if times["nf4"] <= times["int4"]:
        return choice
    factor = times["nf4"] / times["int4"]
    cost = f"going on with it costs time, {factor:.0f} times as much for a product of one row as "
    cost += f"int4 here ({processor().level}); --quantization int4 makes all captions anew"
    return Choice(choice.settings, f"{choice.reason}; {cost}", is_worth_saying=True)


def _of_machine(settings: Settings, family: Family) -> Choice:
    if (why_not := _why_no_int4(settings)) is not None:
        return _with(settings, {"quantization": "nf4"}, why_not)
    level = processor().level
    if _fastest_is_known(settings):
        return _with(settings, {"quantization": "nf4"}, f"it is fast on this processor ({level})")
    if processor().capability != "AVX2":
        times = product_times_s(CHOICES)
        if times["nf4"] <= times["int4"]:
            reason = f"its products are the faster ones on this processor ({level})"
            return _with(settings, {"quantization": "nf4"}, reason)
    reason = f"without AVX-512 its products are the fastest of 4 bits (this processor: {level})"
    known = {"quantization": "int4", "group_size": _group_size(settings, family)}
    return _with(settings, known, reason, is_worth_saying=True)


def _fastest_is_known(settings: Settings) -> bool:
    """Say whether NF4 is what is taken without a question: on GPUs, and where AVX-512 is."""
    return pick_device(settings.device) != "cpu" or processor().has_avx512


def _why_no_int4(settings: Settings) -> str | None:
    from cogcache.models.quantization.int4_products import has_operators

    if (device := pick_device(settings.device)) != "cpu":
        return f"int4 runs on CPUs alone, and the device is {device}"
    if (dtype := settings.language.compute_dtype) != "bfloat16":
        return f"int4 has no products in {dtype}"
    return None if has_operators() else "this torch has no product for int4"


def _group_size(settings: Settings, family: Family) -> int:
    """Return the group size that is set, or the largest below it that leaves no layer out."""
    from cogcache.models.halves.load import WholeModel

    overrides = family.config_overrides(settings.language)
    meta = WholeModel.of(family.checkpoint, **overrides).meta
    size = settings.language.group_size
    return group_size_for(meta, Quantization(kind="int4", group_size=size))


def _with(
    settings: Settings, known: Mapping[str, object], reason: str, *, is_worth_saying: bool = False
) -> Choice:
    update = {name: value for name, value in known.items() if value is not None}
    language: Language = settings.language.model_copy(update=update)
    return Choice(settings.model_copy(update={"language": language}), reason, is_worth_saying)
