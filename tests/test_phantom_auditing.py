"""Audit and its traces: planted faults are found and named, clean images pass, bad files are listed."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from galnb import __main__ as command_line
from galnb import images as sources
from galnb.blending import make_blends
from galnb.images.readers import open_stack
from galnb.phantom.auditing import audit
from galnb.phantom.traces import TRACES, alike, measure


@pytest.fixture(scope="module")
def clean():
    """24 galaxies with a sky of white noise, (24, 3, 48, 48): nothing was done to them."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(48) - 23.5, torch.arange(48) - 23.5, indexing="ij")
    width = torch.linspace(2, 5, 24)[:, None, None, None]
    galaxies = 0.6 * torch.exp(-(x**2 + 1.7 * y**2) / (2 * width**2))
    return (galaxies + 0.1 + 0.02 * torch.randn(24, 3, 48, 48, generator=generator)).clamp(0, 1)


def kinds(report, image=None):
    return {finding.kind for finding in report.findings if finding.image == image}


def test_clean_images_have_no_finding(clean):
    report = audit(clean)
    assert report.findings == [] and report.counts == {} and not report.serious
    assert (report.severity == 0).all() and len(report.severity) == 24


def plant_blank(image):
    image[:] = 0.3


def plant_nan(image):
    image[0, 5, 5] = torch.nan


def plant_strip(image):
    image[:, :, :3] = 0


def plant_corner(image):
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    image[:, x + y < 12] = 0.45  # a fill need not be black


def plant_mask(image):
    image[:, 5:12, 30:40] = 0.1


def plant_mirror(image):
    image[:, :, :4] = image[:, :, 4:8].flip(2)


def plant_seam(image):
    image[:, :, 18:] += 0.06  # 3 sigma of the sky


def plant_range(image):
    image *= 255


def plant_smooth(image):
    for _ in range(3):
        image[:] = F.avg_pool2d(image[None], 3, 1, 1, count_include_pad=False)[0]


def plant_clipped(image):
    image[:] = (image - 0.4).clamp(min=0)


def plant_saturated(image):
    image[:, ::4, ::5] = 1.0  # 5 % of the pixels, apart from each other


PLANTS = {
    "blank": plant_blank, "not finite": plant_nan, "padding": plant_strip, "constant": plant_mask,
    "mirrored": plant_mirror, "seam": plant_seam, "mixed ranges": plant_range, "resampled": plant_smooth,
    "clipped": plant_clipped, "saturated": plant_saturated,
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANTS)
def test_a_planted_fault_is_found_and_only_there(clean, kind):
    images = clean.clone()
    PLANTS[kind](images[20])
    report = audit(images)
    assert kinds(report, 20) == {kind}, report.findings
    assert (report.severity > 0).nonzero().flatten().tolist() == [20]
    assert kinds(report) <= {"mixed ranges"} and kind in TRACES


def test_the_polygon_outlines_a_corner(clean):
    """The witness is geometry: a right triangle whose legs measure 12 px has 78 pixels."""
    images = clean.clone()
    plant_corner(images[3])
    (finding,) = audit(images).findings
    assert finding.kind == "padding" and re.match("2.9%", finding.text)  # 78 of 2304, less the hypotenuse
    x, y = torch.tensor(finding.place).T
    area = 0.5 * (x[:-1] * y[1:] - x[1:] * y[:-1]).sum().abs()
    assert abs(float(area) - 78) < 8
    assert x.max() < 14 and y.max() < 14


def test_repeats_are_found_also_when_recompressed_and_blame_the_set(clean, tmp_path):
    images = torch.cat([clean, clean[7:8]])
    report = audit(images)
    assert [(f.kind, f.image) for f in report.findings] == [("repeats", 24)]
    assert "image number 7" in report.findings[0].text
    assert report.serious and (report.severity == 0).all()


def test_what_holds_for_most_images_is_a_habit_of_the_set(clean):
    images = (clean - 0.4).clamp(min=0)
    report = audit(images)
    assert "clipped" in kinds(report) and (report.severity < 0.5).all()
    smooth = F.avg_pool2d(clean, 5, 1, 2)
    assert "resampled" in kinds(audit(smooth[:, :, 4:-4, 4:-4]))


