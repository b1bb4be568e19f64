"""Galaxy Zoo, FIRST and Galaxy10: right pixels, names and labels, or an error that says what is wrong."""

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
    assert read.record == {"found": 3, "returned": 3, "crop": 24, "size": 8, "split": None}


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
    for text in (
        table.encode(),
        table.encode("utf-8-sig"),
        table.replace(",", ";").encode(),
        table.replace("\n", "\r\n")
        .replace(",", ", ")
        .upper()
        .replace("SPIRAL", "spiral")
        .replace("NON_", "non_")
        .encode(),
        b"number\tGALAXY_ID\tgroup\n7\t102.jpg\tspiral\n8\t101.JPG\tnon_spiral\n9\t100\tspiral\n10\t999\tspiral\n",
        b'"galaxy_id","group"\n"100","spiral"\n"101","non_spiral"\n"102","spiral"\n',
    ):
        (folder / "labels.csv").write_bytes(text)
        found = images.galaxy_zoo(folder, size=8, crop=24)
        assert found.labels == ("spiral", "non_spiral", "spiral"), text
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for path in [*folder.glob("*.jpg"), folder / "labels.csv"]:
            archive.write(path, f"zoo/{path.name}")
    assert images.galaxy_zoo(folder / "all.zip", size=8, crop=24).labels == found.labels


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"galaxy_id,group\n100,spiral\n102,spiral\n", "no group or more than one for 101; 1 in all"),
        (b"galaxy_id,group\n100,spiral\n101,\n102,spiral\n", "no group or more than one for 101"),
        (b"galaxy_id,group\n100,a\n100,b\n101,a\n102,a\n", "no group or more than one for 100"),
        (b"id,class\n100,spiral\n", "table in UTF-8 with columns galaxy_id and group"),
        (b"galaxy_id\n100\n", "columns galaxy_id and group"),
        (b"galaxy_id,group\n100\n", "columns galaxy_id and group"),
        (b"", "columns galaxy_id and group"),
        ("galaxy_id,group\n100,é\n".encode("latin-1"), "table in UTF-8"),
        ("galaxy_id,group\n100,spiral\n".encode("utf-16"), "table in UTF-8"),
    ],
)
def test_labels_that_cannot_be_right_are_refused(folder, table, message):
    (folder / "labels.csv").write_bytes(table)
    with pytest.raises(ValueError, match=rf"labels\.csv: cannot be used as .*{message}"):
        images.galaxy_zoo(folder, size=8, crop=24)


def test_hidden_folders_hold_no_galaxies_and_equal_names_stay_apart(folder):
    for place in (
        ".ipynb_checkpoints/100-checkpoint.jpg",
        ".Trash-0/old.jpg",
        "__MACOSX/100.jpg",
        "._100.jpg",
    ):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_bytes(b"no picture")
    (folder / "a.jpg").mkdir()  # a folder with the name of a picture
    assert images.galaxy_zoo(folder, size=8, crop=24).names == ("100", "101", "102")
    (folder / "b").mkdir()
    (folder / "b/101.jpg").write_bytes(jpeg(seed=7))
    assert images.galaxy_zoo(folder, size=8, crop=24, limit=2).names == ("100.jpg", "101.jpg")
    names = images.galaxy_zoo(folder, size=8, crop=24).names
    assert names == ("100.jpg", "101.jpg", "102.jpg", "b/101.jpg")
    (folder / "101.png").write_bytes(jpeg(kind="PNG", seed=8))
    (folder / "labels.csv").write_text(
        "galaxy_id,group\n101.jpg,jpg\n101.png,png\n100.jpg,x\n102.jpg,x\nb/101.jpg,b\n"
    )
    found = images.galaxy_zoo(folder, size=8, crop=24)
    assert found.names == ("100.jpg", "101.jpg", "101.png", "102.jpg", "b/101.jpg")
    assert found.labels == ("x", "jpg", "png", "x", "b")


def test_whole_frames_as_bytes_are_the_bytes_of_the_files(folder):
    found = images.galaxy_zoo(folder, size=48, crop=48, dtype=torch.uint8)
    oracle = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.jpg"))])
    assert found.pixels.dtype == torch.uint8
    np.testing.assert_array_equal(found.pixels.permute(0, 2, 3, 1), oracle)
    small = images.galaxy_zoo(folder, size=8, crop=24)
    rounded = images.galaxy_zoo(folder, size=8, crop=24, dtype=torch.uint8)
    assert torch.equal(rounded.pixels, (255 * small.pixels).round().byte())


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG")])
def test_other_modes_become_rgb(tmp_path, mode, kind):
    (tmp_path / f"1.{kind.lower()}").write_bytes(jpeg(mode=mode, kind=kind))
    read = images.galaxy_zoo(tmp_path, size=24, crop=48)
    assert read.pixels.shape == (1, 3, 24, 24)


