"""The slider of the static page: complete without scripts, one text per picture."""

import base64
import json
import re

import pytest
from bs4 import BeautifulSoup

from galnb.frames import frame_slider

FRAMES, LABELS, ALTS = (
    [b"one", b"two"],
    ["early", "final"],
    ['The "early" stage', "The final </script> stage"],
)


def page():
    return frame_slider(FRAMES, labels=LABELS, alts=ALTS, name="stages", title="stage")


def test_first_picture_stands_still_without_scripts():
    body = BeautifulSoup(page(), "html.parser")
    (image,) = body.find_all("img")
    assert base64.b64decode(image["src"].partition(",")[2]) == b"one" and image["alt"] == ALTS[0]
    assert body.find("figcaption").has_attr("hidden"), "a control that does nothing must not be shown"


def test_slider_has_a_label_and_one_step_per_picture():
    body = BeautifulSoup(page(), "html.parser")
    control = body.find("label").find("input", type="range")
    assert (control["min"], control["max"], control["step"]) == ("0", "1", "1")


def test_script_holds_every_picture_with_its_text():
    (script,) = BeautifulSoup(page(), "html.parser").find_all("script")
    rows = json.loads(re.search(r"const frames = (\[.*?\]), figure", script.string).group(1))
    assert [row["label"] for row in rows] == LABELS and [row["alt"] for row in rows] == ALTS
    assert [base64.b64decode(row["src"].partition(",")[2]) for row in rows] == FRAMES
    assert not re.search(r"https?://", page())


@pytest.mark.parametrize(
    "wrong", [{"frames": []}, {"labels": ["one"]}, {"alts": []}, {"name": "two words"}], ids=str
)
def test_what_does_not_match_is_refused(wrong):
    given = {"frames": FRAMES, "labels": LABELS, "alts": ALTS, "name": "stages", "title": "stage"} | wrong
    with pytest.raises(ValueError, match="expected at least one frame"):
        frame_slider(given.pop("frames"), **given)
