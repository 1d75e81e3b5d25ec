"""Where adapters meet the rest: each of these was once wrong without a word."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_lora_runs import TOKENS, logits_of, lora
from tiny_runs import material, refused, run, watched

from tutelage.checkpoint.hf import fingerprint_of, load_model, save_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def done(*words):
    ended = run(*words)
    assert ended.code == 0, ended.err
    return ended


def test_a_stage_on_a_qlora_result_starts_from_what_answers(made, tmp_path):
    """Trained at a rate of 0, the second adapter and the full model change nothing."""
    done(*lora(made, tmp_path / "first", quant="nf4"))
    done(*lora(made, tmp_path / "second", ckpt_paths=tmp_path / "first", lr=0, train_steps=1))
    done(*made.sft(tmp_path / "full", ckpt_paths=tmp_path / "first", lr=0, train_steps=1))
    done("convert", tmp_path / "first", "--format", "peft", "--output", tmp_path / "copied")
    for name in ("first", "second", "copied"):
        done("merge", tmp_path / name, "--output", tmp_path / f"{name}_merged")
    with torch.no_grad():
        expected = logits_of(load_model(tmp_path / "first_merged"), TOKENS)
        for name in ("second_merged", "copied_merged", "full/model"):
            found = logits_of(load_model(tmp_path / name), TOKENS)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=name)


def test_an_adapter_goes_on_only_on_a_base_quantized_as_before(made, tmp_path):
    done(*lora(made, tmp_path / "first", quant="nf4"))
    words = [
        w for w in lora(made, tmp_path / "x", ckpt_paths=tmp_path / "first") if w not in ("--lora_rank", "4")
    ]
    assert "was trained with --quant nf4, and lora_continue" in refused(run(*words, "--lora_continue"))
    done(*words, "--lora_continue", "--quant", "nf4")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quant", "nf4", "--lora_unfrozen_params", r"model\.layers\.1\..*"], "quant keeps it in nf4"),
        (
            ["--lora_rank_pattern", "q_projj=2"],
            "lora_rank_pattern: no layer with an adapter is named q_projj",
        ),
        (["--lora_alpha_pattern", "(=2"], "lora_alpha_pattern: (=2 is not PATTERN=NUMBER"),
        (["--lora_targets", "*_proj"], "lora_targets: *_proj is no regular expression"),
        (["--lora_bias", "all"], "lora_bias is all, and the model has no such bias"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_weights_load(made, tmp_path, words, message):
    assert message in refused(run(*lora(made, tmp_path / "out"), *words, "--dry_run"))


def test_a_layer_is_not_trained_twice(made, tmp_path):
    done(*lora(made, tmp_path / "first"))
    words = [
        w for w in lora(made, tmp_path / "x", ckpt_paths=tmp_path / "first") if w not in ("--lora_rank", "4")
    ]
    words += ["--lora_continue", "--lora_unfrozen_params", "model.layers.0.self_attn.q_proj.weight"]
    assert "q_proj.weight has an adapter already" in refused(run(*words))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lora_alpha": 99}, "with other scales of its adapters"),
        ({"lora_rslora": "true"}, "with other scales of its adapters"),
        ({"quant": "nf4"}, "on weights quantized in another way"),
    ],
)
def test_a_run_is_not_resumed_with_other_adapters_or_another_base(
    made, tmp_path, monkeypatch, changed, message
):
    watched(monkeypatch).signals = {2: 15}
    assert run(*lora(made, tmp_path / "out")).code == 143
    assert message in refused(run(*lora(made, tmp_path / "out", **changed), "--resume"))


def test_weights_drawn_anew_and_frozen_in_part_resume_with_their_seed_only(made, tmp_path, monkeypatch):
    watched(monkeypatch).signals = {2: 15}
    words = made.pretrain(tmp_path / "out", frozen_layers=1, train_steps=4)
    assert run(*words).code == 143
    assert "from another model than ckpt_paths, or seed" in refused(run(*words, "--seed", "5", "--resume"))
    done(*words, "--resume")


@pytest.mark.parametrize("frozen", [["--frozen_layers", 1], ["--train_parts", "blocks"]])
def test_a_fresh_role_table_is_trained_whatever_is_frozen(made, tmp_path, frozen):
    ended = done(*made.sft(tmp_path / "out", train_steps=2), "--use_role_embeddings", *frozen)
    assert "model.role_embeddings.weight" in ended.err
    assert load_model(tmp_path / "out" / "model").model.role_embeddings.weight.abs().max() > 0


def test_every_part_of_a_model_counts_for_its_fingerprint(made, tmp_path):
    model = load_model(made.model)
    first = fingerprint_of(made.model)
    save_model(model, model.config, tmp_path / "bf16", dtype=torch.bfloat16)
    save_model(load_model(tmp_path / "bf16"), model.config, tmp_path / "again", dtype=torch.float32)
    assert fingerprint_of(tmp_path / "bf16") == fingerprint_of(tmp_path / "again") == first
    for name, p in model.named_parameters():
        with torch.no_grad():
            p[-1] += 0.5
        save_model(model, model.config, tmp_path / "other", dtype=torch.float32)
        with torch.no_grad():
            p[-1] -= 0.5
        assert fingerprint_of(tmp_path / "other") != first, name


def test_a_tied_head_in_the_file_changes_no_fingerprint(made, tmp_path):
    from safetensors.torch import save_file

    shutil.copytree(made.model, tmp_path / "stored")
    tensors = load_file(made.model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "stored" / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint_of(tmp_path / "stored") == fingerprint_of(made.model)


def test_the_gate_measures_pissa_and_says_what_rounding_left(made, tmp_path):
    ended = done(*lora(made, tmp_path / "out", lora_init="pissa", precision="bf16"))
    error = float(ended.err.split("logits differ by ")[1].split(",")[0])
    assert 0 < error < 1


def test_force_reaches_the_merge_after_training(made, tmp_path):
    done(*lora(made, tmp_path / "first"))
    other = material(tmp_path, tied=False).model
    words = lora(made, tmp_path / "second", save_merged="true", ckpt_paths="X")
    place = words.index("X")
    words[place : place + 1] = [str(other), str(tmp_path / "first" / "adapter")]
    done(*words, "--force")


def test_a_run_with_both_results_is_merged_by_its_adapter(made, tmp_path):
    done(*lora(made, tmp_path / "out", save_merged="true"))
    done("merge", tmp_path / "out", "--output", tmp_path / "merged")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tutelage.json", "{", "tutelage.json is damaged"),
        ("tutelage.json", '{"quant": {"kind": "nf4"}}', "tutelage.json is damaged"),
        ("adapter_config.json", "[]", "adapter_config.json"),
    ],
)
def test_damaged_files_beside_an_adapter_are_named(made, tmp_path, file, text, message):
    done(*lora(made, tmp_path / "out"))
    (tmp_path / "out" / "adapter" / file).write_text(text)
    assert message in refused(run("generate", tmp_path / "out", "--prompt", "a"))


def test_an_adapter_that_names_itself_ends_in_words(made, tmp_path):
    done(*lora(made, tmp_path / "out"))
    adapter = tmp_path / "out" / "adapter"
    values = json.loads((adapter / "adapter_config.json").read_text())
    values["base_model_name_or_path"] = str(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    assert "does not say what it was trained on" in refused(run("generate", adapter, "--prompt", "a"))


def test_an_adapter_is_not_given_another_base_by_converting_it(made, tmp_path):
    done(*lora(made, tmp_path / "out"))
    other = material(tmp_path, tied=False).model
    words = ["convert", other, tmp_path / "out" / "adapter", "--format", "peft", "--output", tmp_path / "x"]
    assert "was trained on another model" in refused(run(*words))
    done(*words, "--force")
