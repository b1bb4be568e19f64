"""Tests of galnb/files.py."""

import os
import threading

import pytest

from galnb.files import replacing, write_atomically


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


def test_two_threads_can_write_one_file(tmp_path):
    with replacing(tmp_path / "file") as file:
        file.write(b"last")
        other = threading.Thread(target=write_atomically, args=(tmp_path / "file", b"a longer first one"))
        other.start()
        other.join()
        assert (tmp_path / "file").read_bytes() == b"a longer first one"
    assert (tmp_path / "file").read_bytes() == b"last" and len(list(tmp_path.iterdir())) == 1
