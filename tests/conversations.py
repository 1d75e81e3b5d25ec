"""A few hundred conversations of what people write: nothing, spaces, scripts, what looks like markup."""

import random

CONTENTS = [
    "",
    " ",
    "\n",
    "\n\n",
    "Hello there.",
    "  leading and trailing  ",
    "\nA line break first, and one last.\n",
    "\n\n\tTabs\tand  double  spaces \n \n",
    "I'll say it's 1234567 o'clock; they'VE 3.14 won't.",
    "Zażółć gęślą jaźń. Grüße, ça va? Ñandú.",
    "e\u0301 is not \u00e9 until it is normalized; \ufb01 stays",  # NFC changes the first
    "今天天气怎么样?我想去公园。",
    "こんにちは、世界。 カタカナ",
    "مرحبا بالعالم \u200f שלום",
    "नमस्ते दुनिया",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 emoji \U0001f9ff",
    "\u00a0no-break\u2003space\u200bzero\u3000",
    "\x1c\x1d odd \x85 separators \u2028 here \x0b\x0c\x1f",
    "\ufeffmark \ufffd replacement \x00 nul",
    "def f(x):\n    return {x: [1, 2]}  # comment\n\n\nprint(f(3))\n",
    "{{ messages }} {% for x in y %} {# no #}",
    "<tool_call>\n{}\n</tool_call> and <think>hm</think>",
    "<0x0A> <s <|im_ [INST im_start|> </ s> ▁▁ Ġ",
    "x" * 300,
    "word " * 60,
    "\n" * 12 + "end",
    "a",
    "?!",
    "...\n",
    "a  12   3\n\n4 and 5  ",  # some tokenizers cut digits off the spaces before them
    "∑ᵢ αᵢ² ≤ ∞ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
]


def conversations(
    count: int = 300, *, system: bool = True, tools: bool = False, seed: int = 0
) -> list[list[dict[str, str]]]:
    """Conversations of one to five rounds, a part of them prompts that end with the user."""
    chance = random.Random(seed)
    return [_conversation(chance, system, tools) for _ in range(count)]


def _conversation(chance: random.Random, system: bool, tools: bool) -> list[dict[str, str]]:
    roles = ["system"] if system and chance.random() < 0.5 else []
    for _ in range(chance.randint(1, 5)):
        roles += ["user", "assistant"]
        if tools and chance.random() < 0.4:
            roles += ["tool"] * chance.randint(1, 3) + ["assistant"]
    if chance.random() < 0.4:
        roles.pop()
    return [{"role": role, "content": _content(chance)} for role in roles]


def _content(chance: random.Random) -> str:
    return chance.choice(["", " ", "\n", "-"]).join(
        chance.choices(CONTENTS, k=chance.choice([1, 1, 1, 2, 3]))
    )


def is_prompt(messages: list[dict[str, str]]) -> bool:
    return messages[-1]["role"] != "assistant"


def say(*turns: str) -> list[dict[str, str]]:
    """`say("user: Hi", "assistant: Hello")` as messages."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


CHAT = say("system: Be brief.", "user: Hi there", "assistant: Hello!")
