"""`tutelage data download` of data sets and models, against a server that speaks the hub's API."""

import threading
from collections.abc import Iterator

import huggingface_hub.constants
import pytest
from hub_server import OWN, PARQUET, REPOSITORIES, Hub

from tutelage import cli
from tutelage.data import download as downloading
from tutelage.data.hub import SHORT_NAMES
from tutelage.recipes.data.download import DownloadConfig
from tutelage.recipes.data.download import run as fetch


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    monkeypatch.setattr(downloading, "_BLOCK", 1000)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"  # which HF_ENDPOINT says, when it is imported
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # which tests are otherwise
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(capsys, *words: object) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(["data", "download", *map(str, words)])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def found(directory) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".downloaded"
    }


def test_a_data_set_comes_as_the_subsets_and_splits_that_were_asked_for(hub, tmp_path, capsys):
    where = tmp_path / "openai_gsm8k"
    code, out, err = run(capsys, "gsm8k", "--output_dir", tmp_path)
    assert (code, out) == (0, f"{where}\n"), err
    assert found(where) == PARQUET and "4 files, 0.1 MB" in err
    count = len(hub.asked)
    assert run(capsys, "openai/gsm8k", "--output_dir", tmp_path)[0] == 0
    assert len(hub.asked) == count + 2, "nothing that is there is fetched again"
    words = ["openai/gsm8k", "--subsets", "main", "--splits", "test", "--output_dir", tmp_path / "b"]
    assert run(capsys, *words)[0] == 0
    assert list(found(tmp_path / "b")) == ["openai_gsm8k/main/test/0000.parquet"]
    words = ["gsm8k", "--subsets", "socratic", "--splits", "train", "--output_dir", tmp_path / "c"]
    assert run(capsys, *words)[0] == 0
    assert list(found(tmp_path / "c")) == ["openai_gsm8k/socratic/partial-train/0000.parquet"]


def test_the_token_is_told_to_the_hub_and_to_no_other_host(hub, tmp_path, capsys):
    assert run(capsys, "gsm8k", "--splits", "test", "--output_dir", tmp_path)[0] == 0
    assert {place for place, token in hub.tokens if token == "Bearer hf_secret"} == {"api", "datasets"}
    assert [token for place, token in hub.tokens if place == "elsewhere"] == [None]


def test_own_files_and_models_are_fetched_too(hub, tmp_path, capsys):
    assert run(capsys, "me/own", "--files", "data/*", "--output_dir", tmp_path)[0] == 0
    assert found(tmp_path / "me_own") == {"data/train.jsonl": OWN["data/train.jsonl"]}
    assert run(capsys, "me/own", "--revision", "main", "--output_dir", tmp_path)[0] == 0
    assert found(tmp_path / "me_own") == OWN
    assert run(capsys, "me/model", "--repo", "model", "--output_dir", tmp_path)[0] == 0
    assert set(found(tmp_path / "me_model")) == {"model.safetensors", "config.json", "tokenizer.json"}


def test_a_download_that_broke_off_goes_on_and_one_of_another_commit_is_refused(
    hub, tmp_path, capsys, monkeypatch
):
    hub.cut = 10_000
    with monkeypatch.context() as once:
        once.setattr(downloading, "_DROPPED", ())  # as if the process had ended there
        with pytest.raises(ConnectionError):
            fetch(DownloadConfig(name="gsm8k", output_dir=tmp_path))
    where = tmp_path / "openai_gsm8k"
    (part,) = where.rglob("*.part")
    assert part.stat().st_size == 10_000
    assert run(capsys, "gsm8k", "--output_dir", tmp_path)[0] == 0
    assert found(where) == PARQUET
    hub.moved = 1
    code, _, err = run(capsys, "gsm8k", "--output_dir", tmp_path)
    assert (code, "remove the directory, or give another --output_dir" in err) == (2, True)


def test_what_is_not_as_the_hub_says_is_not_kept(hub, tmp_path, capsys):
    hub.damaged = True
    for words, name in [(["gsm8k"], "SHA-256"), (["me/own", "--files", "*.md"], "git hash")]:
        code, _, err = run(capsys, *words, "--output_dir", tmp_path)
        assert code == 2 and f"is not the file that it should be, and was not kept: its {name} is" in err
    assert not found(tmp_path)
    hub.damaged = False
    assert run(capsys, "gsm8k", "--output_dir", tmp_path)[0] == 0
    (tmp_path / "openai_gsm8k/main/test/0000.parquet").write_bytes(b"short")
    code, _, err = run(capsys, "gsm8k", "--output_dir", tmp_path)
    assert (
        code == 2
        and "0000.parquet is there and is another file: it has 5 bytes, and should have 5,000" in err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["gsm8q"],
            "gsm8q is neither a short name, an id of the hub (owner/name) nor a URL; did you mean gsm8k?",
        ),
        (["me/nothing"], "the hub has no dataset me/nothing, or it is private"),
        (["me/own"], "the hub has not converted me/own to parquet; take its own files"),
        (["me/own", "--revision", "v2"], "me/own has no revision v2"),
        (["me/own", "--files", "*.csv"], "me/own has no file like *.csv; it has README.md, data/train.jsonl"),
        (["gsm8k", "--subsets", "mein"], "openai/gsm8k has no subset mein; it has main, socratic"),
        (["gsm8k", "--splits", "val"], "openai/gsm8k has no split val; it has test, train"),
        (["gsm8k", "--subsets", "socratic", "--splits", "test"], "no file of the subsets and splits"),
        (["gsm8k", "--sha256", "0" * 64], "sha256 is for a URL"),
        (["http://x/y", "--sha256", "0"], "must be 64 hexadecimal digits"),
        (["http://x/y", "--splits", "train"], "and this is a URL"),
        (["http://x/"], "http://x/ names no file"),
        (["me/own", "--splits", "train", "--files", "*"], "subsets and splits are of converted data sets"),
    ],
)
def test_mistakes_are_named(hub, tmp_path, capsys, words, message):
    code, _, err = run(capsys, *words, "--output_dir", tmp_path)
    assert (code, message in err) == (2, True), err
    assert not found(tmp_path)


def test_a_hub_that_is_gated_or_out_of_reach_is_told_in_words(hub, tmp_path, capsys, monkeypatch):
    hub.gated = True
    code, _, err = run(capsys, "gsm8k", "--output_dir", tmp_path)
    assert (code, "openai/gsm8k is gated: agree to its terms" in err) == (2, True)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, err = run(capsys, "gsm8k", "--output_dir", tmp_path)
    assert (code, "the hub cannot be reached for openai/gsm8k" in err) == (2, True)


def test_a_file_that_would_lie_outside_is_refused(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(REPOSITORIES["datasets"], "me/own", {"main": {"../../evil": b"x"}})
    code, _, err = run(capsys, "me/own", "--files", "*", "--output_dir", tmp_path)
    assert (code, "which would lie outside" in err) == (2, True)
    assert not (tmp_path / "evil").exists() and not (tmp_path.parent / "evil").exists()


def test_the_names_of_universal_llm_trainer_are_known():
    names = {"gsm8k", "ai2_arc", "hellaswag", "winogrande", "mmlu", "truthful_qa"}
    assert names <= set(SHORT_NAMES)
    assert SHORT_NAMES["ai2_arc"].subsets == ("ARC-Challenge", "ARC-Easy")
