"""The losses of learning from preferences, as functions of log-probabilities or rewards and nothing else.

P pairs of answers   A single answers

In the formulas w is the chosen answer and l the rejected one, |y| the learned tokens of an answer,
r = log pi(y) - log ref(y) and z = r_w - r_l. All is float32; losses and gradients stay finite at
log-probabilities of -5000.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tutelage.errors import UserError

_DISCOPOP_TEMPERATURE = 0.05  # the paper's


@dataclass(frozen=True, slots=True)
class Pairs:
    """Log-probabilities of pairs of answers, each (P,) float32, summed over the learned tokens."""

    chosen: Tensor  # under the policy
    rejected: Tensor
    ref_chosen: Tensor  # under the reference
    ref_rejected: Tensor
    n_chosen: Tensor  # learned tokens
    n_rejected: Tensor
    margins: Tensor  # by how much chosen is better, as the data says; 0 where it does not

    @property
    def chosen_gain(self) -> Tensor:
        """r_w: how much likelier the chosen answer is than under the reference, (P,)."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_gain(self) -> Tensor:
        """r_l, (P,)."""
        return self.rejected - self.ref_rejected

    @property
    def lead(self) -> Tensor:
        """z = r_w - r_l: how much more the policy prefers the chosen answer than the reference does, (P,)."""
        return self.chosen_gain - self.rejected_gain


PairLoss = Callable[[Pairs, float, float], Tensor]  # pairs, beta, label smoothing -> (P,)


def normalised(pairs: Pairs) -> Pairs:
    """The same pairs by the token: every log-probability divided by its answer's learned tokens.

    Makes any loss its length-normalised variant, as Tulu 3 (https://arxiv.org/abs/2411.15124) does with DPO.
    The answers count as one token from then on, so dividing twice is dividing once.
    """
    n_chosen, n_rejected = pairs.n_chosen.clamp(min=1), pairs.n_rejected.clamp(min=1)
    return replace(
        pairs,
        chosen=pairs.chosen / n_chosen,
        rejected=pairs.rejected / n_rejected,
        ref_chosen=pairs.ref_chosen / n_chosen,
        ref_rejected=pairs.ref_rejected / n_rejected,
        n_chosen=torch.ones_like(n_chosen),
        n_rejected=torch.ones_like(n_rejected),
    )