def test_measures_do_not_depend_on_units(clean):
    images = clean.clone()
    plant_corner(images[3])
    plant_seam(images[9])
    one, other = measure(images.numpy()), measure(1000 * images.numpy() + 50)
    for name in ("padding", "constant", "saturated", "seam at"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    np.testing.assert_allclose(one["seam"], other["seam"], rtol=1e-2)  # float32 beside an offset of 50
    np.testing.assert_allclose(one["smooth"], other["smooth"], rtol=1e-2)


def test_padding_matches_the_footprint_of_blends(clean, generator):
    """The witness is the footprint that the warp itself keeps."""
    blends = make_blends(clean, generator=generator)
    padded = 1 - blends.footprints[:, 1].float().mean((1, 2, 3))
    found = torch.from_numpy(measure(blends.galaxies[:, 1].numpy())["padding"])
    whole = (padded > 0.02) & (padded < 0.9)
    # Largest region only, and without the pixels on which fill and image mix: never more.
    assert (found <= padded + 1e-6).all() and (found[whole] > 0.2 * padded[whole]).all()


def auc(clean, planted):
    return float((planted[:, None] > clean).float().mean() + (planted[:, None] == clean).float().mean() / 2)


def test_planted_padding_in_galaxy_zoo(galaxy_zoo_folder, generator):
    galaxies = sources.galaxy_zoo(galaxy_zoo_folder, split="test").pixels
    blends = make_blends(galaxies, generator=generator)
    planted = blends.galaxies[:, 1][(1 - blends.footprints[:, 1].float().mean((1, 2, 3))) >= 0.02]
    untouched = audit(galaxies).severity
    assert (untouched > 0).float().mean() <= 0.01
    assert auc(untouched, audit(planted).severity) >= 0.99


@pytest.fixture
def folder(clean, tmp_path):
    for index, image in enumerate(clean):
        pixels = (255 * image).round().byte().movedim(0, -1).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{index:02}.png")
    return tmp_path


def test_command_writes_reports_and_tells_by_its_exit_code(folder, capsys, tmp_path):
    out = tmp_path / "report"
    assert command_line.main(["audit", str(folder), "--out", str(out)]) == 0, capsys.readouterr().out
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (48, 48)).save(folder / "black <b>.png")
    Image.new("L", (40, 40)).save(folder / "grey.png")
    assert command_line.main(["audit", str(folder), "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert "left out broken.png" in said and "left out empty.jpg" in said
    found = json.loads((out / "audit.json").read_text())
    assert found["images"] == 26 and set(found["unreadable"]) == {"broken.png", "empty.jpg"}
    assert {"blank", "mixed sizes", "mixed channels", "unreadable"} <= set(found["counts"])
    page = (out / "audit.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page  # one file, no network
    assert "black &lt;b&gt;.png" in page and "<b>.png" not in page


@pytest.mark.parametrize(
    "words, said",
    [
        (["/no/such/folder"], "no such folder or zip of images"),
        (["{empty}"], "holds no .jpg"),
        (["{text}"], "expected a folder, or a file that ends in"),
    ],
)
def test_bad_input_is_one_sentence(words, said, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no image")
    places = {"empty": tmp_path / "empty", "text": tmp_path / "text.txt"}
    words = [word.format(**places) for word in words]
    assert command_line.main(["audit", *words, "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message


def test_fits_files_and_stacks(clean, tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    planes = clean[:, 0].numpy().copy()
    planes[2] = 0
    fits.PrimaryHDU(planes).writeto(tmp_path / "stack.fits")
    report = audit(tmp_path / "stack.fits")
    assert len(report.names) == 24 and kinds(report, 2) == {"blank"}
    (tmp_path / "cut.fits").write_bytes((tmp_path / "stack.fits").read_bytes()[:9000])
    both = audit(tmp_path)
    assert len(both.names) == 24 and list(both.unreadable) == ["cut.fits"]
    (left,) = [finding for finding in both.findings if finding.kind == "unreadable"]
    assert left.image is None and left.text.startswith("cut.fits: ") and "truncated" in left.text
    assert "cut.fits" in both.to_html() and both.counts["unreadable"] == 1


def test_integer_blank_and_compressed_fits_are_read_as_their_values(clean, tmp_path):
    """Scaled, unsigned, with BLANK, compressed: the same planes in floats are the witness."""
    fits = pytest.importorskip("astropy.io.fits")
    counts = (60_000 * clean[:, 0].numpy()).astype(np.uint16)
    signed = (counts.astype(np.int32) - 30_000).astype(np.int16)
    scaled = fits.ImageHDU(signed)
    scaled.scale("int16", bscale=2, bzero=100)
    blank = signed.copy()
    blank[4, 8, 8:11] = -32768
    written = {
        "unsigned": (fits.PrimaryHDU(counts),),
        "scaled": (fits.PrimaryHDU(), scaled),
        "blank": (fits.PrimaryHDU(), fits.ImageHDU(blank, fits.Header({"BLANK": -32768}))),
        "packed": (fits.PrimaryHDU(), fits.CompImageHDU(signed, compression_type="RICE_1")),
    }
    for name, units in written.items():
        fits.HDUList(list(units)).writeto(tmp_path / f"{name}.fits")
        report = audit(tmp_path / f"{name}.fits")
        assert len(report.names) == 24 and not report.unreadable
        wanted = {"blank": {"not finite"}}.get(name, set())
        assert kinds(report, 4) == wanted and set(report.counts) == wanted, name
    fits.PrimaryHDU(counts.astype(np.float32)).writeto(tmp_path / "floats.fits")
    found = [measure(_planes(tmp_path / f"{name}.fits"))["span"] for name in ("unsigned", "floats")]
    np.testing.assert_array_equal(*found)


def _planes(path):
    readers, _ = open_stack(path)
    return np.stack([read() for read in readers.values()])


FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from galnb.phantom import audit
report = audit(sys.argv[1])
print(len(report.names), report.counts)
"""


def test_more_files_than_the_system_lets_be_open(clean, tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    for number in range(100):
        noise = np.random.default_rng(number).normal(size=(24, 24)).astype(np.float32)
        fits.PrimaryHDU(noise).writeto(tmp_path / f"{number:03}.fits")
        Image.fromarray((255 * clean[number % 24, 0]).byte().numpy()).save(tmp_path / f"{number:03}.png")
    command = [sys.executable, "-c", FEW_FILES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("200 ") and "unreadable" not in done.stdout


def test_hdf5_channels_first_or_last(clean, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["images"] = (255 * clean).byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(_planes(tmp_path / "set.h5")[3], (255 * clean[3]).byte().numpy())
    assert audit(tmp_path / "set.h5").names[3] == "set.h5[images,3]"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_give_the_findings_of_the_same_numbers(clean, dtype):
    images = clean.clone()
    plant_strip(images[20])
    images = images.to(dtype)
    found, wanted = (audit(given) for given in (images, images.float()))
    assert found.findings == wanted.findings and "padding" in kinds(found, 20)


def test_every_trace_says_when_it_counts_why_there_and_what_to_do():
    for kind, trace in TRACES.items():
        assert 0 < trace.severity <= 1 and trace.why and trace.text and trace.fix, kind


def test_every_copy_of_a_group_is_found(clean):
    many = torch.cat([clean, clean[3:4], clean[3:4], clean[9:10]])
    assert {f.image for f in audit(many).findings if f.kind == "repeats"} == {24, 25, 26}


@pytest.mark.parametrize(
    ("bad", "cure"),
    [
        (torch.zeros(3, 8, 8), "join single images with torch.stack"),
        (torch.zeros(0, 3, 48, 48), "none 0"),
        ([torch.zeros(3, 48, 48)], "join single images with torch.stack"),
        (sources.ImageSet(torch.zeros(1, 3, 48, 48), ("one",), "by hand"), "give its .pixels"),
    ],
)
def test_wrong_shapes_are_refused(bad, cure):
    with pytest.raises(ValueError, match=rf"expected \(batch, channel, height, width\).*{cure}"):
        audit(bad)


def test_channels_last_are_read_as_such(clean):
    assert audit(clean.permute(0, 2, 3, 1)).counts == audit(clean).counts == {}


def test_images_too_small_to_audit_are_refused():
    with pytest.raises(ValueError, match="8 x 8 pixels; expected at least 16 x 16"):
        audit(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_the_blank_image_of_first(first_radio_folder, tmp_path):
    for path in sorted((first_radio_folder / "Bent").glob("22*")):
        shutil.copy(path, tmp_path)
    report = audit(tmp_path)
    (blank,) = [finding for finding in report.findings if finding.kind == "blank"]
    assert report.names[blank.image] == "22.446_0.776_3_Proctor_Tab1.png" and report.serious
    assert "clipped" in kinds(report)


def test_like_thumbnails_are_the_pairs_that_a_slow_search_finds():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(300, 64))
    rows[200:250] = rows[:50] + 0.05 * draw.normal(size=(50, 64))
    rows[299] = 0
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    match = rows @ rows.T
    slow = {(a, b) for a in range(300) for b in range(a + 1, 300) if match[a, b] > 0.97}
    found = alike(rows.astype(np.float32), 0.97)
    assert set(found) == slow and len(slow) == 50
    assert [match[pair] for pair in found] == sorted((match[pair] for pair in found), reverse=True)
    assert alike(np.zeros((3, 4), np.float32), 0.5) == alike(rows[:1], 0.5) == []
