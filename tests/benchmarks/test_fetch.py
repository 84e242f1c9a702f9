"""Downloads against a server on loopback: resumed, from mirrors in order, verified before use."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import openml
import pytest
from fabricate import tabular as fabricate

from benchmarks import sources
from benchmarks.datasets import appetency, iwildcam_subset, qsar, volkert
from benchmarks.errors import DataError, UnknownName
from benchmarks.fetch import download, fetch
from benchmarks.sources import Source

CONTENT = np.random.default_rng(0).bytes(300_000)


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


@dataclass
class Server:
    """What the loopback server serves, how it misbehaves, and what it was asked for."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    breaks_after: int | None = None
    ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    sent: int = 0

    def url(self, path: str) -> str:
        return self.address + path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        state: Server = self.server.state
        wanted = self.headers.get("Range")
        state.requests.append((self.path, wanted))
        content = state.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and state.ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        piece = content[start:]
        if state.breaks_after is not None:
            piece = piece[: state.breaks_after]
        state.sent += len(piece)
        self.wfile.write(piece)

    def log_message(self, *_):
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.state = Server(address=f"http://127.0.0.1:{running.server_port}")
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running.state
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path / "local"))
    return tmp_path / "home"


@pytest.fixture
def source(server) -> Source:
    server.files["/good"] = CONTENT
    return Source(
        name="A file",
        path="tabular/qsar/a.bin",
        urls=(server.url("/good"),),
        checksum=md5(CONTENT),
        size=len(CONTENT),
    )


def parts(home: Path) -> list[Path]:
    return list(home.rglob("*.part"))


class TestDownload:
    def test_a_file_arrives_whole(self, source, home):
        path = download(source)
        assert path == home / "raw" / "tabular/qsar/a.bin"
        assert path.read_bytes() == CONTENT
        assert parts(home) == []

    def test_an_interrupted_transfer_goes_on_where_it_stopped(self, source, server, home):
        server.breaks_after = 100_000
        with pytest.raises(DataError, match="100,000 bytes are kept and resumed next time"):
            download(source)
        assert not sources.raw_path(source).exists()
        server.breaks_after = None
        assert download(source).read_bytes() == CONTENT
        assert server.requests[-1] == ("/good", "bytes=100000-")
        assert server.sent == len(CONTENT)
        assert parts(home) == []

    def test_another_mirror_goes_on_where_the_first_stopped(self, source, server):
        server.files["/other"] = CONTENT
        server.breaks_after = 100_000
        with pytest.raises(DataError):
            download(source)
        server.breaks_after = None
        del server.files["/good"]
        download(replace(source, urls=(*source.urls, server.url("/other"))))
        assert server.requests[-1] == ("/other", "bytes=100000-")

    def test_a_server_that_cannot_resume_sends_it_all_again(self, source, server):
        sources.raw_path(source).parent.mkdir(parents=True)
        Path(f"{sources.raw_path(source)}.part").write_bytes(CONTENT[:1000])
        server.ranges = False
        assert download(source).read_bytes() == CONTENT

    @pytest.mark.parametrize("kept", [b"x" * 1000, b"x" * len(CONTENT), CONTENT + b"more"])
    def test_a_wrong_beginning_is_thrown_away_and_fetched_afresh(self, source, home, kept):
        sources.raw_path(source).parent.mkdir(parents=True)
        Path(f"{sources.raw_path(source)}.part").write_bytes(kept)
        assert download(source).read_bytes() == CONTENT
        assert parts(home) == []

    def test_a_complete_part_is_verified_and_kept(self, source, server):
        sources.raw_path(source).parent.mkdir(parents=True)
        Path(f"{sources.raw_path(source)}.part").write_bytes(CONTENT)
        assert download(source).read_bytes() == CONTENT
        assert server.sent == 0

    def test_mirrors_are_tried_in_order(self, source, server):
        server.files["/altered"] = CONTENT[:-1] + b"!"
        urls = tuple(server.url(f"/{name}") for name in ("gone", "altered", "good", "never"))
        assert download(replace(source, urls=urls)).read_bytes() == CONTENT
        assert [path for path, _ in server.requests] == ["/gone", "/altered", "/good"]

    def test_an_altered_file_gets_no_name(self, source, server, home):
        altered = CONTENT[:-1] + b"!"
        server.files["/good"] = altered
        with pytest.raises(DataError, match="could not be downloaded") as caught:
            download(source)
        assert f"expected {md5(CONTENT)}, found {md5(altered)}" in str(caught.value)
        assert not sources.raw_path(source).exists()
        assert parts(home) == []

    def test_every_mirror_is_named_with_what_it_did(self, source, server):
        dead = "http://127.0.0.1:9/x"
        with pytest.raises(DataError) as caught:
            download(replace(source, urls=(server.url("/gone"), dead)))
        assert "/gone: 404" in str(caught.value)
        assert dead in str(caught.value)
        assert "put tabular/qsar/a.bin into the folder SAFLEX_DATA" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_without_a_checksum_nothing_is_downloaded(self, source, server):
        with pytest.raises(DataError, match="no checksum is known to verify it by"):
            download(replace(source, checksum=""))
        assert server.requests == []

    def test_the_same_content_in_other_bytes_is_accepted(self, source, server):
        server.files["/good"] = b"other bytes"
        assert download(replace(source, also=(md5(b"other bytes"),))).read_bytes() == b"other bytes"

    def test_two_at_once_download_once(self, source, server):
        with ThreadPoolExecutor(4) as pool:
            paths = list(pool.map(lambda _: download(source), range(4)))
        assert {path.read_bytes() for path in paths} == {CONTENT}
        assert server.sent == len(CONTENT)


