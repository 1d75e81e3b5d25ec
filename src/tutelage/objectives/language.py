"""Learn to predict the next token: pretraining and supervised fine-tuning are this, with other weights."""

from dataclasses import dataclass

from tutelage.data.batch import Batch
from tutelage.model.transformer import Transformer
from tutelage.objectives.base import Loss, learned_positions, linear_cross_entropy


@dataclass(frozen=True, slots=True)
class NextToken:
    """Cross-entropy of the targets, weighted as the batch says."""

    fp32_logits: bool = False  # also the head's matmul in float32; softmax and loss always are
    compiled: bool = False

    def __call__(self, model: Transformer, batch: Batch) -> Loss:
        hidden, targets, weights, _ = learned_positions(model, batch)
        total = linear_cross_entropy(
            hidden,
            model.head_weight,
            targets,
            weights,
            fp32=self.fp32_logits,
            compiled=self.compiled,
            cap=model.config.logit_cap,
        )
        return Loss(total, weights.sum())
