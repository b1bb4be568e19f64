import csv
import io
import json
import sys
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from galnb import images

needs_radio = pytest.mark.skipif(
    find_spec("firstgalaxydata") is None,
    reason='firstgalaxydata is not installed: pip install "galnb[radio]"',
)


def jpeg(size=(48, 48), mode="RGB", kind="JPEG", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        (tmp_path / f"10{number}.jpg").write_bytes(jpeg(seed=number))
    return tmp_path


def test_galaxy_zoo_is_the_mean_over_blocks_of_the_centre(folder):
    read = images.galaxy_zoo(folder, size=8, crop=24)
    assert read.names == ("100", "101", "102")
    decoded = np.asarray(Image.open(folder / "101.jpg"), dtype=np.float64)[12:36, 12:36] / 255
    oracle = decoded.reshape(8, 3, 8, 3, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(read.pixels[1], oracle, atol=1e-6)  # float32 sums
    assert read.record == {"found": 3, "returned": 3, "crop": 24, "size": 8, "split": None, "converted": {}}


def test_galaxy_zoo_reads_full_frames_unchanged(folder):
    read = images.galaxy_zoo(folder, size=48, crop=48, limit=1)
    oracle = np.asarray(Image.open(folder / "100.jpg")).transpose(2, 0, 1)
    assert torch.equal((read.pixels[0] * 255).round().byte(), torch.from_numpy(oracle.copy()))
    assert (read.record["found"], read.record["returned"]) == (3, 1)


def test_galaxy_zoo_reads_the_same_from_a_zip(folder):
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for path in sorted(folder.glob("*.jpg")):
            archive.write(path, f"images_gz2/images/{path.name}")
            archive.writestr(f"__MACOSX/images_gz2/._{path.name}", b"companion of macOS")
    zipped = images.galaxy_zoo(folder / "all.zip", size=8, crop=24)
    (folder / "all.zip").unlink()
    assert torch.equal(zipped.pixels, images.galaxy_zoo(folder, size=8, crop=24).pixels)
    assert zipped.names == ("100", "101", "102")


def test_galaxy_zoo_takes_labels_that_lie_beside(folder):
    assert images.galaxy_zoo(folder, size=8, crop=24).labels is None
    table = "galaxy_id,group\n100,spiral\n101,non_spiral\n102,spiral\n"
    (folder / "labels.csv").write_text(table)
    assert images.galaxy_zoo(folder, size=8, crop=24).labels == ("spiral", "non_spiral", "spiral")


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG")])
def test_other_modes_become_rgb_and_are_recorded(tmp_path, mode, kind):
    (tmp_path / f"1.{kind.lower()}").write_bytes(jpeg(mode=mode, kind=kind))
    read = images.galaxy_zoo(tmp_path, size=24, crop=48)
    assert read.pixels.shape == (1, 3, 24, 24)
    assert read.record["converted"] == {mode: 1}


def test_galaxy_zoo_split_holds_out_the_last_300_names(tmp_path):
    data = jpeg((4, 4))
    for number in range(305):
        (tmp_path / f"{number:03d}.jpg").write_bytes(data)
    train, test = (images.galaxy_zoo(tmp_path, size=2, crop=4, split=split) for split in ("train", "test"))
    assert train.names == ("000", "001", "002", "003", "004")
    assert (len(test), test.names[0], test.names[-1]) == (300, "005", "304")
    with pytest.raises(ValueError, match="split='valid': expected None, 'train' or 'test'"):
        images.galaxy_zoo(tmp_path, split="valid")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a text that is named .jpg", r"bad\.jpg: not an image"),
        (b"", r"bad\.jpg: not an image"),
        (jpeg()[:900], r"bad\.jpg: damaged image \(.*truncated"),
        (jpeg((30, 20)), r"bad\.jpg: got 30 x 20 pixels, expected at least 24 x 24"),
    ],
)
def test_galaxy_zoo_names_the_bad_file(folder, data, message):
    (folder / "bad.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        images.galaxy_zoo(folder, size=8, crop=24)


def test_galaxy_zoo_names_the_bad_place(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="no such folder or zip"):
        images.galaxy_zoo(folder / "missing")
    with pytest.raises(FileNotFoundError, match=r"holds no \.jpg"):
        images.galaxy_zoo(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ValueError, match="not a zip archive"):
        images.galaxy_zoo(folder / "100.jpg")
    with pytest.raises(ValueError, match="got 3 images, expected over 300"):
        images.galaxy_zoo(folder, split="test")
    with pytest.raises(ValueError, match="size=25 is larger than crop=24"):
        images.galaxy_zoo(folder, size=25, crop=24)
    for values in ({"size": 0}, {"crop": -3}, {"limit": 0}):
        with pytest.raises(ValueError, match="expected a whole number of at least 1"):
            images.galaxy_zoo(folder, **values)


def test_galaxy_zoo_on_real_images(galaxy_zoo_folder):
    read = images.galaxy_zoo(galaxy_zoo_folder, limit=40, split="test")
    assert read.pixels.shape == (40, 3, 80, 80)
    assert read.record["found"] == 300
    assert set(read.labels) == {"spiral", "non_spiral"}
    # The images' own description: one galaxy in the centre, border level about 3/255.
    centre, border = read.pixels[:, :, 30:50, 30:50].mean(), read.pixels[:, :, 0].median()
    assert centre > 5 * border
    assert 1 / 255 < border < 6 / 255


@needs_radio
def test_first_radio_counts_its_classes():
    read = images.first_radio(split="train")
    # Witness: the table in the README of the Radio Galaxy Dataset.
    assert read.record["classes"] == {"FRI": 395, "FRII": 824, "Compact": 291, "Bent": 248}
    assert read.pixels.shape == (1758, 1, 128, 128)
    assert len(set(read.names)) == 1758
    assert set(images.first_radio(split="valid", limit=40).labels) == set(images.RADIO_CLASSES)


@needs_radio
def test_first_radio_equals_images_that_were_extracted_apart(first_radio_folder):
    with open(first_radio_folder / "index.csv", newline="") as table:
        rows = {row["file"].split("/")[1]: row for row in csv.DictReader(table) if row["split"] == "valid"}
    read = images.first_radio(split="valid", size=300)
    assert {name + ".png" for name in read.names} == set(rows)
    for index in (0, 57, 199):
        row = rows[read.names[index] + ".png"]
        assert read.labels[index] == row["class"]
        oracle = np.asarray(Image.open(first_radio_folder / row["file"]))
        assert np.array_equal((read.pixels[index, 0] * 255).round().byte(), oracle)


@needs_radio
def test_first_radio_does_not_import_the_package():
    images.first_radio(split="valid", limit=1)
    assert "firstgalaxydata" not in sys.modules


@needs_radio
def test_first_radio_refuses(monkeypatch):
    with pytest.raises(ValueError, match="split='tests': expected"):
        images.first_radio(split="tests")
    with pytest.raises(ValueError, match=r"got 300 x 300 pixels, expected at least 301 x 301"):
        images.first_radio(split="valid", size=301)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "galnb\[radio\]"'):
        images.first_radio()


def test_galaxy10_reads_images_and_classes(tmp_path):
    h5py = pytest.importorskip("h5py")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "Galaxy10.h5", "w") as file:
        file["images"], file["ans"] = pixels, np.array([3, 1, 4, 1, 5], dtype=np.uint8)
    read = images.galaxy10(tmp_path / "Galaxy10.h5", size=3, limit=4)
    assert read.labels == ("3", "1", "4", "1")
    oracle = pixels[:4].reshape(4, 3, 2, 3, 2, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(read.pixels, oracle, atol=1e-6)  # float32 sums
    with pytest.raises(ValueError, match="have only 6 pixels a side"):
        images.galaxy10(tmp_path / "Galaxy10.h5", size=7)
    with pytest.raises(FileNotFoundError, match=r'fetch.fetch\("galaxy10_sdss"\)'):
        images.galaxy10(tmp_path / "missing.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match="not a Galaxy10 file"):
        images.galaxy10(tmp_path / "text.h5")


def test_sources_are_the_public_readers():
    assert set(images.SOURCES) <= set(images.__all__)
    assert all(images.SOURCES[name] is getattr(images, name) for name in images.SOURCES)


@needs_radio
def test_records_are_plain_json(folder):
    json.dumps(images.galaxy_zoo(folder, size=8, crop=24).record)
    json.dumps(images.first_radio(split="valid", limit=2).record)
