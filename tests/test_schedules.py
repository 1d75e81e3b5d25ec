"""Learning rates at the golden steps of four systems, as transformers computes them, and over a whole run.

Our warm-ups are one step ahead of those that count from 0: the first step learns. So a warm-up's step s here
is step s + 1 there; decays are the same step by step.
"""

import json

import pytest
import torch
from tiny_runs import material, refused, run
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup, get_wsd_schedule

from tutelage.recipes.sft import SFTConfig
from tutelage.recipes.stage.optimizing import schedule_of
from tutelage.train.optim import schedule


def rates(factor, peak, *steps):
    return [peak * factor(step) for step in steps]


def test_the_cosine_of_torchllms():
    """lr 1e-4, warm-up 20, 250 steps: golden at 0, 1, 20, 135."""
    factor = schedule("cosine", steps=250, warmup=20)
    assert rates(factor, 1e-4, 0, 20, 135) == pytest.approx([5e-6, 1e-4, 5e-5])  # golden step 1, 20, 135
    assert 0 < factor(249) < 1e-4 and factor(250) == 0


def test_the_cosine_of_instruct_llama():
    """5e-6 up to 5e-5 over 100 steps, down to 5e-6 at 1000: golden at 50, 100, 550, 1000."""
    factor = schedule("cosine", steps=1000, warmup=100, start=0.1, floor=0.1)
    assert rates(factor, 5e-5, 49, 99, 100, 550, 1000) == pytest.approx([2.75e-5, 5e-5, 5e-5, 2.75e-5, 5e-6])
    assert factor(-1) == pytest.approx(0.1), "its step 0 would be ours before the first"


def test_the_cosine_of_universal_llm_trainer():
    """lr 5e-5, lrf 0.01, 1000 steps; its warm-up of 100 multiplies a cosine that has begun."""
    factor = schedule("cosine", steps=1000, warmup=100, floor=0.01, decay_in_warmup=True)
    assert rates(factor, 5e-5, 100, 500, 1000) == pytest.approx([4.8789e-5, 2.525e-5, 5e-7], rel=1e-4)
    assert 5e-5 * factor(50) * 50 / 51 == pytest.approx(
        2.4848e-5, rel=1e-4
    )  # its rise is 50/100, ours 51/100


def test_the_cosine_of_storyteller():
    factor = schedule("cosine", steps=25000, warmup=1000)
    assert rates(factor, 5e-4, 499, 1000, 13000, 25000) == pytest.approx([2.5e-4, 5e-4, 2.5e-4, 0.0])


def theirs(make, *args, **options):
    """The factors that transformers gives for steps 0 to 100."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    factor = make(optimizer, *args, **options).lr_lambdas[0]
    return [factor(step) for step in range(101)]


@pytest.mark.parametrize("warmup", [0, 1, 10])
@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
def test_decays_are_those_of_transformers_and_warm_ups_a_step_ahead(kind, warmup):
    if kind == "wsd":
        options = {"num_warmup_steps": warmup, "num_decay_steps": 20, "num_training_steps": 100}
        wanted = theirs(get_wsd_schedule, **options, decay_type="1-sqrt")
    else:
        make = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}[kind]
        wanted = theirs(make, warmup, 100)
    factor = schedule(kind, steps=100, warmup=warmup)
    assert [factor(step) for step in range(warmup, 101)] == pytest.approx(wanted[warmup:])
    assert [factor(step) for step in range(warmup)] == pytest.approx(wanted[1 : warmup + 1])


def test_wsd_falls_to_its_floor_over_the_last_steps_only():
    """A quarter of the way through 200 steps of decay 1 - sqrt is 1/2; a floor of 0.1 makes that 0.55."""
    factor = schedule("wsd", steps=1000, warmup=10, floor=0.1, decay_ratio=0.2)
    assert [factor(step) for step in (10, 799, 800, 850, 1000)] == pytest.approx([1, 1, 1, 0.55, 0.1])
    assert schedule("wsd", steps=100, warmup=0, decay_ratio=0)(99) == 1
    late = schedule("wsd", steps=100, warmup=95, decay_ratio=0.5)  # the warm-up is not cut short
    assert late(50) == 51 / 95 and late(95) == 1 and late(100) == 0


def test_short_and_constant_schedules():
    assert schedule("constant", steps=5, warmup=0)(4) == 1.0
    assert schedule("constant", steps=50, warmup=10)(4) == 0.5
    assert schedule("linear", steps=5, warmup=9)(8) == 1.0  # a warm-up longer than the run
    assert schedule("linear", steps=9, warmup=9, decay_in_warmup=True)(8) == pytest.approx(1 / 9)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def test_a_run_learns_at_the_rates_it_was_told(made, tmp_path):
    """20 steps: warm-up over a tenth, from 0.5; decay over the last quarter, down to 0.1."""
    settings = {"warmup_ratio": 0.1, "warmup_init_lr_ratio": 0.5, "min_lr_ratio": 0.1, "decay_ratio": 0.25}
    ended = run(*made.sft(tmp_path, lr_scheduler="wsd", train_steps=20, **settings))
    assert ended.code == 0, ended.err
    seen = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").open()]
    wanted = [0.0075, *[0.01] * 15, *(0.001 + 0.009 * (1 - (k / 5) ** 0.5) for k in range(1, 5))]
    assert seen == pytest.approx(wanted)


def test_the_flags_make_the_schedule():
    paths = {"ckpt_paths": ("m",), "train_data_paths": ("jsonl:d",)}
    config = SFTConfig(
        **paths, lr_scheduler="cosine", warmup_steps=100, min_lr_ratio=0.01, decay_in_warmup=True
    )
    made, wanted = (
        schedule_of(config, 1000),
        schedule("cosine", steps=1000, warmup=100, floor=0.01, decay_in_warmup=True),
    )
    assert [made(step) for step in range(1001)] == [wanted(step) for step in range(1001)]


def test_a_new_model_warms_up_over_100_steps_unless_told_otherwise(made, tmp_path):
    for settings, first in (({}, 1 / 100), ({"warmup_steps": 0}, 1), ({"warmup_ratio": 0.5}, 1 / 2)):
        out = tmp_path / str(first)
        words = made.pretrain(out, lr=1.0, train_steps=4, lr_scheduler="constant", clip_grad_norm=1e-6)
        at = words.index("--warmup_steps")
        words[at : at + 2] = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        assert run(*words).code == 0
        rate = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["lr"]
        assert rate == pytest.approx(first)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"warmup_ratio": 0.1, "warmup_steps": 3},
            "warmup_steps and warmup_ratio say the same thing twice; give one of them",
        ),
        ({"warmup_ratio": 3}, "warmup_ratio is 3.0, must be between 0 and 1"),
        ({"warmup_steps": -1}, "warmup_steps is -1, must be 0 or more"),
        ({"decay_ratio": 0.3}, "decay_ratio does nothing for lr_scheduler linear, only for wsd"),
        (
            {"min_lr_ratio": 0.3, "lr_scheduler": "constant"},
            "min_lr_ratio does nothing for lr_scheduler constant, only for linear, cosine, wsd",
        ),
        (
            {"decay_in_warmup": "true", "lr_scheduler": "wsd"},
            "decay_in_warmup does nothing for lr_scheduler wsd, only for linear, cosine",
        ),
    ],
)
def test_schedules_that_contradict_themselves_are_refused(made, tmp_path, settings, says):
    assert says in refused(run(*made.sft(tmp_path / "out", **settings)))
