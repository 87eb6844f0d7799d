"""What captions depend on beside clip and prompt: one object for a whole run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cogcache.keys import CaptionKey, Field
from cogcache.models import Family, HalfIdentity, Quantization, stored_method
from cogcache.settings import Generation, Settings
from cogcache.settings import json_schema as schemas


@dataclass(frozen=True)
class StageTwo:
    """The settings, the checkpoint and its language half, as a run of stage two uses them.

    The catalog is no part of it: workers that have none make captions, too.
    """

    settings: Settings
    family: Family
    """Of the checkpoint, at the cache point."""
    identity: HalfIdentity
    """Of the language half, with its adapter."""

    def key(self, feature_key: str, draw: int, prompt: str) -> CaptionKey:
        """Return the key of one caption.

        Args:
            feature_key: of the clip.
            draw: the number among captions of one clip with one prompt.
            prompt: as it is asked, variables filled in.
        """
        language = self.settings.language
        return CaptionKey(
            feature_key=feature_key,
            language_digest=self.identity.digest,
            quantization=self._precision(),
            prompt=prompt,
            layout=self.family.layout(language),
            generation=_generation(self.settings.generation, draw),
            rotary_dtype=language.rotary_dtype,
            epoch=self.family.layout_epoch,
        )

    def _precision(self) -> dict[str, Field]:
        """Return the kind of weights, and who computes with them where it is not transformers."""
        fields: dict[str, Field] = {**Quantization.of(self.settings.language).fields()}
        if not self.settings.inference.is_vllm:
            return fields
        stored = stored_method(self.family.checkpoint)
        return fields | {"backend": "vllm"} | ({"kind": stored} if stored else {})

    def around(self) -> Callable[[str], str]:
        """Return what puts the system prompt, where there is one, before each prompt.

        Raises:
            ConfigError: the family has no system prompts, or takes no such prompt as there is.
        """
        for prompt in self.settings.prompts.values():
            self.family.check_prompt(prompt)
        if (system := self.settings.language.system) is None:
            return str
        self.family.with_system(system, "?")  # before any clip: it may refuse
        return partial(self.family.with_system, system)


def _generation(generation: Generation, draw: int) -> dict[str, Field]:
    """Return the fields of a key: as they always were, where nothing newer is made use of."""
    # How many are drawn is no property of one of them.
    fields: dict[str, Field] = generation.model_dump(exclude={"n"})
    stops = list(generation.stop)
    fields["stop"] = stops if len(stops) > 1 else stops[0] if stops else None
    if (schema := fields.pop("json_schema")) is not None:
        fields["json_schema"] = schemas.digest(str(schema))
    return {**fields, "draw": draw}