def test_galaxy_zoo_split_holds_out_the_last_300_names(tmp_path):
    data = jpeg((4, 4))
    for number in range(305):
        (tmp_path / f"{number:03d}.jpg").write_bytes(data)
    train, test = (images.galaxy_zoo(tmp_path, size=2, crop=4, split=split) for split in ("train", "test"))
    assert train.names == ("000", "001", "002", "003", "004")
    assert (len(test), test.names[0], test.names[-1]) == (300, "005", "304")
    with pytest.raises(ValueError, match="split 'valid' is unknown; known are None, train, test"):
        images.galaxy_zoo(tmp_path, split="valid")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"a text that is named .jpg",
            r"bad\.jpg: cannot be used as picture \(cannot identify image file\); correct",
        ),
        (b"", r"bad\.jpg: cannot be used as picture"),
        (jpeg()[:900], r"bad\.jpg: cannot be used as picture \(.*truncated.*; correct, replace or remove it"),
        (jpeg((30, 20)), r"bad\.jpg: .*got 30 x 20 pixels, expected at least 24 x 24"),
    ],
)
def test_galaxy_zoo_names_the_bad_file(folder, data, message):
    (folder / "bad.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        images.galaxy_zoo(folder, size=8, crop=24)


def test_galaxy_zoo_names_the_bad_place(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="missing: no such folder or zip of images"):
        images.galaxy_zoo(folder / "missing")
    with pytest.raises(FileNotFoundError, match=r"holds no \.jpg"):
        images.galaxy_zoo(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ValueError, match=r"100\.jpg: cannot be used as folder or zip of images"):
        images.galaxy_zoo(folder / "100.jpg")
    with pytest.raises(ValueError, match=r"got 3 images, expected over 300, as the last .* the test set"):
        images.galaxy_zoo(folder, split="test")
    with pytest.raises(ValueError, match=r"size=25 for .*averaging only shrinks"):
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
    with pytest.raises(ValueError, match="split 'tests' is unknown; known are train, valid, test, all"):
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
    with pytest.raises(ValueError, match=r"size=7 for .*averaging only shrinks"):
        images.galaxy10(tmp_path / "Galaxy10.h5", size=7)
    with pytest.raises(FileNotFoundError, match=r"missing\.h5: no such HDF5 file"):
        images.galaxy10(tmp_path / "missing.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"text\.h5: cannot be used as HDF5 file"):
        images.galaxy10(tmp_path / "text.h5")


def test_galaxy10_in_another_type_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)

    def read(name, values, answers=np.arange(4)):  # noqa: B008
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["images"], file["ans"] = values, answers
        return images.galaxy10(tmp_path / f"{name}.h5", size=6).pixels

    assert read("dark", np.zeros_like(pixels)).max() == 0
    refused = {
        "to 255": pixels.astype("f4"), "sixteen": pixels.astype("u2") * 257, "whole": pixels.astype("i8"),
        "unit": pixels / 255, "half": (pixels / 255).astype("f2"), "grey": pixels[..., 0],
        "cut": pixels[:, :, :5], "first": pixels.transpose(0, 3, 1, 2), "line": pixels.ravel()[:4],
    }  # fmt: skip
    for name, values in refused.items():
        with pytest.raises(ValueError, match=r"\.h5: cannot be used as HDF5 file"):
            read(name, values)
    for name, answers in {"few": np.arange(3), "onehot": np.eye(4)}.items():
        with pytest.raises(ValueError, match=r"ans \(.*expected bytes \(N, S, S, 3\), and \(N,\)"):
            read(name, pixels, answers)
    with h5py.File(tmp_path / "lacks.h5", "w") as file:
        file["images"] = pixels
    with pytest.raises(ValueError, match=r"lacks\.h5: cannot be used as HDF5 file .*ans"):
        images.galaxy10(tmp_path / "lacks.h5")


@needs_radio
def test_records_are_plain_json(folder):
    json.dumps(images.galaxy_zoo(folder, size=8, crop=24).record)
    json.dumps(images.first_radio(split="valid", limit=2).record)
