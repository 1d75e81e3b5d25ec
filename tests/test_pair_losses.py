"""The losses of preference learning: worked by hand, against golden numbers, and what must not matter."""

from dataclasses import fields, replace
from itertools import combinations, product
from math import exp, log

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.errors import UserError
from tutelage.objectives import loss_names
from tutelage.objectives.pair_losses import LOSSES, Pairs, centring, kto, normalised, ranking, simpo

LEADS_ONLY = ["sigmoid", "hinge", "robust", "exo", "discopop", "cpo"]  # see an answer only beside the other
LOGPS = ("chosen", "rejected", "ref_chosen", "ref_rejected")


def pairs_of(chosen, rejected, ref_chosen, ref_rejected, n_chosen=(1,), n_rejected=(1,)) -> Pairs:
    values = [torch.tensor(value) for value in (chosen, rejected, ref_chosen, ref_rejected)]
    lengths = [torch.tensor(n).expand_as(values[0]) for n in (n_chosen, n_rejected)]
    return Pairs(*values, *lengths, torch.zeros_like(values[0]))


def random_pairs(n: int = 6) -> Pairs:
    draw = torch.Generator().manual_seed(0)
    logps = [-5 - 3 * torch.rand(n, generator=draw) for _ in LOGPS]
    lengths = [torch.randint(2, 9, (n,), generator=draw) for _ in range(2)]
    return Pairs(*logps, *lengths, torch.zeros(n))


def swapped(pairs: Pairs) -> Pairs:
    return Pairs(
        pairs.rejected,
        pairs.chosen,
        pairs.ref_rejected,
        pairs.ref_chosen,
        pairs.n_rejected,
        pairs.n_chosen,
        -pairs.margins,
    )


def gradients(name: str, pairs: Pairs, beta: float = 0.5, smoothing: float = 0.1) -> tuple[Tensor, Tensor]:
    """Of the summed losses by the chosen and the rejected log-probabilities, (P,) each."""
    watched = replace(pairs, chosen=pairs.chosen.clone(), rejected=pairs.rejected.clone())
    watched.chosen.requires_grad_()
    watched.rejected.requires_grad_()
    loss = LOSSES[name](watched, beta, smoothing).sum()
    return torch.autograd.grad(loss, (watched.chosen, watched.rejected))


def by_hand() -> Pairs:
    """A pair, and the same pair the wrong way round.

    The policy gives each of the first answer's 2 tokens 3/4 and each of the second's 4 tokens 1/4. Beside the
    reference the first gains 2 log 3 and the second loses 2 log 3.
    """
    good, bad, gain = 2 * log(3 / 4), 4 * log(1 / 4), 2 * log(3)
    right = pairs_of([good], [bad], [good - gain], [bad + gain], (2,), (4,))
    wrong = swapped(right)
    return Pairs(*(torch.cat([getattr(each, f.name) for each in (right, wrong)]) for f in fields(Pairs)))


