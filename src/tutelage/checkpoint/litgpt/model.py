"""litgpt's models (https://github.com/Lightning-AI/litgpt): lit_model.pth and model_config.yaml.

One matrix holds queries, keys and values: under `attn.qkv` one kind after the other, under its older
name `attn.attn` group after group, each the queries that share a key-value head, its key and its value.
Rotary halves are Hugging Face's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tutelage.checkpoint.config_values import check_values
from tutelage.checkpoint.generation_config import with_generation_config
from tutelage.checkpoint.source import EMBEDDING, HEAD, same_rows
from tutelage.checkpoint.streamed import Rows
from tutelage.checkpoint.torch_file.read import HeldTensor, StoredTensor, read_torch
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig

CONFIG, WEIGHTS = "model_config.yaml", "lit_model.pth"
NAMES = {
    "transformer.wte": "model.embed_tokens",
    "transformer.ln_f": "model.norm",
    "lm_head": "lm_head",
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attn.proj": "self_attn.o_proj",
    "mlp.fc_1": "mlp.gate_proj",
    "mlp.fc_2": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}
_OF_HEADS = {"attn.norm_q": "self_attn.q_norm", "attn.norm_k": "self_attn.k_norm"}
_AFTER = {
    "post_attention_norm": "post_attention_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}
FUSED, _FUSED_IN_GROUPS = "attn.qkv", "attn.attn"
KINDS = ("q_proj", "k_proj", "v_proj")
_REQUIRED = ("block_size", "n_layer", "n_embd", "n_head", "intermediate_size", "norm_eps")
FIXED: dict[str, Any] = {  # what it must say, or leave unsaid where the first is its default
    "norm_class_name": ("RMSNorm",),
    "mlp_class_name": ("LLaMAMLP",),
    "rotary_percentage": (1.0,),
    "parallel_residual": (False,),
    "bias": (False,),
    "shared_attention_norm": (False, None),
    "lm_head_bias": (False, None),
    "scale_embeddings": (False, None),
    "attention_scores_scalar": (None,),
    "attention_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "sliding_window_size": (None,),
    "rope_condense_ratio": (1, None),
    "rope_interleave": (False, None),
    "rope_local_base_freq": (None,),
    "n_expert": (0, None),
    "latent_attention": (None,),
}
_NORMS: dict[str, Any] = {  # where they are, by default
    "norm_qk": False,
    "norm_qk_type": "default",
    "post_attention_norm": False,
    "post_mlp_norm": False,
    "norm_1": True,
    "norm_2": True,
}
NORMS = {  # and in families
    "llama": _NORMS,
    "qwen3": _NORMS | {"norm_qk": True},
    "olmo2": _NORMS
    | {"norm_qk": True, "norm_qk_type": "olmo2", "norm_1": False, "norm_2": False}
    | dict.fromkeys(_AFTER, True),
}
SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_seq_len": "original_max_position_embeddings",
}


def names_in(family: str) -> dict[str, str]:
    """What the parts of a model of this family are called: its names -> here."""
    names = NAMES | (_OF_HEADS if family in ("qwen3", "olmo2") else {})
    if family == "olmo2":
        names = {theirs: ours for theirs, ours in names.items() if theirs not in ("norm_1", "norm_2")}
        names |= _AFTER
    return names


def find_litgpt(path: Path) -> Path | None:
    """The .pth that `path` is, or the lit_model.pth of a directory, if model_config.yaml is beside it."""
    file = path if path.is_file() else path / WEIGHTS
    if path.is_dir() and any(True for kind in ("*.safetensors", "*.gguf") for _ in path.glob(kind)):
        return None
    return file if file.suffix == ".pth" and file.is_file() and (file.parent / CONFIG).is_file() else None


class LitGPTSource:
    """The tensors of such a model under Hugging Face names, queries, keys and values apart."""

    def __init__(self, path: Path) -> None:
        self.where, self.problems = str(path), []
        self._tensors: dict[str, StoredTensor | HeldTensor] = {}
        self._reads: dict[str, Rows] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        settings = _settings(path.parent / CONFIG)
        self._names = names_in(_family(settings, path.parent / CONFIG))
        for name, tensor in _state(path).items():
            self._add(name, tensor, settings, path)
        tied = HEAD not in self.shapes or same_rows(self, HEAD, EMBEDDING)
        if tied:
            self.shapes.pop(HEAD, None)
        self.config = _config(settings, self.shapes, tied, path.parent / CONFIG)

    @property
    def dtype(self) -> torch.dtype:
        """That of the embedding."""
        return self._tensors[EMBEDDING].dtype

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a tensor."""
        return self._reads[name](start, stop)

    def _add(
        self, name: str, tensor: StoredTensor | HeldTensor, settings: Mapping[str, Any], path: Path
    ) -> None:
        layer, _, last = name.rpartition(".")
        prefix = ""
        if layer.startswith("transformer.h."):
            _, _, number, layer = layer.split(".", 3)
            prefix = f"model.layers.{number}."
        if layer in (FUSED, _FUSED_IN_GROUPS):
            of_kind = _apart if layer == FUSED else _apart_in_groups
            for kind, (rows, read) in of_kind(tensor, settings, path).items():
                self._name(f"{prefix}self_attn.{kind}.{last}", (rows, *tensor.shape[1:]), tensor, read)
        elif layer in self._names:
            self._name(f"{prefix}{self._names[layer]}.{last}", tensor.shape, tensor, tensor.rows)
        else:
            raise UserError(f"{path} holds {name}, which is no part of such a model of litgpt's")

    def _name(self, name: str, shape: tuple[int, ...], tensor: StoredTensor | HeldTensor, read: Rows) -> None:
        self._tensors[name], self.shapes[name], self._reads[name] = tensor, shape, read


