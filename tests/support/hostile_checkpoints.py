"""Checkpoints as a stranger may make them: configs, headers and small files that do harm."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], None]
HUGE = 10**9
DEEP = "[" * 200_000 + "]" * 200_000


def config(**changes: Any) -> Change:
    """Return a change of config.json: `vision__` before a name means the vision part's."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        for name, value in changes.items():
            part, _, inner = name.rpartition("__")
            target = content.get(f"{part}_config", content) if part else content
            target[inner] = value
        path.write_text(json.dumps(content))

    return change


def without(*names: str) -> Change:
    """Return a change that leaves keys of config.json out, in all of its parts."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        for part in (content, content.get("vision_config"), content.get("text_config")):
            for name in names:
                if isinstance(part, dict):
                    part.pop(name, None)
        path.write_text(json.dumps(content))

    return change


def written(name: str, text: str | bytes) -> Change:
    """Return a change that writes a file anew."""

    def change(folder: Path) -> None:
        data = text.encode() if isinstance(text, str) else text
        (folder / name).write_bytes(data)

    return change


def a_pipe(name: str) -> Change:
    """Return a change that puts a pipe, which nobody writes to, in a file's place."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def a_folder(name: str) -> Change:
    """Return a change that puts a folder in a file's place."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def index(value: Any) -> Change:
    """Return a change that gives every tensor of the index another shard."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        if not path.is_file():
            names = _header(folder / "model.safetensors")
            content: dict[str, Any] = {"metadata": {}, "weight_map": dict.fromkeys(names, value)}
        else:
            content = json.loads(path.read_text())
            content["weight_map"] = dict.fromkeys(content["weight_map"], value)
        path.write_text(json.dumps(content))

    return change


def a_link_to_a_pipe(name: str) -> Change:
    """Return a change that puts a link to a pipe, which nobody writes to, in a file's place."""

    def change(folder: Path) -> None:
        os.mkfifo(folder / "pipe")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("pipe")

    return change


