"""The Mistral templates give the ids of Mistral's own encoder: system texts, tools, calls and results too."""

import json
from functools import cache
from typing import Any

import materials
import pytest
from conversations import conversations, conversations_with_tools, is_prompt
from official import tokenizer

from tutelage.text.template import Template

FILES = {  # ours -> the encoder's version, its vocabulary, our tokenizer
    "mistral_v1": ("v1", "tokenizer.model.v1", "mistral_v1_spaced"),
    "mistral_instruct": ("v3", "mistral_instruct_tokenizer_240323.model.v3", "mistral_v3"),
    "mistral_v7": ("v7", "mistral_instruct_tokenizer_241114.model.v7", "mistral_v7"),
    "mistral_tekken": ("v3", "tekken_240911.json", "mistral_tekken"),
}


@cache
def encoder(name: str) -> Any:
    """Mistral's encoder of what a template writes, in the mode where conversations may end with replies."""
    folder = materials.mistral_common()
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    path = folder / "mistral_common" / "data" / FILES[name][1]
    return MistralTokenizer.from_file(str(path), mode=ValidationMode.agnostic)


def official_ids(name: str, messages: list[dict]) -> list[int]:
    encode = encoder(name).encode_chat_completion
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    told = [{key: value for key, value in message.items() if key != "tools"} for message in messages]
    for message in told:
        if calls := message.get("tool_calls"):
            texts = [json.dumps(call["function"]["arguments"]) for call in calls]
            message["tool_calls"] = [
                {**call, "function": {"name": call["function"]["name"], "arguments": text}}
                for call, text in zip(calls, texts, strict=True)
            ]
            message.pop("content")
    request = {"messages": told, "tools": messages[0].get("tools")}
    return encode(ChatCompletionRequest(**request)).tokens


def comparable(name: str, messages: list[dict]) -> bool:
    """Mistral's encoder refuses empty messages and strips other spaces off replies than its templates do."""
    texts = [message["content"] for message in messages if not message.get("tool_calls")]
    replies = [message["content"] for message in messages if message["role"] == "assistant"]
    bare = name == "mistral_tekken" or name == "mistral_v7"
    return all(text.strip() for text in texts) and all(
        reply == reply.rstrip(" ") if bare else reply == reply.strip() for reply in replies
    )


def compared(name: str, count: int) -> list[list[dict]]:
    plain = conversations(count * 3, seed=4)
    calling = [] if name == "mistral_v1" else conversations_with_tools(count, seed=4)
    return [messages for messages in [*plain, *calling] if comparable(name, messages)][:count]


def check(name: str, count: int) -> None:
    template, source = Template.load(name), tokenizer(FILES[name][2])
    chosen = compared(name, count)
    assert len(chosen) > count // 3
    for messages in chosen:
        ours = template.encode(messages, source, reply=is_prompt(messages)).tokens
        assert ours == official_ids(name, messages), messages


def test_some_ids_of_version_3_are_those_of_mistrals_encoder():
    check("mistral_instruct", 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_ids_are_those_of_mistrals_encoder(name):
    check(name, 300)
