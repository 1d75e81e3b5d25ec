"""A tiny random model that chats in bytes, for the tests of conversations and the commands that hold them."""

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from tutelage.infer.chat import ChatSession
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer

GREEDY = Sampling(temperature=0)
CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


def byte_tokenizer() -> Tokenizer:
    """One token for every byte, and ChatML's control tokens."""
    library = tokenizers.Tokenizer(
        models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(CONTROL)
    settings = {"eos_token": "<|im_end|>", "chat_template": Template.load("chatml").jinja}
    return Tokenizer(library.to_str(), settings)


def tiny_model(context: int = 512) -> Transformer:
    tokenizer = byte_tokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.size,
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=48,
        max_positions=context,
        eos=(tokenizer.eos,),
    )
    torch.manual_seed(0)
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def session_of(context: int = 512, **options) -> ChatSession:
    options = {"max_new_tokens": 12, **options}
    return ChatSession(tiny_model(context), byte_tokenizer(), Template.load("chatml"), GREEDY, **options)


def completion_of(session: ChatSession, messages: list[dict[str, str]]) -> str:
    """What the model answers to `messages`, without any session."""
    tokens = session.template.encode(messages, session.tokenizer, reply=True).tokens
    options = {"max_new_tokens": session.max_new_tokens, "stop": session.stop}
    return session.tokenizer.decode(generate(session.model, [tokens], GREEDY, **options)[0].tokens)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
