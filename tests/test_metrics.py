"""Where numbers and texts of a run go: read back as TensorBoard reads them."""

import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tutelage.report.metrics import MetricsFile, TensorBoard, WeightsAndBiases

TEXT = "user\n# hi <b>\n▸ Grüße 👋\n\n  * no list"


def read(directory):
    events = EventAccumulator(str(directory), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    return events


def texts(events, tag):
    """What TensorBoard's text plugin is given: (step, text)."""
    assert tag in events.PluginTagToContent("text")
    found = events.Tensors(tag)
    assert all(event.tensor_proto.dtype == 7 for event in found), "strings"  # DT_STRING
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]


def test_tensorboard_reads_texts_as_they_are(tmp_path):
    """Indented by four, which Markdown shows as it stands, beside the scalars of the same steps."""
    board = TensorBoard(tmp_path)
    board.write(1, {"loss": 2.0})
    board.text(1, "sample/1", TEXT)
    board.text(2, "sample/1", "later")
    board.write(2, {"loss": 1.0})
    board.close()
    events = read(tmp_path)
    (one, two) = texts(events, "sample/1")
    assert two == (2, "    later") and one[0] == 1
    assert [line[:4] for line in one[1].split("\n")] == ["    "] * 5
    assert "\n".join(line[4:] for line in one[1].split("\n")) == TEXT
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]


def test_a_metrics_file_takes_no_texts(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write(1, {"loss": 2.0})
    file.text(1, "sample/1", TEXT)
    file.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_weights_and_biases_gets_a_text_as_a_page(monkeypatch):
    """Into a stand-in for wandb, an optional package, that keeps what it is given."""
    logged = []
    started = SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    stand_in = SimpleNamespace(init=lambda **settings: started, Html=lambda page: f"page {page}")
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    writer = WeightsAndBiases(project="p", entity=None, group=None, name="n")
    writer.text(3, "sample/1", "a < b\n  c")
    writer.close()
    assert logged == [(3, {"sample/1": "page <pre>a &lt; b\n  c</pre>"})]


@pytest.mark.parametrize("prompts", [1, 2])
def test_samples_of_a_run_are_in_its_tensorboard(tmp_path, prompts):
    from tiny_runs import material, run

    made = material(tmp_path)
    words = made.sft(
        tmp_path / "out", "--sample_prompts", *["hi", "ho"][:prompts], sample_freq=2, sample_tokens=3
    )
    assert run(*words).code == 0
    events = read(tmp_path / "out" / "tensorboard")
    assert events.PluginTagToContent("text").keys() == {f"sample/{n + 1}" for n in range(prompts)}
    assert [step for step, _ in texts(events, "sample/1")] == [2, 4, 5]
    assert all(text.startswith("    hi▸") for _, text in texts(events, "sample/1"))
