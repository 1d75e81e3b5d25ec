"""What a plan says is what hand arithmetic says, and what a run takes."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.plan import estimate as estimated_mb
from benchmarks.plan import in_own_process
from tutelage.cli import main
from tutelage.config import load
from tutelage.errors import UserError
from tutelage.recipes.estimating import built, changes, plan_of, shape_of
from tutelage.recipes.plan import PlanPretrainConfig, PlanSFTConfig
from tutelage.recipes.stage.adapting import blueprint_of
from tutelage.recipes.stage.quantizing import quantization_of
from tutelage.train.devices import Device, device_named
from tutelage.train.ledger import Ledger
from tutelage.train.plan import sharded, standing

GPU = Device("imagined", memory=1.0, flops=1e12, gpu=True)
CPU = Device("cpu", memory=1.0, flops=1e12, gpu=False)
SIZE = "--max_seq_len 128 --micro_batch_size_per_gpu 4"
SMALL = f"--model stories260K {SIZE}"


def plan(flags: str, device: Device = GPU, size: str = SIZE):
    config = load("plan pretrain", PlanPretrainConfig, f"--model stories260K {size} {flags}".split())
    return plan_of(config, shape_of(config), device)


def test_views_are_counted_once_and_what_is_freed_no_more():
    """x 4,000 bytes, y 4,000, a view none; then z, 8,000, without y: a peak of 12,000; at last x."""
    fake = FakeTensorMode()
    ledger = Ledger(fake, earnest=False)
    with fake, ledger:
        x = torch.empty(1000)
        ledger.part = "other"
        y = x + 1
        view = y.view(10, 100)[2:]
        assert ledger.live() == {"weights": 4000, "other": 4000}
        del y
        assert ledger.total == 8000
        del view
        z = torch.cat((x, x))
        assert ledger.at_peak() == ({"weights": 4000, "other": 8000}, "other")
        del z
    assert (ledger.total, ledger.peak) == (4000, 12000)


def test_what_a_cpu_copies_to_add_it_is_counted():
    """4,000 and 2,000 bytes; bfloat16 is made float32 before it is added: 4,000 for a moment. On GPUs not."""
    for earnest, peak in ((True, 10_000), (False, 6000)):
        fake = FakeTensorMode()
        ledger = Ledger(fake, earnest=earnest)
        with fake, ledger:
            x, y = torch.empty(1000), torch.empty(1000, dtype=torch.bfloat16)
            x += y
            assert (ledger.peak, ledger.total) == (peak, 6000)
            assert sum(ledger.at_peak()[0].values()) == peak


@pytest.mark.parametrize(
    ("flags", "weights", "masters", "optimizer"),
    [
        ("--precision fp32", 4, 0, 8),
        ("--precision bf16", 2, 4, 8),
        ("--precision fp16", 2, 4, 8),
        ("--precision bf16_pure", 2, 0, 4),
    ],
)
def test_between_steps_a_weight_takes_what_its_precision_says(flags, weights, masters, optimizer):
    """By hand; AdamW has two moments of a master's size, and a float32 step a tensor.

    Rotary frequencies are four floats, a loss scale two doubles.
    """
    found = plan(flags).estimate
    n, tensors = found.parameters, 5 * 9 + 2
    assert found.trained == n == shape_of(load("p", PlanPretrainConfig, SMALL.split())).n_parameters
    assert found.resting["weights"] == weights * n + 4 * 4 + 16 * ("fp16" in flags)
    assert found.resting.get("masters", 0) == masters * n
    assert found.resting["optimizer"] == optimizer * n + 4 * tensors
    assert "gradients" not in found.resting


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--precision fp32",
        "--optimizer muon --ema_decay 0.9",
        "--optimizer_state bf16",
        "--gradient_release --clip_grad_norm 0",
    ],
)
def test_what_a_run_says_at_its_start_agrees(flags):
    """The line that training prints is reckoned, not run: its parts are those of the plan."""
    config = load("p", PlanPretrainConfig, f"{SMALL} {flags}".split())
    run = built(config, shape_of(config), lambda model, batch: None, iter(()))
    parts = standing(
        run.trainer.model,
        config.precision,
        muon=config.optimizer == "muon",
        averaged=bool(config.ema_decay),
        state=config.optimizer_state,
        released=config.gradient_release,
    )
    resting = plan(flags).estimate.resting
    for name in ("weights", "masters", "optimizer", "averages"):
        assert resting.get(name, 0) == pytest.approx(parts[name], abs=400), name


def test_gradients_are_there_when_a_second_micro_batch_comes():
    """Under bf16 in float32: 4 bytes a weight, live while the second batch's activations are most."""
    one, two = plan("").estimate, plan("--gradient_accum_steps 2").estimate
    batch = 6 * 8 * 4 * 128 - 2 * 4 * 4 * 128 + 4 * 4 * 128  # a batch has five fields of 8 bytes and one of 4
    assert two.peak - one.peak == pytest.approx(4 * two.parameters, abs=3 * batch)
    assert two.flops == pytest.approx(2 * one.flops)