@pytest.mark.parametrize(
    ("name", "smoothing", "right", "wrong"),
    [
        ("sigmoid", 0.0, -log(0.9), -log(0.1)),
        ("sigmoid", 0.1, -0.9 * log(0.9) - 0.1 * log(0.1), -0.9 * log(0.1) - 0.1 * log(0.9)),
        ("hinge", 0.0, 0.0, 1 + log(9)),
        ("robust", 0.0, -log(0.9), -log(0.1)),
        ("robust", 0.1, (-0.9 * log(0.9) + 0.1 * log(0.1)) / 0.8, (-0.9 * log(0.1) + 0.1 * log(0.9)) / 0.8),
        ("exo", 0.1, 0.0, 0.8 * log(9)),
        ("apo_zero", 0.0, 0.25 + 0.25, 0.75 + 0.75),
        ("apo_down", 0.0, 0.75 + 0.1, 0.25 + 0.9),
        ("nca", 0.0, -1.5 * log(0.75) - 0.5 * log(0.25), -1.5 * log(0.25) - 0.5 * log(0.75)),
        ("sppo", 0.0, 2 * (2 * log(3) - 1) ** 2, 2 * (2 * log(3) + 1) ** 2),
        ("ipo", 0.0, (1.5 * log(3) - 1) ** 2, (1.5 * log(3) + 1) ** 2),
        ("orpo", 0.0, -0.5 * log(0.9), -0.5 * log(0.1)),
        ("cpo", 0.0, -log(12 / 13), -log(1 / 13)),
        ("cpo", 0.1, -0.9 * log(12 / 13) - 0.1 * log(1 / 13), -0.9 * log(1 / 13) - 0.1 * log(12 / 13)),
    ],
)
def test_losses_are_those_worked_by_hand(name, smoothing, right, wrong):
    """beta = 1/2, so beta r_w = log 3 and beta r_l = -log 3, whose sigmoids s are 3/4 and 1/4, and beta z is
    log 9, whose sigmoid is 9/10; the other way round 1/4, 3/4, -log 9 and 1/10.

    sigmoid    -log 9/10 and -log 1/10; smoothed by 1/10, nine parts of one and one of the other
    hinge      1 - log 9 < 0, so 0, and 1 + log 9
    robust     the smoothed terms with a minus between them, over 1 - 2/10
    exo        its target is 9/10 and 1/10: no divergence; then .1 log 1/9 + .9 log 9 = .8 log 9
    apo_zero   s(-log 3) twice; s(log 3) twice
    apo_down   s(log 3) + s(-log 9); s(-log 3) + s(log 9)
    nca        -log 3/4 - (log 1/4 + log 3/4) / 2; -log 1/4 - (log 3/4 + log 1/4) / 2
    sppo       1 / (2 beta) = 1 and r is 2 log 3, -2 log 3: (2 log 3 - 1)^2 + (-2 log 3 + 1)^2
    ipo        by the token r is log 3 and -log 3 / 2, so z = 1.5 log 3, against 1 / (2 beta) = 1
    orpo       odds 3 and 1/3, so their log ratio is log 9, and the loss -1/2 log 9/10
    cpo        sums 2 log 3/4 and 4 log 1/4 differ by log 144, by half: log 12, whose sigmoid is 12/13
    """
    assert_close(LOSSES[name](by_hand(), 0.5, smoothing), torch.tensor([right, wrong]))


def test_discopop_mixes_by_a_sigmoid_of_temperature_a_twentieth():
    """beta z = log(3) / 20 makes the mixing m = s(log 3) = 3/4; far out it is 1, of exp(-log 9) = 1/9, or 0.

    .75 exp(-.054931) + .25 log(1 + exp(-.054931)) = .75 x .946551 + .25 x .666059 = .876428
    """
    near = pairs_of([log(3) / 10], [0.0], [0.0], [0.0])
    assert_close(LOSSES["discopop"](near, 0.5, 0.0), torch.tensor([0.876428]))
    assert_close(LOSSES["discopop"](by_hand(), 0.5, 0.0), torch.tensor([1 / 9, -log(0.1)]))


def test_simpo_is_the_one_worked_by_hand():
    """By the token log 3/4 - log 1/4 = log 3. With beta 2 and gamma log(3) / 2 that is
    2 (log 3 - log(3) / 2) = log 3, sigmoid 3/4; the other way round 2 (-log 3 - log(3) / 2) = -log 27, 1/28.
    """
    assert_close(simpo(by_hand(), 2.0, log(3) / 2), torch.tensor([-log(3 / 4), log(28)]))


def test_kto_is_the_one_worked_by_hand():
    """beta 1/2, kl 1: r = 1 + 2 log 3 gives beta (r - kl) = log 3. Liked, 2 (1 - 3/4); else 3 x 3/4.

    A kl below 0 counts as 0: r = 2 log 3 then gives the same, as it does where no kl is measured.
    """
    liked, logps = torch.tensor([True, False]), torch.tensor([-7.0, -9.0])
    expected = torch.tensor([0.5, 2.25])
    gain = 2 * log(3)
    assert_close(kto(logps, logps - gain - 1, liked, torch.tensor(1.0), 0.5, 2.0, 3.0), expected)
    assert_close(kto(logps, logps - gain, liked, torch.tensor(-4.0), 0.5, 2.0, 3.0), expected)


def test_no_gradient_goes_through_the_divergence_of_kto():
    logps, kl = torch.tensor([-3.0], requires_grad=True), torch.tensor(1.0, requires_grad=True)
    kto(logps, torch.tensor([-4.0]), torch.tensor([True]), kl * 1, 0.5).sum().backward()
    assert logps.grad is not None and kl.grad is None


def test_ranking_and_centring_are_those_worked_by_hand():
    """Rewards 1.5 + log 3 and 1 with a margin of 1/2 leave log 3, whose sigmoid is 3/4; (1.5 - .5)^2 = 1."""
    better, worse, margin = torch.tensor([1.5 + log(3)]), torch.tensor([1.0]), torch.tensor([0.5])
    assert_close(ranking(better, worse, margin), torch.tensor([-log(3 / 4)]))
    assert_close(centring(torch.tensor([1.5]), torch.tensor([-0.5])), torch.tensor([1.0]))


