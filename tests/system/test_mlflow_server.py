"""2,000 records into sqlite and into a real MLflow server over PostgreSQL, which goes and comes back."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
import yaml
from services import ROOT, Postgres, Server, environment, track
from waiting import PATIENCE_SECONDS, wait_for

from benchmarks import record as records
from benchmarks.merge import merge
from benchmarks.tracking import runs, store
from benchmarks.tracking.sync import all_runs

RECORDS, WRITERS = 2000, 8
FEW = 120
SUITE = "load"

pytestmark = [pytest.mark.timeout(1800)]


def _write(writer: int, folder: Path, count: int) -> None:
    """One machine's share: real records of Table 2 under seeds of its own."""
    found = sorted((ROOT / "results" / "cpu" / "records" / "table2").rglob("seed*.json"))
    assert found, "committed records"
    for number in range(count):
        real = records.read(found[number % len(found)])
        # Seeds decide the key: no two writers and no two turns have one in common.
        seed = real.spec.seed + 100 * (1 + writer) + 1000 * (number // len(found))
        # Not a `model_copy`, which takes the old key with it.
        changed = real.spec.model_dump() | {"seed": seed, "suite": SUITE}
        spec = type(real.spec).model_validate(changed)
        records.write(folder, real.model_copy(update={"spec": spec, "key": spec.key}))


def fabricate(into: Path, count: int) -> Path:
    """Records of eight writers at once, merged."""
    machines = [into.with_name(f"{into.name}-machine{n}") for n in range(WRITERS)]
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(_write, range(WRITERS), machines, [count // WRITERS] * WRITERS))
    merged = merge(machines, into)
    assert merged.new == count
    return into


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    return fabricate(tmp_path_factory.mktemp("many") / "results", RECORDS)


@pytest.fixture
def few(tmp_path) -> Path:
    return fabricate(tmp_path / "results", FEW)


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """A suite of the records' name; syncing reads no more of it."""
    path = tmp_path_factory.mktemp("suite") / f"{SUITE}.yaml"
    content = yaml.safe_load((ROOT / "benchmarks" / "suites" / "demo.yaml").read_text())
    path.write_text(yaml.safe_dump(content | {"suite": SUITE}))
    return path


@pytest.fixture
def server(tmp_path):
    database = Postgres().start()
    found = Server(database.uri, tmp_path).start()
    yield found
    found.kill()
    database.stop()


@pytest.fixture
def sync(suite):
    def run(results: Path, uri: str | None = None) -> subprocess.CompletedProcess:
        line = track("sync", "--suite", str(suite), "--results", str(results))
        line += ["--uri", uri] if uri else []
        return subprocess.run(line, env=environment(), capture_output=True, text=True, check=False)

    return run


def stored(uri: str) -> Counter:
    """How often each bundle and seed is in a store."""
    client = store.client(uri)
    return Counter(
        run.data.tags.get(runs.BUNDLE, "half a run")
        for experiment in client.search_experiments()
        for run in all_runs(client, experiment.experiment_id)
    )


def wanted(results: Path) -> Counter:
    return Counter(f"{r.spec.bundle}/seed{r.spec.seed}" for r in records.load_all(results))


def counts(text: str) -> dict[str, float]:
    """Numbers of the line that a sync ends with."""
    (line,) = re.findall(r"(\d+) new, (\d+) replaced, (\d+) unchanged, .* in ([\d.]+) s", text)[-1:]
    return dict(zip(("new", "replaced", "unchanged", "seconds"), map(float, line), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_thousand_records(kind, many, sync, tmp_path, request, record_property):
    uri = None
    if kind == "postgresql":
        uri = request.getfixturevalue("server").uri
    first = sync(many, uri)
    assert first.returncode == 0, first.stderr
    assert counts(first.stdout)["new"] == RECORDS
    place = store.resolve(many, uri)
    assert stored(place) == wanted(many)
    again = sync(many, uri)
    assert again.returncode == 0, again.stderr
    assert {**counts(again.stdout), "seconds": 0} == {
        "new": 0,
        "replaced": 0,
        "unchanged": RECORDS,
        "seconds": 0,
    }
    assert stored(place) == wanted(many)
    seconds = counts(first.stdout)["seconds"], counts(again.stdout)["seconds"]
    record_property("seconds", seconds)
    print(f"{kind}: {RECORDS} records in {seconds[0]:.0f} s, again in {seconds[1]:.1f} s")


def test_killed_sync_against_the_server(few, server, sync, suite):
    line = track("sync", "--suite", str(suite), "--results", str(few), "--uri", server.uri)
    process = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL)
    wait_for(lambda: sum(stored(server.uri).values()) >= 10, "ten runs")
    process.kill()
    process.wait()
    assert 10 <= sum(stored(server.uri).values()) < FEW, "killed half-way"
    answer = sync(few, server.uri)
    assert answer.returncode == 0, answer.stderr
    assert stored(server.uri) == wanted(few)
    assert counts(sync(few, server.uri).stdout)["unchanged"] == FEW


def test_server_killed_during_a_sync_is_said_in_a_line_and_loses_nothing(few, server, sync, suite):
    line = track("sync", "--suite", str(suite), "--results", str(few), "--uri", server.uri)
    process = subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: sum(stored(server.uri).values()) >= 10, "ten runs")
    server.kill()
    told = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 2, told
    assert "Traceback" not in told
    assert "does not answer" in told
    server.start()
    assert sum(stored(server.uri).values()) < FEW, "killed half-way"
    assert sync(few, server.uri).returncode == 0
    assert stored(server.uri) == wanted(few)


def test_watch_goes_on_when_the_server_is_back_and_when_records_come(few, server, suite, tmp_path):
    """Down when the watch begins, then up, then more records: no command is given again."""
    held = tmp_path / "held"
    late = list(islice(sorted((few / "records").rglob("seed*.json")), 20))
    for path in late:
        place = held / path.relative_to(few)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, place)
    server.kill()
    line = track("sync", "--suite", str(suite), "--results", str(few), "--uri", server.uri)
    log = tmp_path / "watch.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*line, "--watch", "--interval", "2"],
            env={**environment(), "PYTHONUNBUFFERED": "1"},
            stdout=stream,
            stderr=stream,
        )
    try:
        wait_for(lambda: "trying again" in log.read_text(), "a refusal that is said")
        assert process.poll() is None
        server.start()
        wait_for(lambda: f"{FEW - 20} new" in log.read_text(), "a round when the server is back")
        for path in late:
            shutil.move(held / path.relative_to(few), path)
        wait_for(lambda: sum(stored(server.uri).values()) == FEW, "the late records")
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=PATIENCE_SECONDS) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()
    assert stored(server.uri) == wanted(few)
