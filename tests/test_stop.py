"""Stop strings: found however the text is cut into tokens, and never shown in part."""

from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import tiny_tokenizer

from tutelage.text.stop import StoppedText

TOKENIZER = tiny_tokenizer()
texts = st.text(alphabet="abé🦜.", max_size=20)
stops = st.lists(st.text(alphabet="abé🦜.", min_size=1, max_size=4), max_size=3)


def pieces_of(text: str, given: list[str], *, included: bool) -> tuple[list[str], bool]:
    """What comes out byte by byte, and whether the text was ended by a stop."""
    stopped = StoppedText(TOKENIZER, given, included=included)
    pieces = []
    for token in TOKENIZER.encode(text):
        pieces.append(stopped.push(token))
        if stopped.ended:
            break
    return [*pieces, stopped.flush()], stopped.ended


@given(texts, stops, st.booleans())
def test_an_answer_ends_at_the_stop_that_is_complete_first(text, given, included):
    pieces, ended = pieces_of(text, given, included=included)
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in given if stop in text]
    end, start = min(ends, default=(len(text), len(text)))
    assert "".join(pieces) == text[: end if included else start]
    assert ended == bool(ends)


@given(texts, stops)
def test_nothing_is_given_out_that_may_be_a_stop(text, given):
    """After every character, just the part that could still become a stop is held back."""
    stopped = StoppedText(TOKENIZER, given)
    out, said = "", ""
    for letter in text:
        said += letter
        out += "".join(stopped.push(token) for token in TOKENIZER.encode(letter))
        if stopped.ended:
            return
        open_ends = [place for place in range(len(said)) if any(s.startswith(said[place:]) for s in given)]
        assert out == said[: min(open_ends, default=len(said))]


def test_a_text_without_stops_is_given_out_as_it_comes():
    pieces, ended = pieces_of("ab🦜", [], included=False)
    assert (pieces, ended) == (["a", "b", "", "", "", "🦜", ""], False)


def test_the_end_of_a_story_is_kept_where_it_is_asked_for():
    story = "They slept. The end. Once"
    assert "".join(pieces_of(story, ["The end."], included=True)[0]) == "They slept. The end."
    assert "".join(pieces_of(story, ["The end."], included=False)[0]) == "They slept. "
    assert "".join(pieces_of("The en", ["The end."], included=False)[0]) == "The en"