def _state(path: Path) -> dict[str, StoredTensor | HeldTensor]:
    content = read_torch(path)
    state = (
        content.get("model", content) if isinstance(content, dict) else content
    )  # as its training saves it
    tensors = state.values() if isinstance(state, dict) else [None]
    if not all(isinstance(tensor, StoredTensor | HeldTensor) for tensor in tensors):
        raise UserError(
            f"{path} holds more than tensors by name; give the model that litgpt wrote at its end"
        )
    if any("lora_" in name for name in state):
        raise UserError(f"{path} holds LoRA weights apart from the model's; litgpt merge_lora puts them in")
    return state


def _settings(where: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(where.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{where} holds {type(values).__name__}, not an object of settings")
    for key in _REQUIRED:
        value = values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise UserError(f"{where}: {key} = {value!r}, wanted a number above 0")
    for key, allowed in FIXED.items():
        if values.get(key) not in allowed:
            said = repr(values.get(key)) if key in values else "left to litgpt"
            raise UserError(f"{where}: {key} = {said} is not supported; only {allowed[0]!r} is")
    values["head_size"] = values.get("head_size") or values["n_embd"] // values["n_head"]
    values["n_query_groups"] = values.get("n_query_groups") or values["n_head"]
    return values


def _family(settings: Mapping[str, Any], where: Path) -> str:
    """Which one has its norms where the settings say; Llama stands for all that have them as it has."""
    said = {key: settings.get(key) for key in _NORMS}
    found = {key: _NORMS[key] if value is None else value for key, value in said.items()}
    if not found["norm_qk"]:
        found["norm_qk_type"] = _NORMS["norm_qk_type"]  # it has no meaning then
    for family, norms in NORMS.items():
        if found == norms:
            return family
    told = ", ".join(f"{key} = {value}" for key, value in found.items() if value != _NORMS[key])
    raise UserError(f"{where}: {told} is not supported; only norms as in {', '.join(NORMS)} are")


def _config(
    settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], tied: bool, where: Path
) -> ModelConfig:
    scaling, family = settings.get("rope_adjustments"), _family(settings, where)
    if scaling is not None and (not isinstance(scaling, dict) or scaling.keys() != SCALING.keys()):
        raise UserError(
            f"{where}: rope_adjustments = {scaling!r}; supported are Llama 3.1's {', '.join(SCALING)}"
        )
    llama3 = {"rope_type": "llama3", **{SCALING[key]: value for key, value in (scaling or {}).items()}}
    values = {
        "model_type": "qwen2" if settings.get("attn_bias") and family == "llama" else family,
        "vocab_size": shapes.get(EMBEDDING, (0,))[0],  # of the padded vocabulary, as its head gives logits
        "hidden_size": settings["n_embd"],
        "intermediate_size": settings["intermediate_size"],
        "num_hidden_layers": settings["n_layer"],
        "num_attention_heads": settings["n_head"],
        "num_key_value_heads": settings["n_query_groups"],
        "head_dim": settings["head_size"],
        "rms_norm_eps": settings["norm_eps"],
        "rope_theta": settings.get("rope_base") or 10_000,
        "rope_scaling": llama3 if scaling else None,
        "max_position_embeddings": settings["block_size"],
        "tie_word_embeddings": tied,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # which are beside, or not known
    }
    check_values(values, where)
    return with_generation_config(ModelConfig.from_hf(values, where=str(where)), where.parent)


def _apart(
    tensor: StoredTensor | HeldTensor, settings: Mapping[str, Any], path: Path
) -> dict[str, tuple[int, Rows]]:
    """How many rows each kind has, and how to read them, where one kind follows the other."""
    found, begin = {}, 0
    for kind, rows in _rows_of_kinds(tensor, settings, path).items():
        found[kind] = rows, _from(tensor.rows, begin)
        begin += rows
    return found


def _apart_in_groups(
    tensor: StoredTensor | HeldTensor, settings: Mapping[str, Any], path: Path
) -> dict[str, tuple[int, Rows]]:
    """The same, where a key-value head's queries, key and value follow the ones of the last."""
    wide, groups = settings["head_size"], settings["n_query_groups"]
    shared = settings["n_head"] // groups
    begins, found = {"q_proj": 0, "k_proj": shared * wide, "v_proj": (shared + 1) * wide}, {}
    for kind, rows in _rows_of_kinds(tensor, settings, path).items():

        def read(start: int, stop: int, begin: int = begins[kind], each: int = rows // groups) -> Tensor:
            parts = []
            while start < stop:
                group, within = divmod(start, each)
                end = min(each, within + stop - start)
                place = group * (shared + 2) * wide + begin
                parts.append(tensor.rows(place + within, place + end))
                start += end - within
            return torch.cat(parts)

        found[kind] = rows, read
    return found


def _rows_of_kinds(
    tensor: StoredTensor | HeldTensor, settings: Mapping[str, Any], path: Path
) -> dict[str, int]:
    queries, keys = (settings[key] * settings["head_size"] for key in ("n_head", "n_query_groups"))
    if tensor.shape[0] != queries + 2 * keys:
        raise UserError(
            f"{path}: queries, keys and values have {tensor.shape[0]} rows, {CONFIG} makes them "
            f"{queries + 2 * keys}"
        )
    return dict(zip(KINDS, (queries, keys, keys), strict=True))


def _from(rows: Rows, begin: int) -> Rows:
    return lambda start, stop: rows(begin + start, begin + stop)
