"""The one sampler: what the filters leave, and that what they drop is never drawn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tutelage.errors import UserError
from tutelage.infer.sampling import Sampling, filter_logits, sample

CPU = torch.device("cpu")
rows_of_logits = st.integers(1, 40).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(-30, 30, width=32), min_size=size, max_size=size), min_size=1, max_size=3
    )
)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1),
    seed=st.integers(0, 2**62),
)


def draw(logits: torch.Tensor, sampling: Sampling) -> list[int]:
    return sample(logits, sampling, sampling.generators(range(len(logits)), CPU)).tolist()


@given(rows_of_logits, samplings)
def test_a_filtered_token_has_probability_zero_and_is_never_drawn(rows, sampling):
    logits = torch.tensor(rows)
    filtered = filter_logits(logits, sampling)
    probabilities = filtered.softmax(-1)
    assert bool((probabilities[filtered.isneginf()] == 0).all())
    assert bool((~filtered.isneginf()).any(-1).all())
    drawn = torch.tensor(draw(logits, sampling))
    assert not bool(filtered.gather(-1, drawn[:, None]).isneginf().any())


@given(rows_of_logits, samplings)
def test_the_filters_are_those_of_transformers(rows, sampling):
    logits = expected = torch.tensor(rows)
    expected = TemperatureLogitsWarper(sampling.temperature)(None, expected)
    if sampling.top_k:
        expected = TopKLogitsWarper(sampling.top_k)(None, expected)
    if sampling.top_p < 1:
        expected = TopPLogitsWarper(sampling.top_p)(None, expected)
    assert torch.equal(filter_logits(logits, sampling), expected)


def test_top_k_and_top_p_by_hand():
    """Probabilities .1 .2 .3 .4: the two likeliest; those that reach .65 are .4 and .3."""
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.65), Sampling(top_k=3, top_p=0.7)):
        kept = filter_logits(logits, sampling).softmax(-1)
        torch.testing.assert_close(kept, torch.tensor([[0.0, 0.0, 3 / 7, 4 / 7]]))
    assert filter_logits(logits, Sampling(top_p=1e-9)).isneginf().tolist() == [[True, True, True, False]]
    assert filter_logits(logits, Sampling(top_k=4)).isneginf().sum() == 0


def test_temperature_zero_takes_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert draw(logits, Sampling(temperature=0, top_k=1, top_p=0.1)) == [1, 0]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)
    drawn = sample(logits, Sampling(), [generator] * len(logits))
    shares = torch.bincount(drawn, minlength=4) / len(logits)
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.015, rtol=0)


def test_what_a_row_draws_depends_on_its_seed_alone():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    sampling = Sampling(seed=7)
    together = draw(logits, sampling)
    alone = [
        sample(logits[row : row + 1], sampling, sampling.generators([row], CPU)).item() for row in range(4)
    ]
    assert together == alone == draw(logits, sampling)
    assert len({tuple(draw(logits, Sampling(seed=seed))) for seed in range(10)}) > 5
    same = logits[:1].expand(20, -1)
    assert len(set(draw(same, sampling))) > 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, "temperature: was -1, wanted 0 (greedy) or more"),
        ({"temperature": float("nan")}, "temperature: was nan, wanted 0 (greedy) or more"),
        ({"top_k": -1}, "top_k: was -1, wanted 0 (no limit) or more"),
        ({"top_p": 0.0}, "top_p: was 0.0, wanted more than 0 and at most 1 (no limit)"),
        (
            {"top_p": 1.5, "top_k": -2},
            "top_k: was -2, wanted 0 (no limit) or more\n"
            "top_p: was 1.5, wanted more than 0 and at most 1 (no limit)",
        ),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(UserError) as caught:
        Sampling(**values)
    assert str(caught.value) == message
