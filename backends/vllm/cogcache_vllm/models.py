"""Decoders that are fed from the cache: vLLM's Llama, Qwen2 and Qwen3.

A clip is one item of the modality `video`: rows that stand in its slots, in their order, and where
the tokens of the whole prompt stand. Nothing is computed of it, and there is no tower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModal
from vllm.model_executor.models.llama import LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM, Qwen3Model
from vllm.model_executor.models.utils import _merge_multimodal_embeddings, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
)
from vllm.sequence import IntermediateTensors

ITEM = "video"
ROWS = "rows"
"""Field: what stands in the slots. [slots, width x (1 + deep-stack levels)]."""
POSITIONS = "positions"
"""Field: of all tokens of the prompt, then what new ones count on from. int64 [3, L + 1]."""
INV_FREQ = "model.rotary_emb.inv_freq"
MATRIX = 2
"""Dimensions of a weight."""
UNFILLED_SHARE = 1 / 64
"""A part of an integer weight that is still as it was, above which it was not filled."""


class Info(BaseProcessingInfo):
    """What vLLM asks of a model's inputs before it has any."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return how many clips a prompt may have; the worker gives one."""
        return {ITEM: None}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Return how many slots a clip may have: as many as a prompt has tokens."""
        return {ITEM: seq_len}


class Dummies(BaseDummyInputsBuilder[Info]):
    """Inputs to profile a tower with: there is none."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Return no text."""
        return ""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Any, mm_options: Any) -> dict[str, Any]:
        """Return no video."""
        return {}


class Processor(BaseMultiModalProcessor[Info]):
    """Stands where vLLM wants one: the worker lays requests out itself, past any processor."""

    requires_tokenizer = False

    def _get_mm_fields_config(
        self, hf_inputs: Any, kwargs: Any
    ) -> Mapping[str, MultiModalFieldConfig]:
        batched = MultiModalFieldConfig.batched
        return {ROWS: batched(ITEM), POSITIONS: batched(ITEM)}

    def _get_prompt_updates(self, mm_items: Any, kwargs: Any, out: Any) -> Sequence[Any]:
        return []


