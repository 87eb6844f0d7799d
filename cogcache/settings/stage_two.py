"""Settings of stage two: the language half, generation, summaries."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from cogcache.settings import json_schema as schemas
from cogcache.settings.fields import AtLeastOne, NoneIfEmpty, Positive, PromptText, Table, Texts

SUMMARY: Final = "summary"
"""Name that summaries of whole videos are listed by."""
PART: Final = "summary-part"
"""Name that those of their parts are listed by."""
CAPTIONS: Final = "{captions}"
SUMMARY_PROMPT: Final = (
    "These are captions of the parts of one video in their order, each with its time: "
    f"{CAPTIONS} Describe the whole video in one paragraph."
)


def _holds_captions(text: str) -> str:
    if text.count(CAPTIONS) != 1:
        raise ValueError(f"the prompt must hold {CAPTIONS} once, where the captions go")
    return text


class Quality(Table):
    """Which clips are worth a caption, and which another one (docs/scores.md). Part of no key."""

    min_motion: Annotated[float, Field(ge=0)] = 0.0
    """Only clips whose score `motion` is at least this; 0 takes all."""
    drop_duplicates: bool = False
    """Of clips that were found to be near-duplicates, only the one to keep."""
    remake_rejected: bool = False
    """Make captions that reviewers rejected once more, drawn at random; `forget --kept` lists the
    rejected ones."""


class Summary(Table):
    """One caption of a whole video from the captions of its clips. Part of its caption key."""

    summarize: bool = False
    """Give each video that is cut one caption more, named `summary`, made from those of its clips
    by the language half alone."""
    summary_prompt: Annotated[PromptText, AfterValidator(_holds_captions)] = SUMMARY_PROMPT
    """What is asked for it; `{captions}` stands for the clips' captions, a line each, with their
    times."""
    summary_of: Annotated[str | None, NoneIfEmpty] = None
    """Name of the prompt whose captions are summed up; "" for the first."""
    summary_tokens: Annotated[int, Field(ge=64)] = 4096
    """Most tokens of what is asked at once, where the model's context has room for so many; more
    captions are summed up in groups, and what comes of that again."""

    def check(self, prompts: Collection[str]) -> None:
        """Check that there are captions to sum up, and that no prompt has the name of a summary.

        Raises:
            ValueError: it is not so.
        """
        if not self.summarize:
            return
        if self.summary_of and self.summary_of not in prompts:
            known = ", ".join(prompts)
            raise ValueError(f"summary_of names no prompt: {self.summary_of!r}; there is {known}")
        for name in (SUMMARY, PART):
            if name in prompts:
                raise ValueError(f"summaries are listed as {name!r}: give that prompt another name")


GROUP_SIZES = (32, 64, 128, 256)
"""What torch's product of int4 weights takes."""


def _known_group_size(size: int) -> int:
    if size not in GROUP_SIZES:
        raise ValueError("group_size is 32, 64, 128 or 256")
    return size


GroupSize = Annotated[int, AfterValidator(_known_group_size)]


class Language(Table):
    """Stage two: how the language half is loaded and how prompts meet features."""

    quantization: Literal["auto", "nf4", "fp4", "int8", "int4", "fp8", "none"] = "auto"
    """Precision of the decoder's linear weights in memory: `auto` is what the cache's captions are
    made in, else `nf4`, or `int4` on CPUs without AVX-512; `none` keeps them in compute_dtype;
    `fp8` with backend vllm alone."""
    group_size: GroupSize = 64
    """Columns that share a scale in `int4`: 32, 64, 128 or 256; fewer lose less, and take more."""
    double_quant: bool = True
    """Quantise the scales of 4-bit weights too, 0.4 bits a weight less; `nf4` and `fp4` only."""
    head_quantization: Literal["none", "int8", "nf4", "int4"] = "none"
    """Precision of the output head's weights; other than `none` may change a caption's words."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the language half's arithmetic and of its weights that are not quantised."""
    layout: Literal["chat", "base", "vqa"] = "chat"
    """How a prompt is laid out around the features; `chat`: an index after each frame, then a
    question; `base`: frames, then the prompt as it is; `vqa`: as `chat`, for a short answer."""
    system: Annotated[str | None, NoneIfEmpty] = None
    """System prompt: what the model is told before each question; "" for none. Part of the caption
    key, with the prompt; CogVLM2 has none."""
    text_only: Texts = ()
    """Name of a prompt that gets no video, but only the captions that it names."""
    rotary_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type that rotary tables are built in; `bfloat16` is what the published bfloat16 run does."""
    clips_per_batch: AtLeastOne = 8
    """Most clips that are decoded together; halved when memory runs out."""
    keep_prefix: Annotated[str | None, NoneIfEmpty] = None
    """Folder for the KV cache of each clip's video part, so that later prompts need not compute it
    again; `plan` says its size, some 200 MiB a clip; "" for none."""
    adapter: Annotated[str | None, NoneIfEmpty] = None
    """Folder that `cogcache train` wrote: captions are made with this adapter, and listed under a
    model name of their own. Part of the caption key; "" for none."""


class Generation(Table):
    """How tokens are chosen. Part of the caption key."""

    max_new_tokens: AtLeastOne = 256
    """Most tokens of one caption; one that does not end before is flagged."""
    do_sample: bool = False
    """Draw tokens by their probability; otherwise always take the likeliest, the same each time."""
    temperature: Positive = 1.0
    """Above 1 draws more freely, below 1 more strictly; only with do_sample."""
    top_p: Annotated[Positive, Field(le=1)] = 1.0
    """Draw from the likeliest tokens that reach this share together; only with do_sample."""
    top_k: Annotated[int, Field(ge=0)] = 50
    """Draw from this many of the likeliest tokens, 0 from all; only with do_sample."""
    num_beams: AtLeastOne = 1
    """Continuations followed side by side; memory grows with it."""
    repetition_penalty: Positive = 1.0
    """Above 1 makes tokens that were already used less likely."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Start of the random numbers that do_sample draws with; each caption has its own."""
    n: AtLeastOne = 1
    """Captions of each clip with each prompt; more than one only with do_sample."""
    stop: Texts = ()
    """Texts any of which ends a caption and is left out of it; "" for none."""
    json_schema: Annotated[str | None, NoneIfEmpty, BeforeValidator(schemas.text_of)] = None
    """File with a JSON schema that each caption follows, or the schema itself; "" for none (needs
    llguidance: the extra `structured`)."""
    retry: bool = True
    """Make a caption that is empty, loops or has no end once more with other settings, and keep
    the better one."""

    @model_validator(mode="after")
    def _sampling_options_need_sampling(self) -> Self:
        """An option without effect would also make a caption key of its own."""
        for name in ("temperature", "top_p", "top_k"):
            default = type(self).model_fields[name].default
            if not self.do_sample and getattr(self, name) != default:
                raise ValueError(
                    f"{name} = {getattr(self, name)} has no effect while do_sample is false: "
                    f"set do_sample to true, or leave {name} at {default}"
                )
        if self.n > 1 and not self.do_sample:
            raise ValueError(
                f"n = {self.n} would make one caption {self.n} times while do_sample is false: "
                "set do_sample to true, or leave n at 1"
            )
        if self.stop and self.json_schema:
            raise ValueError("stop texts would cut JSON off: leave out stop or json_schema")
        return self
