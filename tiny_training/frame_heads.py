"""Heads that read single frames: a shorter way for gradients into the vision half.

Through the decoder alone the vision half takes several times as many steps to tell shapes
apart, and such a step costs several times as much. The heads are dropped when training ends.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiny_training.batches import FRAME_CLASSES, Frames


class FrameHeads(nn.Module):
    """Linear readings of one frame's features.

    Args:
        width: the features' last dimension D.
        tokens: feature rows of a frame between boi and eoi.
    """

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.classes = nn.ModuleDict(
            {name: nn.Linear(width * tokens, len(words)) for name, words in FRAME_CLASSES.items()}
        )
        self.middle = nn.Linear(width * tokens, 2)

    def loss(self, features: Tensor, frames: Frames) -> Tensor:
        """Return how badly the heads read `features` [N * T, tokens + 2, D]; a scalar."""
        flat = features[:, 1:-1].flatten(1)
        read = [
            functional.cross_entropy(head(flat), frames.classes[name])
            for name, head in self.classes.items()
        ]
        # Squared distances are small numbers: half the frame is worth one wrong class.
        place = functional.mse_loss(self.middle(flat), frames.middles) * 4
        return torch.stack([*read, place]).sum()
