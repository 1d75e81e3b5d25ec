"""TRL's SFTTrainer on the same rows and weights: the same loss, and the same step."""

import pytest
import torch
from tiny_models import VOCABULARY, oracle, ours

from tutelage.data.batch import Sample
from tutelage.data.loader import Loader
from tutelage.data.store import SampleStore
from tutelage.objectives.language import NextToken
from tutelage.train import optim
from tutelage.train.trainer import Trainer

LENGTHS = [7, 40, 3, 12, 2, 25, 9, 31]


def rows() -> list[dict[str, list[int]]]:
    """Rows as TRL takes them, already tokenized: several answers in one, their end learned, all learned."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for length in LENGTHS:
        tokens = torch.randint(3, VOCABULARY, (length,), generator=draw).tolist()
        mask = (torch.rand(length, generator=draw) < 0.6).long().tolist()
        made.append({"input_ids": tokens, "completion_mask": [0, *mask[1:-1], 1]})
    made[-1]["completion_mask"] = [1] * LENGTHS[-1]
    return made


def trl_step(directory, *, rows_at_once: int, accumulate: int) -> tuple[dict[str, torch.Tensor], dict]:
    """Weights after one step of gradient descent at learning rate 1, and what TRL logged of it."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    model = oracle("llama tied")
    model.save_pretrained(directory / "model")
    words = {f"t{number}": number for number in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")), eos_token="t2", pad_token="t0"
    )
    settings = SFTConfig(
        output_dir=str(directory / "out"),
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=accumulate,
        max_steps=1,
        completion_only_loss=True,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=1e9,
        optim="sgd",
        bf16=False,
        use_cpu=True,
        activation_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=str(directory / "model"),
        args=settings,
        train_dataset=Dataset.from_list(rows()),
        processing_class=tokenizer,
    )
    trainer.train()
    weights = {name: p.detach() for name, p in trainer.model.named_parameters()}
    return weights, trainer.state.log_history[0]


def our_step(*, rows_at_once: int, accumulate: int, packed: bool):
    """The same step by our Trainer, on batches of our Loader."""
    model = ours(oracle("llama tied"))
    samples = [
        Sample(row["input_ids"], row["completion_mask"], [2] * len(row["input_ids"])) for row in rows()
    ]
    loader = Loader(
        SampleStore.of(samples),
        length=64,
        rows=rows_at_once,
        accumulate=accumulate,
        packed=packed,
        seed=0,
        reduction="tokens",
    )
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = Trainer(model, NextToken(), loader, sgd, optim.schedule("constant", steps=1, warmup=0), steps=1)
    report = trainer.train_step(next(loader))
    return dict(model.named_parameters()), report


@pytest.mark.parametrize("accumulate", [1, 4])
def test_loss_and_step_are_those_of_trl(accumulate, tmp_path):
    """Weights after a step at learning rate 1 differ by as much as the gradients do."""
    theirs, logged = trl_step(tmp_path, rows_at_once=8 // accumulate, accumulate=accumulate)
    for packed in (False, True):
        count = (4 if packed else 8) // accumulate  # rows of 64, which hold all documents
        found, report = our_step(rows_at_once=count, accumulate=accumulate, packed=packed)
        assert report["loss"] == pytest.approx(logged["loss"], abs=1e-5)
        assert report["grad_norm"] == pytest.approx(logged["grad_norm"], rel=1e-5)
        assert set(found) == set(theirs)
        for name, weight in theirs.items():
            torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5, msg=name)
