from galnb.images.readers import FITS, PICTURES  # noqa: F401
from galnb.images.sources import read_upload  # noqa: F401
