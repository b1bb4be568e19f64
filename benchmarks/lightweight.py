"""Training steps of our Lightweight GAN against the `lightweight-gan` package (1.2.1), side by side.

The package is no dependency of ours: it brings a dozen others, and refuses to be imported without a CUDA
device. To run this, put it and what its networks need into a folder of their own:

    pip install --target peers --no-deps lightweight-gan==1.2.1 kornia kornia_rs einops \\
        adabelief-pytorch tabulate colorama
    PYTHONPATH=peers python -m benchmarks.lightweight

On a CPU it is imported with `torch.cuda.is_available` answering yes, and its `LightweightGAN` (networks,
Adam, first weights) is built with `.cuda` doing nothing. Its `Trainer` cannot run there; `_their_step` does
what `Trainer.train` does in one step at its defaults: hinge of both heads, redrawing, the penalty of true
and drawn images every fourth step, no augmentation. Ours is a step of `training.train`, with augmentation
and the running mean of the weights. Both get the same galaxies of the Hubble Deep Field.
"""

import itertools
import statistics
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import seconds_of_pair
from galnb.gans.lightweight import LightweightConfig, lightweight
from galnb.images import hubble_deep_field
from galnb.training import experiments, steps

SIZE, BATCH = 64, 8
CYCLE = 4  # steps; one of them has the penalty
ROUNDS = 5
OURS = {
    "ours, published width": LightweightConfig(size=SIZE),
    "ours, as shipped": experiments.experiment("lightweight-64", "laptop").model,
}


def main() -> str:
    """Return a Markdown table; the package and ours run in turn and change places in every round."""
    try:
        with mock.patch("torch.cuda.is_available", lambda: True):
            from lightweight_gan import lightweight_gan as peer
    except ModuleNotFoundError as error:
        return f"Not run: {error}. The first lines of this file say how to install the package for it."
    found = hubble_deep_field(size=SIZE).pixels
    draw = torch.Generator().manual_seed(0)
    feed = [found[torch.randint(len(found), (BATCH,), generator=draw)] for _ in range(CYCLE)]
    theirs, their_sizes = _theirs(peer, feed)
    rows = [
        "| | weights of generator, discriminator | GFLOP a step | seconds a step | package / ours |",
        "|---|---|---|---|---|",
    ]
    operations = _operations(theirs)
    for index, (name, config) in enumerate(OURS.items()):
        ours, sizes = _ours(config, feed)
        for run in (ours, theirs):
            run()  # the first steps meet every shape once
        seconds = np.array([seconds_of_pair([ours, theirs], turn % 2 == 1) for turn in range(ROUNDS)]) / CYCLE
        ratios = seconds[:, 1] / seconds[:, 0]
        mine, other = (statistics.median(column) for column in seconds.T)
        if index == 0:
            rows.append(f"| `lightweight-gan` | {their_sizes} | {operations:.0f} | {other:.2f} | 1 |")
        rows.append(
            f"| {name} | {sizes} | {_operations(ours):.0f} | {mine:.2f} | {np.median(ratios):.2f} "
            f"({ratios.min():.2f} to {ratios.max():.2f}) |"
        )
    return "\n".join([*rows, "", f"{SIZE} px, batches of {BATCH}, {torch.get_num_threads()} threads."])


def _millions(*networks) -> str:
    return ", ".join(f"{sum(w.numel() for w in net.parameters()) / 1e6:.2f} M" for net in networks)


def _operations(run) -> float:
    """Return the floating-point operations of a mean step without penalty in billions."""
    with FlopCounterMode(display=False) as counter:  # cannot count a gradient of a gradient
        run(penalty=False)
    return counter.get_total_flops() / CYCLE / 1e9


def _ours(config: LightweightConfig, feed: list[torch.Tensor]):
    chosen = experiments.experiment("lightweight-64", "laptop").training
    how = replace(chosen, device="cpu")
    gan = lightweight(config)
    state = steps.begin(gan, how)
    endless = itertools.cycle([{"images": images} for images in feed])
    # the same networks, with the penalty in every step or in none: else its steps fall at random
    with_penalty, without = (
        replace(gan, config=replace(config, **change)) for change in ({"penalty_every": 1}, {"penalty": 0.0})
    )

    def run(penalty: bool = True):
        for step in range(CYCLE):
            state.fast = with_penalty if penalty and step == 0 else without
            steps.take_step(state, endless)

    return run, _millions(gan.generator, gan.discriminator)


def _theirs(peer, feed: list[torch.Tensor]):
    with mock.patch.object(torch.nn.Module, "cuda", lambda self, *_: self):
        gan = peer.LightweightGAN(latent_dim=256, image_size=SIZE).train()

    def run(penalty: bool = True):
        for step, images in enumerate(feed):
            _their_step(peer, gan, images.clone(), penalty=penalty and step == 0)

    return run, _millions(gan.G, gan.D)


def _their_step(peer, gan, images: torch.Tensor, *, penalty: bool) -> None:
    gan.D_opt.zero_grad()
    with torch.no_grad():
        drawn = gan.G(torch.randn(BATCH, gan.latent_dim))
    images.requires_grad_(penalty)
    drawn, (fake, fake_small, _) = gan.D_aug(
        drawn, detach=True, input_requires_grad=penalty, return_discr_input=True
    )
    real, real_small, redrawing = gan.D_aug(images, calc_aux_loss=True)
    hinge = peer.hinge_loss(real, fake)
    loss = hinge + peer.hinge_loss(real_small, fake_small) + redrawing
    if penalty:
        slopes = [
            torch.autograd.grad(
                scores, inputs, grad_outputs=[torch.ones_like(part) for part in scores], create_graph=True
            )[0]
            for scores, inputs in (([real, real_small], images), ([fake, fake_small], drawn))
        ]
        loss = loss + 10 * (torch.cat(slopes).reshape(2 * BATCH, -1).norm(2, dim=1) ** 2).mean()
    loss.backward()
    redrawing.item(), hinge.item()
    gan.D_opt.step()
    gan.G_opt.zero_grad()
    fake, fake_small, _ = gan.D_aug(gan.G(torch.randn(BATCH, gan.latent_dim)))
    loss = peer.gen_hinge_loss(fake, None) + peer.gen_hinge_loss(fake_small, None)
    loss.backward()
    loss.item()
    gan.G_opt.step()


if __name__ == "__main__":
    print(main())
