"""Our reading of a model against that of transformers, where it is installed: ids, a chat, logits."""

import importlib
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.checkpoint.hf import load_model
from tutelage.checkpoint.tokenizer import find_gguf
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.recipes.stage.chain import Chain
from tutelage.report.health import Health
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer

_TEXTS = [
    "The quick brown fox jumps over the lazy dog, and nobody minds.",
    "  Two spaces,\ta tab\n\nand 3 lines: 1234567 x86-64 3.14159 don't",
    "Zażółć gęślą jaźń, naïve café — 日本語 中文 العربية हिन्दी",
    "def f(x):\n    return x ** 2  # comment 👍🏽\n",
]
_CHAT = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Are you sure?"},
]
_FAR = 0.01  # logits of two float32 programs differ by a hundredth of this
_REPORT = "please report it, with the model's config.json; until it is mended, trust transformers"


def compare(
    health: Health, chain: Chain, shape: ModelConfig, tokenizer: Tokenizer | None, template: Template | None
) -> None:
    """Compare what can be compared, and say what was left out and why."""
    if reason := _reason_not_to(chain, shape):
        health.note("transformers", "compared", f"no: {reason}")
        return
    logging.disable(logging.WARNING)  # what its optional packages have to say on being imported
    try:
        _compare(health, chain, shape, tokenizer, template)
    finally:
        logging.disable(logging.NOTSET)


def _compare(
    health: Health, chain: Chain, shape: ModelConfig, tokenizer: Tokenizer | None, template: Template | None
) -> None:
    transformers: Any = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    health.note("transformers", "version", transformers.__version__)
    where, options = _named(chain.base)
    if tokenizer is not None:
        theirs = _tried(health, "tokenizer", lambda: _their_tokenizer(transformers, where, options))
        if theirs is not None:
            alike = _compare_ids(health, tokenizer, theirs, _their_file(transformers, where))
            if template is not None and theirs.chat_template is not None:
                _compare_chat(health, tokenizer, template, theirs, alike=alike)
    rows = _rows(tokenizer, shape)
    model = _tried(health, "model", lambda: _their_logits(transformers, where, options, rows))
    if model is not None:
        _compare_logits(health, chain, rows, model)


def _reason_not_to(chain: Chain, shape: ModelConfig) -> str | None:
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    if chain.adapters:
        return "an adapter is on the model; give the model alone, or merge it"
    if shape.head != "lm" or shape.role_embeddings:
        return "transformers has no such model"
    if chain.base.is_file() and _gguf(chain.base) is None:
        return "transformers does not read such files"
    needed = 2 * 4 * shape.n_parameters  # float32, and as much again while it loads
    if needed > _memory():
        return f"it would take {needed / 1e9:.0f} GB, and this machine has {_memory() / 1e9:.0f}"
    return None


def _gguf(path: Path) -> Path | None:
    """The GGUF file that `path` is or holds; None too where it is another kind of file."""
    try:
        return find_gguf(path)
    except UserError:
        return None


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _named(base: Path) -> tuple[Path, dict[str, str]]:
    """How transformers is told of the model."""
    gguf = _gguf(base)
    return (gguf.parent, {"gguf_file": gguf.name}) if gguf else (base, {})


def _tried(health: Health, what: str, made: Any) -> Any:
    try:
        return made()
    except Exception as error:  # whatever another program raises on files it cannot read
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        health.warn(
            f"transformers cannot load the {what}: {first}", "nothing here needs it; programs there do"
        )
        return None


def _their_tokenizer(transformers: Any, where: Path, options: dict[str, str]) -> Any:
    return transformers.AutoTokenizer.from_pretrained(where, **options)


def _their_file(transformers: Any, where: Path) -> Any:
    path = where / "tokenizer.json"
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path)) if path.is_file() else None


@torch.no_grad()
def _their_logits(
    transformers: Any, where: Path, options: dict[str, str], rows: list[list[int]]
) -> list[Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **options).eval()
    return [model(torch.tensor([row])).logits[0] for row in rows]


def _rows(tokenizer: Tokenizer | None, shape: ModelConfig) -> list[list[int]]:
    """Tokens to compute with: those of the texts, or any where there is no tokenizer."""
    if tokenizer is None or tokenizer.size > shape.vocab_size:
        return [[token % shape.vocab_size for token in range(7, 7 * 33, 7)]]
    rows = [tokenizer.encode(text)[: shape.max_positions] for text in _TEXTS]
    return [row for row in rows if row]


def _compare_ids(health: Health, tokenizer: Tokenizer, theirs: Any, from_file: Any) -> bool:
    """Whether plain texts have the same tokens.

    `from_file` is tokenizer.json as transformers reads it without a class of the model's own."""
    differing = _differing(tokenizer, theirs)
    health.note("transformers", "ids", f"of {len(_TEXTS) - len(differing)} of {len(_TEXTS)} texts alike")
    if differing and from_file is not None and not _differing(tokenizer, from_file):
        health.warn(
            f"transformers' {type(theirs).__name__} makes other tokens of {differing[0]!r} than "
            "tokenizer.json says, which is what is read here",
            'to have the file\'s tokens there too, put "tokenizer_class": "PreTrainedTokenizerFast" into '
            "tokenizer_config.json, as `tutelage convert` does",
        )
    elif differing:
        health.problem(f"transformers makes other tokens of {differing[0]!r}", _REPORT)
    return not differing


def _differing(tokenizer: Tokenizer, theirs: Any) -> list[str]:
    return [
        text for text in _TEXTS if theirs(text, add_special_tokens=False).input_ids != tokenizer.encode(text)
    ]


def _compare_chat(
    health: Health, tokenizer: Tokenizer, template: Template, theirs: Any, *, alike: bool
) -> None:
    """Texts first; their tokens count against the template only where plain texts have the same, `alike`."""

    def rendered() -> tuple[str, list[int]]:
        text = theirs.apply_chat_template(_CHAT, tokenize=False, add_generation_prompt=True)
        return text, theirs(text, add_special_tokens=False).input_ids

    wanted = _tried(health, "chat template", rendered)
    if wanted is None:
        return
    text, ids = wanted
    ours = template.named(template.render(_CHAT, reply=True).pieces, tokenizer)
    same_text = "".join(piece.text for piece in ours) == text
    same_ids = template.encode(_CHAT, tokenizer, reply=True).tokens == ids
    health.note(
        "transformers",
        "chat",
        "the same ids" if same_ids else "other ids of the same text" if same_text else "another text",
    )
    if not same_text:
        health.problem(
            f"template {template.name} writes a chat otherwise than the model's own chat template does",
            "name the template it was trained with by --template_config",
        )
    elif alike and not same_ids:
        health.problem(f"transformers makes other tokens of a chat than template {template.name}", _REPORT)


@torch.no_grad()
def _compare_logits(health: Health, chain: Chain, rows: list[list[int]], theirs: list[Tensor]) -> None:
    model = load_model(chain.base, dtype=torch.float32).eval()
    worst, same, count = 0.0, 0, 0
    for row, wanted in zip(rows, theirs, strict=True):
        tokens = torch.tensor([row])
        found = model.unembed(model(tokens, torch.arange(len(row))[None]))[0]
        worst = max(worst, float((found - wanted).abs().max()))
        same += int((found.argmax(-1) == wanted.argmax(-1)).sum())
        count += len(row)
    health.note(
        "transformers", "logits", f"worst difference {worst:.1e}, likeliest token alike at {same} of {count}"
    )
    if not worst <= _FAR:  # no number, too
        health.problem(f"logits differ from transformers' by {worst:.2g} in float32", _REPORT)
