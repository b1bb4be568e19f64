import hashlib
import http.server
import socket
import threading

import pytest

from galnb.images import fetch

CONTENT = bytes(range(256)) * 20000  # 5.1 MB: several blocks


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve CONTENT; break off after `server.breaks_after` bytes as long as `server.breaks` > 0."""

    def do_GET(self):
        self.server.requests.append(self.headers.get("Range"))
        start = 0
        if self.server.ranges and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = len(CONTENT)
        if self.server.breaks > 0:
            self.server.breaks -= 1
            end = start + self.server.breaks_after
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.ranges, server.breaks, server.breaks_after = [], True, 0, 2_000_000
    threading.Thread(target=server.serve_forever, daemon=True).start()
    announce(monkeypatch, server.server_port)
    yield server
    server.shutdown()
    server.server_close()


def announce(monkeypatch, port, **changes):
    values = {
        "url": f"http://127.0.0.1:{port}/sets/sky.bin?download=1",
        "digest": "sha256:" + hashlib.sha256(CONTENT).hexdigest(),
        "size": len(CONTENT),
        "use": "open(path)",
    }
    monkeypatch.setitem(fetch.DOWNLOADS, "sky", fetch.Download(**{**values, **changes}))


def test_fetch_once_into_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("GALNB_CACHE", str(tmp_path / "cache"))
    path = fetch.fetch("sky", progress=False)
    assert path == tmp_path / "cache" / "sky.bin"
    assert path.read_bytes() == CONTENT
    assert fetch.fetch("sky", progress=False) == path
    assert server.requests == [None]
    assert list(path.parent.iterdir()) == [path]


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.breaks = 2
    assert fetch.fetch("sky", folder=tmp_path, progress=False).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=2000000-", "bytes=4000000-"]


def test_the_next_call_goes_on_where_the_last_one_stopped(server, tmp_path):
    (tmp_path / "sky.bin.part").write_bytes(CONTENT[:3_000_000])
    assert fetch.fetch("sky", folder=tmp_path, progress=False).read_bytes() == CONTENT
    assert server.requests == ["bytes=3000000-"]


def test_a_complete_part_is_only_checked(server, tmp_path):
    (tmp_path / "sky.bin.part").write_bytes(CONTENT)
    assert fetch.fetch("sky", folder=tmp_path, progress=False).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "sky.bin.part").write_bytes(b"x" * 1000)
    assert fetch.fetch("sky", folder=tmp_path, progress=False).read_bytes() == CONTENT


def test_a_server_that_gives_nothing_keeps_the_part(server, tmp_path):
    server.breaks, server.breaks_after = 100, 0
    (tmp_path / "sky.bin.part").write_bytes(CONTENT[:1_500_000])
    with pytest.raises(ConnectionError, match=r"1\.5 MB are kept and the next call goes on"):
        fetch.fetch("sky", folder=tmp_path, progress=False)
    assert (tmp_path / "sky.bin.part").read_bytes() == CONTENT[:1_500_000]
    assert not (tmp_path / "sky.bin").exists()


@pytest.mark.parametrize(
    "change", [{"digest": "sha256:" + "0" * 64}, {"digest": "md5:" + "0" * 32}, {"size": 17}]
)
def test_another_file_than_published_is_deleted(server, tmp_path, monkeypatch, change):
    announce(monkeypatch, server.server_port, **change)
    with pytest.raises(ValueError, match=r"got 5120000 bytes, .* expected .*the file was deleted"):
        fetch.fetch("sky", folder=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_md5_is_taken_where_nothing_better_is_published(server, tmp_path, monkeypatch):
    announce(monkeypatch, server.server_port, digest="md5:" + hashlib.md5(CONTENT).hexdigest(), size=None)
    assert fetch.fetch("sky", folder=tmp_path, progress=False).read_bytes() == CONTENT


def test_offline_says_so_in_one_sentence(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        announce(monkeypatch, free.getsockname()[1])
    with pytest.raises(ConnectionError, match=r"could not fetch .*hubble_deep_field\(\).*need no network$"):
        fetch.fetch("sky", folder=tmp_path, progress=False)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'sdss': unknown.*galaxy10_sdss, galaxy10_decals, galaxy_zoo_2"):
        fetch.fetch("sdss")


def test_table_is_complete():
    lengths = {"sha256": 64, "md5": 32}
    for source in fetch.DOWNLOADS.values():
        kind, value = source.digest.split(":")
        assert len(value) == lengths[kind]
        assert source.url.startswith("https://")
        assert source.use.startswith("images.")


def test_cache_folder_defaults_to_the_home(monkeypatch):
    monkeypatch.delenv("GALNB_CACHE", raising=False)
    assert fetch.cache_folder().parts[-2:] == (".cache", "galnb")
