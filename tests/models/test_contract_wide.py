"""The contract for further classes, which no module of ours names: all is derived."""

from __future__ import annotations

import zoo_wide
from contracts import ModelFamilyTests


class TestQwen3Dot5(ModelFamilyTests):
    animal = zoo_wide.QWEN3_5


class TestQwen3Dot5Moe(ModelFamilyTests):
    animal = zoo_wide.QWEN3_5_MOE


class TestQwen3VLMoe(ModelFamilyTests):
    animal = zoo_wide.QWEN3_VL_MOE


class TestGlm4vMoe(ModelFamilyTests):
    animal = zoo_wide.GLM4V_MOE


class TestGlm46V(ModelFamilyTests):
    animal = zoo_wide.GLM46V


class TestGlmOcr(ModelFamilyTests):
    animal = zoo_wide.GLM_OCR


class TestErnie4Dot5VLMoe(ModelFamilyTests):
    animal = zoo_wide.ERNIE


class TestGemma3(ModelFamilyTests):
    animal = zoo_wide.GEMMA3


class TestGemma4(ModelFamilyTests):
    animal = zoo_wide.GEMMA4


class TestLfm2VL(ModelFamilyTests):
    animal = zoo_wide.LFM2_VL


class TestLfm3VL(ModelFamilyTests):
    animal = zoo_wide.LFM3_VL


class TestExaone4Dot5(ModelFamilyTests):
    animal = zoo_wide.EXAONE4_5


class TestMolmo2(ModelFamilyTests):
    animal = zoo_wide.MOLMO2


class TestQwen2Dot5OmniThinker(ModelFamilyTests):
    animal = zoo_wide.OMNI


class TestMiniCPMV4Dot6(ModelFamilyTests):
    animal = zoo_wide.MINICPMV4_6


class TestMiniCPMV4Dot7(ModelFamilyTests):
    animal = zoo_wide.MINICPMV4_7


class TestMiniMaxM3VL(ModelFamilyTests):
    animal = zoo_wide.MINIMAX


class TestCohereCompass(ModelFamilyTests):
    animal = zoo_wide.COMPASS


class TestQwen3OmniMoeThinker(ModelFamilyTests):
    animal = zoo_wide.OMNI_MOE


class TestLlava(ModelFamilyTests):
    animal = zoo_wide.LLAVA


class TestIdefics3(ModelFamilyTests):
    animal = zoo_wide.IDEFICS3


class TestMistral3(ModelFamilyTests):
    animal = zoo_wide.MISTRAL3