class TestFetch:
    @pytest.fixture
    def fabricated(self, server, tmp_path, monkeypatch) -> Source:
        """QSAR's first file, served by the loopback server only."""
        made = fabricate.install(monkeypatch, tmp_path / "made", "qsar", alternative=0)
        server.files["/qsar"] = made.read_bytes()
        source = replace(qsar.SOURCES["qsar"][0], urls=(server.url("/qsar"),))
        monkeypatch.setitem(qsar.SOURCES, "qsar", (source,))
        return source

    def test_what_is_there_and_verified_is_not_downloaded_again(self, fabricated, server, capsys):
        first = fetch(["qsar"])
        assert fetch(["qsar"]) == first == [sources.raw_path(fabricated)]
        assert len(server.requests) == 1
        assert "is at hand and verified" in capsys.readouterr().out
        assert qsar.load("qsar", seed=0).num_classes == 2

    def test_an_altered_file_of_ours_is_replaced(self, fabricated, server):
        (path,) = fetch(["qsar"])
        path.write_bytes(b"broken")
        with pytest.raises(DataError, match="truncated or altered"):
            sources.locate(fabricated)
        fetch(["qsar"])
        assert path.read_bytes() == server.files["/qsar"]

    def test_an_altered_file_of_the_user_is_named_and_left_alone(
        self, fabricated, server, tmp_path
    ):
        path = tmp_path / "local" / fabricated.path
        path.parent.mkdir(parents=True)
        path.write_bytes(b"the user's")
        with pytest.raises(DataError, match=re.escape(str(path))):
            fetch(["qsar"])
        assert path.read_bytes() == b"the user's"
        assert server.requests == []

    def test_the_local_folder_comes_first(self, fabricated, server, tmp_path):
        path = tmp_path / "local" / fabricated.path
        path.parent.mkdir(parents=True)
        path.write_bytes(server.files["/qsar"])
        assert fetch(["qsar"]) == [path] == [sources.locate(fabricated)]
        assert server.requests == []

    def test_one_failure_does_not_keep_the_others_from_being_fetched(
        self, fabricated, server, monkeypatch
    ):
        gone = replace(appetency.COMPLETE, urls=(server.url("/gone"),), checksum=md5(b""))
        monkeypatch.setitem(appetency.SOURCES, "appetency", (gone,))
        with pytest.raises(DataError, match=r"^appetency: .*404"):
            fetch(["appetency", "qsar"])
        assert sources.raw_path(fabricated).is_file()

    def test_an_unknown_name_is_refused_before_anything_is_downloaded(self, fabricated, server):
        with pytest.raises(UnknownName, match="unknown data set 'qsr': did you mean 'qsar'"):
            fetch(["qsar", "qsr"])
        assert server.requests == []

    def test_data_that_ships_with_a_package_needs_nothing(self):
        assert fetch(["digits"]) == []
        assert sources.lacking("digits") == []

    def test_a_partial_file_suffices_unless_the_complete_one_is_asked_for(
        self, server, tmp_path, monkeypatch
    ):
        partial = fabricate.install(monkeypatch, tmp_path / "local", "appetency", alternative=1)
        made = fabricate.install(monkeypatch, tmp_path / "made", "appetency", alternative=0)
        server.files["/complete"] = made.read_bytes()
        complete, other = appetency.SOURCES["appetency"]
        complete = replace(complete, urls=(server.url("/complete"),))
        monkeypatch.setitem(appetency.SOURCES, "appetency", (complete, other))
        assert fetch(["appetency"]) == [partial]
        assert server.requests == []
        assert fetch(["appetency"], complete=True) == [sources.raw_path(complete)]
        assert appetency.load("appetency", seed=0).notes == ()

    def test_lists_beside_the_images_are_fetched_though_the_images_are_left_to_wilds(
        self, server, monkeypatch
    ):
        lists = {}
        for split, source in iwildcam_subset.LISTS.items():
            content = f"split,location_remapped,y,filename\n{split}\n".encode()
            server.files[f"/{split}"] = content
            lists[split] = replace(source, urls=(server.url(f"/{split}"),), checksum=md5(content))
        monkeypatch.setitem(iwildcam_subset.PARTS, "iwildcam-subset", tuple(lists.values()))
        with pytest.raises(DataError) as caught:
            fetch(["iwildcam-subset"])
        assert "wilds package" in str(caught.value)
        assert "11,957.4 MB" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        for split, source in lists.items():
            assert sources.raw_path(source).read_bytes() == server.files[f"/{split}"]
        images = sources.raw_path(iwildcam_subset.IMAGES)
        images.parent.mkdir(parents=True)
        images.write_text("2.0")
        before = len(server.requests)
        assert len(fetch(["iwildcam-subset"])) == 5
        assert len(server.requests) == before

    def test_bytes_to_download(self, fabricated, server):
        assert [source.size for source in sources.lacking("qsar")] == [len(server.files["/qsar"])]
        fetch(["qsar"])
        assert sources.lacking("qsar") == []
        assert [source.size for source in sources.lacking("volkert")] == [0]  # not stated


