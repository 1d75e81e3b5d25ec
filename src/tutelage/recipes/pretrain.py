"""Train a new model on plain text: it learns to predict every token. Or go on with one that exists.

    tutelage pretrain --tokenizer TOK --train_data_paths text:stories.txt --output_dir OUT
    tutelage pretrain --tokenizer TOK --train_data_paths shards:SHARDS/train ...
    tutelage pretrain --tokenizer TOK --model smollm2-135m --n_layers 12 ...
    tutelage pretrain --ckpt_paths MODEL ...

TOK is a directory with a tokenizer.json, such as `tutelage tokenizer train` writes. Each line of a text: file
is one document, closed by the tokenizer's end token; one longer than a row is split, never cut. The result
lies in OUT/model as a Hugging Face directory that `tutelage sft` takes further.

--model is stories260K, stories840K, stories15M, stories42M or stories110M; instruct_llama-1b, -3b or -7b;
smollm2-135m or -360m; qwen2.5-0.5b, -1.5b or -7b; llama3.2-1b or -3b; llama3.1-8b; mistral-7b; or a
config.json of your own. Only the shape is taken, never weights; the vocabulary is the tokenizer's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tutelage.errors import UserError
from tutelage.recipes.stage.training import TrainingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(TrainingConfig):
    default_warmup: ClassVar[int] = 100
    needs_tokenizer: ClassVar[bool] = True  # for a new model; a plan of one does without

    # Model
    tokenizer: Path | None = None  # a directory with tokenizer.json; default: that of ckpt_paths
    ckpt_paths: tuple[
        str, ...
    ] = ()  # a model to go on with: an HF directory, a hub id or a .gguf file; then adapters, merged into it
    model: str = "stories15M"  # shape of a new model: a name (above) or a config.json; weights are random
    dim: int | None = None  # width; default, as of those below: what the model of that name has
    n_layers: int | None = None  # default: the model's
    n_heads: int | None = None  # default: the model's
    n_kv_heads: int | None = None  # of keys and values; default: the model's, n_heads if it has no groups
    ffn_dim: int | None = None  # width of the feed-forward layers; default: as wide to dim as the model's
    tied: bool | None = None  # the output head is the embedding; default: the model's
    rope_theta: float | None = None  # default: the model's
    pad_vocab_to_multiple_of: int = 1  # rows of the embedding; those beyond the tokenizer's stay unused
    init_std: float | None = None  # of fresh weights; default: sqrt(2 / (5 dim))

    # Dropout in training
    dropout_embed: float = 0.0  # chance of an embedding's value to be left out
    dropout_attn: float = 0.0  # of attention weights; the fastest attention kernels cannot
    dropout_resid: float = 0.0  # of what attention and feed-forward layers add
    dropout_head: float = 0.0  # of the hidden states that the head sees

    # Data
    train_data_paths: tuple[
        str, ...
    ]  # text:FILE, jsonl:FILE with texts, document:FILE, data sets; or shards:DIR, tokenized before
    shard_packing: Literal["auto", "best_fit", "stream"] = (
        "auto"  # best_fit: short documents stay whole; stream: cut at row ends, for any amount of text
    )

    # Defaults that differ from fine-tuning
    max_seq_len: int = 256  # positions of a row, and of a new model
    pack_samples: bool = True  # fill rows of max_seq_len best-fit; a batch counts rows
    micro_batch_size_per_gpu: int = 32
    lr: float = 5e-4
    lr_scheduler: Literal["linear", "cosine", "constant", "wsd"] = "cosine"
    warmup_steps: int | None = None  # of the warm-up, in which the rate rises; default: 100
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    wd: float = 0.1

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        problems = [
            f"{name} is {getattr(self, name)}, must be {words}"
            for names, right, words in _BOUNDS
            for name in names
            if not right(getattr(self, name))
        ]
        if self.lora and not self.ckpt_paths:
            problems.append("lora adapts a model that exists; give --ckpt_paths")
        defaults = PretrainConfig.__dataclass_fields__
        given = [name for name in _OF_NEW_MODELS if getattr(self, name) != defaults[name].default]
        if self.ckpt_paths and given:
            problems.append(
                f"{', '.join(given)} and ckpt_paths exclude each other: a model that exists has its "
                "tokenizer and its shape; leave them out; or leave out ckpt_paths, and weights are random"
            )
        if self.needs_tokenizer and not self.ckpt_paths and self.tokenizer is None:
            problems.append(
                "tokenizer is missing: a directory with tokenizer.json, such as `tutelage tokenizer train` "
                "writes; or give ckpt_paths, to go on with a model that has its own"
            )
        if self.quant != "none" and not self.ckpt_paths:
            problems.append("quant is for weights that exist already; give ckpt_paths")
        if self.dropout_attn and self.attention_impl == "flash":
            problems.append("dropout_attn does not go with attention_impl flash; sdpa and eager have it")
        if self.train_data_weights and self.shard_packing == "best_fit":
            problems.append("train_data_weights mix the rows of streams; leave shard_packing at auto")
        if problems:
            raise UserError("\n  ".join(problems))


_OF_NEW_MODELS = ("tokenizer", "model", "dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "tied")
_OF_NEW_MODELS += ("rope_theta", "pad_vocab_to_multiple_of", "init_std")
_BOUNDS = (
    (("pad_vocab_to_multiple_of",), lambda value: value >= 1, "at least 1"),
    (("init_std",), lambda value: value is None or value > 0, "above 0"),
    (
        ("dropout_embed", "dropout_attn", "dropout_resid", "dropout_head"),
        lambda value: 0 <= value < 1,
        "from 0 up to, not with, 1",
    ),
)


def run(config: PretrainConfig) -> None:
    """Check everything, draw weights or load them, train, export."""
    import torch

    from tutelage.model.transformer import Transformer, initialise_, set_dropout
    from tutelage.objectives.language import NextToken
    from tutelage.recipes.stage.adapting import adapt, blueprint_of, origin, start_of
    from tutelage.recipes.stage.fitting import building_device, device_of, fit
    from tutelage.recipes.stage.handing_over import hand_over
    from tutelage.recipes.stage.preparing import check_resume, loaders, plan
    from tutelage.recipes.stage.pretokenized import ShardSettings
    from tutelage.recipes.stage.run_directory import check_place, open_run
    from tutelage.recipes.stage.shaping import existing, new
    from tutelage.recipes.stage.watching import Watch, sampler_of
    from tutelage.text.token_bytes import token_bytes

    device = device_of(config)
    check_place(config)
    start = start_of(config, config.ckpt_paths) if config.ckpt_paths else None
    tokenizer, model_config = existing(start, config.max_seq_len) if start else new(config)
    training, validation = loaders(
        config,
        tokenizer,
        None,
        reduction="tokens",
        too_long="split",
        allow_unmasked=True,
        shards=ShardSettings(config.train_data_weights, config.shard_packing),
    )
    sampler = sampler_of(config, tokenizer, None, model_config.max_positions)
    blueprint = start.blueprint(config, model_config) if start else blueprint_of(config, model_config)
    plan(config, blueprint, training, device)
    check_resume(config, blueprint, training, origin(config, start, blueprint))
    if config.dry_run:
        return
    directory = open_run(config, "pretrain")
    if start:
        model = start.load(config, model_config, building_device(device))
    else:
        with building_device(device):
            model = Transformer(model_config)
        initialise_(model, seed=config.seed, std=config.init_std)
        adapt(model, config)
    set_dropout(
        model,
        embed=config.dropout_embed,
        attn=config.dropout_attn,
        resid=config.dropout_resid,
        head=config.dropout_head,
    )
    objective = NextToken(fp32_logits=config.fp32_logits, compiled=config.compile)
    watch = Watch(validation, token_bytes=torch.from_numpy(token_bytes(tokenizer)), sampler=sampler)
    begun = origin(config, start, model)
    fitted = fit(config, "pretrain", model, objective, training, watch, directory, origin=begun)
    hand_over(
        fitted,
        model,
        model_config,
        directory,
        config,
        stage="pretrain",
        start=start,
        tokenizer=tokenizer,
        template=None,
    )