class FromCache(SupportsMultiModal, SupportsMRoPE):
    """What the three decoders have in common.

    It stands before the decoder's class, so that its methods count; the `__init__` that it has from
    a protocol does nothing, hence each class calls that of its decoder by name. Weights are unset
    before they are filled, so that what the view does not hold is found out.
    """

    width: int
    levels: int
    kept: list[Tensor] | None = None
    """What the decoder gave in each pass, while that is kept. [N, width] each."""
    deep: Tensor | None = None
    """What waits for the next pass: a row a token for each deep-stack level. [levels, N, width]."""
    pass_tokens: int = 0
    """Tokens of the longest pass since it was last set to 0."""

    def set_up(self, vllm_config: Any) -> None:
        """Take what the view says beside the decoder's own config."""
        config = self.config  # type: ignore[attr-defined]
        self.width, self.levels = config.hidden_size, int(config.cogcache["levels"])
        if self.levels:
            most = vllm_config.scheduler_config.max_num_batched_tokens
            self.deep = torch.zeros(self.levels, most, self.width)
        self.has_deep = False

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Return None: prompts come as ids."""
        return None

    def get_language_model(self) -> Any:
        """Return the whole: there is nothing else."""
        return self

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Return the rows of each clip, as they are."""
        weight = self.model.embed_tokens.weight  # type: ignore[attr-defined]
        return [each.to(weight.device, weight.dtype) for each in kwargs[ROWS]]

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """Put the rows into their slots, and those of deep-stack levels aside."""
        embeds: Tensor = self.model.embed_input_ids(input_ids)  # type: ignore[attr-defined]
        if multimodal_embeddings is None or not len(multimodal_embeddings):
            return embeds
        first = [rows[:, : self.width] for rows in multimodal_embeddings]
        merged: Tensor = _merge_multimodal_embeddings(
            inputs_embeds=embeds, multimodal_embeddings=first, is_multimodal=is_multimodal
        )
        if self.deep is not None:
            self._set_deep(torch.cat(list(multimodal_embeddings)), is_multimodal)
        return merged

    def _set_deep(self, rows: Tensor, is_multimodal: Any) -> None:
        assert self.deep is not None
        count = len(is_multimodal)
        self.deep[:, :count] = 0
        for level in range(self.levels):
            start = (level + 1) * self.width
            place = self.deep[level, :count]
            place[is_multimodal.to(place.device)] = rows[:, start : start + self.width].to(place)
        self.has_deep = True

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the decoder."""
        hidden = super().forward(  # type: ignore[misc]
            input_ids, positions, intermediate_tensors, inputs_embeds
        )
        return self._kept(hidden)

    def _kept(self, hidden: Tensor) -> Tensor:
        self.pass_tokens = max(self.pass_tokens, len(hidden))
        if self.kept is not None:
            self.kept.append(hidden.detach().clone())
        return hidden

    def count_passes(self) -> None:
        """Forget the passes so far, such as vLLM's own to see how much memory one takes."""
        self.pass_tokens = 0

    def keep(self, whether: bool) -> None:
        """Keep what each pass gives from now on, or no more."""
        self.kept = [] if whether else None

    def expected(self, places: int, prompt_tokens: int) -> Tensor:
        """Return the log probabilities at the last places of the one prompt that was run.

        Args:
            places: how many.
            prompt_tokens: of the prompt.

        Raises:
            ValueError: the passes had other rows than the prompt has tokens.
        """
        rows = torch.cat(self.kept or [])
        self.keep(False)
        if len(rows) != prompt_tokens:
            raise ValueError(f"{len(rows)} rows were run for a prompt of {prompt_tokens} tokens")
        logits = self.compute_logits(rows[-places:])  # type: ignore[attr-defined]
        return torch.log_softmax(logits.float(), dim=-1).cpu()

    def held(self) -> dict[str, Any]:
        """Return how linear layers hold their weights, as far as vLLM tells."""
        layers: Counter[str] = Counter()
        errors = [0.0]
        for module in self.modules():  # type: ignore[attr-defined]
            if isinstance(module, LinearBase):
                method = type(module.quant_method).__name__
                layers[f"{method}, {_type_of(module)}"] += 1
                errors.append(getattr(module, "cogcache_error", 0.0))
        return {"layers": dict(layers), "weight_error": max(errors)}

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """Return the positions that came with the request; words alone are counted one by one."""
        count = len(input_tokens)
        if not mm_features:
            return torch.arange(count).expand(3, -1).clone(), 0
        given: Tensor = mm_features[0].data[POSITIONS].data.cpu()
        assert given.shape == (3, count + 1)
        return given[:, :count].clone(), int(given[0, count]) - count

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fill the decoder from the view.

        Raises:
            ValueError: a part of a weight is in no tensor of the view.
        """
        for parameter in self.parameters():  # type: ignore[attr-defined]
            parameter.data.fill_(_unset(parameter.dtype))
        kept: dict[str, Tensor] = {}
        loaded: set[str] = super().load_weights(_without(weights, kept))  # type: ignore[misc]
        for name, parameter in self.named_parameters():  # type: ignore[attr-defined]
            if _is_unset(parameter):
                raise ValueError(f"{name} was not filled: the checkpoint lacks it or a part of it")
        told = self.config.cogcache  # type: ignore[attr-defined]
        if told["rotary_dtype"] == "bfloat16":
            inverse = kept.get(INV_FREQ, torch.tensor(told["inv_freq"]))
            for layer in self.model.layers:  # type: ignore[attr-defined]
                round_tables(layer.self_attn.rotary_emb, inverse)
        return loaded


def _unset(dtype: torch.dtype) -> float:
    """Return what stands in a weight before it is filled."""
    return torch.nan if dtype.is_floating_point else torch.iinfo(dtype).min


def _is_unset(parameter: Tensor) -> bool:
    """Say whether a part of a weight was not filled; one without numbers yet is none."""
    if parameter.is_meta:
        return False
    if parameter.dtype.is_floating_point:
        return bool(parameter.float().isnan().any())
    left = (parameter == torch.iinfo(parameter.dtype).min).float().mean()
    return float(left) > UNFILLED_SHARE


def _without(
    weights: Iterable[tuple[str, Tensor]], kept: dict[str, Tensor]
) -> Iterable[tuple[str, Tensor]]:
    """Yield weights, and keep the frequencies of rotary tables, which are no weight here."""
    for name, tensor in weights:
        if name == INV_FREQ:
            kept[name] = tensor
        else:
            yield name, tensor


def _type_of(layer: nn.Module) -> str:
    """Return the type of a layer's largest tensor; vLLM may have packed it out of sight."""
    largest = max(layer.parameters(), key=lambda each: each.nbytes, default=None)
    if largest is None or largest.ndim < MATRIX:
        return "packed"
    return str(largest.dtype).removeprefix("torch.")


