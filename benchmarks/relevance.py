"""Both maps of Polarized-LRP on the paper's discriminator, against zennit, captum and a plain gradient.

The row "products alone" shows how far this way of computing could get: it repeats only the convolutions and
matrix products of both maps, with nothing between them.
"""

import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from galnb.gans.deblender import DeblenderConfig, Discriminator
from galnb.relevance import JudgeWarning, polarized_relevance

THREADS = 2
# images, rounds (every round runs all methods, in turn forwards and backwards), goal against zennit
CASES = [(1, 6, 8.0), (64, 2, 2.0)]
GOAL_GRADIENT = 4.0
HEAD = [
    "| images | method | median | range | times ours | goal | peak memory |",
    "|---|---|---|---|---|---|---|",
]


def main() -> str:
    """Return a Markdown table; all methods run in turn in one process, memory is measured in fresh ones."""
    torch.set_num_threads(THREADS)
    model = network()
    count = sum(parameter.numel() for parameter in model.parameters())
    lines = [f"Discriminator with {count / 1e6:.1f} M parameters, 80 x 80 x 3, {THREADS} threads."]
    both, witness = ours(model, images(2)), zennit_maps(model, images(2))
    apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(both, witness, strict=True))
    lines += [f"Largest difference from zennit: {apart:.0e} of the maximum (it leaves 1e-5 in merged norms)."]
    lines += ["", *HEAD]
    for size, rounds, goal in CASES:
        methods = {name: partial(method, model, images(size)) for name, method in METHODS.items()}
        if size == 1:  # a batch of 64 would have to keep all its arguments
            methods["products alone"] = products_alone(model, images(size))
        seconds = interleave(methods, rounds)
        base = seconds["galnb, both maps"]
        for name, values in seconds.items():
            ratio = statistics.median(value / own for value, own in zip(values, base, strict=True))
            aim = {"zennit, both maps": f">= {goal:g}", "gradient": f">= {1 / GOAL_GRADIENT:g}"}.get(name, "")
            memory = f"{peak(name, size):.2f} GiB" if name in METHODS else ""
            lines.append(
                f"| {size} | {name} | {statistics.median(values) * 1e3:.0f} ms | {min(values) * 1e3:.0f} to "
                f"{max(values) * 1e3:.0f} ms | {ratio:.2f} | {aim} | {memory} |"
            )
        if size == 1:
            pairs = zip(seconds["zennit, both maps"], seconds["products alone"], strict=True)
            bound = statistics.median(other / products for other, products in pairs)
            lines += [
                "",
                f"The products alone would be {bound:.1f} times faster than zennit, not {goal:g}.",
                "",
            ]
            lines += HEAD
    return "\n".join(lines)


def network() -> nn.Module:
    """Build the discriminator of Reiman & Göhre, with statistics and shifts as after a training."""
    torch.manual_seed(0)
    model = Discriminator(DeblenderConfig()).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    return model


def images(size: int) -> torch.Tensor:
    return 2 * torch.rand(size, 3, 80, 80, generator=torch.Generator().manual_seed(1)) - 1


def ours(model: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JudgeWarning)  # random weights have seen no batch
        maps = polarized_relevance(model, inputs)
    return [maps.positive, maps.negative]


def zennit_maps(model: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    """Return both maps: ZPlus as it comes; the negative branch, for which zennit has no rule, as a hook."""
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import LayerMapComposite
    from zennit.core import BasicHook, Stabilizer
    from zennit.rules import Pass, ZPlus
    from zennit.types import Activation, Convolution, Linear

    def clamp(low, high):
        return lambda weights, name: torch.zeros_like(weights) if name == "bias" else weights.clamp(low, high)

    def zminus():
        return BasicHook(
            input_modifiers=[lambda x: x.clamp(min=0), lambda x: x.clamp(max=0)],
            param_modifiers=[clamp(None, 0), clamp(0, None)],
            output_modifiers=[lambda output: output] * 2,
            gradient_mapper=lambda grad, outputs: [grad / Stabilizer(1e-12)(sum(outputs))] * 2,
            reducer=lambda inputs, grads: inputs[0] * grads[0] + inputs[1] * grads[1],
        )

    maps = []
    for rule in (ZPlus(stabilizer=1e-12, zero_params="bias"), zminus()):
        layers = [(Activation, Pass()), (Convolution, rule), (Linear, rule)]
        composite = LayerMapComposite(layers, canonizers=[SequentialMergeBatchNorm()])
        with Gradient(model=model, composite=composite) as attributor:
            maps.append(attributor(inputs, torch.ones(len(inputs), 1))[1])
    return maps


def captum_map(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return the nearest that captum has: its one positive rule, which cuts weights instead of products."""
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule

    for module in model:
        linear = isinstance(module, nn.Conv2d | nn.Linear)
        module.rule = Alpha1_Beta0_Rule(set_bias_to_zero=True) if linear else EpsilonRule()
    try:
        return LRP(model).attribute(inputs.clone().requires_grad_())
    finally:
        for module in model:
            module.__dict__.pop("rule", None)  # captum takes them off itself when all goes well


def gradient(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    inputs = inputs.clone().requires_grad_()
    return torch.autograd.grad(model(inputs).sum(), inputs)[0]


class Products(TorchDispatchMode):
    """Note every convolution and matrix product that runs inside the `with` block, with its arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name().split(".")[0] in ("aten::convolution", "aten::mm", "aten::addmm"):
            self.calls.append(partial(function, *args, **(kwargs or {})))
        return function(*args, **(kwargs or {}))


def products_alone(model: nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    """Return what repeats the products of both maps, and nothing else."""
    with Products() as noted:
        ours(model, inputs)

    def repeat():
        with torch.no_grad():
            for call in noted.calls:
                call()

    return repeat


METHODS = {
    "galnb, both maps": ours,
    "zennit, both maps": zennit_maps,
    "captum, one map": captum_map,
    "gradient": gradient,
}


def interleave(methods: dict, rounds: int) -> dict[str, list[float]]:
    """Run every method once per round, every other round in reverse, so that all meet the same load."""
    seconds = {name: [] for name in methods}
    for turn in range(-1, rounds):  # the first round warms up
        for name in list(methods)[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            methods[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def peak(name: str, size: int) -> float:
    """Return the peak resident memory of a fresh process that runs one method once, in GiB."""
    code = (
        "import re, sys, torch; from benchmarks import relevance as b; torch.set_num_threads(b.THREADS);"
        "b.METHODS[sys.argv[1]](b.network(), b.images(int(sys.argv[2])));"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", code, name, str(size)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return int(done.stdout) / 2**20


if __name__ == "__main__":
    print(main())
