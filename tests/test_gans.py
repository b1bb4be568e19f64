"""What all GANs share: ranges, the way in, the way to draw, configs from JSON; and the shipped weights."""

import copy
import hashlib
import json
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass

import pytest
import torch
from torch import nn

from galnb.gans import (
    build_gan,
    check_gan,
    deblender,
    enter,
    from_json,
    in_batches,
    lightweight,
    radio,
    tensors_of,
    to_signed,
    to_unit,
    vanilla,
)
from galnb.gans.layers import Augmentation
from galnb.images import ImageSet
from galnb.training import checkpoints
from tests.tiny_runs import SIZES, plain_gan

FILES = sorted(checkpoints.WEIGHTS.glob("*.safetensors"))
INDEX = json.loads((checkpoints.WEIGHTS / "index.json").read_text())
# Logits of fixed images, mean and standard deviation of what is drawn, in float64: the same on every machine.
GOLDEN = {
    "deblender-bounded": [-0.0162900756, -0.0968586764, -0.822003916, 0.262726686],
    "deblender-paper": [12.5254054, 11.4076341, -0.732592153, 0.225626938],
    "deblender-paper@burn-in": [-0.366328447, -0.346853138, 0.0373258096, 0.490113414],
    "deblender-paper@early": [1.90173335, -1.05575291, -0.790113647, 0.159158533],
    "deblender-paper@middle": [-4.52893897, -1.77121268, -0.748932826, 0.192723844],
    "deblender-sum": [1.83300949, 0.861513509, -0.797974872, 0.285343894],
    "lightweight-64": [0.0202679867, -0.249248813, -0.843761024, 0.249904167],
    "lightweight-hubble": [-0.91093818, -1.25394753, -0.62756505, 0.487005152],
    "phantom-noise": [6.30052121, 6.1046222, -0.796841494, 0.18071148],
    "phantom-reflect": [3.08148203, 2.87094995, -0.792284857, 0.180619422],
    "phantom-zeros": [4.44084478, 4.61096681, -0.793773546, 0.191016203],
    "radio-plain": [18.7530747, 21.9783613, 6.93715361, 30.1893136, -0.979729973, 0.130002672],
    "radio-plain@step1000": [14.0660055, 21.4738999, -2.7961601, 24.5277404, -0.98538912, 0.0995395871],
    "radio-plain@step1250": [17.9197143, 23.9471991, -4.51527063, 33.2301886, -0.983323482, 0.115696135],
    "radio-plain@step1500": [24.0972038, 28.1655177, 5.98163892, 37.0097843, -0.979254661, 0.133734345],
    "radio-plain@step500": [19.122935, 30.5594283, 1.2721633, 31.4415445, -0.949260615, 0.24278737],
    "radio-smeared": [22.7587421, 16.117681, 16.6601037, 24.2286045, -0.984077796, 0.123418333],
    "radio-smeared@step1000": [14.6085438, 14.6514354, 18.7896266, 15.2011995, -0.988786872, 0.0907353717],
}  # fmt: skip


def test_ranges_map_into_each_other(random_images):
    assert to_signed(torch.tensor([0.0, 0.25, 1.0])).tolist() == [-1.0, -0.5, 1.0]
    # 2 x - 1 rounds once in float32, below 1e-7 for values up to 1
    assert torch.allclose(to_unit(to_signed(random_images)), random_images, atol=1e-7)


def test_to_unit_clips_what_lies_outside():
    assert to_unit(torch.tensor([-1.5, -1.0, 0.0, 1.0, 3.0])).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_a_gan_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        plain_gan().name = "other"


def test_a_gan_of_another_name_is_refused():
    check_gan(plain_gan(), "plain")
    for given, name in ((plain_gan(), "'plain' GAN"), (None, "NoneType"), (nn.Identity(), "Identity")):
        with pytest.raises(ValueError, match=f"got a {name}, expected a 'radio' GAN"):
            check_gan(given, "radio")


@pytest.mark.parametrize(
    ("batch", "given"),
    [
        ({}, "None"),
        ({"images": torch.zeros(0, 3, 8, 8)}, "0, 3"),
        ({"images": torch.zeros(2, 3, 8, 9)}, "8, 9"),
    ],
)
def test_images_of_a_batch_have_the_shape_asked_for(batch, given):
    fits = torch.zeros(2, 3, 8, 8)
    assert tensors_of({"images": fits}, images=(3, 8, 8))[0] is fits
    with pytest.raises(ValueError, match=rf"images.*{given}.*expected .*, 3, 8, 8\)}}, at least one"):
        tensors_of(batch, images=(3, 8, 8))