def test_arithmetic_is_that_of_the_model_and_recomputation_adds_a_forward_pass_of_the_blocks():
    kept, again = plan("--precision fp32"), plan("--precision fp32 --selective_ac_ratio 1")
    head = 2 * 512 * 64 * kept.tokens  # of the forward pass; the embedding is no product
    attention = 12 * 64 * 5 * (128 + 1) / 2 * kept.tokens
    assert kept.model_flops == pytest.approx(again.model_flops)
    # Flash's backward pass forms the scores again: 14 of what the model needs 12 of.
    assert kept.estimate.flops == pytest.approx(kept.model_flops + attention / 6)
    down = 2 * 172 * 64 * 5 * kept.tokens  # a block's last product, whose result nobody needs again
    forward = (kept.model_flops - attention) / 3 - head - down + attention / 3
    assert again.estimate.flops - kept.estimate.flops == pytest.approx(forward)


def test_recomputation_keeps_one_input_a_block():
    found = plan("--selective_ac_ratio 1 --n_layers 20").estimate
    inputs = 20 * 4 * 128 * 64 * 2
    assert found.parts["activations"] + found.parts.get("recomputed", 0) < 3 * inputs
    plain, resting = plan("--n_layers 20").estimate, sum(found.resting.values())
    assert found.peak - resting < 0.3 * (plain.peak - resting)


def test_attention_on_a_gpu_keeps_no_scores():
    """The same tokens in rows eight times as long take the same memory."""
    short, long = (
        plan(f"--n_layers 20 --max_seq_len {n} --micro_batch_size_per_gpu {4096 // n}", size="").estimate
        for n in (256, 2048)
    )
    assert long.parts["activations"] == pytest.approx(short.parts["activations"], rel=0.01)


def test_documents_in_rows_take_less_arithmetic():
    whole, cut = plan("", CPU), plan("--document_tokens 50", CPU)
    assert cut.model_flops < whole.model_flops
    assert cut.estimate.peak == pytest.approx(whole.estimate.peak, rel=0.3)


def test_processes_share_what_can_be_shared():
    """By hand: 4 bytes a weight of masters, of gradients and twice of moments, over 4 processes."""
    config = load("p", PlanPretrainConfig, SMALL.split())
    shape = shape_of(config)
    alone = plan("").estimate
    shared = sharded(alone, shape, "bf16", 4)
    assert shared.parts["masters"] == alone.parameters
    assert shared.parts["optimizer"] == alone.parts["optimizer"] // 4
    assert shared.parts["activations"] == alone.parts["activations"]


def test_processes_share_frozen_weights_as_they_are_stored():
    """By hand: 2 bytes a frozen weight and 4 a trained one, over 2 processes; no gradients of frozen ones."""
    flags = "--ckpt_paths stories15M --lora --max_seq_len 64"
    config = load("p", PlanSFTConfig, flags.split())
    alone = plan_of(config, shape_of(config), GPU).estimate
    shared = sharded(alone, shape_of(config), "bf16", 2)
    assert shared.parts["masters"] == (2 * alone.parameters + 2 * alone.trained) // 2
    assert shared.parts["gradients"] < 20 * alone.trained


def test_adapters_alone_are_trained():
    flags = "--ckpt_paths llama3.2-1b --lora --max_seq_len 64 --precision bf16"
    config = load("p", PlanSFTConfig, flags.split())
    found = plan_of(config, shape_of(config), GPU).estimate
    layer = 16 * (2048 + 2048 + 2 * (2048 + 512) + 2048 + 2048 + 3 * (2048 + 8192))
    assert found.trained == 16 * layer
    base = found.parameters - found.trained
    assert found.resting["weights"] == 2 * found.parameters + 4 * 32  # rotary frequencies
    assert found.resting["masters"] == 4 * found.trained
    assert base == 1_235_814_400


@pytest.mark.parametrize(
    ("quant", "bits"), [("nf4", 4 + 8 / 64 + 32 / 64 / 256), ("nf4 --no-quant_double", 4.5), ("int8", 8)]
)
def test_a_quantized_base_takes_the_bits_of_its_kind(quant, bits):
    """By hand: scales of 64 weights, doubly quantized in 8 bits; the rest, and adapters, in bfloat16."""
    pytest.importorskip("bitsandbytes")
    flags = f"--ckpt_paths stories15M --lora --max_seq_len 64 --quant {quant}"
    config = load("p", PlanSFTConfig, flags.split())
    shape = shape_of(config)
    coded = 6 * (4 * 288 * 288 + 3 * 288 * 768)
    found = plan_of(config, shape, CPU).estimate
    assert found.parameters - found.trained == shape.n_parameters
    rest = 2 * (found.parameters - coded)
    assert found.resting["weights"] == pytest.approx(coded * bits / 8 + rest, rel=5e-3)
    said = standing(
        blueprint_of(config, shape),
        "bf16",
        muon=False,
        averaged=False,
        quantization=quantization_of(config.quant, config.quant_double),
    )
    assert found.resting["weights"] == said["weights"] + 4 * 24  # rotary frequencies
    shared = sharded(found, shape, "bf16", 2, quantization_of(config.quant, config.quant_double))
    assert shared.parts["weights"] > coded * bits / 8  # codes are whole on every process


