"""The shape of a model, read from and written to Hugging Face's `config.json`."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from tutelage.errors import UserError
from tutelage.model.config_file import fields_of
from tutelage.model.config_rope import ORIGINAL, check_factors, written_scaling
from tutelage.model.families import FAMILIES, FULL, SLIDING, UNLIKE_LLAMA

Activation = Literal["silu", "gelu_tanh"]
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
    rope_scaling: dict[str, Any] | None = None  # in HF's words, complete: see config_rope.py
    local_theta: float | None = None  # rope_theta of layers with a window, unscaled; None: as of the others
    partial_rotary: float = 1.0  # of every head this share turns, the rest does not
    rope_layers: tuple[bool, ...] | None = None  # which layers have rotary embeddings; None: all
    rope_wide: bool = False  # queries and keys are turned in float32
    head: Literal["lm", "score"] = "lm"  # score: one number a position, of reward and value models
    tied: bool = False  # the head is the embedding; a score head never is
    qkv_bias: bool = False
    qk_norm: Literal["head", "whole"] | None = None  # of queries and keys, each head or all of them together
    norms: Literal["before", "after", "around"] = "before"  # where a block has them
    norm: Literal["plain", "wide", "centred"] = (
        "plain"  # wide: times the weight before rounding; centred: 1 + w
    )
    activation: Activation = "silu"
    fused: bool = False  # queries, keys and values are one layer, and so are gate and up
    scaled_embeddings: bool = False  # by the root of dim
    query_scalar: float | None = None  # scores are divided by its root; None: by that of head_dim
    attention_cap: float | None = None  # scores are bent to within it
    logit_cap: float | None = None  # and logits
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
        if self.rotary_dim % 2:
            name = "head_dim" if self.partial_rotary == 1 else "the part of a head that turns,"
            raise UserError(f"{name} {self.rotary_dim} is odd; rotary embeddings turn pairs")
        if not self.rotary_dim:
            part = self.partial_rotary
            raise UserError(f"partial_rotary_factor {part} of a head of {self.head_dim} is no number at all")
        check_factors(self.rope_scaling, self.rotary_dim)
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
        norms = self.dim * (4 if self.norms == "around" else 2)
        norms += {None: 0, "head": 2 * self.head_dim, "whole": queries + keys}[self.qk_norm]
        layer = attention + 3 * self.dim * self.ffn_dim + norms
        embeddings = (self.vocab_size + (0 if self.tied else self.n_outputs)) * self.dim
        embeddings += N_ROLES * self.dim * self.role_embeddings
        return embeddings + self.n_layers * layer + self.dim

    @property
    def rotary_dim(self) -> int:
        """How many numbers of a head rotary embeddings turn."""
        return int(self.head_dim * self.partial_rotary)

    @property
    def rope_kinds(self) -> tuple[str | None, ...]:
        """Of every layer: `all`, `local` where windows have a rope_theta of their own, None without any."""
        windows = self.windows or (None,) * self.n_layers
        turn = self.rope_layers or (True,) * self.n_layers
        local = self.local_theta is not None
        kinds = ("local" if local and window else "all" for window in windows)
        return tuple(kind if turns else None for kind, turns in zip(kinds, turn, strict=True))

    def rope(self, kind: str) -> tuple[float, dict[str, Any] | None]:
        """rope_theta and scaling of a kind of layer."""
        if kind == "local" and self.local_theta is not None:
            return self.local_theta, None
        return self.rope_theta, self.rope_scaling

    @property
    def unlike_llama(self) -> list[str]:
        """The fields that no Llama has as this model does, sizes, windows and scaling apart."""
        plain = {each.name: each.default for each in fields(self)}
        return [name for name in UNLIKE_LLAMA if getattr(self, name) != plain[name]]

    @property
    def original_context(self) -> int | None:
        """How long a document is at most that turns by longrope's short factors; None without longrope."""
        scaling = self.rope_scaling or {}
        return scaling[ORIGINAL] if scaling.get("rope_type") == "longrope" else None

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
            **self._rope_values(),
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

    def _rope_values(self) -> dict[str, Any]:
        """In both spellings: transformers 5 reads rope_parameters, all others the older keys."""
        scaling = written_scaling(self.rope_scaling, self.max_positions)
        parameters: dict[str, Any] = {"rope_theta": self.rope_theta, **(scaling or {"rope_type": "default"})}
        if self.partial_rotary != 1.0:
            parameters["partial_rotary_factor"] = self.partial_rotary
        if self.local_theta is not None:
            local = {"rope_theta": self.local_theta, "rope_type": "default"}
            parameters = {FULL: parameters, SLIDING: local}
        return {"rope_theta": self.rope_theta, "rope_scaling": scaling, "rope_parameters": parameters}

    def _of_layers(self) -> dict[str, Any]:
        """What a config.json may say of windows and rotary embeddings, in every family's words."""
        layers = self.windows or (None,) * self.n_layers
        window = next((w for w in layers if w), None)
        return {
            "sliding_window": window,
            "use_sliding_window": window is not None,
            "max_window_layers": next((i for i, w in enumerate(layers) if w), self.n_layers),
            "layer_types": [SLIDING if w else FULL for w in layers],
            "rope_local_base_freq": self.local_theta,
            "partial_rotary_factor": self.partial_rotary,
            ORIGINAL: self.original_context or self.max_positions,
            "no_rope_layers": [int(turns) for turns in self.rope_layers or (True,) * self.n_layers],
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
