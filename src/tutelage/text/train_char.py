"""A vocabulary of single characters: as small as can be, for studying models rather than using them."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from tutelage.errors import UserError
from tutelage.text.sentencepiece_model import Kind, added_tokens
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.train import END_OF_TEXT, PAD, few
from tutelage.text.twin import plain

UNKNOWN = "<unk>"


def train_char(texts: Iterable[str], vocab_size: int, control: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens: control tokens, then characters in the order of Unicode.

    Where the texts have more characters than fit, the most frequent are kept. All others, and those not in
    the texts, are `<unk>`."""
    special = list(dict.fromkeys([UNKNOWN, END_OF_TEXT, PAD, *control]))
    if vocab_size <= len(special):
        raise UserError(
            f"a vocabulary of {vocab_size} is too small: the control tokens ({few(special)}) "
            f"take {len(special)} already, and every character takes one more"
        )
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(plain(text))
    frequent = sorted(counts, key=lambda character: (-counts[character], character))
    tokens = [*special, *sorted(frequent[: vocab_size - len(special)])]
    kinds = [Kind.CONTROL] * len(special) + [Kind.NORMAL] * (len(tokens) - len(special))
    source = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(tokens, kinds, (Kind.CONTROL,)),
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",  # which without merges leaves every character alone
            "dropout": None,
            "unk_token": UNKNOWN,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {content: token for token, content in enumerate(tokens)},
            "merges": [],
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN,
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    if control:
        settings["additional_special_tokens"] = list(control)
    return Tokenizer(json.dumps(source, ensure_ascii=False), settings)
