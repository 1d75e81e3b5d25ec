"""The main job on real input: SmolLM2 learns to answer in the case its system message asks for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from materials import chatterbot, smollm2_gguf

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
# As in docs/finetune.md.
SETTINGS = "--max_seq_len 256 --micro_batch_size_per_gpu 16 --train_epochs 3 --lr 2e-4 --lr_scheduler cosine"


def run(*words: str) -> str:
    return subprocess.run(
        [sys.executable, *words], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout


def obedience(model: str, data: Path, answers: Path) -> float:
    words = ["--input", str(data / "test.jsonl"), "--output", str(answers), "--max_new_tokens", "100"]
    run("-m", "tutelage", "generate", model, *words)
    shares = dict(
        line.split(": ") for line in run("examples/conditional_case.py", "score", str(answers)).splitlines()
    )
    return float(shares["obedience"].rstrip("%"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> tuple[Path, Path]:
    """(data, run directory) of the run in docs/finetune.md."""
    directory = tmp_path_factory.mktemp("case")
    data, out = directory / "case", directory / "out"
    run("examples/conditional_case.py", "build", "--corpus", str(chatterbot()), "--output", str(data))
    words = f"--ckpt_paths {smollm2_gguf()} --train_data_paths jsonl:{data}/train.jsonl {SETTINGS}"
    words += f" --val_data_paths jsonl:{data}/val.jsonl --warmup_steps 5 --val_freq 40 --output_dir {out}"
    run("-m", "tutelage", "sft", *words.split())
    return data, out


def test_smollm2_knows_the_capital_of_france():
    question = ["--prompt", "What is the capital of France?", "--max_new_tokens", "20"]
    assert "Paris" in run("-m", "tutelage", "generate", str(smollm2_gguf()), *question)


def test_held_out_obedience_goes_from_under_20_to_over_95_percent(tuned, tmp_path):
    data, out = tuned
    before = obedience(str(smollm2_gguf()), data, tmp_path / "before.jsonl")
    after = obedience(str(out), data, tmp_path / "after.jsonl")
    assert before < 20 and after > 95, (before, after)


@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_by_adapters_of_under_20_megabytes_it_reaches_90_percent(tuned, tmp_path, quant):
    """LoRA of rank 16, and QLoRA; the answers of the merged model obey as well."""
    data, out = tuned[0], tmp_path / "out"
    settings = SETTINGS.replace("2e-4", "1e-3") + " --warmup_steps 5"
    words = f"--ckpt_paths {smollm2_gguf()} --train_data_paths jsonl:{data}/train.jsonl {settings}"
    run("-m", "tutelage", "sft", *words.split(), "--lora", "--quant", quant, "--output_dir", str(out))
    assert (out / "adapter" / "adapter_model.safetensors").stat().st_size < 20e6
    assert obedience(str(out), data, tmp_path / "beside.jsonl") >= 90
    run("-m", "tutelage", "merge", str(out), "--output", str(tmp_path / "merged"), "--precision", "bf16")
    assert obedience(str(tmp_path / "merged"), data, tmp_path / "merged.jsonl") >= 90


def test_transformers_generates_the_same_greedy_text(tuned):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data, out = tuned
    rows = [json.loads(line)["messages"] for line in (data / "test.jsonl").read_text().splitlines()[:6]]
    model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    theirs = []
    for messages in rows:
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = model.generate(**prompt, max_new_tokens=40, do_sample=False)[
            0, prompt["input_ids"].shape[1] :
        ]
        theirs.append(tokenizer.decode(written, skip_special_tokens=True))
    answers = out / "same.jsonl"
    words = ["--input", str(data / "test.jsonl"), "--output", str(answers), "--max_new_tokens", "40"]
    run("-m", "tutelage", "generate", str(out), *words, "--precision", "fp32")
    ours = [json.loads(line)["messages"][-1]["content"] for line in answers.read_text().splitlines()[:6]]
    assert ours == theirs
