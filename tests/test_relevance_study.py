"""The study behind chapter 06: its third world, its methods, its measures, and the record it left."""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from book import relevance_study as study
from galnb import notebook
from galnb.relevance import Polarized, polarized_relevance
from galnb.relevance.operators import LAYERS
from tests.golden_networks import draw, randomise

PAGE = study.chapter()
PLANS = study.plans(PAGE)
RECORD = notebook.record("06_polarized_lrp")


def test_plans_are_distinct_and_enough():
    assert len(set(PLANS)) == len(PLANS)
    assert PLANS[:2] == [PAGE.Plan(world) for world in list(PAGE.MARKS)[:2]]  # those of the page
    grouped = [plan for plan in PLANS if plan.norm == "group"]
    third = [plan for plan in PLANS if plan.world == "point and arc" and plan.norm != "group"]
    rest = len(PLANS) - len(grouped) - len(third)
    assert min(len(grouped), len(third), rest) >= 10


def test_third_world_has_its_light_on_its_marks():
    point, arc, at_point, at_arc = study.point_marks(100, torch.Generator().manual_seed(0))
    assert not (at_point & at_arc).any()
    for light, at in ((point, at_point), (arc, at_arc)):
        on, whole = ((light * part).sum((1, 2)) for part in (at, torch.ones(())))
        assert (on / whole).min() > 0.95 and at.sum((1, 2)).min() >= 12


def norm_net(groups=2):
    return randomise(nn.Sequential(nn.GroupNorm(groups, 4), nn.Flatten(), nn.Linear(36, 1)))


def test_shared_norm_equals_its_definition_unit_by_unit():
    net, images, references = norm_net(), draw(1, 4, 3, 3), draw(1, 4, 3, 3, seed=5)
    found = PAGE.norm_shared(net, images, references)
    norm, weight = net[0], net[2].weight.detach().flatten()
    with torch.no_grad():
        change = (norm(images) - norm(references)).flatten()
    expected = torch.zeros(36, dtype=images.dtype)
    for first in (0, 18):
        x, ref = (part.flatten()[first : first + 18] for part in (images, references))
        s, s_ref = (1 / (part.var(unbiased=False) + norm.eps).sqrt() for part in (x, ref))
        spread = (x - x.mean()) ** 2 - (ref - ref.mean()) ** 2
        for j in range(18):
            w = norm.weight.detach()[(first + j) // 9]
            parts = -w * s * (x - ref) / 18  # by the mean, of every pixel
            parts[j] += w * s * (x - ref)[j]
            parts += w * (s - s_ref) * (ref[j] - ref.mean()) * spread / spread.sum()
            assert parts.sum().item() == pytest.approx(change[first + j].item(), abs=1e-9)
            expected[first : first + 18] += weight[first + j] * parts
    torch.testing.assert_close((found.positive - found.negative).flatten(), expected, rtol=0, atol=1e-9)


def test_shared_norm_keeps_sums_and_leaves_the_package_as_it_was():
    body = (nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4), nn.LeakyReLU(0.2))
    net = randomise(nn.Sequential(*body, nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 1)))
    images, references = draw(3, 3, 8, 8), draw(2, 3, 8, 8, seed=9)
    found = PAGE.norm_shared(net, images, references)
    assert LAYERS[nn.GroupNorm] == "norm" and found.leak.abs().max() < 1e-9
    usual = polarized_relevance(net, images, reading="reference", references=references)
    assert (found.positive - usual.positive).abs().max() > 1e-3


def plain_net():
    body = (
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, 2, 1, bias=False),
        nn.ReLU(),
    )
    last = (nn.Flatten(), nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False))
    return randomise(nn.Sequential(*body, *last))


@pytest.mark.parametrize("name", ["rescale", "epsilon-plus-flat", "epsilon-alpha2-beta1"])
def test_other_rules_conserve(name):
    net, images = plain_net(), draw(2, 3, 8, 8).abs()
    found = PAGE.MAPS[name](net, images, draw(2, 3, 8, 8, seed=9))
    signed = (found.positive - found.negative).sum((1, 2, 3))
    torch.testing.assert_close(signed, found.score - found.reference_score, rtol=0, atol=1e-9)