@pytest.mark.parametrize("own", [torch.float32, torch.float64, torch.bfloat16])
def test_images_enter_in_the_precision_of_the_network(own, random_images):
    network = nn.Linear(1, 1).to(own)
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        given = random_images.to(kind)
        assert torch.equal(enter(network, given), 2 * given.to(own) - 1)
    whole = ImageSet(random_images, tuple(map(str, range(len(random_images)))), "random")
    for wrong, name in (((255 * random_images).byte(), "torch.uint8"), (whole, "ImageSet"), ([0.5], "list")):
        with pytest.raises(
            ValueError, match=f"images: got {name}, expected a tensor of floats; .*pixels.*255"
        ):
            enter(network, wrong)


def test_drawing_in_batches_keeps_its_contract(generator):
    """Eval mode, no gradient, [0, 1], float32, on the CPU, so many at a time; and the mode comes back."""
    seen = []

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.norm = nn.Parameter(torch.tensor(3.0)), nn.BatchNorm1d(2)

        def forward(self, vectors, labels):
            seen.append((self.training, torch.is_grad_enabled(), len(vectors), vectors.dtype, labels.dtype))
            return self.scale * self.norm(vectors) + labels[:, None]

    network = Network().double().train()
    network.norm.eval()
    vectors, labels = torch.randn(5, 2, generator=generator), torch.arange(5) - 2
    drawn = in_batches(network, vectors, labels, batch=2)
    assert seen == [(False, False, count, torch.float64, torch.int64) for count in (2, 2, 1)]
    assert network.training and not network.norm.training
    assert drawn.dtype == torch.float32 and drawn.device.type == "cpu" and not drawn.requires_grad
    assert drawn.min() == 0 and drawn.max() == 1
    wanted = to_unit(3 * vectors.double() / (1 + 1e-5) ** 0.5 + labels[:, None])
    assert torch.allclose(drawn, wanted.float(), atol=1e-6)
    other = in_batches(network, vectors, batch=5, draw=lambda part: (part > 0).half())
    assert torch.equal(other, (vectors > 0).float())
    for wrong in (0, -1, 2.0, True, None):
        with pytest.raises(ValueError, match=r"batch=.*expected a whole number of at least 1"):
            in_batches(network, vectors, labels, batch=wrong)


def test_seeds_fix_first_weights_and_leave_the_global_state_alone():
    def networks(seed, first=None):
        linear = (lambda config: nn.Linear(3, 3)), (lambda config: nn.Linear(3, 1))
        gan = build_gan("plain", radio.RadioConfig(seed=seed), linear, (None, None), first)
        return gan.generator, gan.discriminator

    before = torch.get_rng_state()
    one, same, other = (networks(seed) for seed in (1, 1, 2))
    drawn, again = (networks(1, lambda a, b: b.weight.data.normal_()) for _ in range(2))
    assert torch.equal(drawn[1].weight, again[1].weight) and not torch.equal(drawn[1].weight, one[1].weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[1].weight, same[1].weight) and not torch.equal(one[1].weight, other[1].weight)


@dataclass(frozen=True)
class _Part:
    pair: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class _Whole:
    name: str
    stages: tuple[tuple[str, float], ...] = ()
    part: _Part | None = None
    about: dict | None = None

    def __post_init__(self):
        if not self.name:
            raise ValueError("name is empty")


def test_configs_come_back_from_json():
    configs = (
        _Whole("a", (("early", 0.1), ("late", 1.0)), _Part((2.0, 3.0)), {"b": [1]}),
        _Whole("b"),
        deblender.DeblenderConfig(size=16, widths=(8, 16), blocks=(1, 1), discriminator_norm="group"),
        lightweight.LightweightConfig(augmentation=Augmentation(hue=0.5)),
        radio.RadioConfig(sigma=0.5),
        vanilla.VanillaConfig(condition=True),
    )
    for config in configs:
        again = from_json(type(config), json.loads(json.dumps(asdict(config))))
        assert again == config and (config.__dict__.get("about") or hash(again) == hash(config))
    assert from_json(_Whole, {"name": "c", "part": {}}).part == _Part()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a", "size": 3, "kind": 1}, "_Whole has no field kind, size; known are name, stages, part"),
        ({"name": "a", "part": {"triple": [1]}}, "_Part has no field triple; known are pair"),
        ({}, "_Whole cannot be built from .*missing .* 'name'"),
        ({"name": ""}, "name is empty"),
        ([1], "_Whole: got list, expected Mapping; a table of its fields"),
        (None, "_Whole: got NoneType"),
    ],
)
def test_configs_that_json_cannot_make_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        from_json(_Whole, values)


@pytest.mark.parametrize("name", ["radio", "lightweight", "vanilla"])
def test_a_gan_can_be_copied_and_sent_to_another_process(name, generator):
    gan = SMALL[name]()
    images = torch.rand(1, 1 if name == "radio" else 3, gan.config.size, gan.config.size, generator=generator)
    for again in (copy.deepcopy(gan), pickle.loads(pickle.dumps(gan))):
        again.generator.double()
        assert again.prepare(images).dtype == torch.float64 and gan.prepare(images).dtype == torch.float32


