"""Fetch larger public image sets by name into a cache folder: checked, atomic, resumable."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tqdm.auto import tqdm

BLOCK = 1 << 20


@dataclass(frozen=True)
class Download:
    """Describe one public file.

    Parameters
    ----------
    url : str
        Address of the file; its last part is the file's name in the cache.
    digest : str
        ``"sha256:<hex>"``, or ``"md5:<hex>"`` where the publisher gives nothing better.
    size : int or None
        Bytes, or None where the publisher states no exact number.
    use : str
        How to open the file, as code.

    Chapter: Galaxies as pixels
    """

    url: str
    digest: str
    size: int | None
    use: str


# Digests: astroNN's documentation (Galaxy10) and the Zenodo record (Galaxy Zoo 2, which states MD5 only).
DOWNLOADS = {
    "galaxy10_sdss": Download(  # 21,785 images, 69 x 69
        "https://zenodo.org/records/10844811/files/Galaxy10.h5",
        "sha256:969a6b1cefcc36e09fffa86febd2f699a4aa19b837ba0427f01b0bc6ded458af",
        210_234_548,
        "images.galaxy10(path)",
    ),
    "galaxy10_decals": Download(  # 17,736 images, 256 x 256
        "https://zenodo.org/records/10845026/files/Galaxy10_DECals.h5",
        "sha256:19aefc477c41bb7f77ff07599a6b82a038dc042f889a111b0d4d98bb755c1571",
        2_735_267_419,
        "images.galaxy10(path)",
    ),
    "galaxy_zoo_2": Download(  # about 240,000 images, 424 x 424, 3.4 GB
        "https://zenodo.org/records/3565489/files/images_gz2.zip",
        "md5:bc647032d31e50c798770cf4430525c7",
        None,
        "images.galaxy_zoo(path)",
    ),
}


def cache_folder() -> Path:
    """Return the folder that holds fetched files: ``$GALNB_CACHE``, else ``~/.cache/galnb``.

    Chapter: Galaxies as pixels
    """
    return Path(os.environ.get("GALNB_CACHE") or Path.home() / ".cache" / "galnb")


def fetch(name: str, *, folder: str | Path | None = None, progress: bool = True) -> Path:
    """Return the local path of a public image set, downloading it first if it is not there.

    Parameters
    ----------
    name : str
        A key of ``DOWNLOADS``; its ``use`` says how to open the file.
    folder : str, pathlib.Path or None
        Where to keep it; None is ``cache_folder()``.
    progress : bool
        Show a bar.

    Returns
    -------
    pathlib.Path
        The complete, checked file. It gets this name only after its digest was found right.

    Raises
    ------
    ValueError
        If the name is unknown or the file is not the published one (it is deleted then).
    ConnectionError
        If the network is missing or breaks; what has arrived is kept, and the next call goes on from there.

    Notes
    -----
    A broken transfer is taken up again (HTTP range) as long as each attempt brings something.
    Chapter: Galaxies as pixels
    """
    if name not in DOWNLOADS:
        raise ValueError(f"name={name!r}: unknown image set; known are {', '.join(DOWNLOADS)}")
    source = DOWNLOADS[name]
    target = Path(folder or cache_folder()) / urlsplit(source.url).path.rsplit("/", 1)[-1]
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    complete = False
    while not complete:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            complete = _transfer(source.url, partial, progress=progress)
            reason = "the connection broke"
        except (OSError, http.client.HTTPException) as error:
            reason = error
        arrived = partial.stat().st_size if partial.exists() else 0
        if not complete and arrived <= before:
            raise ConnectionError(
                f"{name}: could not fetch {source.url} ({reason}); {arrived / 1e6:.1f} MB are kept and the "
                "next call goes on from there; images.hubble_deep_field() and first_radio() need no network"
            )
    _verify(name, source, partial)
    os.replace(partial, target)
    return target


def _transfer(url: str, partial: Path, *, progress: bool) -> bool:
    """Append what is missing; return whether everything has arrived."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing beyond what we have: complete, and the digest will tell
            return True
        raise
    with response:
        resumed = response.status == 206  # a server that ignores ranges sends 200 and everything
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(
            desc=partial.stem, total=total, initial=have, unit="B", unit_scale=True, disable=not progress
        )
        with bar, open(partial, "ab" if resumed else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    return total is None or partial.stat().st_size >= total


def _verify(name: str, source: Download, partial: Path) -> None:
    kind, expected = source.digest.split(":")
    with open(partial, "rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    size = partial.stat().st_size
    if found != expected or source.size not in (None, size):
        partial.unlink()
        raise ValueError(
            f"{name}: got {size} bytes, {kind} {found}, expected {source.size or 'any number of'} bytes, "
            f"{expected}; the file was deleted: call again, and if it persists the published file has changed"
        )
