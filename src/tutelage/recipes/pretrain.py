"""Train a new model on plain text: it learns to predict every token. Or go on with one that exists.

    tutelage pretrain --tokenizer TOK --train_data_paths text:stories.txt --output_dir OUT
    tutelage pretrain --tokenizer TOK --model smollm2-135m --n_layers 12 ...
    tutelage pretrain --ckpt_paths MODEL ...

TOK is a directory with a tokenizer.json, such as `tutelage tokenizer train` writes. Each line of a text: file
is one document, closed by the tokenizer's end token; one longer than a row is split, never cut. The result
lies in OUT/model as a Hugging Face directory that `tutelage sft` takes further.

--model is stories260K, stories15M, stories42M or stories110M; instruct_llama-1b, -3b or -7b; smollm2-135m or
-360m; qwen2.5-0.5b, -1.5b or -7b; llama3.2-1b or -3b; llama3.1-8b; mistral-7b; or a config.json of your own.
Only the shape is taken, never weights; the vocabulary is the tokenizer's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from tutelage.errors import UserError
from tutelage.recipes.training import TrainingConfig

if TYPE_CHECKING:
    from tutelage.model.config import ModelConfig
    from tutelage.text.tokenizer import Tokenizer

_DEFAULT_SHAPE = "stories15M"


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(TrainingConfig):
    default_warmup: ClassVar[int] = 100

    # Model
    tokenizer: Path | None = None  # a directory with tokenizer.json; default: that of ckpt_paths
    ckpt_paths: tuple[str, ...] = ()  # a model to go on with: an HF directory, a hub id or a .gguf file
    model: str = (
        _DEFAULT_SHAPE  # the shape of a new model: a name (above) or a config.json; weights are random
    )
    dim: int | None = None  # default: the model's, as all of these; what is given beats it
    n_layers: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None  # heads that keys and values have; default: as many as before of n_heads
    ffn_dim: int | None = None  # width of the feed-forward layers; default: in proportion to dim
    tied: bool | None = None  # the output head is the embedding; default: the model's
    rope_theta: float | None = None  # default: the model's
    pad_vocab_to_multiple_of: int = 1  # rows of the embedding; those beyond the tokenizer's stay unused
    init_std: float | None = None  # of fresh weights; default: sqrt(2 / (5 dim))

    # Dropout: chances to leave a value out, in training only
    dropout_embed: float = 0.0  # of embeddings
    dropout_attn: float = 0.0  # of attention weights; the fastest attention kernels cannot
    dropout_resid: float = 0.0  # of what attention and feed-forward layers add to the residual
    dropout_head: float = 0.0  # of the hidden states that the head sees

    # Data
    train_data_weights: tuple[float, ...] = ()  # of each shards: path, its share of the rows; none: all, once

    # Defaults that differ from fine-tuning
    max_seq_len: int = 256  # positions of a row, and of a new model
    pack_samples: bool = True  # fill rows of max_seq_len best-fit; a batch counts rows
    micro_batch_size_per_gpu: int = 32
    lr: float = 5e-4
    lr_scheduler: Literal["linear", "cosine", "constant", "wsd"] = "cosine"
    warmup_steps: int | None = None  # that the rate rises over; default: 100
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    wd: float = 0.1

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        if self.train_data_weights and len(self.train_data_weights) != len(self.train_data_paths):
            raise UserError(
                f"train_data_weights has {len(self.train_data_weights)} numbers "
                f"for {len(self.train_data_paths)} train_data_paths"
            )
        if self.train_data_weights and min(self.train_data_weights) <= 0:
            raise UserError(f"train_data_weights has {min(self.train_data_weights):g}; each must be above 0")
        if len(self.ckpt_paths) > 1:
            raise UserError(f"ckpt_paths names {len(self.ckpt_paths)} models; training goes on with one")
        if self.ckpt_paths:
            defaults = PretrainConfig.__dataclass_fields__
            given = [name for name in _OF_NEW_MODELS if getattr(self, name) != defaults[name].default]
            if given:
                raise UserError(
                    f"{', '.join(given)} and ckpt_paths exclude each other: a model that exists has its "
                    "tokenizer and its shape; leave them out, or ckpt_paths, which starts from random weights"
                )
        elif self.tokenizer is None:
            raise UserError(
                "tokenizer is missing: a directory with tokenizer.json, such as `tutelage tokenizer train` "
                "writes; or give ckpt_paths, to go on with a model that has its own"
            )
        if self.pad_vocab_to_multiple_of < 1:
            raise UserError(
                f"pad_vocab_to_multiple_of is {self.pad_vocab_to_multiple_of}, must be at least 1"
            )
        for name in ("dropout_embed", "dropout_attn", "dropout_resid", "dropout_head"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, must be from 0 up to, not with, 1")
        if self.dropout_attn and self.attention_impl == "flash":
            raise UserError("dropout_attn does not go with attention_impl flash; sdpa and eager have it")
        if self.init_std is not None and self.init_std <= 0:
            raise UserError(f"init_std is {self.init_std}, must be above 0")


_OF_NEW_MODELS = ("tokenizer", "model", "dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "tied")
_OF_NEW_MODELS += ("rope_theta", "pad_vocab_to_multiple_of", "init_std")


def run(config: PretrainConfig) -> None:
    """Check everything, draw weights or load them, train, export."""
    import torch

    from tutelage.checkpoint.hf import load_model
    from tutelage.model.transformer import Transformer, initialise_, set_dropout
    from tutelage.objectives.language import NextToken
    from tutelage.recipes.fitting import device_of, fit
    from tutelage.recipes.handing_over import hand_over
    from tutelage.recipes.inference import model_path
    from tutelage.recipes.preparing import check_resume, loaders, plan
    from tutelage.recipes.run_directory import open_run
    from tutelage.text.tokenizer import Tokenizer
    from tutelage.train.precision import load_dtype

    device = device_of(config)
    base = model_path(config.ckpt_paths[0]) if config.ckpt_paths else None
    if base is not None:
        tokenizer, model_config = _existing(base, config.max_seq_len)
    else:
        assert config.tokenizer is not None
        tokenizer = Tokenizer.load(config.tokenizer)
        model_config = _new_shape(config, tokenizer)
    training, validation = loaders(
        config,
        tokenizer,
        None,
        reduction="tokens",
        too_long="split",
        allow_unmasked=True,
        weights=config.train_data_weights,
    )
    plan(config, model_config, training, device)
    check_resume(config, model_config, training)
    if config.dry_run:
        return
    directory = open_run(config, "pretrain")
    if base is not None:
        model = load_model(base, dtype=load_dtype(config.precision), device=device)
    else:
        with torch.device(device):
            model = Transformer(model_config)
        initialise_(model, seed=config.seed, std=config.init_std)
    set_dropout(
        model,
        embed=config.dropout_embed,
        attn=config.dropout_attn,
        resid=config.dropout_resid,
        head=config.dropout_head,
    )
    objective = NextToken(fp32_logits=config.fp32_logits, compiled=config.compile)
    fitted = fit(config, model, objective, training, validation, directory)
    hand_over(
        fitted,
        model,
        model_config,
        directory,
        stage="pretrain",
        base=config.ckpt_paths[0] if config.ckpt_paths else "random weights",
        tokenizer=tokenizer,
        template=None,
        precision=config.precision,
    )


def _existing(base: Path, max_seq_len: int) -> "tuple[Tokenizer, ModelConfig]":
    """Tokenizer and shape of the model at `base`; one trained on longer rows than before says so after it."""
    from dataclasses import replace

    from tutelage.checkpoint.hf import load_config
    from tutelage.checkpoint.tokenizer import load_tokenizer
    from tutelage.recipes.preparing import check_model

    shape, tokenizer = load_config(base), load_tokenizer(base)
    check_model(base, shape, tokenizer)
    return tokenizer, replace(shape, max_positions=max(shape.max_positions, max_seq_len))


def _new_shape(config: PretrainConfig, tokenizer: "Tokenizer") -> "ModelConfig":
    """The named shape with what the flags change, the tokenizer's vocabulary, and positions for a row."""
    from dataclasses import replace

    from tutelage.model.presets import reshaped
    from tutelage.recipes.preparing import say

    named = _named_shape(config.model)
    shape = reshaped(
        named,
        dim=config.dim,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        ffn_dim=config.ffn_dim,
        tied=config.tied,
        rope_theta=config.rope_theta,
    )
    if config.model != _DEFAULT_SHAPE and config.max_seq_len < named.max_positions:
        say(
            f"{config.model} has room for {named.max_positions:,} positions; this run's rows have "
            f"{config.max_seq_len:,} (--max_seq_len), and so will the model"
        )
    multiple = config.pad_vocab_to_multiple_of
    return replace(
        shape,
        vocab_size=-(-tokenizer.size // multiple) * multiple,
        max_positions=config.max_seq_len,
        bos=tokenizer.bos,
        eos=() if tokenizer.eos is None else (tokenizer.eos,),
        pad=tokenizer.pad,
        dtype="float32",
    )


def _named_shape(name: str) -> "ModelConfig":
    """The preset of this name, or what the config.json there describes."""
    import difflib

    from tutelage.checkpoint.hf import load_config, read_config
    from tutelage.model.presets import PRESETS

    path = Path(name).expanduser()
    if name in PRESETS:
        return PRESETS[name]
    if path.is_file():
        return read_config(path)
    if path.is_dir():
        return load_config(path)
    nearest = difflib.get_close_matches(name.lower(), {preset.lower() for preset in PRESETS}, n=1)
    hint = next((f"did you mean {preset}? " for preset in PRESETS if preset.lower() in nearest), "")
    raise UserError(
        f"model {name} is no file and no name of a shape; {hint}names are {', '.join(PRESETS)}; "
        "a config.json gives any other shape"
    )
