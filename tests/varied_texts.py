"""Texts that tokenizers cut differently if anything about them differs: a few hundred, of every kind."""

from collections.abc import Iterator
from functools import cache
from random import Random

import materials

PARTS = [
    "", " ", "  ", "   ", "    ", "\n", "\n\n", "\n\n\n", "\r\n", "\r", "\t", "\t\t", " \n", "\n ",
    " \t ", "\x0b", "\x0c", "a", "A", "Hello", " Hello", "  Hello", "hello world", "The end.", "HELLO",
    "CamelCaseWord", "snake_case_word", "It's", "IT'S", "we'll", "WE'LL", "they'd", "I'VE", "'s", "''s",
    "o'clock", "’s", "0", "1", "12", "123", "1234", "12345", "1234567890", "3.14", "1,000,000", "½", "²",
    "٣٤", "１２", "Ⅷ", "x86-64", "!", "!!", "...", "?!", "(a,b);", "{}[]()<>", "#$%^&*", "--", "://",
    "a/b\\c", "`code`", "**bold**", "$5", "~", "_", "https://a.example/b?c=d&e=f#g", "me@example.org",
    "def f(x):\n    return x ** 2  # comment\n", "\tif (a) {\n\t}\n", "naïve", "café", "cafe\u0301",
    "Ünïcödé", "ﬁ", "ß", "İ", "ı", "Å", "Å", "e\u0301\u0327", "q\u0323\u0307", "ŀ", "日本語のテキスト",
    "東京", "中文字符。", "你好，世界！", "한국어", "\u1112\u1161\u11ab", "가나다", "ひらがな",
    "カタカナ", "ｶﾅ", "العربية", "مرحبا بالعالم", "عِبْرِית", "עברית", "हिन्दी", "नमस्ते", "বাংলা",
    "தமிழ்", "ไทย", "ภาษาไทย", "ខ្មែរ", "မြန်မာ", "ქართული", "Ελληνικά", "Русский текст", "Україна",
    "አማርኛ", "𓀀𓂀", "𝔘𝔫𝔦", "𐍈", "😀", "👍🏽", "👨‍👩‍👧", "🏳️‍🌈", "🇫🇷", "☃", "❤️", "🧿", "©", "™", "→",
    "∀x∈ℝ", "─│┌", "\u200b", "\u200d", "\ufeff", "\u00a0", "\u3000", "\u2028", "\u2029", "\u0085",
    "\u00ad", "\u2003", "\u202e", "\x00", "\x01", "\x07", "\x1b[0m", "\x7f", "\x80", "\ufffd", "\ufffe",
    "\U000e0041", "\U0010ffff", "\ue000", "▁", "▁▁", "x▁y", "Ġ", "Ċ", "⁇", "<0x41>", "<s", "<|im_start|",
    "[INST", "<unk", "</", "<start_of_turn", "x" * 70, "ab" * 40, " " * 33, " " * 100, "\n" * 20,
    "=" * 50, "." * 30, "0" * 25, "é" * 20, "😀" * 9, "\t" * 12,
]  # fmt: skip


LANGUAGES = ["arabic", "bangla", "chinese", "french", "german", "hebrew", "hindi", "japanese", "korean"]
LANGUAGES += ["marathi", "persian", "russian", "swedish", "tchinese", "telugu", "thai", "turkish"]


@cache
def varied_texts() -> list[str]:
    """Every part alone, then parts put together by chance."""
    chance = Random(11)
    joined = ["".join(chance.choices(PARTS, k=chance.randint(2, 8))) for _ in range(300)]
    return [*PARTS, *joined]


def corpus_texts() -> Iterator[str]:
    """What the chatterbot corpora say in other languages than English: a few lines of each."""
    for language in LANGUAGES:
        for question, answer in materials.questions_and_answers(language)[:20]:
            yield f"{question}\n{answer}"
