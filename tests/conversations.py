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


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "What the weather is like",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Żółć, {{ x }}"}},
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}},
    },
]


def conversations_with_tools(count: int = 100, *, calls: int = 2, seed: int = 0) -> list[list[dict]]:
    """Conversations in which replies call tools, at most so many at once; the first message lists them.

    Results are JSON, and calls have no words beside them, so that every official template writes them."""
    chance = random.Random(seed)
    return [_with_tools(chance, calls) for _ in range(count)]


def _with_tools(chance: random.Random, calls: int) -> list[dict]:
    messages: list[dict] = []
    if chance.random() < 0.5:
        messages.append({"role": "system", "content": _content(chance)})
    for _ in range(chance.randint(1, 3)):
        messages.append({"role": "user", "content": _content(chance)})
        if chance.random() < 0.7:
            made = [_call(chance) for _ in range(chance.randint(1, calls))]
            messages.append({"role": "assistant", "content": "", "tool_calls": made})
            for call in made:
                result = chance.choice(['{"degrees": 22, "sky": "żółty"}', '["a", 1.5, null]', "22", '"dry"'])
                messages.append({"role": "tool", "content": result, "tool_call_id": call["id"]})
        messages.append({"role": "assistant", "content": _content(chance)})
    if chance.random() < 0.4:
        messages.pop()
    if chance.random() < 0.7:
        messages[0]["tools"] = TOOLS[: chance.randint(1, 2)]
    return messages


def _call(chance: random.Random) -> dict:
    arguments = chance.choice([{}, {"city": "Gdańsk"}, {"city": "x <s\n", "days": [1, 2.5, True, None]}])
    name = "".join(chance.choices("abcXYZ0189", k=9))
    return {"id": name, "type": "function", "function": {"name": "weather", "arguments": arguments}}


THOUGHTS = [
    "<think>\nHm, so.\n</think>\n\nYes.",
    "<think>a</think>b</think>\n\nc",
    "\n\n</think>No.",
    "Oh <think>",
    "\n\nx",
]


def conversations_with_thoughts(count: int = 100, *, seed: int = 0) -> list[list[dict]]:
    """Conversations in which replies have reasoning, in their content or beside it, or both, or none."""
    chance = random.Random(seed)
    made = [*conversations(count, tools=True, seed=seed), *conversations_with_tools(count, seed=seed)]
    chance.shuffle(made)
    for messages in made[:count]:
        for message in messages:
            if message["role"] == "assistant" and chance.random() < 0.5:
                message["content"] = chance.choice(THOUGHTS)
            if message["role"] == "assistant" and chance.random() < 0.3:
                message["reasoning_content"] = chance.choice(["I wonder.", "\n\nŻ\n", "<think>\n"])
            if message["role"] == "user" and chance.random() < 0.1:
                message["content"] = "<tool_response>\n1\n</tool_response>"
    return made[:count]