def test_rescale_of_a_network_linear_along_the_way_is_the_slope():
    net = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 1)))
    images, reference = draw(2, 3, 8, 8), draw(1, 3, 8, 8, seed=9)
    found = study.rescale(net, images, reference)
    way = PAGE.gradient_at(net, images) * (images - reference)
    torch.testing.assert_close(found.positive - found.negative, way, rtol=0, atol=1e-9)
    integrated = PAGE.integrated_gradients(net, images, reference, steps=2)
    torch.testing.assert_close(integrated.positive - integrated.negative, way, rtol=0, atol=1e-9)


def test_grad_cam_and_occlusion_find_the_pixel_that_counts():
    net = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.Flatten(), nn.Linear(64, 1, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(1), net[2].weight.zero_()
        net[2].weight[0, 3 * 8 + 5] = 2.0
    images, sky = torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    occluded = study.occlusion(PAGE, net, images, sky, side=2, step=1).per_pixel()[0][0, 0]
    assert occluded.argmax() == 3 * 8 + 5 and occluded[6, 1] == 0
    assert occluded[3, 5].item() == pytest.approx(6)  # every square over it lowers the logit by 2 x 3
    seen = study.grad_cam(PAGE, net, images, None).per_pixel()[0]
    torch.testing.assert_close(seen, torch.full_like(seen, 3 * 2 / 64))


def test_one_mark_counts_a_perfect_map_as_perfect(monkeypatch):
    plan = PLANS[0]

    seen = []

    def logits_of(net, images):  # right about every image
        seen.append(images)
        return torch.ones(len(images)) * (1 if len(seen) == 1 else -1)

    def perfect(name, net, exam):
        draw_again = torch.Generator().manual_seed(20_000 + plan.seed)
        kind = torch.full((len(exam.both),), len(seen) - 1)
        places = [at.expand(-1, 3, -1, -1).float() for at in plan.images(kind, draw_again)[1:]]
        zero = torch.zeros(len(exam.both))
        return Polarized(*places, zero, torch.zeros(len(zero), 2), "paper", zero, {})

    page = PAGE.__class__(**vars(PAGE) | {"logits_of": logits_of, "read": perfect})
    exam = PAGE.Exam(*[torch.zeros(4, 3, 32, 32)] * 5)
    found = study.one_mark(page, None, plan, exam, count=4)
    assert set(found) == set(study.ONE_MARK)
    assert found["paper"]["hit"] == [1, 1] and found["paper"]["sign"] == [1, 1]
    assert found["paper"]["held"] == pytest.approx([16, 16])  # of 1024 pixels a mark has 64


@pytest.mark.filterwarnings("ignore::galnb.relevance.JudgeWarning")
def test_believe_gives_a_map_that_does_not_change_a_correlation_of_one():
    net, plan = PAGE.new_net(PLANS[0]).eval(), PLANS[0]
    exam, _ = PAGE.examine(net, plan, count=study.FEW)
    same = PAGE.read("paper", net, exam)
    page = PAGE.__class__(**vars(PAGE) | {"read": lambda name, net, exam: same})
    found = study.believe(page, net, exam, (1.0, 2.0), plan.low)
    assert found["paper"]["shuffled"] == pytest.approx([1] * 4) and len(found["paper"]["noise"]) == 3
    real, fake = found["random region"]["flipping"]
    assert len(real) == len(fake) == len(PAGE.SHARES) and real[0] == fake[0] == 0


def test_record_is_that_of_this_study():
    assert RECORD["rule"] == study.RULE and tuple(RECORD["noise"]) == study.NOISE
    assert RECORD["shares"] == pytest.approx(PAGE.SHARES.tolist())
    assert [row["plan"] for row in RECORD["rows"]] == [dataclasses.asdict(plan) for plan in PLANS]
    learned = [row for row in RECORD["rows"] if row["accuracy"] >= 0.99]
    assert (
        sum(row["plan"]["world"] == "point and arc" and row["plan"]["norm"] != "group" for row in learned)
        >= 10
    )
    for row in learned:
        assert set(row["methods"]) == set(PAGE.METHODS) and set(row["one_mark"]) == set(study.ONE_MARK)
        assert set(row["believe"]) == {*study.BELIEVED, "random region"}


def test_table_entries_return_after_an_error():
    before = dict(LAYERS)
    with pytest.raises(ValueError, match="stop"), study.swapped(LAYERS, nn.GroupNorm, partial(int)):
        raise ValueError("stop")
    assert before == LAYERS
