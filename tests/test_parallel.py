"""Several processes train as one does: the same steps, the same files, one voice."""

import json

import pytest
import torch
from parallel_runs import HERE, ended, torchrun
from parallel_steps import CASES, steps
from safetensors.torch import load_file

SLOW = ["compiled", "compiled, recomputed", "muon", "packed", "tied", "bf16_pure", "by sequence", "plain"]
QUICK = [name for name in CASES if name not in SLOW]


def taken(place, names, processes):
    """What the cases leave of several processes, by name."""
    log, out = place / "log", place / "out.safetensors"
    done = ended(torchrun(processes, HERE / "parallel_steps.py", out, *names, log=log), log)
    assert done.code == 0, done.err
    found = load_file(out)
    return {
        name: {key.removeprefix(f"{name}: "): v for key, v in found.items() if key.startswith(f"{name}: ")}
        for name in names
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A place where two processes have been, and what they left."""
    place = tmp_path_factory.mktemp("two")
    return place, taken(place, QUICK, 2)


def compare(name, found):
    expected = steps(CASES[name])
    assert found.keys() == expected.keys()
    # Muon makes matrices orthogonal in bfloat16, whose rounding depends on how they are cut; where gradients
    # are bfloat16 too, sums of them depend on their order. bfloat16 moments are rounded by chance.
    near = {"muon": 5e-3, "bf16_pure": 2e-2, "bf16 moments": 2e-3}.get(name, 1e-5)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=near, atol=near, msg=lambda m, k=key: f"{k}: {m}")
    gradients = [key for key in found if key.startswith("gradient 3 ")]
    assert gradients and all(found[key].abs().max() > 1e-4 for key in gradients), "each weight learns"


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_step_as_one_does(two, name):
    """Losses, gradients, weights, averages, validation; in float32, and in bfloat16 too, within 1e-5."""
    compare(name, two[1][name])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_more_processes_and_compiled_ones_step_as_one_does(tmp_path, processes):
    names = [n for n, case in CASES.items() if case.micro % processes == 0 and (processes == 4 or n in SLOW)]
    # bfloat16 moments are rounded by draws that a process makes for its share: with other shares, others.
    names = [name for name in names if name != "bf16 moments"]
    for name, found in taken(tmp_path, names, processes).items():
        compare(name, found)


def test_processes_hear_of_each_other(two):
    heard = [json.loads((two[0] / f"heard-{rank}.json").read_text()) for rank in (0, 1)]
    failures = ["rank 1 cannot (all)", "rank 0 cannot (all)", "rank 0 cannot (all)", "rank 1 cannot (all)"]
    for rank in (0, 1):
        assert heard[rank] == {
            "rank": rank,
            "world": 2,
            "largest": 10,
            "sum": [2.0, 1.0],
            "together": rank,
            "by rank zero": 0,
            "found": rank == 1,  # on disk, left by rank 0
            "failures": [*failures, "rank 0 cannot (all)"],
        }
