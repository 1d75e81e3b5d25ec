"""Pairs of stories: what they prefer, what they hold out, and the checks that judge a model by it."""

import json
from collections import Counter
from random import Random

import pytest

from tutelage import cli
from tutelage.data.comparison import comparison_fault
from tutelage.data.stories.pairs import is_happy, judge, pair, write_pairs
from tutelage.data.stories.plots import follows, is_held_out, read, story, write


def pairs(count: int = 1000, *, held_out: bool = False) -> list[dict]:
    rng = Random(3)
    return [pair(rng, held_out=held_out) for _ in range(count)]


def test_a_request_names_no_mood_and_the_chosen_story_follows_it_and_ends_happily():
    for made in pairs():
        assert not {"happy", "sad"} & set(made["prompt"].split())
        assert follows(made["prompt"], made["chosen"])
        assert is_happy(made["chosen"]) is True
        assert comparison_fault(made) is None


def test_a_rejected_story_ends_sadly_or_is_about_something_else():
    kinds = Counter()
    for made in pairs():
        chosen, rejected = read(made["chosen"]), read(made["rejected"])
        assert chosen and rejected
        differ = [field for field, value in vars(chosen).items() if vars(rejected)[field] != value]
        assert len(differ) == 1, "one thing is what the pair is about"
        kinds[differ[0]] += 1
        assert follows(made["prompt"], made["rejected"]) == (differ == ["happy"])
        assert rejected.happy == (differ != ["happy"])
    assert 700 < kinds["happy"] < 800
    assert all(kinds[field] > 25 for field in ("animal", "name", "color", "thing"))


def test_half_of_the_pairs_part_only_at_the_end_and_half_are_told_in_different_words():
    """Told alike throughout, the two would differ by little more than the word happy."""
    alike = 0
    for made in pairs():
        helper, happy = read(made["chosen"]).helper, is_happy(made["rejected"])
        if happy is False:
            alike += made["chosen"].split(helper)[:2] == made["rejected"].split(helper)[:2]
    assert 300 < alike < 450


def test_held_out_pairs_are_about_heroes_and_things_that_no_other_pair_brings_together():
    for held_out in (False, True):
        for made in pairs(300, held_out=held_out):
            assert is_held_out(read(made["chosen"])) == is_held_out(read(made["rejected"])) == held_out


def test_pairs_are_the_same_for_a_seed_and_change_no_other_file(tmp_path, capsys):
    words = ["data", "build", "stories", "--stories", "20", "--conversations", "20", "--seed", "3"]
    for name, count in [("a", 30), ("b", 30), ("c", 0)]:
        cli.main([*words, "--pairs", str(count), "--output_dir", str(tmp_path / name)])
    write(tmp_path / "d", stories=20, conversations=20, seed=3)
    write_pairs(tmp_path / "d", pairs=30, seed=4)
    written = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abcd"
    }
    assert written["a"] == written["b"]
    assert set(written["a"]) - set(written["c"]) == {"pairs.jsonl", "held_out_pairs.jsonl"}
    assert all(written["a"][name] == content for name, content in written["c"].items())
    assert written["a"]["pairs.jsonl"] != written["d"]["pairs.jsonl"]
    assert len(written["a"]["pairs.jsonl"].splitlines()) == 30
    assert len(written["a"]["held_out_pairs.jsonl"].splitlines()) == 400
    assert set(json.loads(written["a"]["pairs.jsonl"].splitlines()[0])) == {"prompt", "chosen", "rejected"}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main([*words, "--pairs", "-1", "--output_dir", str(tmp_path / "e")])
    assert "pairs is -1, must be 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "happy"),
    [
        ("Jack cried. They were very happy.", True),
        ("They were happy. It was a sad day.", False),
        ('"Thank you!" said Mia. What a happy day it was!', True),
        ("They were happy. They were", None),
        ("They were very happy", None),
        ("They were happy and sad.", None),
        ("They went home.", None),
        ("They were unhappy.", None),
        ("", None),
    ],
)
def test_a_story_ends_as_its_last_sentence_says(text, happy):
    assert is_happy(text) is happy


def test_every_built_in_story_ends_as_its_plot_does():
    rng = Random(9)
    for new in (story(rng) for _ in range(500)):
        assert is_happy(new.text) is new.plot.happy


def test_a_model_is_judged_by_the_requests_that_name_no_mood():
    made = next(made for made in pairs() if is_happy(made["rejected"]) is False)
    asked, good, bad = made["prompt"], made["chosen"], made["rejected"]
    elsewhere = next(other["chosen"] for other in pairs() if not follows(asked, other["chosen"]))
    with_mood = asked.replace("story about", "sad story about")
    turns = [(asked, good), (asked, bad), (asked, elsewhere), (asked, "Once."), (with_mood, good)]
    turns += [("What is ice made of?", "They were happy.")]
    conversations = [
        [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]
        for request, reply in turns
    ]
    assert judge(conversations) == {
        "stories that end happily": (2, 4),
        "stories as asked for": (2, 4),
        "stories that do both": (1, 4),
    }
    assert judge([])["stories as asked for"] == (0, 0)
