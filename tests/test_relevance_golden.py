"""Golden maps: exact as before.

`data/golden_maps.json` keeps sums, norms and some pixels (float64) of every reading and rule, computed by
commit fb6efd2, before the walk was rewritten. Judges whose weights were trained anew since then are left out.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from galnb.relevance import polarized_relevance, relevance
from galnb.training.checkpoints import WEIGHTS, load_checkpoint
from tests import golden_networks

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_maps.json").read_text())
NETWORKS = golden_networks.synthetic()


def compare(found, expected):
    assert found.keys() == expected.keys()
    for case, values in expected.items():
        here, before = torch.tensor(golden_networks.digest(found[case])), torch.tensor(values)
        # relative to the largest element; the numbers are kept with nine digits
        limit = 1e-6 * max(float(before[2]), 1e-6)
        assert (here[2:] - before[2:]).abs().max() <= limit, (case, here, before)
        assert torch.allclose(here[:2], before[:2], rtol=1e-6, atol=1e-9), (case, here, before)


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_maps_of_small_networks(name):
    images, references = golden_networks.draw(2, 3, 8, 8), golden_networks.draw(2, 3, 8, 8, seed=9)
    rules = ["epsilon", "zplus", "zminus", "same_sign"]
    model = NETWORKS[name]
    found = golden_networks.answers(model, images, references, relevance, polarized_relevance, rules)
    compare(found, GOLDEN[name])


@pytest.mark.parametrize("name", sorted(set(GOLDEN) - set(NETWORKS)))
def test_golden_maps_of_shipped_judges(name):
    path, expected = WEIGHTS / f"{name}.safetensors", dict(GOLDEN[name])
    weights = expected.pop("weights")
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != weights:
        pytest.skip(f"{name} was trained anew: its maps are others")
    gan = load_checkpoint(name).gan
    side, channels = getattr(gan.config, "size", 64), getattr(gan.config, "channels", 3)
    images = golden_networks.draw(1, channels, side, side)
    references = golden_networks.draw(1, channels, side, side, seed=9)
    judge, rules = gan.discriminator.double(), ["epsilon", "same_sign"]
    found = golden_networks.answers(judge, images, references, relevance, polarized_relevance, rules)
    compare({case: values for case, values in found.items() if " lost " not in case}, expected)
