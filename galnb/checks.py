"""Shared guards: each says what was given, what was expected and what to do."""

import math
from collections.abc import Iterable
from importlib import import_module
from numbers import Integral, Real
from types import ModuleType

import torch


def at_least(least: float, **values: float | None) -> None:
    """Refuse any named value that is no finite number >= least; a whole `least` asks for whole numbers."""
    kind, word = (Integral, "whole number") if isinstance(least, Integral) else (Real, "finite number")
    for name, value in values.items():
        fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or value < least:
            raise ValueError(f"{name}={value!r}: expected a {word} of at least {least}")


def check_kind(kind: type, way: str, **values: object) -> None:
    """Refuse any named value of another class; the message says `way`: where to get one."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise ValueError(f"{name}: got {type(value).__name__}, expected {kind.__name__}; {way}")


def one_of(name: str, value: object, known: Iterable) -> None:
    """Refuse a value that is none of those known; the message lists them."""
    known = list(known)
    if value not in known:
        raise ValueError(f"{name} {value!r} is unknown; known are {', '.join(map(str, known))}")


def check_floats(images: torch.Tensor, *, name: str = "images", finite: bool = False) -> None:
    """Refuse anything but a tensor of floats, of whatever shape and range; if asked, NaN and infinity too."""
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        way = "from an ImageSet take .pixels, from 8 bit x.float() / 255"
        raise ValueError(f"{name}: got {given}, expected a tensor of floats; {way}")
    if finite and not images.isfinite().all():
        raise ValueError(f"{name}: got NaN or infinite values, expected finite ones; see torch.nan_to_num")


def check_generator(generator: torch.Generator) -> None:
    """Refuse anything but a random generator: None would draw from the state that all of PyTorch shares."""
    if not isinstance(generator, torch.Generator):
        wanted = "a torch.Generator such as torch.Generator().manual_seed(0)"
        raise ValueError(f"generator is {generator!r}; expected {wanted}")


def optional(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a package that is not always installed; ModuleNotFoundError says how to get it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        needed = f'{module.partition(".")[0]}: pip install "galnb[{extra}]"'
        raise ModuleNotFoundError(f"{purpose} needs {needed}") from error
