"""Which program runs the language half."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cogcache.errors import ConfigError
from cogcache.settings.fields import AtLeastOne, NoneIfEmpty, Positive, Table


class Inference(Table):
    """Stage two's engine: transformers, or vLLM in a process of its own (docs/vllm.md)."""

    backend: Literal["transformers", "vllm"] = "transformers"
    """What runs the language half of `caption` and `run`: `transformers`, or `vllm` in an
    environment of its own. Part of the caption key where it is `vllm`."""
    backend_python: Annotated[str | None, NoneIfEmpty] = None
    """Python of the environment in which vLLM and cogcache-vllm are installed, such as
    `/opt/vllm/bin/python`; only with backend vllm."""
    kv_cache_gib: Positive = 4.0
    """GiB for the keys and values of what is decoded together on a CPU; only with backend vllm."""
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that weights, keys and values may fill; only with backend vllm."""
    tensor_parallel: AtLeastOne = 1
    """GPUs that share the language half; only with backend vllm, and `unproven`."""
    unproven: bool = False
    """Let vLLM do what was never run here: several GPUs for one half, workers on Ray, `fp8`, and
    checkpoints stored in AWQ, GPTQ, compressed-tensors or fp8."""

    @property
    def is_vllm(self) -> bool:
        """Whether vLLM runs the language half."""
        return self.backend == "vllm"

    def refuse_vllm(self, command: str) -> None:
        """Refuse vLLM for what knows transformers alone.

        Raises:
            ConfigError: `backend` is vllm.
        """
        if self.is_vllm:
            problem = f"{command} knows transformers alone, not --backend vllm"
            raise ConfigError(problem, "leave --backend out; docs/vllm.md says what vLLM needs")

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        for name, field in type(self).model_fields.items():
            if name != "backend" and not self.is_vllm and getattr(self, name) != field.default:
                raise ValueError(f"{name} has no effect unless backend is vllm")
        return self
