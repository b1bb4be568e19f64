"""Relevance by its definition, written out with dense matrices, and a network with many traps."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from galnb.gans.layers import Add, Concat
from tests.tiny_runs import one_thread as one_thread

# All oracles run in float64; what differs then is rounding, and cancellation in sums of some hundred terms.
TOLERANCE = 1e-10


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix(function, x):
    """Return the weights (outputs, inputs) and the bias of an affine function of one image."""
    zero = torch.zeros_like(x)
    weights = torch.autograd.functional.jacobian(function, zero)
    return weights.reshape(-1, x.numel()), function(zero).flatten()


def share(function, x, arriving, rule, *, bias=False, weight_free=False, differences=False):
    """Share relevance (outputs) among the inputs of an affine function, by the printed formula of a rule."""
    weights, shift = matrix(function, x)
    z = weights * x.flatten()
    shift = torch.zeros_like(shift) if differences else shift
    total = z.sum(1) + shift
    up, down = z.clamp(min=0), z.clamp(max=0)
    own = torch.where(total[:, None] >= 0, up, down)
    if rule in ("zplus", "zminus") and weight_free:
        terms, whole = z.abs(), z.abs().sum(1)
    elif rule in ("zplus", "zminus"):
        terms, side = (up, shift.clamp(min=0)) if rule == "zplus" else (down, shift.clamp(max=0))
        whole = terms.sum(1) + (side if bias else 0)
    elif rule == "epsilon":
        terms, whole = z, total
    elif rule == "same_sign":
        terms, whole = own, own.sum(1)
    shares = torch.where(whole[:, None] != 0, terms / whole[:, None] * arriving.flatten()[:, None], 0)
    return shares.sum(0).view_as(x)


class Residual(nn.Module):
    """A discriminator with many traps: batch norm, skip, concatenation, pooling, slices, reuse."""

    def __init__(self):
        super().__init__()
        self.act = nn.LeakyReLU(0.2)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.add, self.concat = Add(), Concat()
        self.third = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.dense, self.last = nn.Linear(24, 5), nn.Linear(5, 1)

    def forward(self, x):
        x = self.act(self.first(x))
        y = self.add(x, self.act(self.norm(self.second(x))))
        y = self.concat(y[:, 2:], x, y[:, :2])
        y = self.pool(self.act(self.third(y)))
        return self.last(self.act(self.dense(y.flatten(1))))

    def dense_relevance(self, x, x0, seed, rules, *, bias=False):
        """Propagate by hand, on differences to x0 if one is given. `rules`: one per layer with weights."""
        act, differences = partial(F.leaky_relu, negative_slope=0.2), x0 is not None

        def merged(a):
            return self.norm(self.second(a[None]))[0]

        def run(image):
            a = act(self.first(image[None]))[0]
            b = act(merged(a))
            y = a + b
            c = torch.cat([y[2:], a, y[:2]])
            d = act(self.third(c[None]))[0]
            e = self.pool(d[None])[0]
            return [image, a, b, c, d, e, act(self.dense(e.flatten()))]

        states = run(x)
        if differences:
            states = [state - other for state, other in zip(states, run(x0), strict=True)]
        x, a, b, c, d, e, f = states
        args = {"bias": bias, "differences": differences}

        def one(layer):
            return lambda v: layer(v[None])[0]

        r = share(self.last, f, seed, rules[4], **args)
        r = share(lambda v: self.dense(v.flatten()), e, r, rules[3], **args)
        r = share(one(self.pool), d, r, rules[2], weight_free=True, **args)
        r = share(one(self.third), c, r, rules[2], **args)
        through = torch.cat([r[6:], r[:2]])
        pair = share(lambda v: v[0] + v[1], torch.stack([a, b]), through, rules[1], weight_free=True, **args)
        r = r[2:6] + pair[0] + share(merged, a, pair[1], rules[1], **args)
        return share(one(self.first), x, r, rules[0], **args)