class TestMissing:
    def test_says_what_how_big_where_it_looked_and_the_command(self, tmp_path, home):
        with pytest.raises(DataError) as caught:
            qsar.load("qsar", seed=0)
        message = str(caught.value)
        assert "tabular/qsar/qsar-biodeg_openml1494.csv, 0.2 MB" in message
        assert f"SAFLEX_DATA ({tmp_path / 'local'})" in message
        assert str(home / "raw") in message
        assert "`python -m benchmarks fetch --dataset qsar`" in message
        assert qsar.CSV.urls[0] in message

    def test_an_unset_variable_is_said_to_be_unset(self, monkeypatch):
        monkeypatch.delenv("SAFLEX_DATA")
        with pytest.raises(DataError, match=r"SAFLEX_DATA \(not set\)"):
            qsar.load("qsar", seed=0)


class TestVerification:
    def test_a_hash_is_remembered_while_the_file_is_unchanged(self, tmp_path, monkeypatch):
        path = tmp_path / "x"
        path.write_bytes(b"one")
        monkeypatch.setattr(sources, "SETTLED_SECONDS", -1.0)
        first = sources.checksum(path, "md5")
        monkeypatch.setattr(hashlib, "file_digest", None)
        assert sources.checksum(path, "md5") == first == md5(b"one")

    def test_the_same_size_and_modification_time_do_not_deceive_it(self, tmp_path, monkeypatch):
        path = tmp_path / "x"
        path.write_bytes(b"one")
        monkeypatch.setattr(sources, "SETTLED_SECONDS", -1.0)
        assert sources.checksum(path, "md5") == md5(b"one")
        state = path.stat()
        while path.stat().st_ctime_ns == state.st_ctime_ns:  # the clock of the file system ticks
            path.write_bytes(b"two")
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert sources.checksum(path, "md5") == md5(b"two")

    def test_a_file_just_written_is_hashed_every_time(self, tmp_path, home):
        path = tmp_path / "x"
        path.write_bytes(b"one")
        sources.checksum(path, "md5")
        assert not (home / "verified").exists()

    def test_every_file_that_is_downloaded_has_a_checksum_or_comes_from_openml(self):
        from benchmarks import registry

        for name in registry.modules("datasets"):
            for source in (one for several in sources.files(name) for one in several):
                openml = any(url.startswith("openml:") for url in source.urls)
                # A folder unpacked by hand, such as CUB's, is checked file by file where it is read.
                assert source.checksum or openml or not source.urls
                assert not Path(source.path).is_absolute()


