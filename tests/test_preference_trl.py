"""TRL's trainers from the same files on the same rows: the same losses step by step, and the same weights."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_pairs import labelled, pair, prefer, write_records
from tiny_runs import material, metrics, run

STEPS, RATE = 3, 1e-3
EPS = 1e-3  # of Adam: gradients of nothing but rounding move no weight
TEMPLATE = """
control: ["<|im_start|>", "<|im_end|>"]
system: {start: "<|im_start|>system\\n", end: "<|im_end|>"}
user: {start: "<|im_start|>user\\n", end: "<|im_end|>"}
assistant: {start: "<|im_start|>assistant\\n", end: "<|im_end|>"}
stop: ["<|im_end|>"]
"""  # ChatML whose turns end with their control token: what TRL takes for the answer is what we learn
JINJA = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
OF_DPO = {  # our words, TRL's name of the loss
    "sigmoid": ({}, "sigmoid"),
    "ipo": ({}, "ipo"),
    "hinge": ({}, "hinge"),
    "robust": ({"dpo_label_smoothing": 0.1}, "robust"),
    "exo": ({"dpo_label_smoothing": 0.1}, "exo_pair"),
    "apo_zero": ({}, "apo_zero"),
    "apo_down": ({}, "apo_down"),
    "nca": ({}, "nca_pair"),
    "sppo": ({}, "sppo_hard"),
    "discopop": ({}, "discopop"),
    "by length": ({"loss": "sigmoid", "by_length": "true"}, "sigmoid_norm"),
}
QUICK = {"sigmoid", "ipo"}
SETTINGS = {
    "max_steps": STEPS,
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "max_length": 256,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "adam_epsilon": EPS,
    "seed": 1,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = material(tmp_path_factory.mktemp("material"))
    (made.place / "template.yaml").write_text(TEMPLATE)
    return made


def ours(made, out, stage, rows, **settings):
    """The losses of a run with all rows in one batch, and its weights."""
    chosen = {"template_config": made.place / "template.yaml", "train_data_paths": rows}
    chosen |= {"micro_batch_size_per_gpu": 64, "gradient_accum_steps": 1, "train_steps": STEPS, "lr": RATE}
    chosen |= {"lr_scheduler": "constant", "max_seq_len": 256, "eps": EPS}
    ended = run(*prefer(made, out, stage, **chosen | settings))
    assert ended.code == 0, ended.err
    return [row["loss"] for row in metrics(out)], load_file(out / "model" / "model.safetensors")


def theirs(made, trainer_class, config_class, rows, **settings):
    """The same of a trainer of TRL's."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made.model)
    tokenizer.chat_template = JINJA
    model = AutoModelForCausalLM.from_pretrained(made.model, dtype=torch.float32)
    model.get_input_embeddings().padding_idx = None  # or the end of a turn, which pads too, never learns
    options = SETTINGS | {"output_dir": str(made.place / "trl"), "per_device_train_batch_size": len(rows)}
    trainer = trainer_class(
        model=model,
        args=config_class(**options | settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses, {name: p.detach() for name, p in trainer.model.named_parameters()}


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5, abs=1e-5)
    for name, weight in other[1].items():
        torch.testing.assert_close(one[1][name], weight, atol=1e-5, rtol=1e-5)


def pairs(made, count=8):
    """Rows for us and, as conversations with a prompt, for TRL."""
    records = [pair(number) for number in range(count)]
    conversations = []
    for number, record in enumerate(records):
        chosen, rejected = record["chosen"], record["rejected"]
        if isinstance(chosen, str):
            turns = [{"role": "user", "content": record["prompt"]}]
            chosen, rejected = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
        elif "prompt" in record:
            turns = record["prompt"]
        else:
            turns, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
        conversations.append({"prompt": turns, "chosen": chosen, "rejected": rejected, "number": number})
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in conversations]
    return write_records(made.place, "rows", records), json.loads(json.dumps(rows))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OF_DPO]
)
def test_dpo_is_trls(made, tmp_path, name):
    from trl import DPOConfig, DPOTrainer

    words, loss = OF_DPO[name]
    rows, records = pairs(made)
    smoothing = words.get("dpo_label_smoothing", 0.0)
    found = ours(made, tmp_path / "out", "dpo", rows, **{"loss": name} | words)
    options = {"loss_type": [loss], "beta": 0.1, "label_smoothing": smoothing}
    assert_same(found, theirs(made, DPOTrainer, DPOConfig, records, **options))


@pytest.mark.slow
def test_simpo_is_that_of_trls_cpo_trainer(made, tmp_path):
    """TRL's gamma is ours times beta."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    rows, records = pairs(made)
    found = ours(made, tmp_path / "out", "simpo", rows, simpo_beta=2.0, simpo_gamma=0.4)
    options = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.8, "cpo_alpha": 0.0}
    assert_same(found, theirs(made, CPOTrainer, CPOConfig, records, **options))


@pytest.mark.slow
def test_cpo_is_trls(made, tmp_path):
    """Without the chosen answers' own loss, which TRL takes over the tokens of the batch."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    rows, records = pairs(made)
    found = ours(made, tmp_path / "out", "dpo", rows, loss="cpo", rpo_alpha=0.0)
    options = {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.0}
    assert_same(found, theirs(made, CPOTrainer, CPOConfig, records, **options))


def test_kto_is_trls(made, tmp_path):
    from trl import KTOConfig, KTOTrainer

    records = [labelled(number) for number in range(8)]
    rows = write_records(made.place, "labelled", records)
    conversations = [
        {
            "prompt": [{"role": "user", "content": record["prompt"]}],
            "completion": [{"role": "assistant", "content": record["completion"]}],
            "label": record["label"],
        }
        for record in records
    ]
    weights = {"desirable_weight": 1.2, "undesirable_weight": 0.9}
    found = ours(made, tmp_path / "out", "dpo", rows, loss="kto", **weights)
    options = {"beta": 0.1, "train_sampling_strategy": "sequential", **weights}
    assert_same(found, theirs(made, KTOTrainer, KTOConfig, conversations, **options))
