"""The shape of a model, read from and written to Hugging Face's `config.json`."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.errors import UserError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
N_ROLES = 5  # system, user, assistant, tool, other

# Keys that would change the arithmetic, and the values under which they change nothing here.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1.0, 1, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "quantization_config": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "embedding_multiplier": (1.0, 1, None),
    "residual_multiplier": (1.0, 1, None),
    "logits_scaling": (1.0, 1, None),
    "attention_multiplier": (None,),
    "no_rope_layers": (None,),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Everything the architecture needs to know; nothing about training or text."""

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    max_positions: int = 2048
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None  # only type llama3, in HF's words
    head: Literal["lm", "score"] = "lm"  # score: one number a position, of reward and value models
    tied: bool = False  # the head is the embedding; a score head never is
    qkv_bias: bool = False  # Qwen 2.5
    windows: tuple[int | None, ...] | None = None  # sliding window of every layer; None: none has one
    role_embeddings: bool = False  # of whose token it is, added to the token's own
    role_embeddings_init: str = "zeros"  # what their table began as: zeros or gaussian:STD
    family: str = "llama"
    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
    dtype: str = "float32"  # in which the weights are stored

    def __post_init__(self) -> None:
        if self.family not in ARCHITECTURES:
            raise UserError(f"model family {self.family} is not one of {', '.join(ARCHITECTURES)}")
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"{self.n_heads} attention heads cannot share {self.n_kv_heads} key-value heads: "
                "the first must be a multiple of the second"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd; rotary embeddings turn pairs")
        for name in ("vocab_size", "dim", "n_layers", "n_heads", "ffn_dim", "max_positions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; a model needs at least 1")
        assert self.windows is None or len(self.windows) == self.n_layers
        assert not (self.tied and self.head == "score")

    @property
    def n_outputs(self) -> int:
        """What the head gives a position: a logit for every token, or one score."""
        return self.vocab_size if self.head == "lm" else 1

    @property
    def n_parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        attention = self.dim * (2 * queries + 2 * keys) + (queries + 2 * keys) * self.qkv_bias
        layer = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim
        embeddings = (self.vocab_size + (0 if self.tied else self.n_outputs)) * self.dim
        embeddings += N_ROLES * self.dim * self.role_embeddings
        return embeddings + self.n_layers * layer + self.dim

    @classmethod
    def from_hf(cls, values: dict[str, Any], *, where: str = "config.json") -> "ModelConfig":
        """The config that a parsed `config.json` describes; what we would compute wrongly is refused."""
        family = values.get("model_type")
        if family not in ARCHITECTURES:
            raise UserError(
                f"{where}: model_type {family!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
            )
        for key, neutral in _NEUTRAL.items():
            if key in values and values[key] not in neutral:
                raise UserError(f"{where}: {key} = {values[key]!r} is not supported; only {neutral[0]!r} is")
        if family != "qwen2" and values.get("attention_bias"):
            raise UserError(f"{where}: attention_bias = true is not supported for {family}")
        missing = [key for key in _REQUIRED if key not in values]
        if missing:
            raise UserError(f"{where}: the keys {', '.join(missing)} are missing")
        n_heads, dim = values["num_attention_heads"], values["hidden_size"]
        theta, scaling = _rope(values, where)
        head = _head(values, where)
        eos = values.get("eos_token_id")
        return cls(
            vocab_size=values["vocab_size"],
            dim=dim,
            n_layers=values["num_hidden_layers"],
            n_heads=n_heads,
            n_kv_heads=values.get("num_key_value_heads") or (8 if family == "mistral" else n_heads),
            head_dim=values.get("head_dim") or dim // n_heads,
            ffn_dim=values["intermediate_size"],
            max_positions=values.get("max_position_embeddings", 2048),
            norm_eps=values.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            head=head,
            tied=head == "lm" and values.get("tie_word_embeddings", False),
            qkv_bias=family == "qwen2",
            windows=_windows(values),
            role_embeddings=bool(values.get("use_role_embeddings")),
            role_embeddings_init=str(values.get("role_embeddings_init") or "zeros"),
            family=family,
            bos=values.get("bos_token_id"),
            eos=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
            pad=values.get("pad_token_id"),
            dtype=str(values.get("dtype") or values.get("torch_dtype") or "float32").removeprefix("torch."),
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that transformers, vLLM and llama.cpp read; rotary settings in both spellings."""
        eos = list(self.eos) if len(self.eos) != 1 else self.eos[0]
        values: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.family]] if self.head == "lm" else [_scoring(self.family)],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.dim,
            "intermediate_size": self.ffn_dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling,
            "rope_parameters": {
                "rope_theta": self.rope_theta,
                **(self.rope_scaling or {"rope_type": "default"}),
            },
            "tie_word_embeddings": self.tied,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": self.bos,
            "eos_token_id": eos if self.eos else None,
            "pad_token_id": self.pad,
            "dtype": self.dtype,
            "torch_dtype": self.dtype,
        }
        if self.head == "score":
            values |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        if self.role_embeddings:
            values |= {"use_role_embeddings": True, "role_embeddings_init": self.role_embeddings_init}
        if self.family == "llama":
            values |= {"attention_bias": False, "mlp_bias": False}
        window = next((w for w in self.windows or () if w), None)
        if self.family == "mistral":
            values["sliding_window"] = window
        if self.family == "qwen2":
            layers = self.windows or (None,) * self.n_layers
            values |= {
                "use_sliding_window": window is not None,
                "sliding_window": window,
                "max_window_layers": next((i for i, w in enumerate(layers) if w), self.n_layers),
                "layer_types": ["sliding_attention" if w else "full_attention" for w in layers],
            }
        return values


def role_embeddings_std(init: str) -> float:
    """How far from 0 a table of role embeddings begins: 0 of `zeros`, STD of `gaussian:STD`."""
    kind, colon, number = init.partition(":")
    try:
        std = 0.0 if init == "zeros" else float(number)
    except ValueError:
        std = math.nan
    if (kind, colon) not in (("zeros", ""), ("gaussian", ":")) or not 0 <= std < math.inf:
        raise UserError(f"role_embeddings_init is {init!r}, must be zeros or gaussian:STD, say gaussian:0.02")
    return std


_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def _scoring(family: str) -> str:
    return ARCHITECTURES[family].replace("ForCausalLM", _SCORING)


_SCORING = "ForSequenceClassification"


def _head(values: dict[str, Any], where: str) -> Literal["lm", "score"]:
    """Which head the architecture has; one of more than one label is refused."""
    if not any(str(name).endswith(_SCORING) for name in values.get("architectures") or []):
        return "lm"
    key = "id2label" if "id2label" in values else "num_labels"
    labels = len(values[key]) if key == "id2label" else values.get(key, 2)  # transformers' default
    if labels != 1:
        raise UserError(
            f"{where}: {key} makes {labels} labels of a text; supported is 1, the score of a reward model"
        )
    return "score"


def _rope(values: dict[str, Any], where: str) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling, from transformers 5's `rope_parameters` or the older pair of keys."""
    scaling = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    theta = float(scaling.pop("rope_theta", None) or values.get("rope_theta") or 10000.0)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"{where}: rope type {kind!r} is not supported; supported are default, llama3")
    wanted = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [key for key in wanted if key not in scaling]
    if missing:
        raise UserError(f"{where}: rope type llama3 needs {', '.join(missing)}")
    return theta, {"rope_type": "llama3", **{key: scaling[key] for key in wanted}}


def _windows(values: dict[str, Any]) -> tuple[int | None, ...] | None:
    window, n_layers = values.get("sliding_window"), values["num_hidden_layers"]
    if values["model_type"] == "llama" or not window:
        return None
    if values["model_type"] == "mistral":
        return (window,) * n_layers
    if not values.get("use_sliding_window"):
        return None
    types = values.get("layer_types")
    if types is None:
        full = values.get("max_window_layers", 28)
        types = ["sliding_attention" if layer >= full else "full_attention" for layer in range(n_layers)]
    return tuple(window if kind == "sliding_attention" else None for kind in types)
