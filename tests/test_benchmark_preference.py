"""The benchmark of preference learning has the rows and the model that it says, and its peer runs."""

import sys
import time

import pytest

from benchmarks.preference import REPORTED, Model, contestants, pairs, row, settings
from benchmarks.race import Contestant, race
from tutelage.model.presets import PRESETS


def test_ragged_rows_have_their_lengths_and_shared_ones_three_quarters_in_common():
    for pair in pairs("ragged", REPORTED):
        lengths = [len(pair.prompt) + len(answer) for answer in (pair.chosen, pair.rejected)]
        assert all(64 <= length <= 512 for length in lengths)
        assert len(pair.prompt) == min(lengths) // 3
    for pair in pairs("shared", REPORTED):
        assert (len(pair.prompt), len(pair.chosen), len(pair.rejected)) == (384, 128, 128)
        assert pair.chosen != pair.rejected
    assert pairs("ragged", REPORTED) == pairs("ragged", REPORTED)


def test_the_model_has_the_shape_of_the_preset():
    preset, shape = PRESETS["smollm2-135m"], Model()
    for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size"):
        assert getattr(preset, name) == getattr(shape, name)
    assert preset.tied


def test_a_round_of_four_pairs_in_two_seconds_is_two_pairs_a_second():
    contestant = Contestant("TRL", [], seconds=[1.0, 2.0, 9.0], cpu_seconds=[4.0], peak_mb=1234.4)
    assert row(contestant, 4, "wall") == "| TRL | 2.000 | 1,234 |"
    assert row(contestant, 4, "cpu") == "| TRL | 1.000 | 1,234 |"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("recompute", [0, 0.5])
def test_the_peer_trains_tiny_pairs_in_the_race(method, recompute):
    field = contestants("ragged", method, sys.executable, precomputed=True, recompute=recompute, tiny=True)
    assert race(field, rounds=1, steps=None, threads=1, deadline=time.monotonic() + 200) == 1
    of = settings(tiny=True)
    for contestant in field:
        assert len(contestant.seconds) == 1 and contestant.peak_mb > 50
        assert (contestant.facts["trained"] < of.model.vocab_size * of.model.dim) == (method == "lora")
