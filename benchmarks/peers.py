"""The peers: transformers.Trainer, and TRL's SFTTrainer padding or packing, bf16 and else by their defaults.

    python -m benchmarks.peers hugging_face|trl_padded|trl_packed pretrain15m|pretrain110m|sft [--tiny]

Only activation checkpointing, which TRL turns on by default, is off: nobody here computes anything twice.
"""

import argparse
import tempfile
from contextlib import suppress
from typing import Any

from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from benchmarks.cases import CASES, ROW, WARM_UP, Settings, chats, documents, settings
from benchmarks.pace import Finished, Pace

FOREVER = 10**6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("contestant", choices=["hugging_face", "trl_padded", "trl_packed"])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--tiny", action="store_true")
    words = parser.parse_args()
    of, pace = settings(words.case, tiny=words.tiny), Pace()
    with tempfile.TemporaryDirectory() as directory, suppress(Finished):
        if words.contestant == "hugging_face":
            trainer = hugging_face(of, directory)
        else:
            trainer = trl(of, directory, packed=words.contestant == "trl_packed")
        trainer.create_optimizer()
        trainer.optimizer.register_step_post_hook(lambda optimizer, args, named: pace.step_done())
        steps = len(trainer.get_train_dataloader())
        pace.warm_up(WARM_UP if words.contestant == "hugging_face" else steps, steps_a_pass=steps)
        trainer.train()
    pace.goodbye({"parameters": sum(p.numel() for p in trainer.model.parameters())})


def hugging_face(of: Settings, directory: str) -> Trainer:
    rows = documents(of)[:, :-1]
    data = Dataset.from_dict({"input_ids": rows, "labels": rows}).with_format("torch")
    arguments = TrainingArguments(**arguments_of(of, directory), per_device_train_batch_size=of.rows)
    return Trainer(model=model_of(of), args=arguments, train_dataset=data)


def trl(of: Settings, directory: str, *, packed: bool) -> Trainer:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = {f"t{number}": number for number in range(of.shape.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")), eos_token="t2", pad_token="t0"
    )
    data = Dataset.from_list(
        [{"input_ids": tokens, "completion_mask": learned} for tokens, learned in chats(of)]
    )
    arguments = SFTConfig(
        **arguments_of(of, directory),
        per_device_train_batch_size=of.micro,
        completion_only_loss=True,
        max_length=ROW,
        packing=packed,
        activation_checkpointing=False,
    )
    return SFTTrainer(model=model_of(of), args=arguments, train_dataset=data, processing_class=tokenizer)


def model_of(of: Settings) -> LlamaForCausalLM:
    shape = of.shape
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.dim,
        intermediate_size=shape.ffn_dim,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads,
        max_position_embeddings=ROW,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def arguments_of(of: Settings, directory: str) -> dict[str, Any]:
    """What ours is given too, and no logs, files or progress bars."""
    return {
        "output_dir": directory,
        "max_steps": FOREVER,
        "bf16": True,
        "use_cpu": True,
        "learning_rate": of.lr,
        "lr_scheduler_type": "constant",
        "adam_beta1": of.betas[0],
        "adam_beta2": of.betas[1],
        "weight_decay": of.wd,
        "max_grad_norm": of.clip,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


if __name__ == "__main__":
    main()
