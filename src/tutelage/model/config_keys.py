"""Which keys of a config.json change nothing in what a model computes, and which may not.

Published files carry much that is not about the model: what transformers once kept in every config, settings
of generating, notes of the programs that wrote it. What is in no list here and says anything is refused, for
it could be a change of the arithmetic that nobody here knows.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from tutelage.errors import UserError

# Keys that would change the arithmetic, and the values under which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "compression_config": (None,),
    "use_bidirectional_attention": (False, None),
    "is_decoder": (True, False, None),  # of decoders no more than a word
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "partial_rotary_factor": (1.0, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0, 1),
    "embedding_multiplier": (1.0, None),
    "residual_multiplier": (1.0, None),
    "logits_scaling": (1.0, None),
    "logit_scale": (1.0, None),
    "attention_multiplier": (None,),
    "no_rope_layers": (None, []),
    "rope_interleaved": (False, None),
    "interpolate_factor": (1, None),  # these two in files of Phi-4-mini
    "full_attn_mod": (1, None),
}

# By the name alone, where a family's row does not say otherwise: transformers reads no window of a Llama, and
# a bias is among the tensors or not.
_HARMLESS = """
auto_map model_type architectures torch_dtype dtype transformers_version use_cache initializer_range
pretraining_tp attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop max_sequence_length
seq_length tokenizer_class tokenizer_model_max_length tokenizer_padding_side model_max_length
padding_side prefix id2label label2id num_labels problem_type finetuning_task task_specific_params
name_or_path output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
torchscript use_bfloat16 tie_encoder_decoder tf_legacy_loss cross_attention_hidden_size
chunk_size_feed_forward pruned_heads gradient_checkpointing use_flash_attention use_flash_attn
attn_implementation cache_implementation cb_kwargs max_length min_length do_sample early_stopping
num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
suppress_tokens begin_suppress_tokens is_llama_config transformers.js_config use_unsloth_version
model_name base_model license language use_role_embeddings role_embeddings_init vocab_size hidden_size
intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters tie_word_embeddings
original_max_position_embeddings sliding_window use_sliding_window max_window_layers layer_types
attention_bias mlp_bias
"""
_HARMLESS_NAMES = set(_HARMLESS.split())
_HARMLESS_SHAPES = re.compile(r"_.*|.*_(token_id|token_index|version|dropout|pdrop)|unsloth_.*")
_SAYS_NOTHING = (None, False, 0, "", [], {})


def refuse_what_changes_arithmetic(
    values: Mapping[str, Any], known: Collection[str], fixed: Mapping[str, tuple[Any, ...]], where: str
) -> None:
    """Refuse a key whose value would be computed otherwise than it says, or that means who knows what.

    `known` keys are read elsewhere; those in `fixed` may have the values there, others those in NEUTRAL.
    """
    allowed = {key: wanted for key, wanted in NEUTRAL.items() if key not in known} | dict(fixed)
    for key, value in values.items():
        if key in allowed:
            if value not in allowed[key]:
                raise UserError(f"{where}: {key} = {value!r} is not supported; only {allowed[key][0]!r} is")
        elif not (key in known or key in _HARMLESS_NAMES or _HARMLESS_SHAPES.fullmatch(key)):
            _refuse_unknown(key, value, where)


def _refuse_unknown(key: str, value: Any, where: str) -> None:
    if value in _SAYS_NOTHING:
        return
    raise UserError(
        f"{where}: the key {key} = {value!r} is not known here, and could change what the model computes; "
        "remove it if it does not"
    )