DESCRIPTION = """<oml:data_set_description xmlns:oml="http://openml.org/openml">
<oml:id>41166</oml:id><oml:name>volkert</oml:name><oml:version>1</oml:version>
<oml:description>x</oml:description><oml:format>ARFF</oml:format><oml:licence>Public</oml:licence>
<oml:url>{url}</oml:url><oml:file_id>19335689</oml:file_id>
<oml:default_target_attribute>class</oml:default_target_attribute>
<oml:visibility>public</oml:visibility><oml:status>active</oml:status>
<oml:md5_checksum>{md5}</oml:md5_checksum></oml:data_set_description>"""


class TestOpenML:
    """Volkert (41166) through the OpenML client: a local server, or its cache and no server."""

    @pytest.fixture
    def arff(self, tmp_path) -> bytes:
        path = tmp_path / "volkert.arff"
        fabricate.volkert(path, np.random.default_rng(7))
        return path.read_bytes()

    @pytest.fixture(autouse=True)
    def client(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr(openml.config, "server", server.url("/api/v1/xml"))
        monkeypatch.setattr(openml.config, "connection_n_retries", 1)
        monkeypatch.setattr(openml.config, "_root_cache_directory", tmp_path / "openml")

    def serve(self, server, arff: bytes, stated: bytes | None = None) -> None:
        digest = hashlib.md5(arff if stated is None else stated).hexdigest()
        text = DESCRIPTION.format(url=server.url("/volkert.arff"), md5=digest)
        server.files |= {"/api/v1/xml/data/41166": text.encode(), "/volkert.arff": arff}

    def test_file_and_checksum_come_from_the_client(self, server, arff):
        self.serve(server, arff)
        (path,) = fetch(["volkert"])
        assert path.read_bytes() == arff
        assert Path(f"{path}.checksum").read_text().strip() == md5(arff)
        data = volkert.load("volkert", seed=0)
        assert (data.num_classes, len(data.feature_names)) == (10, 147)
        assert data.provenance == {volkert.ARFF.path: md5(arff)}

    def test_the_checksum_kept_beside_it_guards_it_from_then_on(self, server, arff):
        self.serve(server, arff)
        (path,) = fetch(["volkert"])
        path.write_bytes(arff.replace(b"0.0", b"0.1", 1))
        with pytest.raises(DataError, match="truncated or altered"):
            volkert.load("volkert", seed=0)

    def test_it_resumes(self, server, arff):
        self.serve(server, arff)
        direct = replace(volkert.ARFF, urls=("openml:41166",))
        server.breaks_after = 2000
        with pytest.raises(DataError, match="2,000 bytes are kept"):
            download(direct)
        server.breaks_after = None
        assert download(direct).read_bytes() == arff
        assert server.requests[-1] == ("/volkert.arff", "bytes=2000-")

    def test_an_altered_file_is_refused(self, server, arff):
        self.serve(server, arff, stated=b"what was published")
        direct = replace(volkert.ARFF, urls=("openml:41166",))
        with pytest.raises(DataError, match=f"found {md5(arff)}"):
            download(direct)

    def test_a_filled_cache_needs_no_server(self, server, arff):
        cache = Path(openml.config.get_cache_directory()) / "datasets" / "41166"
        cache.mkdir(parents=True)
        text = DESCRIPTION.format(url="http://127.0.0.1:9/x", md5=hashlib.md5(arff).hexdigest())
        (cache / "description.xml").write_text(text, encoding="utf-8")
        (cache / "dataset.arff").write_bytes(arff)
        (path,) = fetch(["volkert"])
        assert path.read_bytes() == arff
        assert server.requests == []

    def test_what_the_client_says_is_passed_on(self, server):
        with pytest.raises(DataError, match="openml:41166: the OpenML client says: "):
            fetch(["volkert"])
