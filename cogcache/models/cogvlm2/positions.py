"""Where tokens stand: shared positions of a frame's slots, and the rotary tables made from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from cogcache.models.cogvlm2.configuration import CogVLM2VideoConfig


def shared_position_ids(token_type_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return the position of every token when the slots of a frame share theirs.

    In each run of feature slots (type 1) the first slot takes a new position, the inner ones
    share the next, the last takes one more; text goes on from there. Padding on the left
    does not count. Closed form of the published `build_position_ids`.

    Args:
        token_type_ids: 1 for a feature slot, 0 for text. Shape [B, L].
        attention_mask: 0 for padding. Shape [B, L]; None where there is none.

    Returns:
        int64 [B, L].
    """
    is_slot = token_type_ids.bool()
    before = torch.nn.functional.pad(is_slot, (1, 0))[:, :-1]
    after = torch.nn.functional.pad(is_slot, (0, 1))[:, 1:]
    second = is_slot & before & ~torch.nn.functional.pad(before, (1, 0))[:, :-1]
    first, last = is_slot & ~before, is_slot & ~after
    steps = (~is_slot | first | second | last).long()
    if attention_mask is not None:
        steps = steps * attention_mask.long()
    return (steps.cumsum(-1) - 1).clamp(min=0)


class CogVLM2RotaryEmbedding(LlamaRotaryEmbedding):
    """Rotary tables in the precision that `config.rotary_dtype` names.

    The bfloat16 kind follows the published run, where positions, frequencies and their
    products are all bfloat16 (so that positions above 256 are rounded).
    """

    def __init__(self, config: CogVLM2VideoConfig) -> None:
        super().__init__(config.text_config)
        self.in_bfloat16 = config.rotary_dtype == "bfloat16"
        # In the checkpoint, hence persistent; the float32 kind does not use the stored values.
        self.inv_freq = nn.Buffer(self.original_inv_freq.clone(), persistent=True)

    def frequencies(self) -> Tensor:
        """Return the rotary frequencies that the config asks for. float32 [head_dim / 2]."""
        kind = self.config.rope_parameters["rope_type"]
        make = ROPE_INIT_FUNCTIONS.get(kind, self.compute_default_rope_parameters)
        inv_freq: Tensor = make(self.config)[0]
        return inv_freq

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, each [B, L, head_dim] in the dtype of `x`."""
        if self.in_bfloat16:
            positions = position_ids[..., None].to(torch.bfloat16)
            angles = positions * self.inv_freq.to(x.device, torch.bfloat16)
        else:
            exact = self.original_inv_freq.to(x.device, torch.float32)
            angles = position_ids[..., None].float() * exact
        table = torch.cat((angles, angles), dim=-1)
        return table.cos().to(x.dtype), table.sin().to(x.dtype)
