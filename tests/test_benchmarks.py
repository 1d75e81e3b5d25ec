"""The benchmarks run, and their arithmetic is right. Nothing here is timed."""

import json
import subprocess
import sys
import time

import pytest

from benchmarks.cases import REAL, Shape, chats
from benchmarks.race import ROOT, Contestant, environment, median_ratio, race
from benchmarks.tables import Case, markdown
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer

COUNTER = """
from benchmarks.pace import Finished, Pace
pace = Pace()
print("this goes to the log")
pace.warm_up(2, steps_a_pass=3)
steps = 0
try:
    while True:
        steps += 1
        pace.step_done()
except Finished:
    pace.goodbye({"steps": steps})
"""


def test_our_contestant_trains_reports_and_profiles():
    command = [sys.executable, "-m", "benchmarks.ours", "sft", "--tiny", "--profile"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(1), input="1\n", capture_output=True, text=True, check=True
    )
    ready, step, end = map(json.loads, done.stdout.splitlines())
    assert ready == {"ready": True, "steps_a_pass": 2}
    assert step["seconds"] > 0
    assert end["peak_mb"] > 50
    assert sum(end["shares"].values()) == pytest.approx(1)
    assert {"matmuls of the head", "matmuls of the layers"} < set(end["shares"])


def test_a_race_takes_turns_and_keeps_what_is_printed_out_of_it():
    field = [Contestant(name, [sys.executable, "-c", COUNTER]) for name in ("one", "two")]
    assert race(field, rounds=2, steps=None, threads=1, deadline=time.monotonic() + 100) == 2
    for contestant in field:
        assert len(contestant.seconds) == 2 and contestant.facts == {"steps": 2 + 2 * 3}


def test_a_race_out_of_time_has_fewer_rounds():
    assert (
        race(
            [Contestant("one", [sys.executable, "-c", COUNTER])],
            rounds=9,
            steps=1,
            threads=1,
            deadline=time.monotonic(),
        )
        == 1
    )


def test_a_contestant_that_dies_shows_its_last_words():
    with pytest.raises(SystemExit, match="(?s)poor thing ended or took too long.*ZeroDivisionError"):
        race(
            [Contestant("poor thing", [sys.executable, "-c", "1 / 0"])],
            rounds=1,
            steps=1,
            threads=1,
            deadline=time.monotonic(),
        )


def test_ratios_are_medians_of_rounds_and_bars_are_judged():
    """Rounds 2/1, 9/3 and 4/1 times faster: the median is 3. Memory 1/4."""
    assert median_ratio([1.0, 3.0, 1.0], [2.0, 9.0, 4.0]) == 3.0
    ours = Contestant("tutelage --compile", [], [1.0, 3.0, 1.0], [1.0] * 3, peak_mb=100)
    theirs = Contestant("transformers.Trainer", [], [2.0, 9.0, 4.0], [2.0] * 3, peak_mb=400)
    for clock, speed, met in (("wall", 3.0, True), ("cpu", 2.0, False)):
        case = Case("pretrain15m", 3, 1000, 6e9, [ours, theirs]).as_dict(clock)
        against = case["ours_against"]["transformers.Trainer"]
        assert against == {"speed": speed, "memory": 0.25, "bar": "2.8x, 0.30", "met": met}
    rate = {"name": "square", "flops": 1e9, "flops_a_cpu_second": 6e9}
    text = markdown({"machine": "a machine", "clock": "cpu", "rates": [rate], "cases": [case]})
    assert "| tutelage --compile | 1,000 | 6 | 1.00 | 100 |  |  |  |" in text
    assert "| transformers.Trainer | 500 | 3 | 0.50 | 400 | 2.00x | 0.25 | missed: 2.8x, 0.30 |" in text


def test_the_model_of_the_benchmarks_has_the_published_size_and_the_chats_their_lengths():
    shape = Shape()
    config = ModelConfig(
        vocab_size=shape.vocab_size,
        dim=shape.dim,
        ffn_dim=shape.ffn_dim,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_heads,
        head_dim=48,
        tied=True,
    )
    counted = sum(p.numel() for p in Transformer(config).parameters())
    assert shape.parameters == counted == 15_191_712
    made = chats(REAL)
    assert len(made) == 64 and min(len(t) for t, _ in made) >= 32 and max(len(t) for t, _ in made) <= 1024
    assert all(learned.sum() == len(tokens) - len(tokens) // 3 for tokens, learned in made)
    assert shape.flops(2, 10) == 2 * (6 * 15_191_712 + 12 * 6 * 288 * 10)
