"""TRL's own loss code on the same logits: the same losses and the same gradients.

TRL has its losses inside of its trainers' methods, so those run here on a stand-in for the trainer.

B answers   T positions   V vocabulary
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.objectives import loss_names, pair_losses
from tutelage.objectives.pair_losses import LOSSES, Pairs

VOCABULARY, LENGTH = 11, 9
IGNORED = -100
TRL_NAMES = {name: name for name in LOSSES} | {
    "exo": "exo_pair",
    "nca": "nca_pair",
    "sppo": "sppo_hard",
}
IN_DPO = [name for name in LOSSES if name not in loss_names.REFERENCE_FREE]


@pytest.fixture(scope="module")
def trl():
    """TRL's trainers by name; importing them takes seconds."""
    from trl import DPOTrainer, KTOTrainer, RewardTrainer
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    return SimpleNamespace(
        dpo=DPOTrainer, kto=KTOTrainer, reward=RewardTrainer, cpo=CPOTrainer, orpo=ORPOTrainer
    )


class Answers:
    """Random logits (B, T, V) of ragged answers after prompts, and those of a reference near them."""

    def __init__(self, n: int, *, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(0, VOCABULARY, (n, LENGTH), generator=draw)
        self.logits = 0.7 * torch.randn(n, LENGTH, VOCABULARY, generator=draw)
        self.ref_logits = self.logits + 0.7 * torch.randn(n, LENGTH, VOCABULARY, generator=draw)
        starts = torch.randint(1, 4, (n, 1), generator=draw)
        ends = torch.randint(5, LENGTH + 1, (n, 1), generator=draw)
        places = torch.arange(LENGTH)
        self.present = (places < ends).long()
        self.mask = ((places >= starts) & (places < ends)).long()
        self.labels = self.tokens.masked_fill(self.mask == 0, IGNORED)
        self.logits.requires_grad_()

    def logps(self, logits: Tensor) -> Tensor:
        """Of the answers, by PyTorch's cross-entropy, (B,)."""
        losses = F.cross_entropy(
            logits[:, :-1].transpose(1, 2), self.labels[:, 1:], ignore_index=IGNORED, reduction="none"
        )
        return -losses.sum(1)

    def pairs(self) -> Pairs:
        """The first half is chosen, as TRL has it."""
        chosen, rejected = self.logps(self.logits).chunk(2)
        ref_chosen, ref_rejected = self.logps(self.ref_logits).chunk(2)
        n_chosen, n_rejected = self.mask.sum(1).chunk(2)
        return Pairs(
            chosen, rejected, ref_chosen, ref_rejected, n_chosen, n_rejected, torch.zeros_like(chosen)
        )

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.logits)[0]

    def inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.tokens, "attention_mask": self.present, "completion_mask": self.mask}


def fused(logits: Tensor, labels: Tensor) -> SimpleNamespace:
    """What TRL's head answers, from logits; what it only logs is zeros."""
    kept = labels[:, 1:] != IGNORED
    chances = logits[:, :-1].log_softmax(-1)
    logps = chances.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    nothing = torch.zeros_like(logps)
    return SimpleNamespace(
        log_probs=torch.where(kept, logps, 0.0),
        entropy=nothing,
        mean_logits=nothing,
        is_top1=nothing.bool(),
    )


