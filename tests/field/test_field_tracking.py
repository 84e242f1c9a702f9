"""MLflow that is locked, elsewhere, signed out, down or full: one line, and a watch goes on."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sqlite3
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path

import pytest
from reports import BY_HAND, report

from benchmarks import record as records
from benchmarks import tracking
from benchmarks.errors import BenchmarkError
from benchmarks.forecast import doctor
from benchmarks.tracking import dashboard, runs, store
from benchmarks.verbs import track

syncing = import_module("benchmarks.tracking.sync")  # the package has a function of this name
GOLDEN = Path(__file__).resolve().parents[1] / "benchmarks" / "golden" / "results" / "records"
PLACE = Path("demo-digits/digits/mlp/none/none")
TABLE = "tabledemo-digits"


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def synced(tmp_path_factory) -> Path:
    """Two records and a table, synced once."""
    results = tmp_path_factory.mktemp("synced") / "results"
    for seed in ("seed0.json", "seed1.json"):
        (results / "records" / PLACE).mkdir(parents=True, exist_ok=True)
        shutil.copy(GOLDEN / PLACE / seed, results / "records" / PLACE)
    found = [records.read(path) for path in (results / "records" / PLACE).glob("*.json")]
    mean = sum(100 * r.metrics["last"]["test/accuracy"] for r in found) / len(found)
    (results / "tables").mkdir()
    (results / "tables" / f"{TABLE}.md").write_text("the table")
    (results / "tables" / f"{TABLE}.csv").write_text(
        "table,dataset,split,backbone,refiner,upstream,metric,selection,n,planned,mean\n"
        f"demo-digits,digits,test,mlp,none,none,accuracy,last,2,2,{mean!r}\n"
    )
    tracking.sync(results, say=silent)
    return results


@pytest.fixture
def results(synced, tmp_path) -> Path:
    """The synced results in another place, as if they had been moved there."""
    shutil.copytree(synced, tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.1)


@contextmanager
def answering(status: int, body: bytes = b"<!doctype html><title>Sign in</title>"):
    """A server on the loopback interface that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_PUT = answer

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def locked(results: Path):
    path = results / "mlflow" / "mlflow.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


def one_line(action, *arguments, **options) -> str:
    with pytest.raises(BenchmarkError) as caught:
        action(*arguments, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (200, "a sign-in page or a proxy answers in MLflow's place"),
        (401, "MLFLOW_TRACKING_USERNAME"),
        (403, "MLFLOW_TRACKING_TOKEN"),
        (503, "503"),
    ],
)
@report(
    "mlflow 4955, 11551",
    "a server that answers a sign-in page, 401, 403 or 503",
    "one line that names the server and says what to give, for `sync` and `check`",
)
def test_a_server_that_is_no_store_is_one_line(synced, impatient, status, said):
    with answering(status) as uri:
        for verb in (tracking.sync, tracking.check):
            told = one_line(verb, synced, uri, say=silent)
            assert uri in told
            assert said in told
            assert "<!doctype" not in told


@report(
    "mlflow 5917",
    "a sqlite store that another program holds",
    "one line after seconds, no traceback, for `sync`, `check` and `ui`",
)
def test_a_locked_store_is_one_line(results, impatient, capfd):
    with locked(results):
        for verb in (tracking.sync, tracking.check):
            told = one_line(verb, results, say=silent)
            assert "locked; another program writes to it" in told
        assert "locked" in one_line(dashboard.ui, results)
    assert "Traceback" not in capfd.readouterr().err


@report(BY_HAND, "a store that is no database", "one line with its path")
def test_a_store_that_is_no_database_is_one_line(results):
    path = results / "mlflow" / "mlflow.db"
    path.write_text("<!doctype html>" * 100)
    for verb in (tracking.sync, tracking.check):
        assert str(path) in one_line(verb, results, say=silent)


@report("mlflow 3144", "results that were moved or copied", "said; artifacts go beside the store")
def test_a_moved_store_is_mended_and_said(results, synced):
    old = {path: path.stat().st_mtime_ns for path in synced.rglob("*")}
    (results / "tables" / f"{TABLE}.md").write_text("changed")
    said: list[str] = []
    tracking.sync(results, say=said.append)
    assert "the store was moved, its artifacts are looked for in" in said[0]
    assert str(results) in said[0]
    assert {path: path.stat().st_mtime_ns for path in synced.rglob("*")} == old, "untouched"
    with store.opened(store.resolve(results)) as client:
        for experiment in client.search_experiments(filter_string="name LIKE 'saflex/%'"):
            place = (results / "mlflow" / "artifacts" / experiment.name).as_uri()
            assert experiment.artifact_location == place
            for run in syncing.all_runs(client, experiment.experiment_id):
                assert run.info.artifact_uri.startswith(place)
                if "mlflow.note.content" in run.data.tags and runs.BUNDLE not in run.data.tags:
                    (folder,) = client.list_artifacts(run.info.run_id)
                    names = {
                        each.path for each in client.list_artifacts(run.info.run_id, folder.path)
                    }
                    assert f"tables/{TABLE}.md" in names
    said.clear()
    tracking.sync(results, say=said.append)
    assert len(said) == 1, "once"


