"""Every notebook at preset quick: it runs alone, its exercises are right, its key numbers are in range."""

import functools
import re
from pathlib import Path

import nbformat
import pytest

from book.run_notebooks import notebook_paths, run
from galnb import notebook

pytestmark = pytest.mark.book
each_notebook = pytest.mark.parametrize("path", notebook_paths(), ids=lambda path: path.stem)


@pytest.fixture
def executed(path):
    """Run of the notebook, taken from `_build` when nothing that matters has changed."""
    return run_once(path)


run_once = functools.cache(run)


def code(executed):
    return [cell for cell in nbformat.read(executed.notebook, 4).cells if cell.cell_type == "code"]


def outputs(executed, kind):
    return [
        (cell, output) for cell in code(executed) for output in cell.outputs if output.output_type == kind
    ]


@each_notebook
def test_solutions_are_right(executed):
    solutions = executed.results["solutions"]
    assert len(solutions) >= 3
    assert all(solutions.values()), solutions
    for cell in code(executed):
        if "solution" in cell.metadata.get("tags", []):
            said = "".join(output.get("text", "") for output in cell.outputs)
            assert "The solution is right." in said, cell.id


@each_notebook
def test_running_all_cells_answers_no_exercise(executed):
    exercises = executed.results["exercises"]
    assert exercises.keys() == executed.results["solutions"].keys()
    assert set(exercises.values()) == {None}, exercises


@each_notebook
def test_results_say_how_they_were_made(executed):
    ran = executed.results["run"]
    assert (ran["name"], ran["preset"], ran["seed"]) == (executed.name, "quick", 0)
    assert {"python", "torch", "numpy"} <= set(ran["versions"])
    assert len(executed.results) > 2, "the notebook records none of its numbers"


@each_notebook
def test_verdicts_have_one_vocabulary(executed):
    kept = [executed.results.get(name, {}) for name in ("verdict", "verdicts", "decided")]
    for said in kept:
        for verdict in said.values() if isinstance(said, dict) else [said]:
            assert re.fullmatch(r"reproduced|partly|not reproduced|open: needs .+", verdict), verdict


@each_notebook
def test_notebook_stays_within_three_gib(executed):
    assert executed.peak_memory_gib is None or executed.peak_memory_gib <= 3


@each_notebook
def test_nothing_goes_to_stderr(executed):
    said = [output.text for _, output in outputs(executed, "stream") if output.name == "stderr"]
    assert not said, "a warning or a progress bar, which the book would hide"


@each_notebook
def test_each_picture_is_a_named_figure_of_its_own_cell(executed):
    shown = [
        cell
        for kind in ("display_data", "execute_result")
        for cell, o in outputs(executed, kind)
        if "image/png" in o.data
    ]
    assert shown
    for cell in shown:
        described = cell.metadata.get("mystnb", {})
        assert described.get("image", {}).get("alt"), f"{cell.id} shows a picture without alt text"
        assert described.get("figure", {}).get("name"), f"{cell.id} shows a picture without name and caption"
    ids = [cell.id for cell in shown]
    assert len(ids) == len(set(ids)), "two pictures in one cell would share one alt text"


@each_notebook
def test_no_path_of_this_machine_is_shown(executed):
    text = executed.notebook.read_text(encoding="utf-8")
    for folder in {str(Path.home()), str(Path(__file__).parents[1]), "/tmp/"}:
        assert not re.search(re.escape(folder) + r"(?=[\"'/\\ ])", text), folder


