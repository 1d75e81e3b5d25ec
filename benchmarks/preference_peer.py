"""The peer: TRL's DPOTrainer, bf16 and else by its defaults, all weights or PEFT's LoRA.

    python -m benchmarks.preference_peer ragged|shared full|lora [--precomputed] [--recompute] [--tiny]

Only activation checkpointing, which TRL turns on by default, is off without --recompute.
`--precomputed` has the reference's log-probabilities formed before training, where they are not timed.
"""

import argparse
import copy
import tempfile
from contextlib import suppress

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from benchmarks import cases
from benchmarks.pace import Finished, Pace
from benchmarks.peers import arguments_of
from benchmarks.preference import CASES, METHODS, SEED, Pair, Settings, pairs, settings


class Tokenized(DPOTrainer):
    """Takes rows that are tokens already."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--precomputed", action="store_true")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    words = parser.parse_args()
    of, pace = settings(tiny=words.tiny), Pace()
    with tempfile.TemporaryDirectory() as directory, suppress(Finished):
        trainer = trainer_of(
            of,
            pairs(words.case, of),
            directory,
            lora=words.method == "lora",
            precomputed=words.precomputed,
            recompute=words.recompute,
        )
        trainer.create_optimizer()
        trainer.optimizer.register_step_post_hook(lambda optimizer, args, named: pace.step_done())
        pace.warm_up(1, steps_a_pass=of.pairs // of.micro)
        trainer.train()
    trained = [p.numel() for p in trainer.model.parameters() if p.requires_grad]
    pace.goodbye({"trained": sum(trained)})


def trainer_of(
    of: Settings, rows: list[Pair], directory: str, *, lora: bool, precomputed: bool, recompute: bool
) -> DPOTrainer:
    """DPO on these rows; the reference is a copy of the model, or the model before its training."""
    data = [
        {"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected} for pair in rows
    ]
    arguments = DPOConfig(
        **arguments_of(cases.Settings(lr=1e-6), directory),
        per_device_train_batch_size=of.micro,
        train_sampling_strategy="sequential",
        max_length=of.longest,
        activation_checkpointing=recompute,
        precompute_ref_log_probs=precomputed,
    )
    adapters = LoraConfig(
        r=of.lora_rank, lora_alpha=of.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = model_of(of)
    return Tokenized(
        model=model,
        ref_model=None if lora or precomputed else copy.deepcopy(model),
        args=arguments,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer_of(of),
        peft_config=adapters if lora else None,
    )


def model_of(of: Settings) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    shape = of.model
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.dim,
        intermediate_size=shape.ffn_dim,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=of.longest,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def tokenizer_of(of: Settings) -> PreTrainedTokenizerFast:
    """Never asked to tokenize."""
    words = {f"t{number}": number for number in range(of.model.vocab_size)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")), eos_token="t2", pad_token="t0"
    )


if __name__ == "__main__":
    main()
