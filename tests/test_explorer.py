"""The explorer without its widgets: geometry by hand, examinations, figures."""

import pytest
import torch

from galnb import explorer, images, plots
from galnb.gans import deblender
from galnb.pages import to_png
from tests.cells import namespace

KEEP = {"rule": "max", "fill": "zeros"}


@pytest.fixture(scope="module")
def gan():
    config = deblender.DeblenderConfig(
        size=32, width=8, root_blocks=1, branch_blocks=1, discriminator_width=8, dense=16
    )
    gan = deblender.deblender(config)
    gan.generator.eval()
    gan.discriminator.eval()
    return gan


@pytest.fixture(scope="module")
def pair():
    return images.hubble_deep_field(size=32, limit=2).pixels


def second(pair, generator, **placement):
    placed = explorer.Placement(**{"x": 0.0, **placement})
    return explorer.compose(pair[0], pair[1], placed, generator=generator, **KEEP)[1][1]


def test_untouched_galaxy_stays_as_it_is(pair, generator):
    assert torch.allclose(second(pair, generator), pair[1], atol=1e-5)  # float32 sampling grid


def test_quarter_turn_is_that_of_torch(pair, generator):
    turned = second(pair, generator, angle=90)
    assert torch.allclose(turned, torch.rot90(pair[1], 1, (1, 2)), atol=1e-4)  # float32 grid on steep edges


def test_whole_pixel_shift_is_a_roll_right_and_down(pair, generator):
    moved = second(pair, generator, x=3, y=-2)
    rolled = pair[1].roll((-2, 3), (1, 2))
    assert torch.allclose(moved[:, :-3, 4:], rolled[:, :-3, 4:], atol=1e-4)


def test_scale_grows_the_area(generator):
    line = torch.arange(32) - 15.5
    spot = torch.exp(-(line**2 + line[:, None] ** 2) / 18).expand(3, -1, -1)
    both = torch.stack([spot, spot])
    ratio = second(both, generator, scale=0.5).sum() / spot.sum()
    assert abs(ratio - 0.25) < 0.01  # a quarter of the area; the pixels are coarse


def test_flux_scales_the_light_above_the_sky(pair, generator):
    sky = pair[1].flatten(1).median(1).values[:, None, None]
    half = second(pair, generator, flux=0.5)
    assert torch.allclose(half, (sky + 0.5 * (pair[1] - sky)).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize("rule", ["max", "sum"])
def test_blend_follows_its_rule(pair, generator, rule):
    blended, galaxies = explorer.compose(
        pair[0], pair[1], explorer.Placement(x=5), rule=rule, generator=generator
    )
    assert blended.shape == pair[0].shape and galaxies.shape == (2, *pair[0].shape)
    if rule == "max":
        assert torch.equal(blended, galaxies.amax(0))
    else:
        assert blended.mean() > galaxies.amax(0).mean()


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"flux": -1.0}, {"x": float("nan")}])
def test_impossible_placement_is_refused(wrong):
    with pytest.raises(ValueError, match="expected finite numbers, scale > 0"):
        explorer.Placement(**wrong)


def test_compose_refuses_what_does_not_fit(pair, generator):
    with pytest.raises(ValueError, match="two square images of one shape"):
        explorer.compose(pair[0], pair[1][:, :16], explorer.Placement(), generator=generator)
    with pytest.raises(ValueError, match="rule 'mean' is unknown; known are max, sum"):
        explorer.compose(pair[0], pair[1], explorer.Placement(), rule="mean", generator=generator)


@pytest.mark.parametrize("reading", ["paper", "output", "composite", "reference"])
def test_finding_agrees_with_the_discriminator(gan, pair, generator, reading):
    others = pair.flip(-1)
    examination = explorer.examine(gan, pair[0], reading=reading, references=others, generator=generator)
    with torch.no_grad():
        logits = gan.discriminator(gan.prepare(torch.cat([pair[:1], others]))).flatten()
    assert examination.maps.score.item() == pytest.approx(logits[0].item(), abs=1e-5)
    both = torch.stack([examination.positive, examination.negative])
    assert torch.equal(both, torch.stack(examination.maps.per_pixel())[:, 0]) and both.min() >= 0
    if reading == "reference":
        signed = examination.positive.sum() - examination.negative.sum()
        assert signed.item() == pytest.approx((logits[0] - logits[1:].mean()).item(), abs=1e-4)


def test_reference_reading_needs_references(gan, pair, generator):
    with pytest.raises(ValueError, match="references are needed"):
        explorer.examine(gan, pair[0], generator=generator)
    with pytest.raises(ValueError, match="reference 1 equals image 0"):
        explorer.examine(gan, pair[1], references=pair, generator=generator)


def test_profile_of_a_constant_is_flat_and_of_a_ring_is_a_peak():
    radius, flat = explorer.radial_profile(torch.ones(1, 3, 40, 40))
    assert torch.allclose(flat, torch.tensor(3.0)) and len(radius) == 10
    line = torch.arange(40) - 19.5
    far = torch.hypot(line, line[:, None])
    ring = ((far > 8) & (far < 10)).float()[None, None]
    radius, profile = explorer.radial_profile(ring)
    assert radius[profile[0].argmax()] == 9 and profile[0, 0] == 0
    with pytest.raises(ValueError, match="expected square"):
        explorer.radial_profile(torch.ones(1, 3, 40, 30))


def test_gates_are_put_into_words():
    assert explorer.gate_verdicts((-0.5, 0.1)) == ("passed", "passed")
    assert explorer.gate_verdicts((0.5, 0.0)) == ("FAILED", "empty map")


def test_figure_shows_verdict_and_keeps_the_strongest_pixels(gan, pair, generator):
    examination = explorer.examine(gan, pair[0], reading="composite", generator=generator)
    cells = namespace("08_explorer", "panels", "draw-answer", explorer=explorer, plots=plots, torch=torch)
    figure = cells["draw"](pair[0], pair, examination, polarity="for fake", strongest=0.1, judged=0)
    words = " ".join(text.get_text() for ax in figure.axes for text in ax.texts)
    assert "logit" in words and "gate" in words
    assert "judged" in figure.axes[1].get_title() and "judged" not in figure.axes[2].get_title()
    shown = torch.as_tensor(figure.axes[6].images[-1].get_array())  # grey but for the strongest pixels
    coloured = shown.amax(2) - shown.amin(2) > 1e-9
    assert 0 < coloured.sum() <= 0.11 * coloured.numel()
    assert (shown[..., 2] >= shown[..., 0])[coloured].all(), "for fake is blue"
    assert to_png(figure).startswith(b"\x89PNG")