SMALL = {
    "branched": lambda: deblender.deblender(
        deblender.DeblenderConfig(
            size=16, width=4, root_blocks=1, branch_blocks=1, discriminator_width=4, dense=8
        )
    ),
    "gated": lambda: deblender.deblender(
        deblender.DeblenderConfig(
            **{**SIZES, "widths": (8, 16)}, generator="gated", size=16, discriminator_width=4, dense=8
        )
    ),
    "radio": lambda: radio.radio(radio.RadioConfig(16, 4, 8)),
    "lightweight": lambda: lightweight.lightweight(lightweight.LightweightConfig(64, 4, 16, 8)),
    "vanilla": lambda: vanilla.vanilla(vanilla.VanillaConfig(16, 4, 8)),
    "vanilla image": lambda: vanilla.vanilla(vanilla.VanillaConfig(16, 4, condition=True)),
}


@pytest.mark.parametrize(
    ("name", "sums"),
    [
        ("branched", (439.344007, 2098.996336)),
        ("gated", (865.554566, 2162.929471)),
        ("radio", (512.316454, 62.194148)),
        ("lightweight", (1078.606727, 2094.068734)),
        ("vanilla", (30.919787, 1.532523)),
        ("vanilla image", (124.001874, -1.909492)),
    ],
)
def test_first_weights_are_those_of_earlier_versions(name, sums):
    gan = SMALL[name]()
    for network, wanted in zip((gan.generator, gan.discriminator), sums, strict=True):
        found = sum((1 + i) * weight.double().sum().item() for i, weight in enumerate(network.parameters()))
        assert found == pytest.approx(
            wanted, rel=1e-5
        )  # another CPU rounds the logarithm of a normal otherwise


def test_index_names_exactly_the_files():
    assert sorted(INDEX) == sorted(path.stem for path in FILES) and "deblender-bounded" in INDEX


def test_weights_stay_small():
    sizes = [path.stat().st_size for path in FILES]
    assert max(sizes) <= 6 * 2**20 and sum(sizes) <= 40 * 2**20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_the_one_of_the_index_and_works(path):
    about = INDEX[path.stem]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == about["sha256"]
    assert about["command"] in (checkpoints.WEIGHTS / "README.md").read_text()
    checkpoint = checkpoints.load_checkpoint(path.stem)
    assert checkpoint.step == about["steps"] > 0
    gan, generator = checkpoint.gan, torch.Generator().manual_seed(0)
    if about["gan"] == "radio":
        drawn = radio.generate(gan, torch.arange(4), generator=generator)
        assert drawn.shape == (4, 1, 64, 64) and drawn.amax(dim=(1, 2, 3)).min() > 0.1
        assert (drawn == 0).float().mean() > 0.5, "the sky of FIRST is exactly black"
    elif about["gan"] == "lightweight":
        drawn = lightweight.generate(gan, 8, generator=generator)
        middle, rim = drawn[..., 24:40, 24:40].mean(), drawn[..., :4].mean()
        assert drawn.shape == (8, 3, 64, 64) and middle > 2 * rim, "light in the middle of a dark sky"
    else:
        drawn = deblender.deblend(gan, torch.rand(2, 3, 80, 80, generator=generator))
        assert drawn.shape == (2, 2, 3, 80, 80) and drawn.isfinite().all()
    assert _figures(gan) == pytest.approx(GOLDEN[path.stem], rel=1e-6, abs=1e-6)


@torch.no_grad()
def _figures(gan):
    """Logits of fixed images, mean and standard deviation of what is made of fixed inputs."""
    size = gan.config.size
    gan.generator.double(), gan.discriminator.double()
    ramp = torch.linspace(0, 1, size, dtype=torch.float64)
    grey = 0.6 * torch.outer(ramp, ramp) + 0.3 * torch.outer(ramp.flip(0), ramp)
    if gan.name == "deblender":
        images = torch.stack([grey, grey**2, grey.flip(0)])[None]
        drawn = gan.generator(gan.prepare(images))
        logits = gan.discriminator(gan.prepare(torch.cat([images, images.flip(-1)])))
    else:
        count = 4 if gan.name == "radio" else 2
        vectors = torch.linspace(-2, 2, count * gan.config.latent, dtype=torch.float64).view(count, -1)
        if gan.name == "radio":
            labels = torch.arange(4)
            drawn = gan.generator(vectors, labels)
            logits = gan.discriminator(gan.prepare(grey.expand(4, 1, -1, -1)), labels)
        else:
            drawn = gan.generator(vectors, grey.new_zeros(2, 1, size, size))
            images = torch.stack([grey, grey**2])[:, None].expand(-1, 3, -1, -1)
            logits = gan.discriminator(gan.prepare(images))
    return [*logits.flatten().tolist(), drawn.mean().item(), drawn.std().item()]
