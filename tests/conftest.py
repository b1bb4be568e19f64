"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch

# Optional real data: a folder with galaxyzoo/ and first_radio/. Tests that need it are skipped without it.
DATA = Path(os.environ.get("GALNB_DATA", Path(__file__).parents[1] / "../shared/data"))


def pytest_configure(config):
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def galaxy_zoo_folder() -> Path:
    """Folder of Galaxy Zoo JPEG images, 424 x 424."""
    return _folder("galaxyzoo")


@pytest.fixture(scope="session")
def first_radio_folder() -> Path:
    """Folder of FIRST images with an index.csv, apart from those in the firstgalaxydata package."""
    return _folder("first_radio")


def _folder(name: str) -> Path:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"no folder {name} in GALNB_DATA (tried {DATA}); set GALNB_DATA to run this test")
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    """CPU generator with a fixed seed, new for each test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def random_images(generator) -> torch.Tensor:
    """Four colour images of noise, shape (4, 3, 16, 16), in [0, 1]."""
    return torch.rand(4, 3, 16, 16, generator=generator)
