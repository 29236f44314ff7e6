"""Downloads from a local server that behaves as badly as real servers."""

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
from vggexp.data.download import download_file
from vggexp.errors import DataError, ResourceError

BODY = bytes(range(256)) * 40
CAP = len(BODY) + 1000
SHA = hashlib.sha256(BODY).hexdigest()
PLAIN = Checksum("sha256", SHA)
UNCOMPRESSED = Checksum("sha256", SHA, uncompressed=True)
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
        self.requests: list[str] = []
        self.stop = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path == "/slow":
            self.server.stop.wait(10)
        if self.path == "/crowd":
            time.sleep(0.3)  # long enough for the other processes to arrive
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
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.stop.set()
        server.shutdown()


@pytest.mark.parametrize(("path", "checksum"), [("/good", PLAIN), ("/packed.gz", UNCOMPRESSED)])
def test_a_file_is_downloaded_once(
    server: Server, tmp_path: Path, path: str, checksum: Checksum
) -> None:
    target = tmp_path / "new folder" / "file"
    for _ in range(2):
        download_file([server.url(path)], target, checksum, CAP)
    assert target.read_bytes() == BODIES[path]
    assert server.requests == [path]


def test_an_existing_file_is_verified(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"file: sha256 .* \(delete it to fetch it again\)$"):
        download_file([server.url("/good")], target, PLAIN, CAP)
    target.unlink()
    download_file([server.url("/good")], target, PLAIN, CAP)
    assert target.read_bytes() == BODIES["/good"]


@pytest.mark.parametrize(
    ("path", "checksum", "reason"),
    [
        ("/wrong", PLAIN, f"sha256 [0-9a-f]{{64}}, expected {SHA}"),
        ("/page", PLAIN, f"expected {SHA}"),
        ("/page", UNCOMPRESSED, "not a gzip file"),
        ("/short", PLAIN, "ended after 100 bytes, 10140 are missing"),
        ("/big", PLAIN, f"more than the {CAP} bytes"),
        ("/bomb.gz", UNCOMPRESSED, f"holds more than the {CAP} bytes"),
        ("/absent", PLAIN, "HTTP status 404"),
        ("/slow", PLAIN, "timed out"),
    ],
)
def test_a_wrong_file_is_not_kept(
    server: Server,
    tmp_path: Path,
    path: str,
    checksum: Checksum,
    reason: str,
) -> None:
    target = tmp_path / "file"
    with pytest.raises(
        DataError,
        match=rf"^cannot fetch {server.url(path)}: .*{reason}.*\(put the file at {target}\)$",
    ):
        download_file([server.url(path)], target, checksum, CAP, timeout=0.2)
    assert [path.name for path in tmp_path.iterdir()] == [".download.lock"]


def test_the_next_mirror_is_tried(server: Server, tmp_path: Path) -> None:
    download_file(
        [server.url(path) for path in ("/absent", "/wrong", "/good", "/packed.gz")],
        tmp_path / "file",
        PLAIN,
        CAP,
    )
    assert server.requests == ["/absent", "/wrong", "/good"]


def test_encrypted_mirrors_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls: list[str] = []

    def read_chunks(url: str, *_: object) -> list[bytes]:
        urls.append(url)
        return [BODY[:1]]

    monkeypatch.setattr(download_module, "_read_chunks", read_chunks)
    with pytest.raises(DataError):
        download_file(
            ["http://a", "https://b", "http://c", "https://d"], tmp_path / "file", PLAIN, CAP
        )
    assert urls == ["https://b", "https://d", "http://a", "http://c"]


def test_no_server(tmp_path: Path) -> None:
    with Server() as server:
        url = server.url("/good")
    with pytest.raises(DataError, match="Connection refused"):
        download_file([url], tmp_path / "file", PLAIN, CAP)


def test_files_of_a_killed_process_are_removed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part-1").write_bytes(BODY[:9])
    download_file([server.url("/good")], tmp_path / "file", PLAIN, CAP)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".download.lock", "file"]


def test_a_target_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot be written"):
        download_file([server.url("/good")], tmp_path / "file" / "below", PLAIN, CAP)


DOWNLOAD = """
import sys
from pathlib import Path
from vggexp.data.catalog import Checksum
from vggexp.data.download import download_file
url, target, sha256, cap = sys.argv[1:]
download_file([url], Path(target), Checksum("sha256", sha256), int(cap))
"""


@pytest.mark.process
def test_processes_download_a_file_once(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "file"
    command = [sys.executable, "-c", DOWNLOAD, server.url("/crowd"), str(target), SHA, str(CAP)]
    processes = [subprocess.Popen(command) for _ in range(5)]
    assert [process.wait(60) for process in processes] == [0] * 5
    assert server.requests == ["/crowd"]
    assert target.read_bytes() == BODY
