"""The benchmarks run, and their arithmetic is right. Nothing here is timed."""

import json
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import plain
from benchmarks.cases import CASES, TINY, Shape, chats, settings
from benchmarks.field import heats, needs_peers
from benchmarks.ours import pretraining_data, trainer_of
from benchmarks.quantized import contestants, measure_layer
from benchmarks.race import ROOT, Contestant, environment, median_ratio, race
from benchmarks.tables import Case, markdown
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer
from tutelage.objectives.language import NextToken

# What a block's matrices of nanoGPT's loop are made of.
PLAIN = {
    "norm_1": ["input_layernorm"],
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.out": ["self_attn.o_proj"],
    "norm_2": ["post_attention_layernorm"],
    "mlp.gate": ["mlp.gate_proj"],
    "mlp.up": ["mlp.up_proj"],
    "mlp.down": ["mlp.down_proj"],
}

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
        case = Case("pretrain15m", 1000, 6e9, [[ours, theirs]]).as_dict(clock)
        against = case["ours_against"]["transformers.Trainer"]
        assert against == {"speed": speed, "memory": 0.25, "bar": "2.8x, 0.30", "met": met}
    rate = {"name": "square", "flops": 1e9, "flops_a_cpu_second": 6e9}
    text = markdown({"machine": "a machine", "clock": "cpu", "rates": [rate], "cases": [case]})
    assert "| tutelage --compile | 1,000 | 6 | 1.00 | 100 |  |  |  |" in text
    assert "| transformers.Trainer | 500 | 3 | 0.50 | 400 | 2.00x | 0.25 | missed: 2.8x, 0.30 |" in text


def test_a_ratio_is_taken_within_a_heat_and_the_fastest_peer_of_all_heats_sets_the_bar():
    """The second heat meets a slower machine: litgpt takes 5 there against our 4, the other 2 against our 1.

    So ours is 1.25 times as fast as litgpt, which is the fastest; as times alone it would be the slowest.
    """
    first = [Contestant("ours", [], [1.0], [], 300), Contestant("transformers.Trainer", [], [2.0], [], 900)]
    second = [Contestant("ours", [], [4.0], [], 320), Contestant("litgpt, compiled", [], [5.0], [], 300)]
    case = Case("pretrain15m", 100, 6e9, [first, second]).as_dict("wall")
    assert case["fastest"]["name"] == "litgpt, compiled"
    assert case["fastest"]["speed"] == 1.25 and case["fastest"]["memory"] == pytest.approx(320 / 300)
    assert case["fastest"]["bar"] == "1.2x, 1.00" and not case["fastest"]["met"]  # faster, but not lighter
    assert case["contestants"]["ours"] == {
        "tokens_a_second": 40,
        "flops": 2.4e9,
        "peak_mb": 320,
        "seconds": [1, 4],
    }
    large = Case("pretrain110m", 100, 6e9, [first, second]).as_dict("wall")
    assert large["fastest"]["bar"] == "1.0x" and large["fastest"]["met"]  # of memory nothing is asked there
    text = markdown({"machine": "a machine", "clock": "wall", "rates": [], "cases": [large]})
    assert (
        "fastest is litgpt, compiled: ours is 1.25 times as fast and takes 1.07 of its memory (met: 1.0x)."
        in text
    )


def test_ours_opens_every_heat_and_is_profiled_in_the_first():
    field = heats("pretrain110m", ["litgpt", "nanogpt", "trl"], "python-of-peers", tiny=False)
    assert [contestant.name for heat in field for contestant in heat] == [
        "tutelage --compile",
        "litgpt, compiled",
        "litgpt, compiled, memory kept",
        "tutelage --compile",
        "nanoGPT's loop, compiled",
        "nanoGPT's loop, compiled, memory kept",
    ]
    assert ["--profile" in heat[0].command for heat in field] == [True, False]
    assert "python-of-peers" in field[0][1].command and "python-of-peers" not in field[1][1].command
    assert not needs_peers(["pretrain15m"], ["nanogpt", "trl"]) and needs_peers(["sft"], ["trl"])


def test_the_plain_loop_trains_what_ours_trains():
    """The same weights in both give the same loss: queries, keys and values are one matrix in nanoGPT's."""
    of = settings("pretrain15m", tiny=True)
    ours = trainer_of(of, pretraining_data(of), compiled=False).model.float()
    theirs = plain.GPT(of.shape, of.length)
    names = {
        "embedding.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "model.embed_tokens.weight",
    }
    weights, mine = {}, ours.state_dict()
    for name in theirs.state_dict():
        if name in names:
            weights[name] = mine[names[name]]
            continue
        _, layer, rest = name.split(".", 2)
        sources = [f"model.layers.{layer}.{part}.weight" for part in PLAIN[rest.removesuffix(".weight")]]
        weights[name] = torch.cat([mine[source] for source in sources])
    theirs.load_state_dict(weights)
    batch = next(pretraining_data(of))[0]
    loss = NextToken()(ours, batch)
    expected = (loss.total / loss.weight).item()
    assert theirs(batch.tokens, batch.targets).item() == pytest.approx(expected, rel=1e-5)
    assert sum(p.numel() for p in theirs.parameters()) == of.shape.parameters


def test_a_race_against_the_plain_loop_needs_no_peers(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--only", "pretrain110m", "--against", "nanogpt", "--tiny"]
    short = ["--rounds", "1", "--steps", "1", "--threads", "1", "--clock", "cpu", "--output", str(tmp_path)]
    # Compiling is no part of it: it takes half a minute.
    uncompiled = environment(1) | {"TORCHDYNAMO_DISABLE": "1"}
    subprocess.run([*command, *short], cwd=ROOT, env=uncompiled, check=True, capture_output=True)
    (case,) = json.loads((tmp_path / "results.json").read_text())["cases"]
    assert case["case"] == "pretrain110m" and case["rounds"] == 1
    assert set(case["contestants"]) == {
        "tutelage --compile",
        "nanoGPT's loop, compiled",
        "nanoGPT's loop, compiled, memory kept",
    }
    assert {c["parameters"] for c in case["contestants"].values()} == {TINY.shape.parameters}
    assert "Of the peers the fastest is nanoGPT's loop" in (tmp_path / "results.md").read_text()


def test_the_larger_model_of_the_benchmarks_has_its_published_size():
    assert CASES["pretrain110m"].shape.parameters == 109_529_856


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
    made = chats(CASES["sft"])
    assert len(made) == 64 and min(len(t) for t, _ in made) >= 32 and max(len(t) for t, _ in made) <= 1024
    assert all(learned.sum() == len(tokens) - len(tokens) // 3 for tokens, learned in made)
    assert shape.flops(2, 10) == 2 * (6 * 15_191_712 + 12 * 6 * 288 * 10)


def test_quantized_layers_are_put_beside_plain_ones(capsys):
    measure_layer(128, 128, rounds=1)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(contestants(torch.ones(128, 128))) == 10
    cells = {row.split(" | ")[0].removeprefix("| "): row.split(" | ")[1:3] for row in rows}
    assert cells["plain bf16"] == ["0.0000", "16.00"]
    assert cells["ours, nf4"][0] == cells["bitsandbytes matmul_4bit, nf4"][0]
