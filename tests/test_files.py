"""Tests of galnb/files.py."""

import os

import pytest

from galnb.files import write_atomically


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path, monkeypatch):
    write_atomically(tmp_path / "deep" / "file", b"old")

    def full(*arguments):
        raise OSError("No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, full)
            with pytest.raises(OSError, match="No space"):
                write_atomically(tmp_path / "deep" / "file", b"new")
        assert [file.name for file in (tmp_path / "deep").iterdir()] == ["file"]
        assert (tmp_path / "deep" / "file").read_bytes() == b"old"