def test_released_gradients_are_never_all_there():
    """The optimizer's state is made without them too."""
    flags, size = "--precision fp32 --selective_ac_ratio 1", "--max_seq_len 16 --micro_batch_size_per_gpu 1"
    held = plan(flags, size=size).estimate
    released = plan(f"{flags} --gradient_release --clip_grad_norm 0", size=size).estimate
    assert held.parts["gradients"] > 0.9 * 4 * held.parameters
    assert released.peak < held.peak - 0.7 * 4 * held.parameters
    assert released.resting == held.resting and released.flops == held.flops


def test_moments_in_eight_bits_take_two_bytes_and_their_scales():
    pytest.importorskip("bitsandbytes")
    found = []
    for kind in ("8bit", "paged_8bit"):
        flags = f"--model stories15M --max_seq_len 32 --optimizer_state {kind}"
        config = load("p", PlanPretrainConfig, flags.split())
        found.append(plan_of(config, shape_of(config), GPU).estimate)
    narrow, paged = found
    assert narrow.resting["optimizer"] == pytest.approx((2 + 8 / 256) * narrow.parameters, rel=0.01)
    assert paged.resting == narrow.resting


def test_matmuls_kept_is_between_all_kept_and_none():
    flags = ("", "--selective_ac_ratio 1 --ac_policy matmul", "--selective_ac_ratio 1")
    kept, matmuls, none = (plan(f"--n_layers 20 {each}").estimate for each in flags)
    assert kept.peak > matmuls.peak > none.peak
    assert kept.flops <= matmuls.flops < none.flops


def test_what_is_offloaded_is_not_on_the_device(tmp_path):
    here, away = plan("--n_layers 20").estimate, plan("--n_layers 20 --offload_activations").estimate
    assert away.parts.get("activations", 0) < 0.3 * here.parts["activations"]
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "pretrain", *SMALL.split(), "--device_name", "cpu", "--offload_activations"])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("flags", "possible", "refused"),
    [
        ("", {"gradient_release", "optimizer_state", "lora", "quant"}, set()),
        ("--gradient_accum_steps 2", {"optimizer_state", "precision"}, {"gradient_release"}),
        ("--lora", {"quant", "max_seq_len"}, {"optimizer", "optimizer_state", "gradient_release"}),
        ("--optimizer_state bf16 --compile", {"lora"}, {"optimizer"}),
    ],
)
def test_only_what_the_stage_accepts_is_suggested(flags, possible, refused):
    config = load("p", PlanSFTConfig, f"--ckpt_paths stories15M --max_seq_len 256 {flags}".split())
    settings = {name for change in changes(config) for name in change}
    assert possible <= settings and not refused & settings


def test_the_command_says_what_does_not_fit_and_what_would(tmp_path, capsys):
    flags = "--ckpt_paths stories15M --device_name H100 --device_memory 0.4 --max_seq_len 512"
    main(["plan", "sft", *flags.split(), "--json", str(tmp_path / "plan.json")])
    said = " ".join(capsys.readouterr().out.split())
    assert "does not fit on H100" in said and "--selective_ac_ratio 1.0" in said
    found = json.loads((tmp_path / "plan.json").read_text())
    assert not found["fits"] and found["peak"] == sum(found["parts"].values())
    alone = [each["peak"] for each in found["changes"]]
    assert alone == sorted(alone) and max(alone) < found["peak"]
    assert any(each["fits"] for each in found["changes"])


def test_the_same_flags_as_the_stage_and_no_data(capsys):
    main(["plan", "pretrain", *SMALL.split(), "--device_name", "rtx 4090", "--compile"])
    said = " ".join(capsys.readouterr().out.split())
    assert "fits on rtx 4090" in said and "seconds a step" in said


def test_an_unknown_device_is_named():
    with pytest.raises(UserError, match="device_name H1000 is none that is known: B200, .* --device_memory"):
        device_named("H1000", None)
    assert device_named("H1000", 12.0).memory == 12.0
    assert device_named("a100 40gb", None).memory < 40 < device_named("A100", None).memory


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", " --precision fp32 --selective_ac_ratio 0.5"])
def test_a_run_takes_what_its_plan_says(flags):
    flags = f"--model stories15M --micro_batch_size_per_gpu 16{flags}"
    measured = min(in_own_process(flags, kept=False) for _ in range(2))  # library pages may come back in one
    assert estimated_mb(flags.split()) == pytest.approx(measured, rel=0.1)
