"""Galaxies that overlap, the networks that take them apart, and what those networks look at.

One module per concept; import the one you need, for example ``from galnb import images, blending``.
Importing ``galnb`` itself is cheap: it loads neither torch nor matplotlib.
"""

__version__ = "0.1.0"
