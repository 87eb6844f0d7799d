"""The contract for the ten families that have an entry in the registry."""

from __future__ import annotations

import zoo
from contracts import ModelFamilyTests


class TestQwen2VL(ModelFamilyTests):
    animal = zoo.QWEN2_VL


class TestQwen2Dot5VL(ModelFamilyTests):
    animal = zoo.QWEN2_5_VL


class TestQwen3VL(ModelFamilyTests):
    animal = zoo.QWEN3_VL


class TestGlm4v(ModelFamilyTests):
    animal = zoo.GLM4V


class TestLlavaOnevision(ModelFamilyTests):
    animal = zoo.LLAVA_ONEVISION


class TestLlavaNextVideo(ModelFamilyTests):
    animal = zoo.LLAVA_NEXT_VIDEO


class TestVideoLlava(ModelFamilyTests):
    animal = zoo.VIDEO_LLAVA


class TestInternVL(ModelFamilyTests):
    animal = zoo.INTERNVL


class TestSmolVLM(ModelFamilyTests):
    animal = zoo.SMOLVLM


class TestVideoLlama3(ModelFamilyTests):
    animal = zoo.VIDEO_LLAMA_3
