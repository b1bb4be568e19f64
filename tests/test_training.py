"""The loop: what one step does, what it refuses, and that devices and processes do not change it."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from galnb import training
from galnb.gans import Gan, from_json, to_signed
from galnb.gans.deblender import deblender
from galnb.training import TrainingConfig, load_checkpoint, train
from galnb.training.steps import _SCHEDULES
from tests.tiny_runs import TINY, batches, one_thread, plain_gan, shared_losses  # noqa: F401

ROOT = Path(__file__).parents[1]
CPU = {"device": "cpu", "schedule": "constant"}
GATED = replace(TINY, generator="gated", reconstruction="log_mse")


@dataclass(frozen=True)
class NoConfig:
    pass


def one_weight_gan(loss, network=None) -> Gan:
    """A generator of one weight, `loss(weight, step)`, and a discriminator that has nothing to learn."""
    network = network or nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    steps = iter(range(10_000))

    def generator_loss(gan, batch, noise):
        return {"total": loss(network.weight, next(steps))}

    def discriminator_loss(gan, batch, noise):
        return {"total": gan.discriminator.weight.square().sum()}

    return Gan("one", NoConfig(), network, nn.Linear(1, 1), to_signed, generator_loss, discriminator_loss)


def nothing(index):
    return {"blended": torch.zeros(2, 1)}


def adam(weight, gradient, memory, *, rate, step, betas=(0.9, 0.999)):
    """Kingma & Ba 2015, Algorithm 1, written out."""
    memory[0] = betas[0] * memory[0] + (1 - betas[0]) * gradient
    memory[1] = betas[1] * memory[1] + (1 - betas[1]) * gradient**2
    mean, square = memory[0] / (1 - betas[0] ** step), memory[1] / (1 - betas[1] ** step)
    return weight - rate * mean / (square.sqrt() + 1e-8)


def test_steps_equal_a_loop_written_by_hand():
    ours, witness = plain_gan(), plain_gan()
    train(ours, batches(), TrainingConfig(steps=3, learning_rate=1e-2, **CPU))
    networks = {"d": witness.discriminator, "g": witness.generator}
    memories = {part: [[0, 0] for _ in network.parameters()] for part, network in networks.items()}
    for step in range(3):
        for part, loss, rate in (
            ("d", witness.discriminator_loss, 1e-4),
            ("g", witness.generator_loss, 1e-2),
        ):
            total, weights = loss(witness, batches()(step), None)["total"], list(networks[part].parameters())
            for weight, gradient, memory in zip(
                weights, torch.autograd.grad(total, weights), memories[part], strict=True
            ):
                weight.data = adam(weight.data, gradient, memory, rate=rate, step=step + 1)
    for part in ("generator", "discriminator"):
        for ours_weight, wanted in zip(
            getattr(ours, part).parameters(), getattr(witness, part).parameters(), strict=True
        ):
            # float32, 3 steps of up to 1e-2 each: rounding stays below 1e-6
            assert torch.allclose(ours_weight, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", sorted(_SCHEDULES))
def test_step_size_follows_schedule_and_warmup(schedule):
    # With a constant gradient each Adam step is as long as the step size, so the weight sums the schedule up.
    places = []
    config = TrainingConfig(steps=8, warmup=3, schedule=schedule, learning_rate=0.5, device="cpu")
    gan = one_weight_gan(lambda weight, step: -weight.sum())
    train(gan, nothing, config, callback=lambda step, losses, gan: places.append(gan.generator.weight.item()))
    wanted = {
        "constant": [1, 1, 1, 1, 1, 1, 1, 1],
        "drop": [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1],
        "cosine": [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)],
        "late_decay": [1, 1, 1, 1, 1, 1, 1, 0.5],
    }[schedule]
    climb = [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]
    paces = torch.tensor([0.5 * a * b for a, b in zip(wanted, climb, strict=True)])
    assert torch.tensor(places).allclose(paces.cumsum(0), atol=1e-5)  # Adam's 1e-8, eight times, and float32


def test_mean_generator_is_the_running_mean_by_hand():
    shown = []
    gan = one_weight_gan(lambda weight, step: -weight.sum())
    config = TrainingConfig(steps=6, learning_rate=1.0, ema=0.3, **CPU)
    train(gan, nothing, config, callback=lambda step, losses, gan: shown.append(gan.generator.weight.item()))
    mean, wanted = 0.0, []
    for step in range(6):
        memory = min(
            0.3, (step + 1) / (step + 10)
        )  # short at first, or the first weights would stay for long
        mean = memory * mean + (1 - memory) * (step + 1.0)  # the weight itself is 1, 2, 3 ...
        wanted.append(mean)
    assert shown == pytest.approx(wanted, abs=1e-5)
    assert gan.generator.weight.item() == pytest.approx(wanted[-1], abs=1e-5)


def test_decay_is_the_generators_and_clipping_shortens_gradients():
    gan = one_weight_gan(lambda weight, step: (weight * 1000).sum())
    nn.init.ones_(gan.generator.weight)
    config = TrainingConfig(steps=1, learning_rate=0.1, weight_decay=0.5, gradient_clip=2.0, burn_in=1, **CPU)
    before = gan.discriminator.weight.clone()
    train(gan, nothing, config)
    assert gan.generator.weight.item() == pytest.approx(
        1 - 0.1 * 0.5 - 0.1, abs=1e-6
    )  # decay, then Adam's step
    assert gan.generator.weight.grad.norm().item() == pytest.approx(2.0, abs=1e-4)
    assert torch.equal(gan.discriminator.weight, before)


def test_adam_starts_afresh_after_burn_in():
    # Burn-in pulls a thousand times harder, the other way: its memory would hold the next steps back.
    places, gan = [], one_weight_gan(lambda weight, step: -weight.sum())
    gan = replace(gan, burn_in_loss=lambda gan, batch, noise: {"total": 1000 * gan.generator.weight.sum()})
    config = TrainingConfig(steps=5, burn_in=2, learning_rate=1.0, **CPU)
    train(gan, nothing, config, callback=lambda step, losses, gan: places.append(gan.generator.weight.item()))
    assert places == pytest.approx([-1, -2, -1, 0, 1], abs=1e-5)


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(before, after):
    return all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_burn_in_touches_only_the_generator():
    gan = deblender(TINY)
    drawn, judge = state(gan.generator), state(gan.discriminator)
    history = train(gan, batches(), TrainingConfig(steps=3, burn_in=3, **CPU))
    assert equal(judge, gan.discriminator.state_dict()) and not equal(drawn, gan.generator.state_dict())
    assert list(history.losses) == ["burn_in/total"]


def test_discriminator_is_frozen_in_the_generators_step_and_then_restored():
    gan, seen = deblender(TINY), []

    def spy(gan, batch, noise):
        before = state(gan.discriminator)
        losses = deblender_loss(gan, batch, noise)
        seen.append([weight.requires_grad for weight in gan.discriminator.parameters()])
        assert equal(before, gan.discriminator.state_dict())  # batch statistics too
        return losses

    deblender_loss = gan.generator_loss
    train(replace(gan, generator_loss=spy), batches(), TrainingConfig(steps=4, discriminator_every=2, **CPU))
    assert len(seen) == 4 and not any(map(any, seen))
    assert all(weight.requires_grad for weight in gan.discriminator.parameters())
    norms = [module for module in gan.discriminator if isinstance(module, nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {
        2 * 2
    }  # real and fake in each of two D steps


def test_an_interrupt_leaves_nothing_frozen():
    gan = deblender(TINY)

    def interrupted(gan, batch, noise):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="step 0 of 1; nothing is on disk; build the networks anew"):
        train(replace(gan, generator_loss=interrupted), batches(), TrainingConfig(steps=1, **CPU))
    assert all(weight.requires_grad for weight in gan.discriminator.parameters())
    assert all(getattr(module, "track_running_stats", True) for module in gan.discriminator.modules())
    assert not gan.generator.training and not gan.discriminator.training


def test_callback_and_history_see_every_step_and_networks_end_in_eval_mode(capsys):
    gan, seen = plain_gan(), []
    config = TrainingConfig(steps=11, discriminator_every=3, **CPU)
    history = train(gan, batches(), config, callback=lambda *values: seen.append(values), progress=True)
    assert [step for step, _, _ in seen] == history.steps == list(range(11))
    assert all(passed is gan for _, _, passed in seen)
    assert {name: len(values) for name, values in history.losses.items()} == dict.fromkeys(
        ["discriminator/total", "generator/total", "generator/mse", "generator/adversarial"], 11
    )
    turns = [not math.isnan(value) for value in history.losses["discriminator/total"]]
    assert turns == [step % 3 == 0 for step in range(11)]
    assert [losses["generator/total"] for _, losses, _ in seen] == history.losses["generator/total"]
    assert not gan.generator.training and not gan.discriminator.training
    assert "generator/total=" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kernel, shown",
    [
        (SimpleNamespace(get_parent=lambda: {"content": {"allow_stdin": True}}), True),  # a browser
        (SimpleNamespace(get_parent=lambda: {"content": {"allow_stdin": False}}), False),  # papermill
        (SimpleNamespace(get_parent=dict), False),
        (SimpleNamespace(), False),  # IPython in a terminal
        (None, False),
    ],
)
def test_a_bar_is_drawn_where_somebody_watches_a_notebook(capsys, monkeypatch, kernel, shown):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    train(plain_gan(), batches(), TrainingConfig(steps=1, **CPU))
    said = capsys.readouterr().err
    assert ("1/1" in said and "generator/total=" in said) == shown and "generator/mse" not in said


def test_a_kernel_tells_a_browser_from_a_program():
    jupyter = pytest.importorskip("jupyter_client")
    ask = {"code": "from galnb.training import _watched", "user_expressions": {"shown": "_watched()"}}
    with jupyter.run_kernel(kernel_name="python3") as client:
        for answers in (True, False):
            reply = client.execute(**ask, allow_stdin=answers, reply=True, timeout=180)["content"]
            assert reply["user_expressions"]["shown"]["data"]["text/plain"] == str(answers)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e9])
def test_a_bad_loss_stops_with_its_step_and_keeps_the_last_good_point(tmp_path, bad):
    gan = replace(deblender(TINY))
    good = gan.generator_loss

    def breaks_at_5(gan, batch, noise):
        losses = good(gan, batch, noise)
        count.append(0)
        return {**losses, "total": losses["total"] * bad} if len(count) == 6 else losses

    count = []
    config = TrainingConfig(steps=9, save_every=2, learning_rate=1e-3, **CPU)
    with pytest.raises(FloatingPointError, match=r"generator/total is .* at step 5.*0\.001.*gradient_clip"):
        train(replace(gan, generator_loss=breaks_at_5), batches(), config, folder=tmp_path)
    assert torch.load(tmp_path / "resume.pt")["step"] == 4
    for name, step in (("early", 1), ("middle", 3)):
        kept = load_checkpoint(tmp_path / f"{name}.safetensors")
        assert kept.step == step and all(w.isfinite().all() for w in kept.gan.generator.parameters())
    assert not (tmp_path / "final.safetensors").exists()
    history = train(deblender(TINY), batches(), config, folder=tmp_path, resume=True)
    assert history.steps == list(range(9))


def test_a_bad_gradient_behind_a_finite_loss_is_not_saved(tmp_path):
    # sqrt at 0: the loss is 0, its gradient is not a number
    gan = one_weight_gan(lambda weight, step: (weight * (0.0 if step == 3 else 1.0)).abs().sqrt().sum())
    nn.init.ones_(gan.generator.weight)
    config = TrainingConfig(steps=9, save_every=2, stages=(), **CPU)
    with pytest.raises(FloatingPointError, match=r"generator\.weight is not finite at step 3"):
        train(gan, nothing, config, folder=tmp_path)
    saved = torch.load(tmp_path / "resume.pt")
    assert saved["step"] == 2 and saved["generator"]["weight"].isfinite().all()


def raising(error):
    def loss(weight, step):
        raise error

    return loss


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shapes") as caught:
        train(one_weight_gan(raising(RuntimeError("shapes"))), nothing, TrainingConfig(steps=1, **CPU))
    assert str(caught.value) == "shapes" and caught.value.__cause__ is None

    def no_batch(index):
        raise LookupError(f"no batch {index}")

    with pytest.raises(LookupError, match="no batch 0"):
        train(plain_gan(), no_batch, TrainingConfig(steps=1, **CPU))


def test_batches_come_in_order_and_are_shared_out():
    def numbered(index):
        return {"blended": torch.arange(6) + 10 * index}

    fabric = SimpleNamespace(device=torch.device("cpu"), global_rank=1, world_size=3)
    state = SimpleNamespace(fabric=fabric, config=TrainingConfig(steps=3, discriminator_steps=2), step=1)
    shares = [batch["blended"].tolist() for batch in training._ahead(numbered, state)]
    assert shares == [[21, 24], [31, 34], [41, 44], [51, 54]]
    fabric.world_size = 4
    with pytest.raises(ValueError, match="a batch of 6 for 4 processes; make it a multiple of 4"):
        next(training._ahead(numbered, state))


def test_two_processes_give_the_losses_of_one(tmp_path):
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.tiny_runs"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, "-m", *command, "shared", str(tmp_path)],
        cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    report, one = json.loads((tmp_path / "report.json").read_text()), shared_losses()
    assert report["processes"] == 2
    two = report["losses"]
    assert two.keys() == one.keys()
    # No batch norm: the mean over two halves is the mean over the whole, but for the order of float32 sums,
    # and Adam makes up to 12 steps of such differences.
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-5)
    assert one["generator/mse"][-1] < 0.9 * one["generator/mse"][0]  # there was something to follow


@pytest.mark.parametrize("faster", [{"channels_last": True}, {"precision": "bf16-mixed"}])
@pytest.mark.parametrize("model", [TINY, GATED])
def test_faster_paths_follow_the_reference(faster, model):
    config = TrainingConfig(steps=4, burn_in=1, learning_rate=1e-3, **CPU)
    wanted = train(deblender(model), batches(), config).losses
    gan = deblender(model)
    found = train(gan, batches(), replace(config, **faster)).losses
    # bf16 has 8 bits: 0.4 % per operation; the layout only changes the order of sums
    tolerance = 0.05 if "precision" in faster else 1e-3
    for name in wanted:
        assert found[name] == pytest.approx(wanted[name], rel=tolerance, abs=tolerance, nan_ok=True), name
    assert {weight.dtype for weight in gan.generator.parameters()} == {torch.float32}


def test_compiled_networks_share_their_weights(monkeypatch):
    # This backend only traces: it needs no C++ compiler.
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compiled(network, backend="eager"))
    config = TrainingConfig(steps=3, learning_rate=1e-2, **CPU)
    wanted, gan = train(plain_gan(), batches(), config).losses, plain_gan()
    found = train(gan, batches(), replace(config, compile=True)).losses
    for name in wanted:
        assert found[name] == pytest.approx(wanted[name], rel=1e-4), name
    assert all("_orig_mod" not in name for name in gan.generator.state_dict())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("save_every", 0),
        ("discriminator_every", 0),
        ("burn_in", -1),
        ("ema", 1.0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("schedule", "linear"),
        ("precision", "16-mixed"),
        ("stages", (("late", 1.5),)),
        ("stages", (("final", 0.5), ("final", 1.0))),
        ("stages", (("../final", 1.0),)),
        ("steps", 2.5),
        ("weight_decay", math.nan),
    ],
)
def test_config_refuses(field, value):
    with pytest.raises(ValueError, match=field):
        TrainingConfig(**{field: value})


def test_config_survives_json():
    config = TrainingConfig(betas=(0.5, 0.9), stages=(("final", 1.0),))
    assert from_json(TrainingConfig, json.loads(json.dumps(asdict(config)))) == config


def test_experiment_must_be_json_before_hours_are_spent(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        train(plain_gan(), nothing, TrainingConfig(), folder=tmp_path, experiment={"data": Path("x")})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("model", [TINY, GATED])
def test_gpu_runs_the_fast_path(tmp_path, model):
    fast = {"precision": "bf16-mixed", "channels_last": True, "compile": True, "ema": 0.9}
    gan = deblender(model)
    history = train(gan, batches(), TrainingConfig(steps=5, device="cuda", **fast), folder=tmp_path)
    assert len(history.steps) == 5 and next(gan.generator.parameters()).is_cuda
    assert load_checkpoint(tmp_path / "final.safetensors").step == 5