@pytest.mark.parametrize(
    ("name", "beta", "smoothing", "expected"),
    [
        ("sigmoid", 0.1, 0.0, 0.620957),
        ("sigmoid", 0.1, 0.1, 0.635957),
        ("sigmoid", 0.01, 0.0, 0.685675),
        ("hinge", 0.1, 0.0, 0.85),
    ],
)
def test_losses_are_the_golden_ones(name, beta, smoothing, expected):
    """pi_w -12, pi_l -15, ref_w -13, ref_l -14.5, so z = 1 + .5; rewards at beta .1 are .1 and -.05."""
    pairs = pairs_of([-12.0], [-15.0], [-13.0], [-14.5])
    assert_close(LOSSES[name](pairs, beta, smoothing), torch.tensor([expected]), rtol=0, atol=1e-6)
    assert_close(0.1 * pairs.chosen_gain, torch.tensor([0.1]))
    assert_close(0.1 * pairs.rejected_gain, torch.tensor([-0.05]))


def test_three_pairs_have_the_losses_that_others_have_published():
    pairs = pairs_of([-0.5, -10, -1], [-0.1, -30, -21], [-0.5, -10.1, -0.1], [-0.1, -20.1, -0.1])
    expected = torch.tensor([0.6931, 0.3133, 0.1269])
    assert_close(LOSSES["sigmoid"](pairs, 0.1, 0.0), expected, rtol=0, atol=1e-4)
    assert_close(LOSSES["hinge"](pairs, 0.1, 0.0), torch.tensor([1.0, 0.0, 0.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("beta", "gamma", "expected"), [(1.0, 1.0, 1.701413), (2.0, 0.5, 2.126928)])
def test_simpo_is_the_golden_one(beta, gamma, expected):
    """Sums of -12 over 6 tokens and -15 over 10: -2 + 1.5 = -.5 a token."""
    pairs = pairs_of([-12.0], [-15.0], [0.0], [0.0], (6,), (10,))
    assert_close(simpo(pairs, beta, gamma), torch.tensor([expected]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rewards", "expected"), [([1.2, 0.3, -0.5], 0.293347), ([1.2, 0.3], 0.341154)])
def test_ranking_is_the_golden_one(rewards, expected):
    """The mean over all ordered pairs of ranked answers."""
    better, worse = torch.tensor(list(combinations(rewards, 2))).unbind(1)
    loss = ranking(better, worse, torch.zeros_like(better)).mean()
    assert_close(loss, torch.tensor(expected), rtol=0, atol=1e-6)


# DiscoPOP has a valley of its own where beta z is about -.12, and falls to it from both sides.
@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"discopop"}))
def test_losses_raise_the_chosen_answer_above_the_rejected(name):
    by_chosen, by_rejected = gradients(name, random_pairs())
    assert (by_rejected > by_chosen).all()


@pytest.mark.parametrize("name", ["sigmoid", "exo", "cpo"])
def test_a_swapped_pair_is_one_whose_label_is_wrong_with_the_other_chance(name):
    pairs = random_pairs()
    assert_close(LOSSES[name](swapped(pairs), 0.5, 0.9), LOSSES[name](pairs, 0.5, 0.1))
    assert_close(gradients(name, swapped(pairs), smoothing=0.9)[::-1], gradients(name, pairs, smoothing=0.1))


@pytest.mark.parametrize("name", LEADS_ONLY)
def test_gradients_of_a_pair_are_opposite_where_only_the_difference_counts(name):
    by_chosen, by_rejected = gradients(name, random_pairs())
    assert_close(by_chosen, -by_rejected)


def test_swapping_the_answers_turns_the_gradient_of_each():
    """By beta s(-beta z) down and, swapped, beta s(beta z) up: together beta."""
    pairs = random_pairs()
    before, _ = gradients("sigmoid", pairs, 0.5, 0.0)
    _, after = gradients("sigmoid", swapped(pairs), 0.5, 0.0)
    assert (before < 0).all() and (after > 0).all()
    assert_close(after - before, torch.full_like(after, 0.5))


@pytest.mark.parametrize("name", LOSSES)
def test_what_the_policy_and_the_reference_share_does_not_matter(name):
    pairs = random_pairs()
    shifts = {"chosen": -1.5, "ref_chosen": -1.5, "rejected": 2.0, "ref_rejected": 2.0}
    moved = replace(pairs, **{field: getattr(pairs, field) + by for field, by in shifts.items()})
    same = torch.allclose(LOSSES[name](moved, 0.5, 0.1), LOSSES[name](pairs, 0.5, 0.1), atol=1e-5)
    assert same == (name not in loss_names.REFERENCE_FREE)


@pytest.mark.parametrize("name", LOSSES)
def test_what_both_answers_share_matters_only_to_losses_that_heed_each_by_itself(name):
    pairs = random_pairs()
    moved = replace(pairs, chosen=pairs.chosen - 1, rejected=pairs.rejected - 1)
    same = torch.allclose(LOSSES[name](moved, 0.5, 0.1), LOSSES[name](pairs, 0.5, 0.1), atol=1e-5)
    assert same == (name in LEADS_ONLY)


@pytest.mark.parametrize("name", LOSSES)
def test_the_sets_say_what_losses_heed(name):
    pairs, loss = random_pairs(), LOSSES[name]
    plain = loss(pairs, 0.5, 0.1)
    other_reference = replace(pairs, ref_chosen=pairs.ref_chosen - 1)
    assert torch.equal(loss(other_reference, 0.5, 0.1), plain) == (name in loss_names.REFERENCE_FREE)
    assert torch.equal(loss(pairs, 0.5, 0.2), plain) == (name not in loss_names.SMOOTHED)
    by_token = torch.allclose(loss(normalised(pairs), 0.5, 0.1), plain)
    assert by_token == (name in loss_names.SELF_NORMALISED)


def test_normalising_twice_is_normalising_once():
    pairs = random_pairs()
    once, twice = normalised(pairs), normalised(normalised(pairs))
    for field in fields(Pairs):
        assert_close(getattr(twice, field.name), getattr(once, field.name), rtol=0, atol=0)
    assert_close(once.chosen, pairs.chosen / pairs.n_chosen)
    assert_close(once.ref_rejected, pairs.ref_rejected / pairs.n_rejected)


@pytest.mark.parametrize("beta", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("name", [*LOSSES, "simpo"])
def test_certain_and_hopeless_answers_have_finite_losses_and_gradients(name, beta):
    logps = torch.tensor(list(product([0.0, -1e-8, -1e-3, -1.0, -5000.0], repeat=4))).unbind(1)
    for tokens in (1, 7, 0):
        chosen, rejected = logps[0].clone().requires_grad_(), logps[1].clone().requires_grad_()
        n = torch.full_like(chosen, tokens)
        pairs = Pairs(chosen, rejected, logps[2], logps[3], n, n, torch.zeros_like(chosen))
        losses = simpo(pairs, beta, 1.0) if name == "simpo" else LOSSES[name](pairs, beta, 1e-3)
        assert losses.shape == chosen.shape and losses.dtype == torch.float32
        assert losses.isfinite().all()
        for gradient in torch.autograd.grad(losses.sum(), (chosen, rejected)):
            assert gradient.isfinite().all()


def test_a_hopeless_pair_still_teaches():
    (by_chosen, by_rejected) = gradients("sigmoid", pairs_of([-5000.0], [0.0], [0.0], [-5000.0]), 1.0, 0.0)
    assert_close(torch.cat([by_chosen, by_rejected]), torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("chance", [1e-6, 1e-3, 0.3, 0.5, 0.7, 0.999, 1 - 1e-5])
def test_odds_keep_their_digits_at_both_ends(chance):
    """ORPO of answers with this chance and a chance of a half, whose log odds are 0, in Python's doubles."""
    logp = torch.tensor([log(chance)])
    p = exp(logp.double().item())
    loss = LOSSES["orpo"](pairs_of(logp.tolist(), [log(0.5)], [0.0], [0.0]), 1.0, 0.0)
    assert_close(loss, torch.tensor([log(1 + (1 - p) / p)]), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "smoothing", "message"),
    [
        ("exo", 0.0, "the exo loss wants a label smoothing between 0 and 1, such as 0.001, not 0.0"),
        ("exo", 1.0, "the exo loss wants a label smoothing between 0 and 1, such as 0.001, not 1.0"),
        ("robust", 0.5, "the robust loss wants a label smoothing of 0 to below 0.5, not 0.5"),
    ],
)
def test_smoothing_that_a_loss_cannot_have_is_refused(name, smoothing, message):
    with pytest.raises(UserError) as refusal:
        LOSSES[name](random_pairs(), 0.1, smoothing)
    assert str(refusal.value) == message
