"""The language half in memory: loaded for the first rows, offloaded more when memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cogcache.errors import CogcacheError
from cogcache.generation import Batches
from cogcache.planning import LanguageChoice
from cogcache.stages.captioning.stage_two import StageTwo
from cogcache.stages.runs.report import RunReport
from cogcache.units import GIB

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from cogcache.generation import Decoder, KeptPrefixes
    from cogcache.keys import Field
    from cogcache.models import PromptRow
    from cogcache.planning import Fitted, LanguageLoader


@dataclass
class LanguageHalf:
    """The language half, and the decoder that turns rows into tokens.

    Args:
        stage: device, precision and batch; the checkpoint and its language half.
        report: gets the plan, the bytes read, the quantisation and notes.
    """

    stage: StageTwo
    report: RunReport

    def __post_init__(self) -> None:
        self.kept: KeptPrefixes | None = None
        self._loader: LanguageLoader | None = None
        self._half: Fitted[LanguageChoice] | None = None
        self._decoder: Decoder | Batches | None = None
        self._earlier: list[str] = []

    @property
    def model(self) -> PreTrainedModel:
        """The model, once it is loaded."""
        assert self._half is not None
        return self._half.model

    @property
    def decoder(self) -> Decoder | Batches:
        """What turns rows into tokens, once the half is loaded."""
        assert self._decoder is not None
        return self._decoder

    def load(self, row_tokens: int) -> Decoder | Batches:
        """Load the half on the first call, and return its decoder.

        Args:
            row_tokens: of the longest row so far, before its caption; clips come longest first.
        """
        from cogcache.planning import Fitted, LanguageLoader

        if self._half is None:
            self._loader = LanguageLoader(self.stage.family, self.stage.settings, row_tokens)
            self._half = Fitted(self._loader, self.report.note_load)
        if self._decoder is None:
            self._decoder = self._decoder_of(self._half)
        return self._decoder

    def plan_for(self, row_tokens: int) -> None:
        """Correct the plan for a longer row: clips come longest first, but prompts may not."""
        if self._half and self._loader and row_tokens > self._loader.row_tokens:
            self._loader.row_tokens = row_tokens
            self.report.planned = self._loader.planned(self._half.choice)

    def make_room(self) -> bool:
        """Offload more of the half; False where all of it is offloaded already.

        Raises:
            CogcacheError: memory runs out while it loads again.
        """
        assert self._half is not None
        if self._half.loader.less(self._half.choice) is None:
            return False
        self._earlier += self.decoder.statistics.lines()
        self._decoder = None  # nobody else may hold the model
        if not self._half.make_room():
            raise CogcacheError("memory runs out while weights load", "give the stage more memory")
        self._decoder = self._decoder_of(self._half)
        return True

    def log_probabilities(self, row: PromptRow, clip: str, tokens: Sequence[int]) -> Tensor:
        """Return what is expected at each place of a caption, and behind it."""
        from cogcache.generation import log_probabilities

        return log_probabilities(self.model, self.stage.family, row, tokens)

    def measure(self) -> None:
        """Nothing to do: who measures this process measures the half."""

    def close(self) -> None:
        """Nothing to do: the model is in this process."""

    def lines(self) -> list[str]:
        """Return what a reader of the report wants to know of decoding."""
        lines = self._decoder.statistics.lines() if self._decoder else []
        return self._earlier + lines + (self.kept.lines() if self.kept else [])

    def _decoder_of(self, half: Fitted[LanguageChoice]) -> Decoder | Batches:
        """Return the decoder for a half, and note where prompts cannot share a prefix."""
        from cogcache.generation import Decoder, can_decode

        rows, beams = half.choice.clips_per_batch, self.stage.settings.generation.num_beams
        rows = self.stage.family.rows_together(rows, beams)
        if beams == 1 and can_decode(half.model):
            self.kept = self.kept or self._kept_prefixes(half.model.device.type)
            return Decoder(half.model, self.stage.family, self._rows(half, rows), self.kept)
        reason = "beams" if beams > 1 else "layers that do not keep all keys"
        kept = ", and --keep-prefix keeps none" if self.stage.settings.language.keep_prefix else ""
        self.report.notes.append(f"prompts of a clip share no prefill: {reason}{kept}")
        return Batches(half.model, self.stage.family, rows)

    def _rows(self, half: Fitted[LanguageChoice], most: int) -> int:
        """Return the fastest number of rows a step, of those that there is room for."""
        from cogcache.generation import rows_a_step

        rows = rows_a_step(half.model, most, self._model_fields())
        if rows < most:
            self.report.notes.append(f"{rows} rows a step are faster here than up to {most}")
        return rows

    def _model_fields(self) -> dict[str, Field]:
        """Return the fields of a caption's key that say which model, in which precision."""
        key = self.stage.key("", 0, "").fields()
        names = ("language_digest", "quantization", "rotary_dtype", "epoch")
        return {name: key[name] for name in names}

    def _kept_prefixes(self, device: str) -> KeptPrefixes | None:
        """Return where video parts are kept; they depend on weights and types, on no prompt."""
        from cogcache.generation import KeptPrefixes

        language, limits = self.stage.settings.language, self.stage.settings.limits
        if language.keep_prefix is None:
            return None
        depends_on = {**self._model_fields(), "device": device}
        return KeptPrefixes(Path(language.keep_prefix), depends_on, limits.min_free_gib * GIB)