# Numbers that the chapters rest on: notebook, path in results.json, lowest and highest value, why that wide.
KEY_NUMBERS = [
    (
        "01_images",
        "found",
        800,
        850,
        "sources in a fixed picture; segmentation moves a few with library versions",
    ),
    ("01_images", "remain", 85, 100, "the same"),
    ("01_images", "sky_level", 0.0461, 0.0481, "12 of 255, to a quarter of a step"),
    ("01_images", "radio_classes/FRII", 824, 824, "count published with the data set"),
    ("01_images", "radio_classes/Bent", 248, 248, "count published with the data set"),
    ("01_images", "radio_zero_fraction", 0.978, 0.988, "share in a fixed sample"),
    ("01_images", "wcs_shift_arcsec", 0, 0.001, "one position by two ways; rounding of the header"),
    ("02_blending", "overlap_3", 0.37, 0.41, "a formula of the number of sources found"),
    ("02_blending", "catalogue_3", 0.35, 0.4, "a count among the same sources"),
    ("02_blending", "by_hand_difference", 0, 1e-5, "two float32 calculations of the same pixels"),
    ("02_blending", "padded_share", 0.4, 0.8, "share among random blends"),
    (
        "02_blending",
        "light_lost_by_maximum",
        0.03,
        0.2,
        "mean over random blends; nothing lost or a fifth would be news",
    ),
    ("03_first_gan", "bce_difference", 0, 1e-5, "two float32 means of 1,000 prices of about 4"),
    ("03_first_gan", "softmax_difference", 0, 1e-5, "the same"),
    ("03_first_gan", "chance_at_28872", 2.88e-13, 2.90e-13, "exp(-28.872)"),
    ("03_first_gan", "judge_off_best", 0, 0.03, "a small network and 400 batches against p / (p + q)"),
    ("03_first_gan", "judge_from_half", 0, 0.02, "the end of a noisy game; 0 is ideal, we find 0.002"),
    ("03_first_gan", "toy_mean", 1.45, 1.55, "the same; the real mean is 1.5"),
    ("03_first_gan", "live/drawn/0", 0, 0.2, "a short training; untrained and black pictures are further"),
    ("03_first_gan", "live_lost/0", 0.02, 1, "large steps: no nearer to galaxies than a calm run comes"),
    ("03_first_gan", "live_gain_db", 0.5, 8, "held-out segments after a short training; its sign is certain"),
    ("03_first_gan", "noise_gain_db", -25, -2, "from the record: trained on noise, worse than doing nothing"),
    ("03_first_gan", "pairs_gain_db", 0.5, 12, "from the record: trained on pairs, better"),
    ("04_deblender", "rows/black picture/psnr", 14, 16, "fixed test blends"),
    ("04_deblender", "rows/blend itself/psnr", 18, 20, "fixed test blends"),
    ("04_deblender", "rows/blend itself/ssim", 0.6, 0.72, "fixed test blends"),
    (
        "04_deblender",
        "live_bounded_gain_db",
        0.5,
        5,
        "a minute of training: its sign is certain, its size is not",
    ),
    ("04_deblender", "rows/shipped: deblender-bounded/psnr", 29.4, 30.4, "fixed test blends, fixed weights"),
    ("04_deblender", "rows/shipped: deblender-paper/psnr", 21.5, 22.5, "fixed test blends, fixed weights"),
    ("04_deblender", "ablation/twice the steps", 0.2, 0.8, "from the record: three seeds"),
    ("05_evaluation", "count", 150, 150, "fixed test blends"),
    ("05_evaluation", "max/blend itself/psnr/both/mean", 18.4, 19.4, "fixed test blends"),
    ("05_evaluation", "max/deblender-bounded/psnr/both/mean", 29.6, 30.7, "fixed test blends, fixed weights"),
    (
        "05_evaluation",
        "max/SEP segments, tuned/psnr/both/mean",
        20,
        22.5,
        "fixed blends; SEP versions differ a little",
    ),
    ("05_evaluation", "sum/deblender-sum/psnr/both/mean", 27.2, 28.3, "fixed test blends, fixed weights"),
    ("05_evaluation", "curve/settled", 1, 2.5, "from the record: decibels a doubling, of finished trainings"),
    ("05_evaluation", "curve/full", 0, 0.5, "from the record: hardly rises, as the text says"),
    ("05_evaluation", "real_pairs", 10, 30, "pairs found in a fixed picture"),
    ("06_polarized_lrp", "difference_from_scratch", 0, 1e-12, "two float64 calculations of one map"),
    ("06_polarized_lrp", "positive_mass", 1 - 1e-4, 1 + 1e-4, "conservation without biases, float32"),
    (
        "06_polarized_lrp",
        "positive_mass_with_bias",
        0.4,
        0.95,
        "biases take a share that depends on training",
    ),
    ("06_polarized_lrp", "accuracy", 0.7, 1, "36 galaxies and a short training; chance is 0.5"),
    ("06_polarized_lrp", "frame_share_[0, 1]", 0, 0.2, "black is 0 there and cannot light up"),
    ("06_polarized_lrp", "separation_reference", 0.9, 1, "1 is perfect, 0.5 is chance"),
    ("06_polarized_lrp", "planted/stripes/paper/sep+", 0, 0.75, "the finding: near chance, 0.5"),
    ("06_polarized_lrp", "planted/stripes/reference, 8 images/leak", 0, 1e-2, "sums are exact, float32"),
    ("06_polarized_lrp", "study_nets", 30, 30, "learned networks of the record, 20 without group norm"),
    ("06_polarized_lrp", "study/reference, 8 images/passed", 38, 38, "of 40 marks, on the record"),
    ("06_polarized_lrp", "study/reference, 1 sky/passed", 40, 40, "of 40 marks, on the record"),
    ("06_polarized_lrp", "study/paper/passed", 0, 0, "of 40 marks, on the record"),
    ("06_polarized_lrp", "behind_norm/norm shared, 8 images", 7, 7, "of 8 marks of the third world"),
    ("06_polarized_lrp", "behind_norm/composite", 1, 1, "of 8 marks of the third world"),
    (
        "06_polarized_lrp",
        "half_shuffled_paper",
        0.6,
        1,
        "the finding: the map stays; 8 images of one network",
    ),
    ("06_polarized_lrp", "half_shuffled_reference, 8 images", -0.6, 0.6, "another map"),
    ("06_polarized_lrp", "believed/paper/shuffled/2", 0.75, 0.9, "half shuffled, on the record"),
    ("06_polarized_lrp", "believed/reference, 8 images/shuffled/2", -0.2, 0.2, "on the record"),
    (
        "06_polarized_lrp",
        "flipping/reference, 8 images/0",
        -0.8,
        -0.5,
        "units of the mark's use, on the record",
    ),
    ("06_polarized_lrp", "flipping/paper/0", -0.2, 0.2, "no better than the blind disc, on the record"),
    ("06_polarized_lrp", "shipped_size_reference", 10, 1000, "masses over what they explain; eight stamps"),
    ("06_polarized_lrp", "shipped_size_norm shared", 0, 10, "the rule mends it; eight stamps"),
    ("06_polarized_lrp", "gate_rates/reference/0", 0.6, 1, "share among 36 galaxies"),
    ("07_training_stages", "count", 200, 1000, "at least 200 galaxies, as the chapter promises"),
    ("07_training_stages", "psnr/final", 18.6, 40, "fixed blends and weights; the blend itself has 18.58"),
    ("07_training_stages", "judgements/final_final/gates/reference/1", 0.6, 1, "share of 200 drawings"),
    ("07_training_stages", "cam_cells", 5, 5, "80 px, halved four times"),
    ("07_training_stages", "psnr/burn-in", 3, 12, "fixed weights, 60 steps of learning: a grey sky"),
    ("08_explorer", "slider_frames", 7, 7, "pictures of the slider in the page"),
    ("08_explorer", "facts/mass/negative", 1, 10, "a fixed image and fixed weights; units of the logit"),
    ("09_phantom_boundary", "histogram_p/zeros", 0, 1e-6, "black against sky in one fixed image"),
    ("09_phantom_boundary", "histogram_p/noise", 1e-3, 1, "noise like the sky against sky in the same image"),
    ("09_phantom_boundary", "control_auc/zeros over noise", 0.9, 1, "a judge whose only cue is the frame"),
    (
        "09_phantom_boundary",
        "control_share/composite",
        0.6,
        1,
        "its map lies in the frame, whose area is near 0.5",
    ),
    (
        "09_phantom_boundary",
        "control_share/black",
        0,
        0.24,
        "black is nothing new to a black reference: below half of the area, 0.47",
    ),
    ("09_phantom_boundary", "map_in_fill/[0, 1]", 0, 1e-6, "an input of 0 gets no relevance"),
    ("09_phantom_boundary", "map_in_fill/[-1, 1]", 0.4, 1, "the same network, another door"),
    ("09_phantom_boundary", "noise_restored", 0.9, 1.1, "relative to the untouched sky"),
    ("09_phantom_boundary", "planted_found", 6, 6, "all planted faults"),
    ("09_phantom_boundary", "untouched_named", 0, 3, "of 93 stamps that nothing was done to"),
    ("13_lightweight_gan", "gate_correlation", 0.45, 0.75, "fixed weights, 300 drawn galaxies"),
    ("13_lightweight_gan", "gate_luck", 0.05, 0.2, "300 shuffled galaxies, 16 gates"),
    ("13_lightweight_gan", "redrawing_gain", 3, 20, "fixed weights and images"),
    ("13_lightweight_gan", "leak_ratio", 2, 8, "fixed record"),
    ("13_lightweight_gan", "frechet", 24, 31, "fixed weights; 27.4 when shipped"),
    ("13_lightweight_gan", "floor", 13, 14.5, "fixed features of 300 and 300 real images"),
    ("13_lightweight_gan", "ratio", 1.7, 2.3, "the aim is 3; fixed weights"),
    ("13_lightweight_gan", "kernel_floor", -1.5e-3, 1.5e-3, "zero on average for two sets from one sky"),
    ("13_lightweight_gan", "judge_auc_real", 0.42, 0.58, "a judge of two sets from one sky can only guess"),
    ("13_lightweight_gan", "judge_auc", 0.95, 1, "the finding: a linear judge tells them apart"),
    ("13_lightweight_gan", "planted_found", 1, 1, "a copy, turned and noisy, is found"),
    ("13_lightweight_gan", "planted_index", 7, 7, "and so is its original"),
    ("13_lightweight_gan", "planted_score", 0.8, 0.95, "noise of 0.02 on a dark sky lowers SSIM"),
    ("13_lightweight_gan", "zoo_above_95/low", 0, 0.05, "the finding: no more than chance"),
    ("13_lightweight_gan", "largest_step", 0, 0.5, "a walk does not jump; unrelated galaxies are 1"),
    ("13_lightweight_gan", "relevance_leak", 0, 1e-4, "Eq. 1, float32"),
    ("13_lightweight_gan", "relevant_beats_largest", 0.55, 1, "the test of the explanation; 40 galaxies"),
    ("12_systematics", "folds", 5, 5, "size of the record"),
    ("12_systematics", "smallest_p", 0.0625, 0.0625, "2 of 32 sign patterns"),
    ("12_systematics", "ran_again", 0, 0, "finished points of a sweep are not run again"),
    ("12_systematics", "ran_more", 10, 10, "two classes and five seeds of one more sigma"),
    ("12_systematics", "light_error", 0, 1e-6, "a kernel that sums to 1; float32"),
    ("12_systematics", "live_best/1e-03", 0.5, 0.8, "a short training on 400 images; guessing gives 0.25"),
    ("10_radio_gan", "judge_slope", 0, 0.01, "a perfect judge is flat at the fakes"),
    ("10_radio_gan", "critic_slope", 0.7, 1.8, "the penalty pulls towards 1, a short training"),
    ("10_radio_gan", "published_generator", 11_998_080, 11_998_080, "published size"),
    ("10_radio_gan", "published_critic", 11_162_784, 11_162_784, "published size"),
    ("10_radio_gan", "black_share", 0.93, 0.96, "share in a fixed sample"),
    ("10_radio_gan", "black_share_generated", 0.9, 0.99, "fixed weights, drawn galaxies"),
    ("10_radio_gan", "by_hand_difference", 0, 1e-6, "two calculations of one score"),
    ("10_radio_gan", "floor_10", 0.9, 1.4, "median of 200 random splits"),
    ("10_radio_gan", "floor_120", 0.4, 0.65, "median of 200 random splits"),
    ("10_radio_gan", "ratio_to_floor/FRI/0", 0.7, 1.5, "the aim, fixed weights"),
    ("10_radio_gan", "ratio_to_floor/FRII/0", 0.7, 1.5, "the aim, fixed weights"),
    ("10_radio_gan", "ratio_to_floor/Compact/0", 0.6, 1.5, "the aim, fixed weights"),
    ("10_radio_gan", "ratio_to_floor/Bent/0", 0.7, 1.5, "the aim, fixed weights"),
    ("11_smearing", "largest_tilt_after", 0, 3, "degrees; one interpolation moves an axis a little"),
    ("11_smearing", "nearest_light", 0, 0.7, "the finding: dim pairs; fixed weights and images"),
    ("11_smearing", "least_active/FRI", 80, 80, "a quantile of fixed images"),
    ("11_smearing", "kernel_difference", 0, 1e-7, "float32 against float64"),
    ("11_smearing", "width_3_sigma_2", 0.797, 0.799, "a formula"),
    ("11_smearing", "largest_change_of_light", 0, 1e-6, "sums of float64, kernel of sum 1"),
    ("11_smearing", "peak_left_sigma_1", 0.4, 0.95, "median over drawn galaxies"),
    ("11_smearing", "more_lit_sigma_1", 1.05, 2.5, "smearing lights pixels"),
    ("14_mosaic", "completeness/all", 0.7, 1, "drawn galaxies; crowding sets it, and the places are fixed"),
    ("14_mosaic", "alone", 0.95, 1, "galaxies without a close neighbour are found"),
    ("14_mosaic", "luck/all", 0, 0.05, "detections moved away; a formula gives 0.01 to 0.03"),
    ("14_mosaic", "on_empty_sky", 0, 10, "noise alone, half a million pixels"),
    ("14_mosaic", "on_a_galaxy", 0.6, 1, "most of what is not in the truth is a piece of a galaxy"),
    ("14_mosaic", "flux_ratio", 0.85, 1.1, "light found over true light, without the wings"),
    ("14_mosaic", "page_megabytes", 0.1, 3, "the zoom view must not weigh more"),
    ("14_mosaic", "kept/placements", 25_000, 25_000, "size of the record"),
    ("14_mosaic", "kept/seeds", 4, 4, "other draws of the whole field in the record"),
    ("14_mosaic", "kept/bigger/0", 0.5, 1, "the report's statement, on the record"),
]


