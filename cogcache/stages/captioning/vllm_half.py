"""The language half in vLLM's worker: what can be asked of it, how it is started, what it told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogcache.errors import CacheError, ClipError, ConfigError, FeaturesError, QuantizationError
from cogcache.generation import View, VllmDecoder, check_backend, opening_of
from cogcache.models import stored_method
from cogcache.settings import Language
from cogcache.stages.captioning.stage_two import StageTwo
from cogcache.stages.runs.report import RunReport
from cogcache.store import FeatureStore
from cogcache.system import MemorySample, Scratch
from cogcache.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from cogcache.models import PromptRow
    from cogcache.planning import StagePlan


def held_by(language: Language, stored: str | None, facts: dict[str, Any], read_bytes: int) -> str:
    """Say how the worker holds the language half, and check what was asked for.

    Raises:
        QuantizationError: it holds layers in another way.
    """
    kind, layers = stored or language.quantization, facts["layers"]
    told = ", ".join(f"{count} layers by {how}" for how, count in layers.items())
    if kind == "none":
        size = format_bytes(read_bytes)
        return f"language half not quantised, in {language.compute_dtype}, {size} read; {told}"
    plain = [how for how in layers if how.startswith("Unquantized")]
    if len(plain) == len(layers) or (kind == "int8" and [*layers] != ["Int8Linear, int8"]):
        problem = f"vLLM holds the language half otherwise than in {kind}: {told}"
        raise QuantizationError(problem, "leave --quantization out")
    error = facts["weight_error"]
    checked = f"weight error at most {error:.4f}" if error else "vLLM tells no more of it"
    return f"{kind} by vLLM: {told}; {checked}; {format_bytes(read_bytes)} read"


@dataclass(frozen=True)
class LocalFiles:
    """Feature files that the worker reads itself; see `cogcache.generation.Files`."""

    store: FeatureStore

    def path_of(self, key: str) -> Path:
        """Return where a feature file lies."""
        path = self.store.path_of(key)
        assert isinstance(path, Path)  # a cache in an object store was refused
        return path

    def refused(self, key: str, reason: str, problem: str) -> ClipError:
        """Return why a clip has no captions; a damaged file is moved to the quarantine."""
        hint = "run `cogcache extract` again: it makes the clip anew"
        if key not in self.store:
            return FeaturesError("features_missing", f"the feature file {key} is gone", hint)
        path = self.store.path_of(key)
        if reason != "damaged":
            raise CacheError(f"{path} cannot be read: {problem}", "see that its disk is there")
        moved = self.store.quarantine(key, f"{path} is damaged: {problem}")
        return FeaturesError(
            "features_corrupt", f"{path} is damaged: {problem}; moved to {moved}", hint
        )


@dataclass
class VllmHalf:
    """Stands where `LanguageHalf` does: loads when the first clip comes, and has a decoder.

    Args:
        stage: settings and checkpoint.
        report: gets the bytes read, the versions, the memory.
        store: where the worker finds features.
    """

    stage: StageTwo
    report: RunReport
    store: FeatureStore
    kept: None = None
    _scratch: Scratch | None = None
    _decoder: VllmDecoder | None = None
    _notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_backend(self.stage.settings, self.stage.family)
        if self.store.features is not None:
            problem = f"{self.store.root} keeps its features in {self.store.features}"
            hint = "--backend vllm reads feature files of this machine alone: leave it out"
            raise ConfigError(problem, hint)

    @property
    def model(self) -> PreTrainedModel:
        """Nothing: the model is in the worker.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("with --backend vllm there is no model in this process")

    @property
    def decoder(self) -> VllmDecoder:
        """What turns rows into tokens, once the half is loaded."""
        assert self._decoder is not None
        return self._decoder

    def load(self, row_tokens: int) -> VllmDecoder:
        """Start the worker on the first call, and return the decoder.

        Args:
            row_tokens: of the longest row so far, before its caption.
        """
        if self._decoder is None:
            settings, family = self.stage.settings, self.stage.family
            view = View.of(family, settings.language)
            self._scratch = Scratch()
            view.write(self._scratch.path)
            opening = opening_of(settings, self._scratch.path)
            context = view.config.get("max_position_embeddings")
            self._decoder = VllmDecoder(opening, family, LocalFiles(self.store), context)
            with self.report.timings.time("load"):
                self._decoder.open(row_tokens + settings.generation.max_new_tokens)
            self._take_over(view, self._decoder.facts)
            if stored_method(family.checkpoint) is None:
                self.report.planned = self._planned(self._decoder.facts, row_tokens)
        return self._decoder

    def plan_for(self, row_tokens: int) -> None:
        """Nothing: a worker that has no room for a row is started anew with more."""

    def make_room(self) -> bool:
        """Return False: vLLM keeps within its memory by itself."""
        return False

    def lines(self) -> list[str]:
        """Return what a reader of the report wants to know of decoding."""
        return self._decoder.lines() if self._decoder else []

    def log_probabilities(self, row: PromptRow, clip: str, tokens: Sequence[int]) -> Tensor:
        """Return what is expected at each place of a caption, and behind it."""
        from cogcache.generation import vllm_log_probabilities

        return vllm_log_probabilities(self.decoder, row, clip, tokens)

    def measure(self) -> None:
        """Put the most memory that the worker held so far into the report."""
        if (decoder := self._decoder) is not None:
            decoder.measure()
            host, device = decoder.peaks.host_bytes, decoder.peaks.device_bytes
            self.report.workers_peak = MemorySample(
                anonymous_bytes=host, device_bytes=device, reserved_bytes=device
            )

    def close(self) -> None:
        """End the worker, and take over the memory that it held."""
        if self._decoder is not None:
            self._decoder.close()
            self.measure()
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def _planned(self, facts: dict[str, Any], row_tokens: int) -> StagePlan:
        from cogcache.planning import VllmMemory

        settings, on_device = self.stage.settings, facts["device"] != "cpu"
        memory = VllmMemory.of(self.stage.family, settings, row_tokens, on_device=on_device)
        return memory.plan_for(facts["kv_tokens"])

    def _take_over(self, view: View, facts: dict[str, Any]) -> None:
        """Put into the report what the worker told of what it loaded."""
        read = sum(view.bytes_by_file.values())
        if facts["num_tensors"] != len(view.tensors) or facts["num_bytes"] != read:
            problem = (
                f"vLLM read {facts['num_tensors']} tensors, {facts['num_bytes']} bytes, where "
            )
            problem += f"the language half has {len(view.tensors)}, {read} bytes"
            raise ConfigError(problem, "report this with the model's name; leave --backend out")
        self.report.base_bytes = facts["base_bytes"]
        self.report.bytes_by_shard = {Path(file).name: n for file, n in view.bytes_by_file.items()}
        stored = stored_method(self.stage.family.checkpoint)
        self.report.quantization = held_by(self.stage.settings.language, stored, facts, read)
        versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        self.report.notes.append(f"vLLM's worker: {versions}; room for {facts['kv_tokens']} tokens")
