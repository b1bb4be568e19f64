"""Tests of galnb/files.py."""

import os
import threading

import pytest

from galnb.files import imported, write_atomically


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


def test_two_threads_can_write_one_file(tmp_path, monkeypatch):
    other = threading.Thread(target=write_atomically, args=(tmp_path / "file", b"a longer first one"))
    sync, seen = os.fsync, []

    def meanwhile(number):
        sync(number)
        if threading.current_thread() is not other:
            other.start()
            other.join()
            seen.append((tmp_path / "file").read_bytes())

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_atomically(tmp_path / "file", b"last")
    assert seen == [b"a longer first one"]
    assert (tmp_path / "file").read_bytes() == b"last" and len(list(tmp_path.iterdir())) == 1


def test_imported_follows_relative_names_namespaces_and_texts(tmp_path):
    parts = {
        "space/one.py": "from . import two\nfrom ..........far import away\n",
        "space/two.py": "import broken\n",
        "broken.py": "import (",
        "named/__init__.py": "",
        "named/inner.py": "",
        "apart.py": "",
    }
    for name, text in parts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = imported("import space.one, json\nload('named.inner')", tmp_path, roots=[tmp_path])
    assert {file.relative_to(tmp_path).as_posix() for file in found} == set(parts) - {"apart.py"}
