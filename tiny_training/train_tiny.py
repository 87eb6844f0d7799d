"""Train the bundled model `tiny` and write it into the package.

    python -m tiny_training.train_tiny

Everything random comes from the seed and the step's number, so that an interrupted training
goes on as if it had never stopped (its state lies in `--state`), and the same seed gives the
same files on the same machine with the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from cogcache.selftest.shapes import QUESTIONS
from tiny_training.batches import Batch, make_batch, make_frames
from tiny_training.export import export
from tiny_training.fake_quant import add_rounding, remove_rounding
from tiny_training.frame_heads import FrameHeads
from tiny_training.model import IMAGE_SIZE, answer_logits, build_config, build_model, exact_answers
from tiny_training.tokenizer import build_tokenizer

PACKAGED = Path(__file__).parents[1] / "cogcache" / "tiny"
TRAINING_STREAM, VALIDATION_STREAM = 1_000_001, 1_000_002
"""First part of the scenes' seeds; `evaluate_tiny` and small seeds give other scenes."""

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW remembers of a weight."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        seed: decides weights, clips and noise.
        frame_steps: first steps, in which the vision half alone learns to read single frames.
        answer_steps: the steps after them, in which both halves learn to answer.
        frame_batch_size: clips in one of the first steps, two frames of each.
        batch_size: clips in one of the others.
        learning_rate: at its highest, after `warmup` steps; over the answer steps it falls to 0
            as a cosine.
        warmup: steps of linear rise, at the start of both parts.
        weight_decay: of AdamW.
        rounding_from: share of the answer steps after which every other one sees NF4 weights.
        frame_weight: of the frame heads' loss beside the answers'.
    """

    seed: int = 0
    frame_steps: int = 1500
    answer_steps: int = 1600
    frame_batch_size: int = 96
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.02
    rounding_from: float = 0.7
    frame_weight: float = 0.2

    @property
    def steps(self) -> int:
        """All optimiser steps."""
        return self.frame_steps + self.answer_steps

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        answered = step - self.frame_steps
        if answered < 0:
            return self.learning_rate * min(1.0, (step + 1) / self.warmup)
        rise = min(1.0, (answered + 1) / self.warmup)
        return (
            self.learning_rate * rise * (1 + math.cos(math.pi * answered / self.answer_steps)) / 2
        )

    def rounds(self, step: int) -> bool:
        """Say whether the decoder's weights are rounded to NF4 in a step."""
        return step - self.frame_steps >= self.rounding_from * self.answer_steps and step % 2 == 0


class Trainer:
    """Model, optimiser and the step they are at."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.step = recipe, 0
        self.tokenizer = build_tokenizer()
        self.config = build_config(self.tokenizer)
        self.model = build_model(self.config)
        self.heads = FrameHeads(self.config.hidden_size, self.config.tokens_per_frame - 2)
        self.switches = add_rounding(self.model.model.language_model)
        parts = nn.ModuleDict({"model": self.model, "heads": self.heads})
        self.weights = dict(parts.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
            fused=True,
        )

    def random(self, stream: int, number: int) -> np.random.Generator:
        """Return a generator that depends on the seed, the stream and the number only."""
        return np.random.default_rng((stream, self.recipe.seed, number))

    def batch(self, stream: int, number: int, size: int) -> Batch:
        """Return a batch of clips and questions."""
        rng, slots = self.random(stream, number), self.config.tokens_per_frame
        return make_batch(self.tokenizer, rng, size, IMAGE_SIZE, slots)

    def advance(self) -> float:
        """Take one step and return its loss."""
        self.round_weights(self.recipe.rounds(self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        in_frames = self.step < self.recipe.frame_steps
        loss = self._frame_loss() if in_frames else self._answer_loss()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def _frame_loss(self) -> Tensor:
        rng = self.random(TRAINING_STREAM, self.step)
        frames = make_frames(rng, self.recipe.frame_batch_size, IMAGE_SIZE)
        features = self.model.get_video_features(frames.pixel_values).pooler_output
        return self.heads.loss(features, frames)

    def _answer_loss(self) -> Tensor:
        batch = self.batch(TRAINING_STREAM, self.step, self.recipe.batch_size)
        features = self.model.get_video_features(batch.frames.pixel_values).pooler_output
        loss = functional.cross_entropy(*answer_logits(self.model, batch, features))
        return loss + self.recipe.frame_weight * self.heads.loss(features, batch.frames)

    def validate(self, rounded: bool) -> dict[str, float]:
        """Return each attribute's share of exact answers on clips that are not trained on."""
        self.round_weights(rounded)
        batch = self.batch(VALIDATION_STREAM, 0, 256)
        return exact_answers(self.model, batch, list(QUESTIONS))

    def round_weights(self, active: bool) -> None:
        """Show the decoder NF4 weights, or its own."""
        for switch in self.switches:
            switch.active = active

    def save(self, path: Path) -> None:
        """Write everything that `resume` needs, whole or not at all."""
        state = {f"weight.{name}": tensor.detach() for name, tensor in self.weights.items()}
        for name, tensor in self.weights.items():
            # The decoder has no moments before its first step.
            moments = self.optimizer.state.get(tensor, {})
            state |= {f"{key}.{name}": moment for key, moment in moments.items()}
        state["step"] = torch.tensor(self.step)
        partial = path.with_suffix(".partial")
        save_file(state, partial, metadata={"recipe": repr(self.recipe)})
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            ValueError: it was written by a training of another recipe.
        """
        with safe_open(path, "pt") as file:
            if file.metadata()["recipe"] != repr(self.recipe):
                raise ValueError(f"{path} is of another recipe; delete it to train anew")
        state = load_file(path)
        for name, tensor in self.weights.items():
            tensor.data.copy_(state[f"weight.{name}"])
            moments = {key: state.get(f"{key}.{name}") for key in MOMENTS}
            if moments["step"] is not None:
                self.optimizer.state[tensor] = moments
        self.step = int(state["step"])


def train(recipe: Recipe, state: Path, folder: Path) -> None:
    """Train to the end of the recipe, from the state where there is one, and export."""
    trainer = Trainer(recipe)
    if state.exists():
        trainer.resume(state)
    started, first = time.monotonic(), trainer.step
    while trainer.step < recipe.steps:
        loss = trainer.advance()
        if trainer.step % 50 == 0:
            pace = (time.monotonic() - started) / (trainer.step - first)
            print(f"step {trainer.step}: loss {loss:.4f}, {pace:.2f} s a step", flush=True)
        if trainer.step % 200 == 0 or trainer.step == recipe.steps:
            trainer.save(state)
            for rounded in (False, True) if trainer.step > recipe.frame_steps else ():
                shares = {name: f"{share:.3f}" for name, share in trainer.validate(rounded).items()}
                print("NF4  " if rounded else "plain", json.dumps(shares), flush=True)
    minutes = (time.monotonic() - started) / 60
    print(f"trained {trainer.step - first} steps in {minutes:.1f} min")
    trainer.round_weights(active=False)
    remove_rounding(trainer.model.model.language_model)
    export(trainer.model, trainer.tokenizer, folder)
    state.unlink()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PACKAGED, help="folder of the checkpoint")
    parser.add_argument("--state", type=Path, default=Path("build/tiny.state.safetensors"))
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    arguments.state.parent.mkdir(parents=True, exist_ok=True)
    train(Recipe(seed=arguments.seed), arguments.state, arguments.out)


if __name__ == "__main__":
    main()
