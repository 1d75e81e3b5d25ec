"""The shape of a model, read from and written to Hugging Face's `config.json`."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.errors import UserError
from tutelage.model.config_file import fields_of
from tutelage.model.families import FAMILIES, FULL, SLIDING

N_ROLES = 5  # system, user, assistant, tool, other


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
        if self.family not in FAMILIES:
            raise UserError(f"model family {self.family} is not one of {', '.join(FAMILIES)}")
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
        unlike = {n: v for n, v in FAMILIES[self.family].traits.items() if getattr(self, n) != v}
        assert not unlike, f"a model of the family {self.family} has {unlike}"

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
        return cls(**fields_of(values, where))

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that transformers, vLLM and llama.cpp read; rotary settings in both spellings."""
        eos = list(self.eos) if len(self.eos) != 1 else self.eos[0]
        family = FAMILIES[self.family]
        values: dict[str, Any] = {
            "architectures": [family.architecture if self.head == "lm" else family.scoring],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.dim,
            "intermediate_size": self.ffn_dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
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
        values |= {key: allowed[0] for key, allowed in family.fixed.items() if allowed[0] is not None}
        values |= {key: getattr(self, name) for key, name in family.numbers.items()}
        return values | {key: self._of_layers()[key] for key in family.written}

    def _of_layers(self) -> dict[str, Any]:
        """What a config.json may say of windows, in every family's words."""
        layers = self.windows or (None,) * self.n_layers
        window = next((w for w in layers if w), None)
        return {
            "sliding_window": window,
            "use_sliding_window": window is not None,
            "max_window_layers": next((i for i, w in enumerate(layers) if w), self.n_layers),
            "layer_types": [SLIDING if w else FULL for w in layers],
        }


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
