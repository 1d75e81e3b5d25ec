"""doctor says what a model is, and names what is wrong with it, with a remedy."""

import json
import shutil

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_files import write_model
from llama2c_models import tiny
from official import source_of
from safetensors.torch import load_file, save_file
from tiny_chat import byte_tokenizer, tiny_model
from tiny_models import oracle

from tutelage.checkpoint.hf import save_model
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.cli import main
from tutelage.report.health import Health, show
from tutelage.text.template import Template

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A tiny chat model with all its files."""
    directory = tmp_path_factory.mktemp("healthy")
    model = tiny_model()
    byte_tokenizer().save(directory)
    save_model(model, model.config, directory, dtype=torch.float32)
    return directory


@pytest.fixture
def model(healthy, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(healthy, tmp_path / "model")


def doctor(capsys, *words, code=0):
    """The record that is printed, and the findings as (serious, text)."""
    try:
        main(["doctor", *map(str, words), "--json"])
        ended = 0
    except SystemExit as error:
        ended = error.code
    record = json.loads(capsys.readouterr().out)
    assert ended == code == 2 * (not record["healthy"])
    assert all(finding["remedy"] for finding in record["findings"])
    return record, [(finding["serious"], finding["text"]) for finding in record["findings"]]


def change(path, **values):
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def change_weights(model, name, change_it):
    state = load_file(model / WEIGHTS)
    state[name] = change_it(state)
    save_file(state, model / WEIGHTS, metadata={"format": "pt"})


def test_a_healthy_model_is_described_and_agrees_with_transformers(healthy, capsys):
    record, findings = doctor(capsys, healthy, "--deep")
    assert findings == []
    assert record["files"]["weights"].startswith(WEIGHTS) and record["files"]["stored as"] == "float32"
    assert record["files"]["read"].startswith("all ")
    assert record["chat"]["template"] == "chatml, writes what the model's own chat template writes"
    assert record["chat"]["replies end with"].startswith("<|im_end|> (")
    compared = record["transformers"]
    assert compared["ids"] == "of 4 of 4 texts alike" and compared["chat"] == "the same ids"
    assert compared["logits"].startswith("worst difference ")


def test_it_is_a_table_for_people(healthy, capsys):
    main(["doctor", str(healthy), "--no_compare"])
    out = capsys.readouterr().out
    assert "parameters" in out and "nothing to complain of" in out and "transformers" not in out


def spoil_nan(model):
    def broken(state):
        value = state["model.norm.weight"].clone()
        value[:3] = torch.nan
        return value

    change_weights(model, "model.norm.weight", broken)


def spoil_size(model):
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:-100])


def spoil_shape(model):
    change_weights(model, "model.norm.weight", lambda state: state["model.norm.weight"][:-1].contiguous())


def spoil_json(model):
    (model / "config.json").write_text("{")


def spoil_family(model):
    change(model / "config.json", model_type="mamba")


def spoil_tokenizer(model):
    (model / "tokenizer.json").unlink()


def spoil_ends(model):
    (model / "special_tokens_map.json").unlink()
    change(model / "tokenizer_config.json", eos_token=None, chat_template=None)
    change(model / "config.json", eos_token_id=None)
    change(model / "generation_config.json", eos_token_id=None)


def spoil_range(model):
    change(model / "generation_config.json", pad_token_id=9999)


def spoil_template(model):
    change(model / "tokenizer_config.json", chat_template="{{ messages[0].content }} unlike any other")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_nan, "3 weights in 1 tensors are infinite or no numbers: model.norm.weight (3)"),
        (spoil_size, "is truncated or not a safetensors file"),
        (spoil_shape, "model.norm.weight is 31, config.json makes it 32"),
        (spoil_json, "config.json is not JSON"),
        (spoil_family, "model_type 'mamba' is not supported"),
        (spoil_tokenizer, "has no tokenizer.json and no tokenizer.model"),
        (spoil_ends, "no token ends a text: every answer would be as long as it may be"),
        (spoil_range, "pad is 9999, and the model has tokens 0 to "),
        (spoil_template, "chat template is none of the built-in ones"),
    ],
)
def test_what_has_to_be_mended_is_named(spoil, message, model, capsys):
    spoil(model)
    _, findings = doctor(capsys, model, "--no_compare", "--deep", code=2)
    assert any(serious and message in text for serious, text in findings), findings


def test_a_tokenizer_larger_than_the_embedding_is_a_problem(model, capsys):
    content = json.loads((model / "tokenizer.json").read_text())
    last = content["added_tokens"][-1]
    more = [last | {"id": token, "content": f"<|{token}|>"} for token in range(last["id"] + 1, 401)]
    content["added_tokens"] += more
    (model / "tokenizer.json").write_text(json.dumps(content))
    _, findings = doctor(capsys, model, "--no_compare", code=2)
    assert findings[0][0] and findings[0][1].startswith("the tokenizer has 401 tokens and the model embeds ")


def test_what_may_surprise_is_noted_and_needs_no_mending(model, capsys):
    name = json.loads((model / "tokenizer_config.json").read_text())["eos_token"]
    change(model / "tokenizer_config.json", pad_token=name)
    change(model / "config.json", eos_token_id=5, tie_word_embeddings=True)
    (model / "generation_config.json").unlink()
    change_weights(model, "lm_head.weight", lambda state: state["model.embed_tokens.weight"].clone())
    record, findings = doctor(capsys, model, "--no_compare", "--deep")
    beginnings = [
        "the head is tied to the embedding and stored too",
        "there is no generation_config.json",
        "eos is not the same everywhere: tokenizer <|im_end|>",
        "the padding token is the end token (<|im_end|>",
        "replies end with <|im_end|>",
    ]
    assert len(findings) == len(beginnings)
    for (serious, text), beginning in zip(findings, beginnings, strict=True):
        assert not serious and text.startswith(beginning)
    change_weights(model, "lm_head.weight", lambda state: state["model.embed_tokens.weight"] + 1)
    _, findings = doctor(capsys, model, "--no_compare", "--deep", code=2)
    assert (True, "lm_head.weight differs from the embedding that config.json ties it to") in findings
    _, findings = doctor(capsys, model, "--no_compare")  # not read, not known


def test_a_padding_token_of_minus_one_is_none(model, capsys):
    change(model / "config.json", pad_token_id=-1)
    change(model / "generation_config.json", pad_token_id=-1)
    change(model / "tokenizer_config.json", pad_token=None)
    record, findings = doctor(capsys, model, "--no_compare")
    assert (record["tokenizer"]["pad"], findings) == ("none", [])


def test_a_model_without_a_template_is_a_base_model(model, capsys):
    change(model / "tokenizer_config.json", chat_template=None)
    record, findings = doctor(capsys, model, "--no_compare")
    assert record["chat"]["template"] == "none"
    assert findings[0][1].startswith("the model has no chat template")
    record, findings = doctor(capsys, model, "--no_compare", "--template_config", "chatml")
    assert record["chat"]["template"] == "chatml, named by --template_config" and findings == []


def test_other_tokens_than_transformers_makes_are_a_problem(model, capsys, monkeypatch):
    monkeypatch.setattr(
        "tutelage.recipes.weights.comparing._FAR", -1.0
    )  # on tiny models not even the last bit differs
    for method, beginning in [
        ("encode", "transformers makes other tokens of a chat than template chatml"),
        ("render", "template chatml writes a chat otherwise than the model's own"),
    ]:
        own = getattr(Template, method)
        with monkeypatch.context() as patched:
            patched.setattr(Template, method, lambda *a, own=own, **options: own(*a, reply=False))
            _, findings = doctor(capsys, model, code=2)
        texts = [text for serious, text in findings if serious]
        assert texts[0].startswith(beginning)
        assert texts[1].startswith("logits differ from transformers' by ")


def test_a_class_of_transformers_that_rebuilds_the_tokenizer_is_only_noted(tmp_path, capsys):
    """Here LlamaTokenizer of transformers 5 puts no space before a text that begins with one."""
    tokenizer = load_tokenizer(source_of("mistral_v1"))
    model = tiny(tokenizer.size, dim=8, n_layers=1, head_dim=4, ffn_dim=8, n_heads=2, n_kv_heads=2)
    tokenizer.save(tmp_path)
    save_model(model, model.config, tmp_path, dtype=torch.float32)
    change(tmp_path / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", chat_template=None)
    record, findings = doctor(capsys, tmp_path)
    assert record["transformers"]["ids"] == "of 3 of 4 texts alike"
    (words,) = [text for serious, text in findings if "LlamaTokenizer" in text]
    assert words.startswith("transformers' LlamaTokenizer makes other tokens of \"  Two spaces,")


def test_a_models_own_template_is_named_as_elsewhere(model, capsys):
    record, findings = doctor(capsys, model, "--template_config", "model")
    assert record["chat"]["template"] == "model, named by --template_config"
    assert (findings, record["transformers"]["chat"]) == ([], "the same ids")


def test_what_is_not_compared_is_said_with_the_reason(model, capsys, monkeypatch):
    monkeypatch.setattr("tutelage.recipes.weights.comparing._memory", lambda: 1000)
    record, _ = doctor(capsys, model)
    assert record["transformers"]["compared"].startswith("no: it would take 0 GB, and this machine has 0")


def test_a_run_says_whether_it_can_be_gone_on_with(model, tmp_path, capsys):
    run = tmp_path / "run"
    for step, sizes in [(5, {"state.json": 11}), (10, {"state.json": 12}), (15, {"state.json": 99})]:
        place = run / "checkpoints" / f"step-{step:07d}"
        place.mkdir(parents=True)
        (place / "state.json").write_text(json.dumps({"step": step}))
        (place / "MANIFEST.json").write_text(json.dumps(sizes))
    record, findings = doctor(capsys, run, code=2)
    assert record["run"]["result"] == "none yet"
    assert record["run"]["checkpoints"] == "step-0000005, step-0000010"
    assert record["run"]["goes on with"] == "step 11, with the same command and --resume"
    assert findings[0] == (False, "checkpoints that are not whole: step-0000015; --resume goes by them")
    assert findings[1][1].startswith(f"{run} is a run without a result")
    shutil.move(model, run / "model")
    record, findings = doctor(capsys, run, "--no_compare")
    assert record["run"]["result"] == "model" and record["files"]["at"] == str(run / "model")


def test_names_that_are_no_model_are_a_problem(tmp_path, capsys):
    _, findings = doctor(capsys, tmp_path / "missing", code=2)
    assert findings[0][1].startswith(f"{tmp_path / 'missing'} does not exist")


def test_brackets_in_names_are_not_taken_for_colours(capsys):
    from rich.console import Console

    health = Health("[bold]x")
    health.note("files", "at", "[red]y")
    health.problem("[z]", "[w]")
    show(health, Console())
    out = capsys.readouterr().out
    assert all(word in out for word in ("[bold]x", "[red]y", "[z]", "[w]"))


def test_a_quantized_file_is_said_to_be_stored_in_its_own_types(tmp_path, capsys):
    theirs = oracle("llama")
    write_model(tmp_path / "model.gguf", theirs, matrices=GGMLQuantizationType.Q4_1)
    record, _ = doctor(capsys, tmp_path / "model.gguf", "--no_compare", code=2)  # it has no tokenizer
    assert record["files"]["stored as"].split(", ")[0] == "Q4_1"
