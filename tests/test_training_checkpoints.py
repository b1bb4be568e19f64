"""Checkpoints: one file rebuilds the model, and nothing but a whole file is read."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.utils.parametrizations import weight_norm

from galnb.gans.deblender import deblend, deblender
from galnb.training import checkpoints, load_checkpoint, save_checkpoint, shipped
from tests.tiny_runs import TINY, batches, one_thread  # noqa: F401

GATED = replace(TINY, generator="gated", reconstruction="log_mse", adversarial_weight=0.5)


@pytest.fixture
def gan():
    """A deblender that has seen one batch, so that its batch statistics are not the fresh ones."""
    return seen_one_batch(TINY)


def seen_one_batch(config):
    gan = deblender(config)
    with torch.no_grad():
        gan.generator_loss(gan, batches()(0), None)
    return gan


@pytest.fixture
def path(tmp_path, gan):
    return save_checkpoint(tmp_path / "a.safetensors", gan, experiment={}, step=7)


@pytest.mark.parametrize("config", [TINY, GATED], ids=lambda config: config.generator)
def test_the_file_alone_rebuilds_the_model(tmp_path, config):
    gan, story = seen_one_batch(config), {"data": "blobs", "batch_size": 4}
    path = tmp_path / "a.safetensors"
    kept = load_checkpoint(save_checkpoint(path, gan, experiment=story, step=7, metrics={"psnr": 20.5}))
    assert kept.gan.config == gan.config and kept.gan.name == "deblender"
    assert (kept.step, kept.experiment, kept.metrics) == (7, story, {"psnr": 20.5})
    for part in ("generator", "discriminator"):
        ours, saved = getattr(kept.gan, part), getattr(gan, part).state_dict()
        assert not ours.training and ours.state_dict().keys() == saved.keys()
        assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in saved.items())
    blended = batches()(1)["blended"]
    assert torch.equal(deblend(kept.gan, blended), deblend(gan, blended))
    kept.gan.generator_loss(kept.gan, batches()(0), None)["total"].backward()  # it can learn on


def test_the_file_can_be_read_without_galnb(path, gan):
    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["galnb"])
        weight = file.get_tensor("discriminator.0.weight")
    assert header["gan"] == "deblender" and header["torch"] == torch.__version__
    assert header["config"]["adversarial_weight"] == gan.config.adversarial_weight
    assert torch.equal(torch.from_numpy(weight), gan.discriminator[0].weight.detach())


def test_half_precision_halves_weights_but_not_statistics(path, gan):
    half = save_checkpoint(
        path.with_name("half.safetensors"), gan, experiment={}, step=7, dtype=torch.float16
    )
    assert half.stat().st_size < 0.75 * path.stat().st_size  # the header stays
    with safe_open(half, framework="pt") as file:
        assert file.get_tensor("discriminator.0.weight").dtype == torch.float16
        assert file.get_tensor("discriminator.3.running_var").dtype == torch.float32
        assert file.get_tensor("discriminator.3.num_batches_tracked").dtype == torch.int64
    kept = load_checkpoint(half).gan
    for name, tensor in gan.discriminator.state_dict().items():
        assert kept.discriminator.state_dict()[name].dtype == tensor.dtype
        wanted = tensor if "running_" in name or "num_" in name else tensor.half().float()
        assert torch.equal(kept.discriminator.state_dict()[name], wanted)


def test_eight_bits_for_the_generator_only(path, gan):
    small = save_checkpoint(path.with_name("small.safetensors"), gan, experiment={}, step=7, dtype=torch.int8)
    kept = load_checkpoint(small).gan
    for name, tensor in gan.discriminator.state_dict().items():
        wanted = tensor if "running_" in name or "num_" in name else tensor.half().float()
        assert torch.equal(kept.discriminator.state_dict()[name], wanted)
    coarse = 0
    for name, tensor in gan.generator.state_dict().items():
        found = kept.generator.state_dict()[name]
        assert found.dtype == tensor.dtype
        if tensor.ndim > 1:
            step = tensor.flatten(1).abs().amax(1) / 127
            wrong = (found - tensor).flatten(1).abs().amax(1)
            assert (wrong <= 0.501 * step).all() and wrong.max() > 0
            coarse += 1
        elif tensor.is_floating_point() and "running_" not in name:
            assert torch.equal(found, tensor.half().float())
    assert coarse > 3
    blended = batches()(1)["blended"]
    assert (deblend(kept, blended) - deblend(gan, blended)).abs().max() < 0.02  # 5 grey levels of 255


@pytest.mark.parametrize("keep", [0, 4, 200, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged, .*get it again"):
        load_checkpoint(path)


def rewrite(path, change):
    """Save the file again with another header."""
    with safe_open(path, framework="pt") as file:
        metadata, names = file.metadata(), list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
    header = json.loads(metadata["galnb"])
    change(header, tensors, metadata)
    save_file(tensors, path, metadata={"galnb": json.dumps(header), **metadata})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda h, t, m: m.update(format="pt"),
            "format 'pt' is unknown; known are galnb-1",
        ),
        (
            lambda h, t, m: (h.update(gan="stylegan"), m.pop("galnb")),
            "gan 'stylegan' is unknown; known are deblender",
        ),
        (
            lambda h, t, m: (h["config"].update(depth=3), m.pop("galnb")),
            r"a\.safetensors is damaged, .*no field depth.*update galnb",
        ),
        (
            lambda h, t, m: (h["config"].update(dense=9), m.pop("galnb")),
            "not those that their config builds: discriminator.* differ",
        ),
        (
            lambda h, t, m: t.pop("discriminator.0.bias"),
            r"not those that their config builds: discriminator\.0\.bias differ",
        ),
        (
            lambda h, t, m: (h["config"].update(size=17), m.pop("galnb")),
            r"a\.safetensors is damaged, or of another .*size is 17",
        ),
        (
            lambda h, t, m: m.update(galnb='{"gan": '),
            r"a\.safetensors is damaged, .*JSON.*get it again",
        ),
        (lambda h, t, m: m.update(galnb="[]"), r"a\.safetensors is damaged,"),
        (lambda h, t, m: (h.update(gan=["vanilla"]), m.pop("galnb")), "is damaged, or of another"),
        (lambda h, t, m: (h.update(config=None), m.pop("galnb")), "is damaged, or of another"),
        *(
            (lambda h, t, m, name=name: (h.pop(name), m.pop("galnb")), f"is damaged, .*'{name}'")
            for name in ("gan", "config", "experiment", "step", "metrics")
        ),
    ],
)
def test_a_foreign_file_is_refused(path, change, message):
    rewrite(path, change)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, name: tensors.pop(name),
        lambda tensors, name: tensors.pop(name + ":scale"),
        lambda tensors, name: tensors.update({name + ":scale": tensors[name + ":scale"][:1].clone()}),
        lambda tensors, name: tensors.update({name + ":scale": torch.ones(len(tensors[name]) + 1)}),
        lambda tensors, name: tensors.update({name + ":scale": torch.tensor(1.0)}),
    ],
    ids=["no tensor", "no scale", "one scale", "a scale too many", "no axis"],
)
def test_eight_bits_without_their_scales_are_refused(tmp_path, gan, change):
    path = save_checkpoint(tmp_path / "a.safetensors", gan, experiment={}, step=7, dtype=torch.int8)
    with safe_open(path, framework="pt") as file:
        name = next(key for key in file.keys() if key.endswith(":scale")).removesuffix(":scale")  # noqa: SIM118
    rewrite(path, lambda header, tensors, metadata: change(tensors, name))
    with pytest.raises(ValueError, match=rf"a\.safetensors is damaged, .*{name}"):
        load_checkpoint(path)


def test_a_safetensors_file_of_another_program_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="format None is unknown; known are galnb-1"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file at .*gone\.safetensors"):
        load_checkpoint(tmp_path / "gone.safetensors")


def test_shipped_weights_are_found_by_name(monkeypatch, path, gan):
    monkeypatch.setattr(checkpoints, "WEIGHTS", path.parent)
    path.rename(path.with_name("tiny@early.safetensors"))
    assert shipped("tiny@early").name == "tiny@early.safetensors"
    assert load_checkpoint("tiny@early").gan.config == gan.config
    with pytest.raises(ValueError, match=r"name of shipped weights 'tiny' is unknown; known are tiny@early"):
        load_checkpoint("tiny")
    monkeypatch.setattr(checkpoints, "WEIGHTS", path.parent / "none")
    with pytest.raises(ValueError, match=r"known are $"):
        shipped("tiny")


def test_every_shipped_file_loads():
    names = checkpoints.shipped_names()
    assert "radio-plain" in names
    assert checkpoints.shipped_names("radio-s") == ["radio-smeared", "radio-smeared@step1000"]
    for name in names:
        assert load_checkpoint(name).step > 0, name


def test_saving_refuses_other_endings_and_what_is_not_json(tmp_path, gan):
    with pytest.raises(ValueError, match=r"expected a file name that ends in \.safetensors"):
        save_checkpoint(tmp_path / "a.pt", gan, experiment={}, step=1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path / "a.safetensors", gan, experiment={"folder": tmp_path}, step=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, "float16"])
def test_saving_refuses_precisions_that_destroy_weights(tmp_path, gan, dtype):
    with pytest.raises(ValueError, match=r"dtype .* is unknown; known are torch\.float64, "):
        save_checkpoint(tmp_path / "a.safetensors", gan, experiment={}, step=1, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "axes", "value", "dtype", "stored"),
    [
        ("discriminator", 4, 7e4, torch.float16, torch.float16),
        ("discriminator", 4, 7e4, torch.int8, torch.float16),
        ("generator", 1, 7e4, torch.int8, torch.float16),
        ("generator", 4, torch.inf, torch.int8, torch.int8),
        ("generator", 4, torch.nan, torch.int8, torch.int8),
    ],
)
def test_saving_refuses_weights_that_the_precision_cannot_hold(
    tmp_path, gan, part, axes, value, dtype, stored
):
    named = getattr(gan, part).named_parameters()
    name, weight = next((name, weight) for name, weight in named if weight.ndim == axes)
    with torch.no_grad():
        weight.view(-1)[0] = value
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=f"{part}.{name} holds values that {stored} cannot.*torch.float32"):
        save_checkpoint(path, gan, experiment={}, step=1, dtype=dtype)
    kept = getattr(load_checkpoint(save_checkpoint(path, gan, experiment={}, step=1)).gan, part)
    assert torch.equal(kept.state_dict()[name].isfinite(), weight.isfinite())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda network: torch.compile(network, backend="eager"),
        torch.nn.DataParallel,
        lambda network: torch.nn.DataParallel(torch.compile(network, backend="eager")),
    ],
    ids=["compiled", "parallel", "both"],
)
@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_wrapped_networks_are_saved_as_what_they_wrap(path, gan, wrap, part):
    wrapped = replace(gan, **{part: wrap(getattr(gan, part))})
    kept = load_checkpoint(save_checkpoint(path, wrapped, experiment={}, step=1)).gan
    for name, tensor in getattr(gan, part).state_dict().items():
        assert torch.equal(getattr(kept, part).state_dict()[name], tensor)


def test_a_compiled_layer_is_saved_as_what_it_wraps(path, gan):
    whole = {name: tensor.clone() for name, tensor in gan.generator.state_dict().items()}
    gan.generator.root = torch.compile(gan.generator.root, backend="eager")
    assert any("_orig_mod" in name for name in gan.generator.state_dict())
    kept = load_checkpoint(save_checkpoint(path, gan, experiment={}, step=1)).gan.generator.state_dict()
    assert kept.keys() == whole.keys() and all(torch.equal(kept[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("generator", torch.optim.swa_utils.AveragedModel),  # counts its models in a tensor of its own
        ("generator", lambda network: torch.nn.Sequential(network)),
        ("generator", lambda network: deblender(replace(TINY, width=8)).generator),
        ("discriminator", lambda network: torch.nn.Sequential(*list(network)[:-1])),
        ("discriminator", lambda network: torch.nn.Sequential(weight_norm(network[0]), *list(network)[1:])),
    ],
    ids=["averaged", "nested", "wider", "cut", "parametrized"],
)
def test_networks_that_the_config_does_not_build_are_refused_while_saving(tmp_path, gan, part, change):
    other = replace(gan, **{part: change(getattr(gan, part))})
    with pytest.raises(ValueError, match=rf"not those that their config builds: {part}\..*own"):
        save_checkpoint(tmp_path / "b.safetensors", other, experiment={}, step=1)
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_another_precision_come_back_in_float32(path, gan, dtype):
    for network in (gan.generator, gan.discriminator):
        network.to(dtype)
    kept = load_checkpoint(save_checkpoint(path, gan, experiment={}, step=1)).gan
    for name, tensor in gan.generator.state_dict().items():
        found = kept.generator.state_dict()[name]
        assert found.dtype == (torch.float32 if tensor.is_floating_point() else tensor.dtype)
        assert torch.equal(found, tensor.to(found.dtype))


def test_weights_that_are_no_floats_are_refused(path):
    whole = "discriminator.0.weight"
    rewrite(path, lambda h, tensors, m: tensors.update({whole: tensors[whole].to(torch.int32)}))
    with pytest.raises(ValueError, match=r"not those that their config builds: discriminator\.0\.weight"):
        load_checkpoint(path)


def test_paths_that_are_folders_or_below_files_are_refused(tmp_path, path, gan, monkeypatch):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"expected a file name .* not a folder"):
        save_checkpoint(tmp_path / "folder.safetensors", gan, experiment={}, step=1)
    assert save_checkpoint(tmp_path / "new" / "c.safetensors", gan, experiment={}, step=1).is_file()
    with pytest.raises(FileNotFoundError, match=r"no file at .*new; expected one that save_checkpoint wrote"):
        load_checkpoint(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"name of shipped weights 'new' is unknown; known are .*deblender"):
        load_checkpoint("new")
    (tmp_path / "radio-plain").mkdir()  # a run's folder; the name still means the weights
    assert load_checkpoint("radio-plain").gan.name == "radio"


def test_weights_without_figures_of_a_judge_load(path):
    assert load_checkpoint(path).metrics.get("judge") is None