def sigmoid(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """DPO: -(1 - e) log s(beta z) - e log s(-beta z), s the sigmoid. https://arxiv.org/abs/2305.18290

    The smoothing e (cDPO) is the chance that a label is wrong: https://ericmitchell.ai/cdpo.pdf
    """
    return _smoothed(beta * pairs.lead, smoothing)


def ipo(pairs: Pairs, beta: float, _: float) -> Tensor:
    """IPO: (z - 1 / (2 beta))^2, z of log-probabilities by the token. https://arxiv.org/abs/2310.12036

    The paper's formula 17 has sums; its authors divide by the lengths, as TRL does after asking them.
    """
    return (normalised(pairs).lead - 1 / (2 * beta)).square()


def hinge(pairs: Pairs, beta: float, _: float) -> Tensor:
    """SLiC's hinge on RSO's margin: max(0, 1 - beta z). https://arxiv.org/abs/2309.06657"""
    return (1 - beta * pairs.lead).relu()


def robust(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """rDPO: (-(1 - e) log s(beta z) + e log s(-beta z)) / (1 - 2 e). https://arxiv.org/abs/2403.00409

    Unbiased where a share e of the labels is flipped, so it may be negative.
    """
    if not 0 <= smoothing < 0.5:
        raise UserError(f"the robust loss wants a label smoothing of 0 to below 0.5, not {smoothing}")
    logits = beta * pairs.lead
    return (smoothing * logsigmoid(-logits) - (1 - smoothing) * logsigmoid(logits)) / (1 - 2 * smoothing)


def exo(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """EXO of pairs: q log(q / (1 - e)) + (1 - q) log((1 - q) / e), q = s(beta z). https://arxiv.org/abs/2402.00856

    The reverse KL divergence to labels that are wrong with chance e, infinite at 0; the paper takes 0.001.
    """
    if not 0 < smoothing < 1:
        raise UserError(
            f"the exo loss wants a label smoothing between 0 and 1, such as 0.001, not {smoothing}"
        )
    logits = beta * pairs.lead
    for_chosen = logits.sigmoid() * (logsigmoid(logits) - math.log1p(-smoothing))
    for_rejected = (-logits).sigmoid() * (logsigmoid(-logits) - math.log(smoothing))
    return for_chosen + for_rejected


def apo_zero(pairs: Pairs, beta: float, _: float) -> Tensor:
    """APO-zero: s(-beta r_w) + s(beta r_l). https://arxiv.org/abs/2408.06266

    For chosen answers better than the model's own: they become likelier, the rejected ones less likely.
    """
    return (-beta * pairs.chosen_gain).sigmoid() + (beta * pairs.rejected_gain).sigmoid()


def apo_down(pairs: Pairs, beta: float, _: float) -> Tensor:
    """APO-down: s(beta r_w) + s(-beta z). https://arxiv.org/abs/2408.06266

    For chosen answers worse than the model's own: both become less likely, the rejected ones more so.
    """
    return (beta * pairs.chosen_gain).sigmoid() + (-beta * pairs.lead).sigmoid()


def nca(pairs: Pairs, beta: float, _: float) -> Tensor:
    """NCA of pairs: -log s(beta r_w) - (log s(-beta r_w) + log s(-beta r_l)) / 2. https://arxiv.org/abs/2402.05369

    Heeds each likelihood by itself, where DPO heeds their difference and may lower both.
    """
    chosen, rejected = beta * pairs.chosen_gain, beta * pairs.rejected_gain
    return -logsigmoid(chosen) - (logsigmoid(-chosen) + logsigmoid(-rejected)) / 2


def sppo(pairs: Pairs, beta: float, _: float) -> Tensor:
    """SPPO with hard labels: (r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2. https://arxiv.org/abs/2405.00675

    The paper's formula 4.7, where the chosen answer wins with certainty.
    """
    target = 1 / (2 * beta)
    return (pairs.chosen_gain - target).square() + (pairs.rejected_gain + target).square()


def discopop(pairs: Pairs, beta: float, _: float) -> Tensor:
    """DiscoPOP: m exp(-beta z) - (1 - m) log s(beta z), m = s(beta z / 0.05). https://arxiv.org/abs/2406.08414"""
    logits = beta * pairs.lead
    sharp = logits / _DISCOPOP_TEMPERATURE
    # One exponent: m alone is 0 where exp(-beta z) alone is infinite.
    exponential = (logsigmoid(sharp) - logits).exp()
    return exponential - (-sharp).sigmoid() * logsigmoid(logits)


def orpo(pairs: Pairs, beta: float, _: float) -> Tensor:
    """ORPO's second term: -beta log s(log odds(w) - log odds(l)). https://arxiv.org/abs/2403.07691

    odds = p / (1 - p), p the geometric mean of the tokens' chances. Whoever calls adds the first term, the
    cross-entropy of the chosen answers, with weight 1.
    """
    means = normalised(pairs)
    return -beta * logsigmoid(_log_odds(means.chosen) - _log_odds(means.rejected))


def cpo(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    """CPO's preference term: DPO's with no reference, z = log pi(w) - log pi(l). https://arxiv.org/abs/2401.08417

    Whoever calls adds the other term, the cross-entropy of the chosen answers.
    """
    return _smoothed(beta * (pairs.chosen - pairs.rejected), smoothing)


LOSSES: dict[str, PairLoss] = {
    "sigmoid": sigmoid,
    "ipo": ipo,
    "hinge": hinge,
    "robust": robust,
    "exo": exo,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "nca": nca,
    "sppo": sppo,
    "orpo": orpo,
    "cpo": cpo,
    "discopop": discopop,
}


def simpo(pairs: Pairs, beta: float, gamma: float) -> Tensor:
    """SimPO: -log s(beta (log pi(w) / |w| - log pi(l) / |l| - gamma)). https://arxiv.org/abs/2405.14734

    gamma is a margin in nats a token: the paper's (and TRL's) gamma divided by beta.
    """
    means = normalised(pairs)
    return -logsigmoid(beta * (means.chosen - means.rejected - gamma))


def kto(
    logps: Tensor,
    ref_logps: Tensor,
    liked: Tensor,
    kl: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO: weight s(-beta (r - kl)) of a liked answer, weight s(beta (r - kl)) of another. https://arxiv.org/abs/2402.01306

    (A,) log-probabilities, (A,) bool -> (A,). `kl` () is the mean r of mismatched answers over all processes;
    it counts as at least 0 and carries no gradient.
    """
    gains = logps - ref_logps - kl.detach().clamp(min=0)
    signs = torch.where(liked, -1.0, 1.0)
    return torch.where(liked, desirable_weight, undesirable_weight) * (signs * beta * gains).sigmoid()


def ranking(better: Tensor, worse: Tensor, margins: Tensor) -> Tensor:
    """-log s(better - worse - margin) of rewards, (P,). https://arxiv.org/abs/2009.01325

    The margins are Llama 2's: https://arxiv.org/abs/2307.09288
    """
    return -logsigmoid(better - worse - margins)


def centring(better: Tensor, worse: Tensor) -> Tensor:
    """(better + worse)^2, (P,): added to the ranking it holds rewards around 0. https://arxiv.org/abs/2312.09244"""
    return (better + worse).square()


def _smoothed(logits: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def _log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)); a chance nearer to 1 than float32 can tell counts as the nearest that it can."""
    below = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    # Each branch keeps its digits where the other loses them.
    complement = torch.where(below > -math.log(2), (-below.expm1()).log(), (-below.exp()).log1p())
    return logps - complement
