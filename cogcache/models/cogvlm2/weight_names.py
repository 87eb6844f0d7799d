"""The published names and fused weights of CogVLM2-Video, and what they are called here.

Importing this registers the mapping with transformers, which applies it while loading and, turned
round, while saving.
"""

from __future__ import annotations

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

register_checkpoint_conversion_mapping(
    "cogvlm2_video",
    [
        # All layers hold the same table; the decoder here has one for all of them.
        WeightRenaming(
            r"^model\.layers\.0\.self_attn\.rotary_emb\.inv_freq",
            "model.language_model.rotary_emb.inv_freq",
        ),
        WeightRenaming(r"^model\.embed_tokens\.", "model.language_model.embed_tokens."),
        WeightRenaming(r"^model\.norm\.", "model.language_model.norm."),
        WeightRenaming(r"^model\.layers\.", "model.language_model.layers."),
        WeightRenaming(r"self_attn\.language_expert_dense\.", "self_attn.o_proj."),
        # Named one by one: turned round for saving, a bare `mlp.` would meet the vision half's too.
        WeightRenaming(
            r"mlp\.language_mlp\.(gate_proj|up_proj|down_proj)\.",
            r"mlp.\1.",
        ),
        WeightConverter(
            "self_attn.language_expert_query_key_value.weight",
            ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
            operations=[Split(dim=0)],
        ),
    ],
    overwrite=True,
)
