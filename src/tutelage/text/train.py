"""Learn a vocabulary from text: byte-level BPE, so that every text has tokens and comes back as it was."""

import json
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from tutelage.errors import UserError
from tutelage.text.tokenizer import Tokenizer

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"  # padding of its own: no reader can take it for the end
BYTES = 256
# What may be merged: a word with the space before it, one digit, a run of signs, a run of blanks.
WORDS = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, control: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens: control tokens, bytes, then merges.

    The same texts give the same tokenizer. It has fewer tokens where the texts have too little to merge."""
    special = list(dict.fromkeys([END_OF_TEXT, PAD, *control]))
    if vocab_size < BYTES + len(special):
        raise UserError(
            f"a vocabulary of {vocab_size} is too small: {BYTES} bytes and {len(special)} control tokens "
            f"({few(special)}) take {BYTES + len(special)} already"
        )
    vocabulary = tokenizers.Tokenizer(models.BPE())
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    vocabulary.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    vocabulary.train_from_iterator(texts, trainer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    if control:
        settings["additional_special_tokens"] = list(control)
    return Tokenizer(json.dumps(json.loads(vocabulary.to_str()), ensure_ascii=False), settings)


def few(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
