"""How far a policy is from its reference, as validation measures it."""

import pytest
import torch
from test_objectives import tiny
from test_preference import answers, laid
from torch.nn import functional as F

from tutelage.recipes.stage.divergence import Divergence
from tutelage.recipes.stage.reference import Reference


@pytest.mark.parametrize("everywhere", [False, True])
def test_divergence_is_that_of_whole_distributions_and_keeps_learned_places_alone(monkeypatch, everywhere):
    """`everywhere`: hidden states come for all positions, as on CUDA; prompts would be kept for nothing."""
    monkeypatch.setattr("tutelage.objectives.base.on_gpu", lambda _: everywhere)
    policy, reference, batches = tiny(seed=1), tiny(seed=2), laid(answers(), rows=3)
    gauge = Divergence(Reference(reference), [batches], torch.device("cpu"))
    total = count = 0.0
    for batch in batches:
        with torch.no_grad():
            p, q = (
                F.log_softmax(model.unembed(model(batch.tokens, batch.positions, batch.docs)), -1)
                for model in (policy, reference)
            )
        total += float(((p.exp() * (p - q)).sum(-1) * batch.weights).sum())
        count += float(batch.weights.sum())
    assert gauge(policy)["kl"] == pytest.approx(total / count, rel=1e-5) and total > 0
    assert sum(len(states) for _, states in gauge._kept) == count