def round_tables(rotary: Any, inverse: Tensor) -> None:
    """Build rotary tables whose positions, frequencies and products are all bfloat16.

    So does the published CogVLM2-Video in bfloat16, where positions above 256 are rounded.

    Args:
        rotary: one of vLLM's embeddings, with cos and sin of all positions in `cos_sin_cache`.
        inverse: rotary frequencies, [head_dim / 2].
    """
    table = rotary.cos_sin_cache
    positions = torch.arange(len(table)).bfloat16()
    angles = positions[:, None] * inverse.cpu().bfloat16()
    table.copy_(torch.cat((angles.cos(), angles.sin()), dim=-1))


@support_torch_compile(
    dynamic_arg_dims={
        "input_ids": 0,
        "positions": -1,  # [3, N]; vLLM's own class says 0
        "intermediate_tensors": 0,
        "inputs_embeds": 0,
    }
)
class _Llama(LlamaModel):
    """vLLM's Llama with positions on three axes."""


@support_torch_compile(
    dynamic_arg_dims={
        "input_ids": 0,
        "positions": -1,
        "intermediate_tensors": 0,
        "inputs_embeds": 0,
        "deep": 0,
    }
)
class _Qwen3(Qwen3Model):
    """vLLM's Qwen3, with rows that are added behind the first layers."""

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        deep: IntermediateTensors | None = None,
    ) -> Tensor:
        hidden = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        residual = None
        for number, layer in enumerate(self.layers):
            hidden, residual = layer(positions, hidden, residual)
            if deep is not None and number < len(deep):
                hidden = hidden + deep[str(number)]
        out: Tensor = self.norm(hidden, residual)[0]
        return out


_register = MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Dummies)


@_register
class CogcacheLlama(FromCache, LlamaForCausalLM):
    """CogVLM2-Video's decoder, and those of families that have a plain Llama."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        LlamaForCausalLM.__init__(self, vllm_config=vllm_config, prefix=prefix)
        self.set_up(vllm_config)

    def _init_model(self, vllm_config: Any, prefix: str = "", layer_type: Any = None) -> _Llama:
        return _Llama(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)


@_register
class CogcacheQwen2(FromCache, Qwen2ForCausalLM):
    """The decoder of Qwen2-VL and Qwen2.5-VL, and of families that have a plain Qwen2."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        Qwen2ForCausalLM.__init__(self, vllm_config=vllm_config, prefix=prefix)
        self.set_up(vllm_config)


@_register
class CogcacheQwen3(FromCache, Qwen3ForCausalLM):
    """The decoder of Qwen3-VL, whose first layers take rows of deep-stack levels besides."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        nn.Module.__init__(self)  # that of the decoder's class would build another model
        config, quantization = vllm_config.model_config.hf_config, vllm_config.quant_config
        self.config, self.quant_config = config, quantization
        self.model = _Qwen3(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(
            config.vocab_size, config.hidden_size, quant_config=quantization, prefix="lm_head"
        )
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors
        self.set_up(vllm_config)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the decoder, with the rows of deep-stack levels that wait for this pass."""
        deep = None
        if self.deep is not None and inputs_embeds is not None:
            count = inputs_embeds.shape[0]
            levels = {str(level): self.deep[level, :count] for level in range(self.levels)}
            deep = IntermediateTensors(levels)
        hidden = self._kept(
            self.model(input_ids, positions, intermediate_tensors, inputs_embeds, deep)
        )
        if self.deep is not None and self.has_deep:
            self.deep.zero_()
            self.has_deep = False
        return hidden
