"""Preference and reward runs of two processes: the numbers, weights and samples of one."""

import pytest
from parallel_runs import all_of
from test_parallel_runs import close
from tiny_pairs import pair, prefer, ranked, write_records
from tiny_runs import differences, leavings, material, run

pytestmark = pytest.mark.slow
STEPS = {"train_steps": 4, "eps": 1e-3, "save_freq": 4, "val_freq": 2}  # eps: no noise becomes a step
SAMPLED = {"sample_freq": 2, "sample_tokens": 5}
LORA = {"lora": "true", "lora_rank": 4}
HALVES = {"gradient_accum_steps": 1}  # what each of two has of a step
ROWS = {"micro_batch_size_per_gpu": 1}  # for kto: validation steps, which have a drift each, are halved too
KINDS = {
    "reward": ("reward", {"sample_freq": 2}),
    "reward, shared, packed": ("reward", {"share_prompt": "true", "pack_samples": "true"}),
    "reward, lora": ("reward", LORA | {"save_merged": "true"}),
    "reward, nf4": ("reward", LORA | {"quant": "nf4", "precision": "bf16"}),
    "dpo": ("dpo", SAMPLED),
    "dpo, lora": ("dpo", LORA),
    "dpo, norms beside": ("dpo", LORA | {"lora_unfrozen_params": ".*norm.weight"}),
    "kto, read once": ("dpo", {"loss": "kto", "precompute_reference": "true"}),
    "simpo": ("simpo", {}),
    "simpo, shared, packed": ("simpo", {"share_prompt": "true", "pack_samples": "true"}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The place of all runs, of one process and of two; the last of two was stopped and resumed."""
    made = material(tmp_path_factory.mktemp("material"))
    place = made.place / "runs"
    place.mkdir()
    records = [*map(pair, range(14)), *map(ranked, range(6))]
    data = {
        "train_data_paths": write_records(made.place, "rows", records),
        "val_data_paths": write_records(made.place, "val", [pair(number) for number in range(20, 27)]),
    }
    listed = []
    for kind, (stage, settings) in KINDS.items():
        settings = STEPS | data | settings
        out = place / kind.replace(", ", "_").replace(" ", "_")
        ended = run(*prefer(made, out / "one", stage, **settings))
        assert ended.code == 0, ended.err
        halves = ROWS if settings.get("loss") == "kto" else HALVES
        listed.append(prefer(made, out / "two", stage, **settings | halves))
    broken = place / "broken" / "two"
    settings = STEPS | data | KINDS["reward"][1] | HALVES
    listed += [prefer(made, broken, "reward", *more, **settings) for more in ([], ["--resume"])]
    all_of(place, listed, {len(KINDS): {"signals": [3]}})
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_trains(runs, kind):
    out = runs / kind.replace(", ", "_").replace(" ", "_")
    close(out / "one", out / "two")
    one, two = (out / processes / "samples.jsonl" for processes in ("one", "two"))
    assert one.read_text() == two.read_text()


def test_two_processes_that_were_stopped_end_as_if_they_had_not_been(runs):
    assert differences(leavings(runs / "reward" / "two"), leavings(runs / "broken" / "two")) == []
