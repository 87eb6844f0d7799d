"""From a prompt to a conversation, and which chat template lays it out. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogcache.errors import CheckpointError, ConfigError
from cogcache.keys import digest
from cogcache.models.checkpoints import bounds
from cogcache.models.checkpoints.checkpoint import Checkpoint

Message = dict[str, Any]

USUAL_FORMS = {
    "llava_next_video": "USER: {video}\n{prompt} ASSISTANT:",
    "video_llava": "USER: {video}\n{prompt} ASSISTANT:",
}
"""How the first checkpoints of a family, which have no chat template, were trained to be asked."""
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)
NOT_PREPROCESSING = ("chat_template", "transformers_version")


def conversation_of(prompt: str) -> list[Message]:
    """Return a prompt as a conversation about one video.

    Args:
        prompt: a question; or a whole conversation, as a JSON list of messages with `role` and
            `content`, one part of which is `{"type": "video"}`.

    Raises:
        ConfigError: it is a conversation, but not about exactly one video.
    """
    messages = messages_of(prompt)
    if messages is None:
        content = [{"type": "video"}, {"type": "text", "text": prompt}]
        return [{"role": "user", "content": content}]
    count = sum(part.get("type") == "video" for part in _parts(messages))
    if count != 1:
        problem = f"the conversation {prompt[:60]!r} has {count} parts of the type video"
        raise ConfigError(problem, 'put {"type": "video"} once where the clip belongs')
    return messages


def with_system(system: str, prompt: str) -> str:
    """Return a prompt as a JSON list of messages, the first of which is the system's.

    Raises:
        ConfigError: the prompt is a conversation that has such a message.
    """
    messages = messages_of(prompt)
    if messages is None:
        messages = conversation_of(prompt)
    if any(message["role"] == "system" for message in messages):
        problem = f"the conversation {prompt[:60]!r} has a system message of its own"
        raise ConfigError(problem, "leave out --system, or that message")
    first = {"role": "system", "content": [{"type": "text", "text": system}]}
    return json.dumps([first, *messages], ensure_ascii=False)


def about_nothing(prompt: str) -> list[Message]:
    """Return a question, or a conversation, as one without a video."""
    if (messages := messages_of(prompt)) is not None:
        return [{**each, "content": _without_video(each["content"])} for each in messages]
    return [{"role": "user", "content": [{"type": "text", "text": prompt}]}]


def with_images(conversation: Sequence[Message], count: int) -> list[Message]:
    """Return the conversation with `count` images in the video's place."""

    def expanded(content: Any) -> Any:
        if isinstance(content, str):
            return content
        images = [{"type": "image"}] * count
        parts = [images if part.get("type") == "video" else [part] for part in content]
        return [part for group in parts for part in group]

    return [{**message, "content": expanded(message["content"])} for message in conversation]


def plain_text(family: str, conversation: Sequence[Message], placeholder: str) -> str:
    """Lay out a conversation for a checkpoint without a chat template.

    Raises:
        ConfigError: the family has no usual form, or the conversation is more than a question.
    """
    hint = "put the model's chat_template.jinja into its folder"
    if family not in USUAL_FORMS:
        raise ConfigError(f"the checkpoint of {family} has no chat template", hint)
    parts = list(_parts(conversation))
    kinds = [part["type"] for part in parts]
    if len(conversation) != 1 or kinds not in (["video", "text"], ["text"]):
        problem = f"without a chat template, {family} takes a plain question only"
        raise ConfigError(problem, hint)
    form = USUAL_FORMS[family] if len(parts) > 1 else USUAL_FORMS[family].replace("{video}\n", "")
    return form.format(video=placeholder, prompt=parts[-1]["text"])


def template_name(checkpoint: Checkpoint, family: str) -> str:
    """Return a name for how the checkpoint lays out prompts, with the template's digest.

    Raises:
        ConfigError: it has no chat template, and its family no usual form.
    """
    folder = checkpoint.folder
    found = {
        name: (folder / name).read_text("utf-8") for name in TEMPLATE_FILES if _is(folder, name)
    }
    for name in ("tokenizer_config.json", "processor_config.json"):
        if template := read_json(folder / name).get("chat_template"):
            found[name] = json.dumps(template)
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        found[path.name] = path.read_text("utf-8")
    if found:
        return f"chat template {digest(found)}"
    plain_text(family, conversation_of("?"), "")
    return f"usual form of {family}"


def processor_digest(checkpoint: Checkpoint) -> str:
    """Return the digest of all files that say what a processor makes of frames."""
    contents: Mapping[str, Any] = {
        name: json.dumps(_without(read_json(checkpoint.folder / name)), sort_keys=True)
        for name in PROCESSOR_FILES
        if _is(checkpoint.folder, name)
    }
    if not set(contents) - {"tokenizer_config.json"}:
        problem = f"{checkpoint.model} has no processor_config.json or preprocessor_config.json"
        raise CheckpointError(problem, "fetch the small files of the model too")
    return digest(contents)


def _without_video(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [part for part in content if part.get("type") != "video"]


def messages_of(prompt: str) -> list[Message] | None:
    """Return the messages of a prompt that is a JSON list of them; None for any other text."""
    if not prompt.lstrip().startswith("["):
        return None
    try:
        messages = json.loads(prompt)
    except ValueError:
        return None
    fits = messages and all(
        isinstance(each, dict) and {"role", "content"} <= set(each) for each in messages
    )
    return messages if fits else None


def _parts(conversation: Sequence[Message]) -> Iterator[dict[str, Any]]:
    for message in conversation:
        if not isinstance(message["content"], str):
            yield from message["content"]


def _is(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """Return what is in a JSON file; nothing where there is none."""
    if not path.is_file():
        return {}
    return bounds.read_json(path)


def _without(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in NOT_PREPROCESSING}
