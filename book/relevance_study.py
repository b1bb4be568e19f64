"""Make the record of chapter 06: which map of a judge tells real from fake evidence, on planted truth.

    python -m book.relevance_study FOLDER

Worlds, networks, exams and measurements stand in the chapter; its cells are run here as they are. This file
adds what the page has no room for: a third world, more methods, images with one mark, and three tests that
need no truth, on every network. FOLDER keeps networks and rows, so that a run can be continued; some 40
minutes of one thread. `galnb/records/06_polarized_lrp.json` is written.

`RULE` was written down, and the third world invented, before any network of that world was trained. It
was not touched since. But too few networks learned that world at first: training was prolonged until unseen
images are told right, and two networks were added, when the maps of two networks had been seen.
"""

import argparse
import copy
import dataclasses
import datetime
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from galnb import __version__, notebook
from galnb.files import write_atomically
from galnb.gans import deblender
from galnb.gans.layers import NORMS
from galnb.relevance import JudgeWarning, Polarized, deletion_gate, polarized_relevance
from galnb.relevance.operators import LAYERS
from galnb.relevance.rules import READINGS, RULES, Layer

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "06_polarized_lrp.ipynb"
RECORD = notebook.RECORDS / "06_polarized_lrp.json"
CELLS = (
    *("world", "marks", "frame-marks", "make-world", "planted-nets", "planted-plan", "planted-fit"),
    *("planted-teach", "planted-exam", "planted-use", "other-maps", "planted-read", "planted-measure"),
    *("random-code", "flip-code", "norm-rule"),
)
RULE = (
    "Fixed before the third world was seen, for the reading 'reference, 8 images' in networks without group "
    "norm that learned their task (accuracy of at least 0.99), of which there must be 10. Third world, both "
    "marks in one image: separation of at least 0.9 for every used mark of every network. One mark, all "
    "worlds: in at least 0.9 of the images that a network calls right, the strongest pixel of the map for "
    "that class lies on the mark, for every used mark of every network. All: reproduced; 9 of 10: partly; "
    "else not reproduced. Behind group norm the reading is chosen in the first two worlds, by the number of "
    "used marks with a separation of at least 0.9, and the third world confirms it or not."
)
EXTRA = [
    *("norm shared, 8 images", "integrated gradients, 8 images", "rescale, 1 sky", "rescale, 8 images"),
    *("epsilon-plus-flat", "epsilon-alpha2-beta1", "Grad-CAM", "occlusion, 1 sky", "random region"),
]
ONE_MARK = [
    *("paper", "output", "composite", "reference, 1 sky", "reference, 8 images", "norm shared, 8 images"),
    *("rescale, 8 images", "gradient x input", "integrated gradients, 1 sky", "epsilon-plus-flat"),
    *("epsilon-alpha2-beta1", "Grad-CAM", "random region"),
]
BELIEVED = [
    *("paper", "composite", "reference, 8 images", "norm shared, 8 images", "gradient x input"),
    "integrated gradients, 1 sky",
]
NOISE = (0.005, 0.01, 0.02)  # standard deviation, images in [0, 1]
FEW = 8  # images per network in the tests without a truth


