"""Tiny configurations of any architecture: the default one with every size made small by what its name says.

A rule is a pattern of attribute names and what they become; the first that fits counts. Per-layer lists keep one
layer of each kind. The few numbers that no rule guesses stand in ``OVERRIDES``.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

VOCAB_SIZE = 97  # prime, so that no cluster size divides it
FIRST_TEXT_TOKEN = 60  # special tokens are below
WIDTH, NUM_HEADS, HEAD_DIM = 32, 4, 8

LEFT_OUT = ("id2label", "label2id", "out_features", "out_indices", "stage_names")  # made anew from the rest
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")

RULES: tuple[tuple[str, Any], ...] = (
    (r"(.*_)?vocab(_size)?(_per_layer_input|_base)?", VOCAB_SIZE),
    (r"hidden_size_per_layer_input", 8),
    (r"(.*_)?max_(\w+_)?positions?(_embeddings)?|n_positions|(max_)?seq_len", 64),
    (r"num_kv_shared_layers", 0),
    (r"num_feat_extract_layers", 99),  # as many as there are conv_dim
    (r"(.*_)?(num_|n_)?(hidden_)?(layers|blocks)|n_layer|depth|.*_depth", 2),
    (r"(.*_)?(num_key_value_heads|num_kv_heads|n_kv_heads)|num_query_groups", 2),
    (r"qk_head_dim", 2 * HEAD_DIM),
    (r"mamba_(d_head|head_dim)", 2 * WIDTH // NUM_HEADS),
    (r"(.*_)?(head_dim|d_kv|dim_head|d_head|kv_channels|head_size|rotary_dim)", HEAD_DIM),
    (r"(.*_)?(num_|n_)?(attention_)?heads?", NUM_HEADS),
    (r".*rank", 16),
    (r".*(num|n)_(.*_)?experts", 4),
    (r"(mamba_)?n_groups?|topk_group|num_expert_groups?", 2),
    (r".*experts_per_tok(en)?|.*top_?k(_.*)?|moe_k", 2),
    (r".*(intermediate|ffn|inner|mlp|feed_forward|d_ff|dim_ff).*", 48),
    (
        r".*(hidden_sizes?|hidden_size_global|bottleneck_size|d_model|n_embd|(embedding|projection)_size|_dim|width)|dim|d_embed",
        WIDTH,
    ),
    (r".*channels", 32),
    (r".*filters", 4),
    (r"num_embeddings|codebook_size", 64),
    (r"(.*_)?(image|img)_size", 32),
    (r"patch_size", 8),
    (r"(.*_)?(sliding_)?window(_size)?|local_attention|(.*_)?chunk_size", 8),
)

FILLED_IN = {  # where they are None
    "head_dim": HEAD_DIM,
    "image_token_index": FIRST_TEXT_TOKEN - 1,
    "num_key_value_heads": NUM_HEADS,
    "vocab_size": VOCAB_SIZE,
}

_COMPASS = {
    "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
}
_GLM5 = {"index_kpool": 2}
_DOTS3 = {"swa_head_dim": 2 * HEAD_DIM}
_QWEN4 = {
    "indexer_n_heads": NUM_HEADS,
    "indexer_kv_heads": 1,
    "indexer_head_dim": HEAD_DIM,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
_ZAMBA = {
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "hybrid"] * 2,
    "hybrid_layer_ids": [1, 3],
    "attention_hidden_size": 2 * WIDTH,
    "attention_head_dim": 2 * WIDTH // NUM_HEADS,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bros": {"dim_bbox_sinusoid_emb_2d": 16, "dim_bbox_sinusoid_emb_1d": 2, "dim_bbox_projection": HEAD_DIM},
    "bridgetower": {"hidden_size": 64, "vision_config": {"hidden_size": 64}, "text_config": {"hidden_size": 64}},
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "cohere_compass": {"text_config": _COMPASS},
    "cohere_compass_text": _COMPASS,
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "clip_qkv": 8.0}},
    "deepseek_ocr2": {"vision_config": {"sam_config": {"downsample_channels": [WIDTH, WIDTH]}}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"text_config": _DOTS3},
    "dots3_note_text": _DOTS3,
    "emu3": {"vocabulary_map": {"<image>": 4}},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {"mrope_section": [1, 1, 2]}}},
    "esm": {"pad_token_id": 1},
    "falcon_h1": {"mamba_d_ssm": 2 * WIDTH, "mamba_d_head": 2 * WIDTH // NUM_HEADS},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": WIDTH // 4}},
    "glm5_next": {"text_config": _GLM5},
    "glm5_next_text": _GLM5,
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "layoutlmv3": {"coordinate_size": WIDTH // 8, "shape_size": WIDTH // 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48},  # six parts and four heads
    "mamba2": {"head_dim": 2 * WIDTH // NUM_HEADS},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -2]}},
    "moonshine_streaming": {"num_key_value_heads": NUM_HEADS},
    "paddleocr_vl": {"text_config": {"rope_parameters": {"mrope_section": [2, 1, 1]}}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 50},
    "moonshine": {"encoder_num_key_value_heads": NUM_HEADS, "decoder_num_key_value_heads": NUM_HEADS},
    "qwen3_omni_moe": {"talker_config": {"text_config": {"shared_expert_intermediate_size": 48}}},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 50},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {"axial_pos_embds_dim": [WIDTH // 2] * 2, "axial_pos_shape": [8, 8], "is_decoder": True},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 3200},
    "xmod": {"default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zamba2": {"mamba_headdim": 2 * WIDTH // NUM_HEADS, **_ZAMBA},
}


def tiny_config(config_class: type[PreTrainedConfig]) -> Any:
    """A small configuration of a class."""
    fields = copy.deepcopy(config_class().to_dict())
    _shrink(fields, iter(range(3, FIRST_TEXT_TOKEN)))
    _merge(fields, OVERRIDES.get(config_class.model_type, {}))
    config = config_class.from_dict(fields)
    _set_rope_sections(config)
    return config


def _shrink(fields: dict[str, Any], token_ids: Iterator[int]) -> None:
    for name in LEFT_OUT:
        fields.pop(name, None)
    heads, key_heads = (fields.get(name) for name in ("num_attention_heads", "num_key_value_heads"))
    num_layers = _keep_a_layer_of_each_kind(fields)
    for name, value in fields.items():
        if isinstance(value, dict):
            _shrink(value, token_ids)
        elif re.fullmatch(r".*token_(id|index)", str(name)) and isinstance(value, int):
            fields[name] = value if 0 <= value < 3 else next(token_ids)
        elif name in LAYERS:
            fields[name] = _at_most(value, num_layers)
        elif name == "num_key_value_heads" and key_heads == heads:
            fields[name] = NUM_HEADS
        elif name in FILLED_IN and value is None:
            fields[name] = FILLED_IN[name]
        elif name == "partial_rotary_factor":
            fields[name] = 1.0
        elif name in ("mrope_section", "xdrope_section") and value:
            fields[name] = [HEAD_DIM // 2 - len(value) + 1] + [1] * (len(value) - 1)
        else:
            rule = next((size for pattern, size in RULES if re.fullmatch(pattern, str(name))), None)
            fields[name] = value if rule is None else _at_most(value, rule)


def _set_rope_sections(config: Any) -> None:
    """Split rotary positions among text, height and width where the class would assume wider heads."""
    may_have_sections = "mrope_section" in (getattr(config, "ignore_keys_at_rope_validation", None) or ())
    if may_have_sections and "rope_type" in (config.rope_parameters or {}):
        config.rope_parameters.setdefault("mrope_section", [HEAD_DIM // 2 - 2, 1, 1])
    for name in config.sub_configs:
        if isinstance(getattr(config, name, None), PreTrainedConfig):
            _set_rope_sections(getattr(config, name))


def _at_most(value: Any, size: int) -> Any:
    if isinstance(value, list | tuple):
        return [_at_most(item, size) for item in value]
    return min(value, size) if type(value) is int else value


def _keep_a_layer_of_each_kind(fields: dict[str, Any]) -> int:
    """Shorten the lists that say something of each layer; the number of layers that are left."""
    count = next((fields[name] for name in LAYERS if type(fields.get(name)) is int), 0)
    lists = {name: value for name, value in fields.items() if isinstance(value, list | tuple) and len(value) == count}
    if not lists or count < 2:
        return 2
    kinds = [str([value[i] for value in lists.values() if isinstance(value[i], str)]) for i in range(count)]
    kept = sorted({kinds.index(kind) for kind in kinds})
    kept = sorted(kept + [i for i in range(count) if i not in kept][: max(0, 2 - len(kept))])
    for name, value in lists.items():
        fields[name] = [value[i] for i in kept]
    if fields.get("per_layer_config"):
        layers = {int(layer): config for layer, config in fields["per_layer_config"].items()}
        fields["per_layer_config"] = {new: layers[old] for new, old in enumerate(kept) if old in layers}
    return len(kept)


def _merge(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(fields.get(name), dict):
            _merge(fields[name], value)
        else:
            fields[name] = value
