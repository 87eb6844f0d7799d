"""Captions that follow a JSON schema: before each token, those that cannot follow are left out.

Imported where captions are made; it needs torch and the extra `structured`.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import llguidance
import numpy as np
import torch
from referencing import Registry
from torch import Tensor

from cogcache.errors import ConfigError
from cogcache.models import Family


class Grammar:
    """A JSON schema, made ready for the tokens of one family.

    Args:
        schema: its text.
        family: whose tokenizer and ends it is made for.

    Raises:
        ConfigError: it is no schema, or asks for what cannot be held token by token.
    """

    def __init__(self, schema: str, family: Family) -> None:
        self._schema = json.loads(schema)
        _check(self._schema)
        tokenizer = llguidance.LLTokenizer(family.tokenizer_json(), eos_token=[*family.stop_ids])
        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            schema,
            # As json.dumps writes. Where blanks are free, some models write no end of them.
            overrides={
                "whitespace_flexible": False,
                "item_separator": ", ",
                "key_separator": ": ",
            },
        )
        self._start = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        if problem := self._start.get_error():
            hint = "leave that out of the schema; the caption's other parts are held all the same"
            raise ConfigError(f"--json-schema cannot be held: {problem.splitlines()[0]}", hint)

    def processor(self, prompt_length: int) -> Allowed:
        """Return what leaves tokens out, for rows that begin with as many of the prompt."""
        return Allowed(self._start, prompt_length)

    def is_followed(self, text: str) -> bool:
        """Say whether a caption is JSON, whole, and what the schema asks for."""
        try:
            value = json.loads(text)
        except ValueError:
            return False
        return bool(_validator(self._schema).is_valid(value))


class Allowed:
    """Leaves out the tokens after which a row could no longer follow a grammar.

    One of transformers' logits processors.
    """

    def __init__(self, start: llguidance.LLMatcher, prompt_length: int) -> None:
        self.prompt_length = prompt_length
        self.matchers: dict[tuple[int, ...], llguidance.LLMatcher] = {(): start}
        """How far each row has come, by its tokens: rows of a beam part and go on from others."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with -inf for what is left out. [B, V]."""
        made = [tuple(row) for row in input_ids[:, self.prompt_length :].tolist()]
        self.matchers = {tokens: self._after(tokens, alone=len(made) == 1) for tokens in made}
        masks = torch.stack([_mask(self.matchers[tokens], scores.shape[-1]) for tokens in made])
        return scores.masked_fill(~masks.to(scores.device), -torch.inf)

    def _after(self, tokens: tuple[int, ...], *, alone: bool) -> llguidance.LLMatcher:
        matcher = self.matchers[tokens[:-1]]
        if not (alone and tokens):  # other rows go on from it, or other captions
            matcher = matcher.deep_copy()
        if tokens and not matcher.is_stopped():
            matcher.consume_token(tokens[-1])
        return matcher


def _mask(matcher: llguidance.LLMatcher, size: int) -> Tensor:
    """Return which tokens may come next. bool [V]."""
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    allowed = np.unpackbits(bits, count=size, bitorder="little")
    # A model may have more rows of logits than its tokenizer has tokens.
    return torch.from_numpy(allowed.astype(bool))


def _check(schema: Any) -> None:
    try:
        _validator(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        place = "/".join(map(str, error.absolute_path)) or "its top"
        raise ConfigError(
            f"--json-schema is no JSON schema: at {place}, {error.message}",
            "json-schema.org says what one may hold",
        ) from error


def _validator(schema: Any) -> Any:
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    # An empty registry: nothing is fetched from anywhere.
    return kind(schema, registry=Registry())
