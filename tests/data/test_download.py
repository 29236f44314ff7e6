"""Downloads from a server on this machine that behaves as badly as real ones."""

import gzip
import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vggexp.data import download as download_module
from vggexp.data.catalog import Checksum
from vggexp.data.download import download
from vggexp.errors import DataError, ResourceError

BODY = bytes(range(256)) * 40
CAP = len(BODY) + 1000
SHA = hashlib.sha256(BODY).hexdigest()
WHOLE, INSIDE = Checksum("sha256", SHA), Checksum("sha256", SHA, inside=True)
BODIES = {
    "/good": BODY,
    "/packed.gz": gzip.compress(BODY),
    "/wrong": BODY[:-1] + b"x",
    "/page": b"<html>log in first</html>",
    "/big": BODY * 2,
    "/bomb.gz": gzip.compress(bytes(1 << 23)),
    "/short": BODY[:100],
}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.stop = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/slow":
            self.server.stop.wait(10)
        if self.path == "/crowd":
            time.sleep(0.3)  # long enough for the others to come
        body = BODY if self.path == "/crowd" else BODIES.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header(
            "Content-Length", str(len(BODY) if self.path == "/short" else len(body or b""))
        )
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *message: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,)).start()
        yield running
        running.stop.set()
        running.shutdown()


@pytest.mark.parametrize(("path", "digest"), [("/good", WHOLE), ("/packed.gz", INSIDE)])
def test_fetches_once(server: Server, tmp_path: Path, path: str, digest: Checksum) -> None:
    target = tmp_path / "new folder" / "file"
    for _ in range(2):
        download([server.url(path)], target, digest, CAP)
    assert target.read_bytes() == BODIES[path] and server.asked == [path]


@pytest.mark.parametrize(
    ("path", "digest", "reason"),
    [
        ("/wrong", WHOLE, f"sha256 [0-9a-f]{{64}}, wanted {SHA}"),
        ("/page", WHOLE, f"wanted {SHA}"),
        ("/page", INSIDE, "not a gzip file"),
        ("/short", WHOLE, "ended after 100 bytes, 10140 are missing"),
        ("/big", WHOLE, f"more than the {CAP} bytes"),
        ("/bomb.gz", INSIDE, f"holds more than the {CAP} bytes"),
        ("/absent", WHOLE, "HTTP status 404"),
        ("/slow", WHOLE, "timed out"),
    ],
)
def test_leaves_nothing_wrong(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    digest: Checksum,
    reason: str,
) -> None:
    monkeypatch.setattr(download_module, "TIMEOUT_SECONDS", 0.2)
    target = tmp_path / "file"
    with pytest.raises(
        DataError,
        match=rf"^cannot fetch {server.url(path)}: .*{reason}.*\(put the file at {target}\)$",
    ):
        download([server.url(path)], target, digest, CAP)
    assert [left.name for left in tmp_path.iterdir()] == [".download.lock"]


def test_tries_the_next_source(server: Server, tmp_path: Path) -> None:
    download(
        [server.url(path) for path in ("/absent", "/wrong", "/good", "/packed.gz")],
        tmp_path / "file",
        WHOLE,
        CAP,
    )
    assert server.asked == ["/absent", "/wrong", "/good"]


def test_encrypted_sources_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def pieces(url: str, *_: object) -> list[bytes]:
        tried.append(url)
        return [BODY[:1]]

    monkeypatch.setattr(download_module, "_read_chunks", pieces)
    with pytest.raises(DataError):
        download(["http://a", "https://b", "http://c", "https://d"], tmp_path / "file", WHOLE, CAP)
    assert tried == ["https://b", "https://d", "http://a", "http://c"]


def test_nobody_there(tmp_path: Path) -> None:
    with Server() as gone:
        url = gone.url("/good")
    with pytest.raises(DataError, match="Connection refused"):
        download([url], tmp_path / "file", WHOLE, CAP)


def test_removes_what_a_killed_process_left(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part-1").write_bytes(BODY[:9])
    download([server.url("/good")], tmp_path / "file", WHOLE, CAP)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".download.lock", "file"]


def test_no_place_to_write(server: Server, tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot be written"):
        download([server.url("/good")], tmp_path / "taken" / "file", WHOLE, CAP)


def test_processes_fetch_together(server: Server, tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from vggexp.data.catalog import Digest
from vggexp.data.download import fetch
fetch(["{server.url("/crowd")}"], Path("{tmp_path}/file"), Digest("sha256", "{SHA}"), {CAP})
"""
    crowd = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(5)]
    assert [process.wait(30) for process in crowd] == [0] * 5
    assert server.asked == ["/crowd"] and (tmp_path / "file").read_bytes() == BODY
