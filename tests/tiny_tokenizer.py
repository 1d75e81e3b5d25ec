"""A tokenizer of bytes with the control tokens of ChatML, small enough to follow by hand."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from tutelage.text.tokenizer import Tokenizer

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NAMES = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}


def tiny_tokenizer(*, adds_bos: bool = False, **settings) -> Tokenizer:
    """Every byte a token, ids in the order of the printable alphabet; EOS and padding are one id."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(CONTROL)
    if adds_bos:
        bos = CONTROL[1]
        template = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))]
        )
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return Tokenizer(made.to_str(), NAMES | settings)
