"""What `chat` and `generate` share: their settings, and a model ready to answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from tutelage.errors import UserError
from tutelage.recipes.stage.quantizing import Quant, quant_problems, quantization_of

if TYPE_CHECKING:
    import torch

    from tutelage.infer.sampling import Sampling
    from tutelage.model.transformer import Transformer
    from tutelage.text.template import Template
    from tutelage.text.tokenizer import Tokenizer

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedConfig:
    # Model
    ckpt_paths: tuple[
        str, ...
    ]  # an HF directory, a run's --output_dir, a hub id, a .gguf or llama2.c file; then adapters
    force: bool = False  # put an adapter on a model that it was not trained on
    tokenizer: str | None = None  # directory or tokenizer.bin of the tokenizer; default: the model's own
    template_config: str | None = (
        None  # chat template: a built-in name, a file, or `model`; default: recognised
    )
    precision: Precision = "auto"  # of weights and arithmetic; auto: as stored, but never fp16 on CPU
    device: str = "auto"  # cuda, cpu, or auto: cuda where there is one
    quant: Quant = "none"  # linear layers in 4 (nf4, fp4) or 8 bits: less memory, slower, less exact
    quant_double: bool = True  # the scales of nf4 and fp4 in 8 bits too: 4.13 bits a weight instead of 4.5


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceConfig(LoadedConfig):
    # Sampling
    temperature: float = 0.0  # 0: always the likeliest token
    top_k: int = 0  # draw among the k likeliest tokens only; 0: among all
    top_p: float = 1.0  # draw among the likeliest tokens that together have this probability
    min_p: float = 0.0  # draw among tokens at least this share as likely as the likeliest; 0: all
    repetition_penalty: float = 1.0  # above 1: tokens of the prompt and the answer become less likely
    no_repeat_ngram_size: int = 0  # no run of so many tokens occurs twice; 0: no limit
    max_new_tokens: int = 512
    seed: int = 1234

    def __post_init__(self) -> None:
        problems = []
        if not self.ckpt_paths:
            problems.append("ckpt_paths names no model")
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature is {self.temperature}, must be 0 (greedy) or more")
        if self.top_k < 0:
            problems.append(f"top_k is {self.top_k}, must be 0 (no limit) or more")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p is {self.top_p}, must be above 0 and at most 1 (no limit)")
        if not 0 <= self.min_p <= 1:
            problems.append(f"min_p is {self.min_p}, must be from 0 (no limit) to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            problems.append(f"repetition_penalty is {self.repetition_penalty}, must be above 0; 1: none")
        if self.no_repeat_ngram_size < 0:
            problems.append(
                f"no_repeat_ngram_size is {self.no_repeat_ngram_size}, must be 0 (no limit) or more"
            )
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens is {self.max_new_tokens}, must be at least 1")
        problems += quant_problems(self.quant, self.quant_double)
        if problems:
            raise UserError("\n  ".join(problems))


def sampling_of(config: InferenceConfig) -> Sampling:
    """The sampler that the settings describe."""
    from tutelage.infer.sampling import Sampling

    return Sampling(
        repetition_penalty=config.repetition_penalty,
        no_repeat_ngram_size=config.no_repeat_ngram_size,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        seed=config.seed,
    )


def load_text(config: LoadedConfig, *, raw: bool = False) -> tuple[Tokenizer, Template | None]:
    """The tokenizer and the template, None if prompts are `raw`; mistakes show before weights load."""
    from tutelage.checkpoint.tokenizer import load_tokenizer
    from tutelage.recipes.stage.chain import chain_of, shape_of
    from tutelage.recipes.stage.vocabulary import check_written
    from tutelage.text.jinja_template import template_of

    chain = chain_of(config.ckpt_paths)
    tokenizer = load_tokenizer(config.tokenizer or chain.text)
    template = None if raw else template_of(tokenizer, config.template_config)
    check_written(chain.text, shape_of(chain).vocab_size, tokenizer, template)
    return tokenizer, template


def load_weights(config: LoadedConfig, *, writes: bool = True) -> Transformer:
    """The model on its device, in the precision that the settings ask for, whether it `writes` or judges."""
    import torch

    from tutelage.model.score import refuse_score_head
    from tutelage.recipes.stage.chain import chain_of, load_chain, shape_of

    device, chain = _device(config.device), chain_of(config.ckpt_paths)
    if writes:
        refuse_score_head(shape_of(chain), config.ckpt_paths[-1])
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    model = load_chain(
        chain,
        dtype=dtypes.get(config.precision),
        device=device,
        force=config.force,
        quantization=quantization_of(config.quant, config.quant_double),
    )
    if config.precision == "auto" and device.type == "cpu" and model.head_weight.dtype == torch.float16:
        model = model.float()  # CPUs compute in fp16 many times slower
    return model.eval()


def open_output(path: Path | None) -> TextIO | None:
    """The file for answers, opened before weights load: a folder that is missing shows at once."""
    try:
        return None if path is None else path.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"output: cannot write {path}: {(error.strerror or str(error)).lower()}") from error


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name} is no device: cuda, cuda:1, cpu or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name} was asked for, but torch sees no GPU; --device cpu does without one")
    return device
