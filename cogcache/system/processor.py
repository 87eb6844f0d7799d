"""What the processor can do: the width of its vector registers, and whether it multiplies bf16."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache

X86 = ("x86_64", "amd64")


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor as torch sees it.

    `ATEN_CPU_CAPABILITY=avx2` has torch see less than there is; all that is decided here follows.
    """

    name: str
    architecture: str
    """Such as `x86_64` or `aarch64`."""
    capability: str
    """Which of its kernels torch takes: `AVX512`, `AVX2`, `DEFAULT`, or those of other makers."""
    avx512_bf16: bool
    """Whether it has products of bf16 numbers; torch takes them with AVX-512 only."""
    amx: bool
    """Whether it has Intel's tiles for matrix products."""

    @property
    def is_x86(self) -> bool:
        """Whether it is one of Intel's or AMD's."""
        return self.architecture.lower() in X86

    @property
    def has_avx512(self) -> bool:
        """Whether torch takes its kernels for AVX-512."""
        return self.capability == "AVX512"

    @property
    def multiplies_bf16(self) -> bool:
        """Whether products in bf16 are faster than those in float32.

        Taken for granted of processors that are not x86: what they can do is not known here.
        """
        return not self.is_x86 or (self.has_avx512 and (self.avx512_bf16 or self.amx))

    @property
    def level(self) -> str:
        """What figures depend on, in words such as `AVX512, AVX512-BF16, no AMX`."""
        if not self.is_x86:
            return f"{self.architecture}, {self.capability}"
        bf16 = "AVX512-BF16" if self.avx512_bf16 else "no AVX512-BF16"
        used = " (of no use to torch here)" if self.avx512_bf16 and not self.has_avx512 else ""
        return f"{self.capability}, {bf16}{used}, {'AMX' if self.amx else 'no AMX'}"


@cache
def processor() -> Processor:
    """Return this machine's processor. Imports torch."""
    import torch

    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return Processor(
        name=str(known.get("cpu_name") or platform.processor() or "unknown"),
        architecture=platform.machine(),
        capability=torch.backends.cpu.get_cpu_capability(),
        avx512_bf16=bool(torch.cpu._is_avx512_bf16_supported()),
        amx=bool(torch.cpu._is_amx_tile_supported()),
    )
