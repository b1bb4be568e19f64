"""Small networks with fixed numbers, and what is kept of their maps: for "golden maps, exact as before"."""

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from galnb.gans.layers import Add, Concat

PIXELS = 7  # of each map, evenly spread


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def randomise(model, seed=0):
    """Give every parameter and statistic a value, biases included."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) / parameter[0].numel() ** 0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=source)
                module.running_var.uniform_(0.5, 2, generator=source)
                module.weight.uniform_(-1.5, 1.5, generator=source)
    return model.double().eval()


class Zoo(nn.Module):
    """Every kind of layer once: residual sum, concatenation, enlargement, norms, slices, reuse."""

    def __init__(self):
        super().__init__()
        self.act, self.add, self.concat = nn.LeakyReLU(0.2), Add(), Concat()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8)
        self.group, self.again = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.SiLU())
        self.down = nn.Sequential(nn.AvgPool2d(2), nn.InstanceNorm2d(4, affine=True))
        self.third = spectral_norm(nn.Conv2d(12, 6, 3, stride=2, padding=1))
        self.pool, self.dense, self.last = nn.MaxPool2d(2), nn.Linear(24, 5), nn.Linear(5, 1)

    def forward(self, x):
        x = self.act(self.norm(self.first(x)))
        x = self.add(x, self.act(self.group(self.again(x))), self.again(x))
        x = self.concat(x[:, 4:], self.down(self.up(x)), x[:, :4])
        x = self.pool(nn.functional.pad(self.act(self.third(x)), (0, 0, 0, 0)))
        return self.last(self.act(self.dense(x.flatten(1))))


def synthetic():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.ReLU(), nn.Linear(9, 1))
    convs = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(6, 8, 3, padding="same", groups=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 4, 3, dilation=2), nn.GELU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 1)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)  # spectral norm keeps vectors that no parameter holds
        zoo = Zoo()
    return {"plain": randomise(plain, 1), "convolutions": randomise(convs, 2), "zoo": randomise(zoo, 3)}


def answers(model, images, references, relevance, polarized_relevance, rules):
    """Return {case: tensor} of all maps, leaks and losses that the package computes for a model."""
    found = {}
    for rule in rules:
        one = relevance(model, images, rule=rule)
        found |= {f"{rule} map": one.map, f"{rule} score": one.score, f"{rule} leak": one.leak}
    for reading in ("paper", "output", "composite", "reference"):
        for bias in (False, True) if reading in ("paper", "output") else (False,):
            extra = {"references": references} if reading == "reference" else {}
            two = polarized_relevance(model, images, reading=reading, bias=bias, **extra)
            name = f"{reading}{' bias' * bias}"
            found |= {
                f"{name} {kind}": getattr(two, kind) for kind in ("positive", "negative", "score", "leak")
            }
            found |= {f"{name} lost {layer}": values for layer, values in two.lost.items()}
    return found


def digest(values):
    """Keep sum, norm, largest size and some elements of a tensor."""
    flat = values.detach().double().flatten()
    picks = torch.linspace(0, len(flat) - 1, min(PIXELS, len(flat))).long()
    return [flat.sum().item(), flat.norm().item(), flat.abs().max().item(), *flat[picks].tolist()]