def stand_in(**settings) -> SimpleNamespace:
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def dpo_loss(trl, answers: Answers, name: str, beta: float, smoothing: float) -> Tensor:
    """DPOTrainer's, the mean over the pairs."""
    trainer = stand_in(
        beta=beta,
        label_smoothing=smoothing,
        loss_types=[name],
        loss_weights=[1.0],
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=0.05),
    )
    ref_chosen, ref_rejected = answers.logps(answers.ref_logits).chunk(2)
    inputs = answers.inputs() | {"ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}

    def model(*, labels: Tensor, **_) -> SimpleNamespace:
        return fused(answers.logits, labels)

    return trl.dpo._compute_loss(trainer, model, inputs, False)


def assert_same(answers: Answers, loss: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
    gradient, expected = answers.gradient(loss), answers.gradient(theirs)
    assert expected.abs().max() > 1e-4, "a gradient of zeros proves nothing"
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_pairs", [1, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("name", IN_DPO)
def test_losses_with_a_reference_are_those_of_the_dpo_trainer(trl, name, beta, smoothing, n_pairs):
    if name == "exo" and smoothing == 0:
        smoothing = 1e-3
    answers = Answers(2 * n_pairs, seed=n_pairs)
    loss = LOSSES[name](answers.pairs(), beta, smoothing).mean()
    if name == "sigmoid" and smoothing:
        # TRL smooths DPO only under the name of AOT, which sorts the pairs of a batch: one pair is in order.
        halves = zip(*(range(i * n_pairs, (i + 1) * n_pairs) for i in range(2)), strict=True)
        theirs = sum(dpo_loss(trl, one_pair(answers, list(pair)), "aot", beta, smoothing) for pair in halves)
        assert_same(answers, loss, theirs / n_pairs)
    else:
        assert_same(answers, loss, dpo_loss(trl, answers, TRL_NAMES[name], beta, smoothing))


def one_pair(answers: Answers, places: list[int]) -> Answers:
    """A view of these answers, whose gradients go to the whole."""
    part = Answers.__new__(Answers)
    for field in ("tokens", "logits", "ref_logits", "present", "mask", "labels"):
        setattr(part, field, getattr(answers, field)[places])
    return part


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_normalised_dpo_is_that_of_the_dpo_trainer(trl, beta):
    answers = Answers(8)
    loss = pair_losses.sigmoid(pair_losses.normalised(answers.pairs()), beta, 0.0).mean()
    assert_same(answers, loss, dpo_loss(trl, answers, "sigmoid_norm", beta, 0.0))


def cpo_loss(trl, answers: Answers, beta: float, smoothing: float, name: str, gamma: float = 0.0) -> Tensor:
    logps = trl.cpo.get_batch_logps(answers.logits, answers.labels, average_log_prob=name == "simpo")
    trainer = stand_in(alpha=0.0, beta=beta, label_smoothing=smoothing, loss_type=name, simpo_gamma=gamma)
    losses, _, _ = trl.cpo.cpo_loss(trainer, *logps.chunk(2))
    return losses.mean()


@pytest.mark.parametrize("n_pairs", [1, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("beta", [0.05, 0.3])
def test_cpo_is_that_of_the_cpo_trainer(trl, beta, smoothing, n_pairs):
    answers = Answers(2 * n_pairs, seed=n_pairs)
    loss = LOSSES["cpo"](answers.pairs(), beta, smoothing).mean()
    assert_same(answers, loss, cpo_loss(trl, answers, beta, smoothing, "sigmoid"))


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (2.0, 0.5), (2.5, 0.0)])
def test_simpo_is_that_of_the_cpo_trainer_with_its_gamma_by_beta(trl, beta, gamma):
    answers = Answers(8)
    loss = pair_losses.simpo(answers.pairs(), beta, gamma).mean()
    assert_same(answers, loss, cpo_loss(trl, answers, beta, 0.0, "simpo", gamma=beta * gamma))


@pytest.mark.parametrize("n_pairs", [1, 5])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpo_is_the_odds_ratio_of_the_orpo_trainer(trl, beta, n_pairs):
    answers = Answers(2 * n_pairs)
    logps = trl.orpo.get_batch_logps(answers.logits, answers.labels, average_log_prob=True)
    losses, *_ = trl.orpo.odds_ratio_loss(stand_in(beta=beta), *logps.chunk(2))
    loss = LOSSES["orpo"](answers.pairs(), beta, 0.0).mean()
    assert_same(answers, loss, -losses.mean())  # TRL subtracts it


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 1.6)])
@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("liked", [[True, False, False, True, False], [True], [False, False]])
@pytest.mark.parametrize("kl_sign", [1, -1])
def test_kto_is_that_of_the_kto_trainer(trl, weights, beta, liked, kl_sign):
    answers, others = Answers(len(liked)), Answers(len(liked), seed=7)
    other_logps, ref_other_logps = others.logps(others.logits).detach(), others.logps(others.ref_logits)
    kl = (other_logps - ref_other_logps).mean()
    if kl * kl_sign < 0:  # a KL divergence estimated below 0 counts as 0
        others.logits, others.ref_logits = others.ref_logits, others.logits
        ref_other_logps, kl = other_logps, -kl
    trainer = stand_in(
        loss_type="kto",
        beta=beta,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        calculate_KL=True,
        _compute_kl_logps=lambda model, batch: others.logps(others.logits),
    )
    inputs = answers.inputs() | {
        "label": torch.tensor(liked),
        "ref_logps": answers.logps(answers.ref_logits),
        "ref_KL_logps": ref_other_logps,
    }

    def model(*, labels: Tensor, **_) -> SimpleNamespace:
        return fused(answers.logits, labels)

    theirs = trl.kto._compute_loss(trainer, model, inputs, False)
    logps, ref_logps = answers.logps(answers.logits), answers.logps(answers.ref_logits)
    losses = pair_losses.kto(logps, ref_logps, torch.tensor(liked), kl, beta, *weights)
    assert_same(answers, losses.mean(), theirs)


@pytest.mark.parametrize("coefficient", [None, 0.01])
@pytest.mark.parametrize("margins", [None, [0.0, 0.3, 1.0, -0.2]])
def test_ranking_is_that_of_the_reward_trainer(trl, margins, coefficient):
    rewards = torch.randn(8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    inputs: dict[str, Tensor] = {"attention_mask": torch.ones(8, 3)}
    if margins:
        inputs["margin"] = torch.tensor(margins)
    trainer = stand_in(args=SimpleNamespace(center_rewards_coefficient=coefficient))

    def model(**_) -> SimpleNamespace:
        return SimpleNamespace(logits=rewards[:, None])

    theirs = trl.reward.compute_loss(trainer, model, inputs)
    better, worse = rewards.chunk(2)
    loss = pair_losses.ranking(better, worse, torch.tensor(margins or [0.0] * 4)).mean()
    loss = loss + (coefficient or 0) * pair_losses.centring(better, worse).mean()
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(each, rewards)[0] for each in (loss, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
