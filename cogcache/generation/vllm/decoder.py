"""Rows to tokens by vLLM: keeps a worker supplied, and gives out again what a dead one had in hand.

Requests carry ids, positions, sampling, and the feature file's path and key; the worker proves and
reads the file itself. What comes back is what `Decoder` would give: tokens up to the one that ends.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cogcache.errors import ClipError, CogcacheError
from cogcache.generation.requests import Finished, Request, Statistics
from cogcache.generation.vllm.messages import Files, LaidOut, Messages
from cogcache.generation.vllm.opening import Opening
from cogcache.generation.vllm.worker_process import (
    Message,
    Peaks,
    WorkerEnded,
    WorkerProcess,
    opened,
)
from cogcache.models import Family, PromptRow
from cogcache.settings import Generation
from cogcache.system import scratch_folder

if TYPE_CHECKING:
    from torch import Tensor

MOST_RESTARTS: Final = 2
"""A worker is started again this many times in a row, when it ended before it gave anything."""
LOOK_EVERY_S: Final = 0.1
"""While tokens are awaited, new clips are asked for this often."""
logger = logging.getLogger(__name__)


@dataclass
class _InHand:
    """A request that the worker has."""

    request: Request
    laid_out: LaidOut
    began_s: float
    """On the clock of shares."""
    tokens: list[int] = field(default_factory=list)


class _ShareClock:
    """Goes on as fast as one request of those in hand gets its share of the time."""

    def __init__(self) -> None:
        self._shared_s, self._looked_s = 0.0, time.perf_counter()

    def at(self, in_hand: int) -> float:
        """Return the seconds so far, `in_hand` requests having shared those since the last look."""
        now = time.perf_counter()
        self._shared_s += (now - self._looked_s) / max(1, in_hand)
        self._looked_s = now
        return self._shared_s


class VllmDecoder:
    """Has requests decoded by a worker process.

    Args:
        opening: how the worker is started, and again if it dies.
        family: lays rows out, says where tokens stand.
        files: where feature files lie.
        context: how many positions the model knows; None where it does not say.
    """

    def __init__(self, opening: Opening, family: Family, files: Files, context: int | None) -> None:
        self.opening, self.family, self.files = opening, family, files
        self.messages = Messages(family, files, context)
        self.statistics = Statistics()
        self.again: deque[list[Request]] = deque()
        self.in_hand: dict[int, _InHand] = {}
        self.facts: Message = {}
        self.restarts, self.cached_tokens, self.prompt_tokens = 0, 0, 0
        self.peaks = Peaks()
        self.refused: dict[str, ClipError] = {}
        """By feature key, why a clip has no captions."""
        self._worker: WorkerProcess | None = None
        self._room, self._number, self._deaths = 0, 0, 0
        self._clock = _ShareClock()
        self.look: Message | None = None  # while `vllm_log_probabilities` asks

    def submit(self, request: Request) -> None:
        """Put in a request between others, while `run` is under way."""
        self.again.append([request])

    def run(self, groups: Iterable[Sequence[Request]]) -> Iterator[Finished]:
        """Yield each request with its tokens, as they get done.

        Args:
            groups: requests about one clip each, taken up as places get free; an empty one says
                that there are no more just now.

        Raises:
            CogcacheError: the worker dies again and again.
        """
        incoming = iter(groups)
        while True:
            while len(self.in_hand) < 2 * self.opening.rows:  # so that the worker never waits
                group = self.again.popleft() if self.again else next(incoming, None)
                if not group:
                    break
                for request in group:
                    yield from self._begin(request)
            if not self.in_hand:
                return
            yield from self._received()

    def open(self, tokens: int) -> None:
        """Start the worker, or another one if rows are longer than this one has room for.

        Args:
            tokens: of the longest row, its caption included.

        Raises:
            CogcacheError: vLLM cannot be started, or cannot load the language half.
        """
        if tokens <= self._room:
            return
        self.close()
        self._room = -(-tokens * 5 // 4 // 256) * 256  # others may be somewhat longer
        self._start()

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self.measure()
            self.peaks.note(self._worker.close())
            self._worker = None

    def measure(self) -> None:
        """Take the memory that the worker holds into the peaks."""
        if self._worker is not None:
            self.peaks.note({"peak_bytes": self._worker.peak_bytes()})

    @property
    def pid(self) -> int:
        """The number of the worker's process."""
        assert self._worker is not None
        return self._worker.pid

    def lines(self) -> list[str]:
        """Return what a reader of the report wants to know."""
        return _lines(self)

    def _start(self) -> None:
        opening = self.opening
        asked = {**opening.asked, "max_tokens": self._room, "rows": opening.rows}
        self._worker, self.facts = opened(opening.python, opening.environment, asked)

    def _begin(self, request: Request) -> Iterator[Finished]:
        """Hand a request to the worker; where it has no room, what is in hand is finished first."""
        if (refused := self.refused.get(request.clip)) is not None:
            yield Finished(request, [], 0.0, given_up=True, error=refused)
            return
        self._number += 1
        laid_out = self.messages.of(self._number, request)
        if self.look is not None:
            laid_out.message["look"] = self.look
        needed = len(laid_out.message["ids"]) + laid_out.limit
        if needed > self._room:
            while self.in_hand:
                yield from self._received()
            self.open(needed)
        began_s = self._clock.at(len(self.in_hand))
        self.in_hand[self._number] = _InHand(request, laid_out, began_s)
        try:
            self._send(laid_out.message)
        except WorkerEnded as error:
            self._restart(error)

    def _send(self, message: Message) -> None:
        assert self._worker is not None
        self._worker.send(message)

    def _received(self) -> Iterator[Finished]:
        """Yield what got done; where the worker died, give out again what it had in hand."""
        assert self._worker is not None
        try:
            message = self._worker.receive(LOOK_EVERY_S)
        except WorkerEnded as error:
            self._restart(error)
            return
        if message is None:
            return
        if message["type"] == "failed":
            self._restart(WorkerEnded(message["problem"]))
        elif (held := self.in_hand.get(message["id"])) is not None:
            self._deaths = 0
            yield from self._told(held, message)

    def _restart(self, ended: WorkerEnded) -> None:
        """Start another worker, and hand it all that the dead one had.

        Raises:
            CogcacheError: it is not the first one that gives nothing.
        """
        assert self._worker is not None
        self._worker.kill()
        while True:
            self._deaths += 1
            if self._deaths > MOST_RESTARTS:
                self._worker = None
                problem = f"vLLM's worker ended {self._deaths} times in a row: {ended}"
                raise CogcacheError(problem, "see docs/vllm.md, or leave --backend out")
            logger.warning("vLLM's worker ended (%s); it is started again", ended)
            self.restarts += 1
            self._start()
            try:
                for held in self.in_hand.values():
                    held.tokens.clear()
                    self._send(held.laid_out.message)
            except WorkerEnded as again:
                ended = again
                self._worker.kill()
            else:
                return

    def _told(self, held: _InHand, message: Message) -> Iterator[Finished]:
        if message["type"] == "refused":
            yield self._without(held, message)
            return
        ended = message["ended"] is not None
        for token in message["tokens"]:
            held.tokens.append(token)
            if held.request.stops(self.family, held.tokens):
                if not ended:
                    self._send_stop(message["id"])
                ended = True
                break
        if not ended:
            return
        seconds = self._clock.at(len(self.in_hand)) - held.began_s
        del self.in_hand[message["id"]]
        self.measure()
        self.peaks.note(message)
        self.statistics.tokens += len(held.tokens)
        self.prompt_tokens += len(held.laid_out.message["ids"])
        self.cached_tokens += message["cached"]
        yield _finished(held, seconds, self.family.stop_ids)

    def _without(self, held: _InHand, message: Message) -> Finished:
        """Return what there is of a request whose feature file the worker refuses."""
        key = held.request.clip
        if key not in self.refused:
            self.refused[key] = self.files.refused(key, message["reason"], message["problem"])
        del self.in_hand[message["id"]]
        return Finished(held.request, [], 0.0, given_up=True, error=self.refused[key])

    def _send_stop(self, number: int) -> None:
        assert self._worker is not None
        try:
            self._worker.send({"type": "stop", "id": number})
        except WorkerEnded:
            logger.debug("the worker ended before it was told to stop; that is seen next")


