"""Old address, until no room uses it."""

from numbers import Integral

from galnb.checks import check_generator  # noqa: F401
from galnb.images import ImageSet, area_average, check_images  # noqa: F401


def check_sizes(**values: int | None) -> None:
    """Refuse any named value that is neither None nor a whole number of at least 1."""
    for name, value in values.items():
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")
