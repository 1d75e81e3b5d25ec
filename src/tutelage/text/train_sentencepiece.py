"""Learn a SentencePiece vocabulary from text: BPE with bytes for what it does not know, as Llama 2 has it."""

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from tutelage.errors import UserError
from tutelage.text.sentencepiece_file import control_last, tokenizer_json
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.train import few

_NAMED = ("<unk>", "<s>", "</s>")  # ids 0, 1 and 2; bytes follow
_PAD = "<pad>"  # as of byte-level vocabularies: no reader can take padding for the end
# The library leaves out whole lines that have U+2585, its sign for the unknown, so text is cut there too.
_CUTS = re.compile("[\n\u2585]")
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


def train_sentencepiece(texts: Iterable[str], vocab_size: int, control: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens, with the tokenizer.model that SentencePiece reads.

    Every character of the texts is a token, digits stand alone, spaces are kept as they are, and line ends
    are never part of a longer token. The same texts give the same model. Control tokens come last, so that
    bytes begin at 3, which readers of Llama 2's vocabulary count on; the first of them is `<pad>`."""
    from sentencepiece import SentencePieceTrainer

    control = [name for name in dict.fromkeys([_PAD, *control]) if name not in _NAMED]
    fewest = len(_NAMED) + 256 + len(control)
    if vocab_size <= fewest:
        raise UserError(
            f"a vocabulary of {vocab_size} is too small: 256 bytes and {len(_NAMED) + len(control)} control "
            f"tokens ({few([*_NAMED, *control])}) take {fewest} already, and every character takes "
            "one more"
        )
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # fewer tokens where the texts have too little to merge
            character_coverage=1.0,
            split_digits=True,
            byte_fallback=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,  # or texts would not come back as they were
            self_test_sample_size=0,
            input_sentence_size=0,  # all: what to leave out is decided where the texts are chosen
            max_sentence_length=1 << 30,  # longer lines would be left out
            control_symbols=control,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,  # or it would be 3
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_reason(str(error), vocab_size)) from error
    content = control_last(model.getvalue(), first=len(_NAMED))
    made, settings = tokenizer_json(content)
    if control[1:]:
        settings["additional_special_tokens"] = control[1:]
    return Tokenizer(json.dumps(made, ensure_ascii=False), settings, content)


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """The lines of the texts one by one: what a sentence is to the library."""
    for text in texts:
        yield from (line for line in _CUTS.split(text) if line.strip())


def _reason(message: str, vocab_size: int) -> str:
    if found := _TOO_SMALL.search(message):
        return (
            f"a vocabulary of {vocab_size} is too small: bytes, control tokens and every character of the "
            f"text take {found.group(1)} already; raise --vocab_size, or take --algorithm byte_bpe, which "
            "spells rare characters in bytes"
        )
    return f"SentencePiece cannot learn from this text: {message}"