def test_where_there_is_no_ring_none_is_measured():
    (kept,) = notebook.record("07_training_stages").values()
    for claim, *numbers, said, _ in kept["table"][1:4]:
        assert (set(numbers) == {"no ring"}) == ("a ring to measure" in said), claim
    assert all(one == "no ring to measure" or one[0][1] > 0 for one in kept["rings"].values())


@pytest.mark.parametrize(
    ("name", "place", "low", "high"),
    [row[:4] for row in KEY_NUMBERS],
    ids=[f"{n}-{p}" for n, p, *_ in KEY_NUMBERS],
)
def test_key_number_is_in_its_range(name, place, low, high):
    value = run_once(next(path for path in notebook_paths() if path.stem == name)).results
    if name == "05_evaluation" and not value["source"].startswith("Hubble"):
        pytest.skip("the ranges are for the blends that come with the book, not for a Galaxy Zoo folder")
    for step in place.split("/"):
        value = value[int(step) if isinstance(value, list) else step]
    assert low <= value <= high


def test_the_summary_of_chapter_05_is_true_of_its_record():
    record = notebook.record("05_evaluation")
    maxima, sums = (
        {name: row["psnr"]["both"]["mean"] for name, row in record[kind].items()} for kind in ("max", "sum")
    )
    network, told = "deblender-bounded", "symmetry templates, told centres"
    tools = [name for name in sums if name not in ("black", told) and not name.startswith("deblender")]
    lead, left = (scores[network] - max(scores[name] for name in tools) for scores in (maxima, sums))
    assert left < lead / 2 and sums[network] < sums[told]
    assert maxima["deblender-sum"] < maxima[network]
    known = maxima[told] - maxima["symmetry templates"]
    tuned = [maxima[f"{name}, tuned"] - maxima[name] for name in ("symmetry templates", "SEP segments")]
    assert known > max(tuned)