@report(BY_HAND, "results under a second name, a link to them", "no move: left as it is")
def test_a_link_to_a_store_is_no_move(results, tmp_path):
    tracking.sync(results, say=silent)
    (tmp_path / "link").symlink_to(results)
    said: list[str] = []
    tracking.sync(tmp_path / "link", say=said.append)
    assert len(said) == 1


@report(BY_HAND, "`track check` and `track ui` before any `sync`", "one line; no store is made")
def test_looking_makes_no_store(results, tmp_path):
    shutil.rmtree(results / "mlflow")
    for verb in (tracking.check, dashboard.ui):
        assert "`python -m benchmarks track sync` makes it" in one_line(verb, results)
    assert not (results / "mlflow").exists()


@report(BY_HAND, "a disk that is full among artifacts", "one line; the next sync finishes")
def test_a_full_disk_among_artifacts_is_one_line(results, monkeypatch):
    (results / "tables" / f"{TABLE}.md").write_text("changed")
    copy = shutil.copyfileobj

    def full(source, target, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target.name)

    monkeypatch.setattr(shutil, "copyfileobj", full)
    assert "No space left" in one_line(tracking.sync, results, say=silent)
    monkeypatch.setattr(shutil, "copyfileobj", copy)
    assert tracking.sync(results, say=silent).counts["summaries"] == 1


class Enough(Exception):
    pass


@report(BY_HAND, "a store locked for a while under `sync --watch`", "said; the watch goes on")
def test_a_watch_goes_on(results, impatient, monkeypatch):
    (results / "records" / PLACE / "seed1.json").write_text("{")
    said: list[str] = []
    rounds = iter([1, 2])
    holder = locked(results)
    holder.__enter__()

    def wait(seconds):
        if next(rounds) == 2:
            raise Enough
        holder.__exit__(None, None, None)

    monkeypatch.setattr(syncing.time, "sleep", wait)
    with pytest.raises(Enough):
        tracking.sync(results, watch=True, say=said.append)
    assert "trying again in 30 s" in said[0]
    assert "unchanged" in said[-2]
    assert "seed1.json is not a record" in said[-1], "a damaged record is said as well"


@report(BY_HAND, "a sync of thousands of runs", "a line every ten seconds says how far it is")
def test_a_sync_says_how_far_it_is(results, monkeypatch):
    monkeypatch.setattr(syncing, "PROGRESS_SECONDS", -1)
    said: list[str] = []
    tracking.sync(results, say=said.append)
    assert [line for line in said if line.endswith("1 of 2 runs")]


@report(BY_HAND, "`track sync --results` with a typo", "one line; no folder, no store is made")
def test_a_misspelt_folder_becomes_no_store(tmp_path):
    assert "run the suite first" in one_line(tracking.sync, tmp_path / "reslts", say=silent)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("body", "level"), [(b"OK", "ok"), (b"<!doctype html>", "missing")])
@report("mlflow 4955, 11551", "`doctor` of a server that is a sign-in page", "missing, and why")
def test_doctor_tells_a_sign_in_page_from_a_store(tmp_path, body, level):
    with answering(200, body) as uri:
        (found,) = doctor.store(tmp_path, uri)
    assert found.level == level


@report(BY_HAND, "`track check` through the command line", "agrees, and counts the tables' records")
def test_check_through_its_verb(results, tmp_path, capsys, monkeypatch):
    tracking.sync(results, suite="demo", say=silent)
    monkeypatch.setattr(
        "benchmarks.running.current.choose",
        lambda found, plan: type("Chosen", (), {"records": list(found)}),
    )
    with pytest.raises(track.typer.Exit) as end:
        track.check(suite="demo", results=results, uri=None)
    assert end.value.exit_code == 0, capsys.readouterr().out


@report(BY_HAND, "`track ui` on a port that is taken", "one line; which")
def test_a_taken_port_is_one_line(results):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is taken" in one_line(dashboard.ui, results, port=port)


@report(BY_HAND, "a ? in the path of a sqlite store", "one line: a database's address ends there")
def test_a_question_mark_in_the_path_is_one_line(tmp_path):
    assert "has a ?" in one_line(store.resolve, tmp_path / "what?")