def _lines(decoder: VllmDecoder) -> list[str]:
    lines = []
    if decoder.prompt_tokens:
        share = decoder.cached_tokens / decoder.prompt_tokens
        lines.append(
            f"decoding: vLLM, {decoder.statistics.tokens} new tokens, {share:.0%} of the prompts' "
            "tokens run for another prompt already"
        )
    if decoder.restarts:
        lines.append(f"vLLM's worker ended {decoder.restarts} times and was started again")
    return lines


def _finished(held: _InHand, seconds: float, ends: Sequence[int]) -> Finished:
    is_over = held.tokens[-1] in ends
    laid_out = held.laid_out
    full = laid_out.cut_by_context and len(held.tokens) == laid_out.limit
    return Finished(held.request, held.tokens, seconds, over_context=full and not is_over)


def vllm_log_probabilities(
    decoder: VllmDecoder, row: PromptRow, clip: str, tokens: Sequence[int]
) -> Tensor:
    """Return the log probabilities of every token at each place of a caption, and behind it.

    `teacher_forcing` asks the same of transformers.

    Args:
        decoder: with a worker, and nothing in hand.
        row: a clip with a prompt.
        clip: feature key of the clip.
        tokens: the caption, without what ends it.

    Returns:
        float32 [len(tokens) + 1, V], on the CPU.
    """
    from safetensors.torch import load_file

    from cogcache.generation.teacher_forcing import followed_by

    one = Request(followed_by(row, tokens), clip, 0, Generation(max_new_tokens=1, retry=False))
    with scratch_folder() as folder:
        path = Path(folder) / "expected.safetensors"
        decoder.look = {"places": len(tokens) + 1, "path": str(path)}
        try:
            [finished] = decoder.run([[one]])
        finally:
            decoder.look = None
        if finished.error is not None:
            raise finished.error
        return load_file(path)["expected"].clone()
