"""vLLM's engine in this process, fed with requests that cogcache has laid out."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")  # slots may outnumber positions

import torch
from safetensors.torch import save_file
from vllm import LLM, ModelRegistry, SamplingParams
from vllm.inputs import mm_input, tokens_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from cogcache_vllm import loader, models
from cogcache_vllm.architectures import ARCHITECTURES
from cogcache_vllm.features import Bits
from cogcache_vllm.worker import Message, Output, peak_bytes

CPU_BLOCK_TOKENS = 32
"""Prompts share whole blocks: the smallest that vLLM's attention on CPUs takes."""


class VllmEngine:
    """Makes tokens with vLLM.

    Args:
        asked: the message `open`.

    Raises:
        ValueError: vLLM does not run on the device that is asked for.
    """

    def __init__(self, asked: Message) -> None:
        self.base_bytes = peak_bytes()
        on_cpu = current_platform.is_cpu()
        here = "cpu" if on_cpu else current_platform.device_type
        if asked["device"] not in ("auto", here):
            raise ValueError(f"this vLLM runs on {here}, not on {asked['device']}")
        memory: dict[str, Any] = {"gpu_memory_utilization": asked["gpu_memory_share"]}
        if on_cpu:
            memory = {"kv_cache_memory_bytes": asked["kv_cache_bytes"]}
            memory |= {"block_size": CPU_BLOCK_TOKENS, "enforce_eager": True}
        for name in ARCHITECTURES:  # as a class: vLLM starts a process to look at a mere name
            ModelRegistry.register_model(name, getattr(models, name))
        self.llm = LLM(
            asked["view"],
            load_format=loader.FORMAT,
            skip_tokenizer_init=True,
            generation_config="vllm",
            dtype=asked["dtype"],
            max_model_len=asked["max_tokens"],
            max_num_seqs=asked["rows"],
            tensor_parallel_size=asked["tensor_parallel"],
            enable_prefix_caching=asked.get("prefix_caching", True),
            max_num_batched_tokens=asked.get("chunk_tokens"),
            enable_mm_embeds=True,
            limit_mm_per_prompt={"video": 0},
            mm_processor_cache_gb=0,
            quantization=asked.get("quantization"),
            **memory,
        )
        self.core = self.llm.llm_engine
        self.facts = self._facts(here)
        self.llm.apply_model(lambda model: model.count_passes())
        self.looks: dict[str, Message] = {}
        """By request, where to write what is expected at its last places."""

    def _facts(self, device: str) -> Message:
        [read] = self.llm.apply_model(lambda model: {**model.cogcache_read, **model.held()})
        cache = self.core.vllm_config.cache_config
        return {
            **read,
            "device": device,
            "base_bytes": self.base_bytes,
            "kv_tokens": int(cache.num_gpu_blocks or 0) * int(cache.block_size),
            "versions": {"vllm": _vllm_version(), "torch": str(torch.__version__)},
        }

    def add(self, request: Message, tensors: dict[str, Bits]) -> None:
        """Take up a request."""
        ids, about = request["ids"], request["features"]
        prompt: Any = tokens_input(ids)
        if about is not None:
            prompt = _with_clip(request, _rows(about["levels"], tensors))
        sampling = _sampling(request["sampling"])
        if look := request.get("look"):
            self.looks[str(request["id"])] = look
            sampling.skip_reading_prefix_cache = True  # what is found there is not run
            self.llm.apply_model(lambda model: model.keep(True))
        self.core.add_request(str(request["id"]), prompt, sampling)

    def abort(self, request: int) -> None:
        """Make no more tokens for a request."""
        self.core.abort_request([str(request)])

    def is_busy(self) -> bool:
        """Say whether a request has not ended."""
        return bool(self.core.has_unfinished_requests())

    def step(self) -> list[Output]:
        """Run the model once over all rows that are taken together."""
        outputs = []
        for each in self.core.step():
            number = each.request_id.partition("-")[0]
            ended = each.outputs[0].finish_reason
            if ended and (look := self.looks.pop(number, None)):
                self._write(look, len(each.prompt_token_ids or ()))
            tokens = list(each.outputs[0].token_ids)
            outputs.append(Output(int(number), tokens, ended, each.num_cached_tokens or 0))
        return outputs

    def _write(self, look: Message, prompt_tokens: int) -> None:
        """Write what is expected at the last places of a prompt, and keep nothing more.

        Raises:
            ValueError: the passes had other rows than the prompt has tokens.
        """
        [found] = self.llm.apply_model(lambda model: model.expected(look["places"], prompt_tokens))
        save_file({"expected": found}, look["path"])

    def measured(self) -> Message:
        """Return the longest pass in tokens and, on a GPU, the most memory that torch held."""
        told = {"pass_tokens": max(self.llm.apply_model(lambda model: model.pass_tokens))}
        if not current_platform.is_cpu():
            told["device_bytes"] = int(torch.accelerator.max_memory_reserved())
        return told


def _vllm_version() -> str:
    import vllm

    return str(vllm.__version__ or version("vllm"))


def _sampling(asked: Message) -> SamplingParams:
    return SamplingParams(
        temperature=asked["temperature"],
        top_p=asked["top_p"],
        top_k=asked["top_k"],
        seed=asked["seed"],
        repetition_penalty=asked["repetition_penalty"],
        max_tokens=asked["max_tokens"],
        stop_token_ids=asked["stop_ids"],
        ignore_eos=True,  # the stop ids say it all
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _rows(levels: list[list[str]], tensors: dict[str, Bits]) -> torch.Tensor:
    """Return what stands in the slots: [slots, width], the deep-stack levels behind one another."""
    parts = []
    for names in levels:
        found = [_tensor(tensors[name]) for name in names]
        parts.append(torch.cat([each.reshape(-1, each.shape[-1]) for each in found]))
    return torch.cat(parts, dim=-1)


def _tensor(bits: Bits) -> torch.Tensor:
    return torch.from_numpy(bits.array).view(getattr(torch, bits.dtype))


def _with_clip(request: Message, rows: torch.Tensor) -> Any:
    """Return a prompt with its clip, as vLLM's own processor would have made it.

    The item's hash stands for the features, their places and the positions up to their end: what
    two prompts have in common in all of it, they share.

    Raises:
        ValueError: the file has other rows than the prompt has slots.
    """
    slots = request["features"]["slots"]
    count = sum(length for _, length in slots)
    if len(rows) != count:
        raise ValueError(f"the clip has {len(rows)} rows of features, the prompt {count} slots")
    start, end = slots[0][0], sum(slots[-1])
    mask = torch.zeros(end - start, dtype=torch.bool)
    for first, length in slots:
        mask[first - start : first - start + length] = True
    fields = {"rows": rows}
    if request["positions"] is not None:
        given = torch.tensor(request["positions"], dtype=torch.long)
        fields["positions"] = torch.nn.functional.pad(given, (0, 1), value=request["next_position"])
    item = MultiModalKwargsItem(
        {
            # What is not kept on the CPU is gone once the rows of a clip are known.
            name: MultiModalFieldElem(data, MultiModalBatchedField(keep_on_cpu=name != "rows"))
            for name, data in fields.items()
        }
    )
    return mm_input(
        request["ids"],
        MultiModalKwargsItems({"video": [item]}),
        {"video": [request["prefix"]]},
        {"video": [PlaceholderRange(start, end - start, mask)]},
    )