def chapter() -> SimpleNamespace:
    """Return what the named cells of the chapter define, with the third world and all methods added."""
    cells = {cell["id"]: "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]}
    given = (copy, dataclasses, deblender, functional, nn, torch)
    names = {module.__name__.rsplit(".", 1)[-1]: module for module in given}
    names |= {"NORMS": NORMS, "Polarized": Polarized, "partial": partial}
    names |= {"LAYERS": LAYERS, "deletion_gate": deletion_gate, "polarized_relevance": polarized_relevance}
    for name in CELLS:
        exec(cells[name], names)
    page = SimpleNamespace(**names)
    page.MARKS["point and arc"] = point_marks
    page.MAPS |= {
        "norm shared": page.norm_shared,
        "rescale": rescale,
        "epsilon-plus-flat": partial(_by_rules, rules=_epsilon_plus_flat),
        "epsilon-alpha2-beta1": partial(_by_rules, rules=_epsilon_alpha2_beta1),
        "Grad-CAM": partial(grad_cam, page),
        "occlusion": partial(occlusion, page),
        "random region": partial(random_region, page),
    }
    page.METHODS += EXTRA
    return page


def point_marks(count: int, draw: torch.Generator, side: int = 32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """World C: a point source (real) and a short arc (fake); light to add and where, (count, side, side)."""
    line = torch.arange(side)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=draw)

    far = torch.hypot(line - uniform(3, 28), line[:, None] - uniform(3, 28))
    point, at_point = uniform(0.35, 0.5) * torch.exp(-(far**2) / (2 * 0.8**2)), far < 2.5
    radius, turn = uniform(5, 8), uniform(0, 2 * torch.pi)
    across = line - uniform(6, 25) + radius * turn.cos()  # from the centre of the arc's circle
    down = line[:, None] - uniform(6, 25) + radius * turn.sin()
    off = torch.hypot(across, down)
    inside = (across * turn.cos() + down * turn.sin()) > off * 0.82  # 35 degrees to both sides
    arc = inside * uniform(0.25, 0.45) * torch.exp(-((off - radius) ** 2) / (2 * 0.6**2))
    marks = point, arc, at_point, inside & ((off - radius).abs() < 1.5)
    if (clash := (marks[2] & marks[3]).any((1, 2))).any():
        for mark, new in zip(marks, point_marks(int(clash.sum()), draw, side), strict=True):
            mark[clash] = new
    return marks


@contextmanager
def swapped(table: dict, key, value) -> Iterator[None]:
    """Put another entry into a table of the package for the length of a `with` block."""
    before = table[key]
    table[key] = value
    try:
        yield
    finally:
        table[key] = before


def rescale(net: nn.Module, images: Tensor, references: Tensor) -> Polarized:
    """Share differences by signed contributions in all layers: DeepLIFT's rescale rule."""
    with swapped(READINGS, "reference", lambda n, bias: [RULES["epsilon"]] * n):
        return polarized_relevance(net, images, reading="reference", references=references)


def _by_rules(net: nn.Module, images: Tensor, _: None, *, rules) -> Polarized:
    with swapped(READINGS, "composite", rules):
        return polarized_relevance(net, images, reading="composite")


def _epsilon_plus_flat(n: int, bias: bool) -> list:
    return [_flat, *[RULES["zplus"]] * (n - 3), *[RULES["epsilon"]] * 2]


def _epsilon_alpha2_beta1(n: int, bias: bool) -> list:
    return [_alpha2_beta1] * (n - 2) + [RULES["epsilon"]] * 2


def _flat(layer: Layer, relevance: Tensor) -> Tensor:
    """Share evenly among all inputs of a unit."""
    ones = torch.ones_like(layer.weight)
    return layer.pull(relevance / layer.push(torch.ones_like(layer.inputs), ones), ones)


def _alpha2_beta1(layer: Layer, relevance: Tensor) -> Tensor:
    return 2 * RULES["zplus"](layer, relevance) - RULES["zminus"](layer, relevance)


def grad_cam(page: SimpleNamespace, net: nn.Sequential, images: Tensor, _: None) -> Polarized:
    """Weigh the channels of the last convolution by their mean slope, with both signs, enlarged."""
    end = next(place for place, layer in enumerate(net) if isinstance(layer, nn.Flatten))
    below, above = nn.Sequential(*list(net)[:end]), nn.Sequential(*list(net)[end:])
    features = below(images).detach().requires_grad_()
    score = above(features).squeeze(1)
    slope = torch.autograd.grad(score.sum(), features)[0]
    seen = (slope.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).detach()
    seen = functional.interpolate(seen, size=images.shape[2:], mode="bilinear", align_corners=False)
    return page.signed_map(seen.expand_as(images) / 3, score.detach(), torch.zeros_like(score))


def occlusion(
    page: SimpleNamespace, net: nn.Module, images: Tensor, sky: Tensor, *, side=4, step=2
) -> Polarized:
    """Fill one square after the other with sky; each pixel gets the mean fall of the logit of its squares."""
    score, (height, width) = page.logits_of(net, images), images.shape[2:]
    fall, count = torch.zeros_like(images), torch.zeros(height, width)
    for row, column in product(range(0, height - side + 1, step), range(0, width - side + 1, step)):
        box = (..., slice(row, row + side), slice(column, column + side))
        filled = images.clone()
        filled[box] = sky[box]
        fall[box] += (score - page.logits_of(net, filled)).view(-1, 1, 1, 1)
        count[box] += 1
    return page.signed_map(fall / count / 3, score, torch.zeros_like(score))


def random_region(page: SimpleNamespace, net: nn.Module, images: Tensor, _: None) -> Polarized:
    """Name the pixels around a random place for each polarity: the bar that a map has to clear."""
    draw, score = torch.Generator().manual_seed(5), page.logits_of(net, images)
    near = [1 / (1 + distances(len(images), draw, images.shape[-1])).expand_as(images) for _ in range(2)]
    return Polarized(*near, score, torch.zeros(len(images), 2), "region", torch.zeros_like(score), {})


def distances(count: int, draw: torch.Generator, side: int) -> Tensor:
    """Return how far each pixel is from a random place, (count, 1, side, side): a growing disc."""
    line, places = torch.arange(side), side * torch.rand(2, count, 1, 1, 1, generator=draw)
    return torch.hypot(line - places[0], line[:, None] - places[1])


def plans(page: SimpleNamespace) -> list:
    """List the networks: 5 in each of the first worlds, 13 in the third, and with group norm 3, 3 and 4.

    The first two are those of the chapter.
    """
    inputs = list(product(("leaky", "relu"), (-1, 0), ("none", "batch")))
    small = [{"net": "7 layers", "activation": a, "low": low, "norm": norm} for a, low, norm in inputs]
    deep = [{"net": "10 layers", "norm": "none"}, {"net": "10 layers", "activation": "relu", "low": 0}]
    group = [{"norm": "group", "kernel": 4, "seed": seed} for seed in range(3)]
    group += [{"net": "7 layers", "norm": "group"}]
    everywhere = [{}, group[0], small[0], small[3], group[1], small[5], deep[0], group[3]]
    third = [small[1], small[2], small[4], small[7], deep[1], small[6], group[2], {"seed": 1}, {"seed": 2}]
    kinds = [*product(everywhere, page.MARKS), *product(third, list(page.MARKS)[2:])]
    return [page.Plan(world, **kind) for kind, world in kinds]


def one_mark(page: SimpleNamespace, net: nn.Module, plan, exam, *, count: int = 16) -> dict:
    """Score methods on images with one mark, the use that the paper makes of its maps.

    For real and fake marks: `hit`, share of the images called right whose strongest pixel of the map for
    their class lies on the mark; `held`, share of that map on the mark over the share of the area; `sign`,
    share of the relevance on the mark that has the sign of the class.
    """
    found = {}
    for kind in (0, 1):
        draw = torch.Generator().manual_seed(20_000 + plan.seed)
        images, *places = plan.images(torch.full((count,), kind), draw)
        right = (page.logits_of(net, images) > 0) == (kind == 0)
        at, given = places[kind], dataclasses.replace(exam, both=images)
        for name in ONE_MARK:
            maps = page.read(name, net, given).per_pixel()
            own, other = (strength[right] for strength in (maps[kind], maps[1 - kind]))
            place = at[right]
            on, wrong = ((strength * place).sum((1, 2, 3)) for strength in (own, other))
            top = place.flatten(1).gather(1, own.flatten(1).argmax(1, keepdim=True)).float()
            held = on / own.sum((1, 2, 3)) / place.float().mean((1, 2, 3))
            score = {"hit": top.mean(), "held": held.nanmean(), "sign": (on / (on + wrong)).nanmean()}
            for key, value in score.items():
                found.setdefault(name, {}).setdefault(key, []).append(value.item())
    return found


def believe(page: SimpleNamespace, net: nn.Module, exam, use: tuple[float, float], low: int) -> dict:
    """Test methods without a truth: shuffled layers, noise, and deletion, means over images.

    `shuffled`: rank correlation of the positive map with itself when the last layer, the last two, the
    upper half, all layers are shuffled; `noise`: the same with noise added; `flipping`: fall (rise) of the
    logit in units of the mark's use while ever more pixels of the map for real (fake) are filled with sky.
    """
    few = dataclasses.replace(exam, both=exam.both[:FEW], sky=exam.sky[:FEW])
    layers = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in net.modules())
    others = [
        page.shuffled(net, depth, torch.Generator().manual_seed(depth))
        for depth in (1, 2, layers // 2, layers)
    ]
    draw = torch.Generator().manual_seed(3)
    noise = torch.randn(few.both.shape, generator=draw)
    noisy = [dataclasses.replace(few, both=few.both + (1 - low) * sigma * noise) for sigma in NOISE]
    found, orders = {}, {}
    for name in BELIEVED:
        first = orders[name] = page.strengths(page.read(name, net, few))
        changed = [page.strengths(page.read(name, other, few))[0] for other in others]
        steady = [page.strengths(page.read(name, net, one))[0] for one in noisy]
        found[name] = {
            "shuffled": [_mean(page.rank_correlation(first[0], other)) for other in changed],
            "noise": [_mean(page.rank_correlation(first[0], other)) for other in steady],
        }
    orders["random region"] = [-distances(FEW, draw, few.both.shape[-1]) for _ in range(2)]
    for name, both in orders.items():
        curves = [
            page.flipping(net, few.both, one, few.sky).mean(0) / size
            for one, size in zip(both, use, strict=True)
        ]
        found.setdefault(name, {})["flipping"] = [curve.tolist() for curve in curves]
    return found


def _mean(values: Tensor) -> float:
    return values.mean().item()


def kept_net(page: SimpleNamespace, plan, folder: Path) -> nn.Module:
    """Train a network, or read it from the folder."""
    place = folder / f"{'-'.join(map(str, dataclasses.astuple(plan)))}.pt".replace(" ", "_")
    if not place.exists():
        torch.save(page.trained_net(plan).state_dict(), place.with_suffix(".new"))
        place.with_suffix(".new").replace(place)
    net = page.new_net(plan)
    net.load_state_dict(torch.load(place, weights_only=True))
    return net.to(memory_format=torch.channels_last).eval()


def row_of(page: SimpleNamespace, plan, folder: Path) -> dict:
    """Return all that is measured of one network."""
    net = kept_net(page, plan, folder)
    exam, found = page.examine(net, plan)
    areas = [at.float().mean().item() for at in (exam.at_real, exam.at_fake)]
    row = {"plan": dataclasses.asdict(plan), **found, "areas": areas}
    if found["accuracy"] < 0.99:
        return row
    row["methods"] = {
        name: page.measure(net, exam, page.read(name, net, exam), found) for name in page.METHODS
    }
    row["one_mark"] = one_mark(page, net, plan, exam)
    row["believe"] = believe(page, net, exam, (found["use_real"], found["use_fake"]), plan.low)
    return row


def rounded(values):
    """Round every number in nested lists and dicts to four digits after the point."""
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [rounded(value) for value in values]
    return round(values, 4) if isinstance(values, float) else values


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", JudgeWarning)  # judges with batch norm are part of the study
    torch.set_num_threads(1)  # so small a network gains nothing from a second one
    page, rows = chapter(), []
    for number, plan in enumerate(plans(page)):
        place = folder / f"row_{number:02d}.json"
        if not place.exists():
            write_atomically(place, json.dumps(rounded(row_of(page, plan, folder))).encode())
        rows.append(json.loads(place.read_text("utf-8")))
        print(number + 1, plan, f"accuracy {rows[-1]['accuracy']:.3f}", flush=True)
    record = {
        "command": "python -m book.relevance_study FOLDER",
        "date": datetime.date.today().isoformat(),
        "versions": {"galnb": __version__, "torch": torch.__version__},
        "rule": RULE,
        "noise": NOISE,
        "shares": page.SHARES.tolist(),
        "rows": rows,
    }
    text = json.dumps(record).replace('{"plan"', '\n{"plan"')
    write_atomically(RECORD, (text + "\n").encode())


if __name__ == "__main__":
    main()