def header_said_twice(folder: Path) -> None:
    """Give the first tensor of the first shard two entries; readers take one or the other."""
    shard = _first_shard(folder)
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    first, *_ = _header(shard)
    other = json.dumps({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})
    text = f"{{{json.dumps(first)}: {other}, ".encode() + data[9 : 8 + length]
    shard.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def tokenizer(**changes: Any) -> Change:
    """Return a change of parts of tokenizer.json."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


TEN_LETTERS = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
MARKS = {"SpecialToken": {"id": "<s>", "type_id": 0}}
TOKENIZERS: dict[str, Change] = {
    "tokenizer_growing": tokenizer(
        normalizer={"type": "Sequence", "normalizers": [TEN_LETTERS] * 20}
    ),
    "tokenizer_growing_inside": tokenizer(
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Sequence", "normalizers": [TEN_LETTERS] * 2}] * 10,
        }
    ),
    "tokenizer_growing_between_letters": tokenizer(
        normalizer={
            "type": "Sequence",
            "normalizers": [{**TEN_LETTERS, "pattern": {"Regex": ""}, "content": "b"}] * 40,
        }
    ),
    "tokenizer_growing_when_decoding": tokenizer(
        decoder={"type": "Sequence", "decoders": [TEN_LETTERS] * 20}
    ),
    "tokenizer_adding": tokenizer(
        post_processor={
            "type": "TemplateProcessing",
            "single": [MARKS] * 10_000,
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        }
    ),
    "tokenizer_padding": tokenizer(
        padding={
            "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>",
        }
    ),
    "tokenizer_padding_to_multiples": tokenizer(padding={"pad_to_multiple_of": 10**9}),
}  # fmt: skip
"""What a tokenizer may do to a text, by name."""


def _first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def _header(shard: Path) -> dict[str, Any]:
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return header


def header(**changes: Any) -> Change:
    """Return a change of what each tensor of the first shard is said to be."""

    def change(folder: Path) -> None:
        shard = _first_shard(folder)
        data = shard.read_bytes()
        length = int.from_bytes(data[:8], "little")
        content = {name: {**entry, **changes} for name, entry in _header(shard).items()}
        text = json.dumps(content).encode()
        shard.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return change


def header_text(text: str) -> Change:
    """Return a change that gives the first shard another header."""

    def change(folder: Path) -> None:
        _first_shard(folder).write_bytes(len(text).to_bytes(8, "little") + text.encode())

    return change


CHANGES: dict[str, Change] = {
    "layers_huge": config(num_hidden_layers=HUGE, text__num_hidden_layers=HUGE),
    "vision_layers_huge": config(vision__num_hidden_layers=HUGE, vision__depth=HUGE),
    "layers_2000": config(num_hidden_layers=2000, text__num_hidden_layers=2000),
    "layers_text": config(num_hidden_layers="three", text__num_hidden_layers="three"),
    "layers_none": config(num_hidden_layers=None, text__num_hidden_layers=None),
    "layers_negative": config(num_hidden_layers=-1, text__num_hidden_layers=-1),
    "layers_zero": config(num_hidden_layers=0, text__num_hidden_layers=0),
    "layers_real": config(num_hidden_layers=2.5, text__num_hidden_layers=2.5),
    "layers_list": config(num_hidden_layers=[2], text__num_hidden_layers=[2]),
    "heads_zero": config(num_attention_heads=0, text__num_attention_heads=0),
    "heads_huge": config(num_attention_heads=HUGE, text__num_attention_heads=HUGE),
    "vision_heads_zero": config(vision__num_heads=0),
    "width_zero": config(hidden_size=0, text__hidden_size=0),
    "width_negative": config(hidden_size=-64, text__hidden_size=-64),
    "width_huge": config(hidden_size=2**62, text__hidden_size=2**62),
    "width_other": config(hidden_size=96, text__hidden_size=96),
    "width_text": config(hidden_size="128", text__hidden_size="128"),
    "width_400_digits": config(hidden_size=10**400, text__hidden_size=10**400),
    "width_nan": config(hidden_size=float("nan"), text__hidden_size=float("inf")),
    "vocabulary_huge": config(vocab_size=2**60, text__vocab_size=2**60),
    "vocabulary_none": config(vocab_size=None, text__vocab_size=None),
    "positions_huge": config(max_position_embeddings=10**15, text__max_position_embeddings=10**15),
    "vision_positions_huge": config(vision__num_positions=2**60),
    "image_huge": config(vision__image_size=HUGE),
    "image_text": config(vision__image_size="56"),
    "image_none": config(vision__image_size=None),
    "patch_zero": config(vision__patch_size=0),
    "patch_one": config(vision__patch_size=1),
    "patch_huge": config(vision__patch_size=HUGE),
    "activation_unknown": config(
        hidden_act="boom", text__hidden_act="boom", vision__hidden_act="x"
    ),
    "activation_number": config(hidden_act=7, text__hidden_act=7, vision__hidden_act=7),
    "vision_is_a_list": config(vision_config=[1, 2]),
    "vision_is_a_text": config(vision_config="../../etc/passwd"),
    "vision_is_empty": config(vision_config={}),
    "text_is_a_list": config(text_config=[1, 2]),
    "text_is_a_text": config(text_config="boom"),
    "architecture_of_a_module": config(architectures=["modeling_utils"]),
    "architecture_dunder": config(architectures=["__builtins__"]),
    "architecture_not_video": config(architectures=["BertModel"]),
    "architecture_dotted": config(architectures=["os.system"]),
    "architecture_empty": config(architectures=[""]),
    "architecture_number": config(architectures=[7]),
    "model_type_unknown": config(model_type="boom", architectures=["Boom"]),
    "model_type_list": config(model_type=["a"]),
    "dtype_unknown": config(torch_dtype="float3", dtype="float3"),
    "dtype_evil": config(torch_dtype="__import__('os').system('x')"),
    "rope_text": config(rope_parameters="x", text__rope_parameters="x", text__rope_scaling="x"),
    "rope_unknown": config(
        rope_parameters={"rope_type": "boom"}, text__rope_parameters={"rope_type": "boom"}
    ),
    "quantization_unknown": config(quantization_config={"quant_method": "boom"}),
    "quantization_text": config(quantization_config="boom"),
    "remote_code": config(auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}),
    "eos_text": config(eos_token_id="x", text__eos_token_id="x"),
    "eos_none": without("eos_token_id", "bos_token_id", "pad_token_id"),
    "pad_huge": config(pad_token_id=10**6, text__pad_token_id=10**6),
    "no_sizes": without("hidden_size", "num_hidden_layers", "image_size", "patch_size"),
    "config_deep": written("config.json", DEEP),
    "config_deep_inside": config(vision__extra=json.loads("[" * 500 + "]" * 500)),
    "config_not_utf8": written("config.json", b"\xff\xfe{}"),
    "config_a_pipe": a_pipe("config.json"),
    "config_a_folder": a_folder("config.json"),
    "config_huge": lambda folder: os.truncate(folder / "config.json", 2**36),
    "layer_types_long": config(layer_types=["full_attention"] * 10**5, text__layer_types=["x"] * 9),
    "labels_many": config(num_labels=HUGE),
    "index_upwards": index("../../../etc/passwd"),
    "index_absolute": index("/etc/passwd"),
    "index_numbers": index(7),
    "index_none": index(None),
    "index_empty_name": index(""),
    "index_of_a_folder": index("."),
    "index_deep": written("model.safetensors.index.json", DEEP),
    "index_total_text": written(
        "model.safetensors.index.json", '{"metadata": {"total_size": "x"}, "weight_map": {}}'
    ),
    "index_a_pipe": a_pipe("model.safetensors.index.json"),
    "header_shape_huge": header(shape=[2**62, 2**62]),
    "header_shape_negative": header(shape=[-1]),
    "header_shape_text": header(shape="ab"),
    "header_shape_deep": header(shape=[[1]]),
    "header_dtype_unknown": header(dtype="F3"),
    "header_dtype_list": header(dtype=["F32"]),
    "header_offsets_swapped": header(data_offsets=[8, 0]),
    "header_offsets_text": header(data_offsets=["0", "8"]),
    "header_offsets_real": header(data_offsets=[0.0, 8.0]),
    "header_offsets_same": header(data_offsets=[0, 64]),
    "header_deep": header_text(DEEP),
    "header_list": header_text("[]"),
    "header_number_names": header_text('{"a": 7}'),
    "header_empty": header_text("{}"),
    "header_huge": header_text('{"a": [' + "[]," * 2**23 + "[]]}"),
    "header_said_twice": header_said_twice,
    "index_of_nothing": written(
        "model.safetensors.index.json", '{"weight_map": [' + "[]," * 10**7 + "[]]}"
    ),
    "index_said_twice": written(
        "model.safetensors.index.json", '{"weight_map": {"a": "a"}, "weight_map": {"a": ".."}}'
    ),
    "index_a_link_to_a_pipe": a_link_to_a_pipe("model.safetensors.index.json"),
    "shard_a_link_to_a_pipe": lambda folder: a_link_to_a_pipe(_first_shard(folder).name)(folder),
    "shard_a_pipe": lambda folder: a_pipe(_first_shard(folder).name)(folder),
    "tokenizer_deep": written("tokenizer.json", DEEP),
    "tokenizer_empty": written("tokenizer.json", "{}"),
    "tokenizer_text": written("tokenizer.json", "boom"),
    "tokenizer_list": written("tokenizer.json", "[]"),
    "tokenizer_a_pipe": a_pipe("tokenizer.json"),
    "tokenizer_config_deep": written("tokenizer_config.json", DEEP),
    "tokenizer_config_list": written("tokenizer_config.json", "[]"),
    "tokenizer_config_class": written("tokenizer_config.json", '{"tokenizer_class": "os.system"}'),
    "tokenizer_config_a_pipe": a_pipe("tokenizer_config.json"),
    "generation_config_deep": written("generation_config.json", DEEP),
    "generation_config_odd": written("generation_config.json", '{"eos_token_id": {"a": "b"}}'),
    "generation_config_list": written("generation_config.json", "[1]"),
    "generation_config_a_pipe": a_pipe("generation_config.json"),
    "processor_deep": written("preprocessor_config.json", DEEP),
    "processor_list": written("preprocessor_config.json", "[1]"),
    "processor_class": written("preprocessor_config.json", '{"image_processor_type": "Boom"}'),
    "processor_pixels_huge": written(
        "video_preprocessor_config.json",
        json.dumps(
            {"size": {"shortest_edge": 10**12, "longest_edge": 10**13}, "min_pixels": 10**12}
        ),
    ),
    "processor_size_text": written("video_preprocessor_config.json", '{"size": "large"}'),
    "processor_patch_zero": written("video_preprocessor_config.json", '{"patch_size": 0}'),
    "processor_mean_odd": written("video_preprocessor_config.json", '{"image_mean": ["a", 1]}'),
    "processor_frames_huge": written(
        "video_preprocessor_config.json", '{"num_frames": 1000000000}'
    ),
    "template_endless": written(
        "chat_template.jinja",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    ),
    "template_of_syntax": written("chat_template.jinja", "{% for %}"),
    "template_reaching_out": written(
        "chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    ),
    "split_manifest_deep": written("cogcache-split.json", DEEP),
    "split_manifest_odd": written("cogcache-split.json", '{"format": 1}'),
}
"""By name: what is done to a sound checkpoint."""
