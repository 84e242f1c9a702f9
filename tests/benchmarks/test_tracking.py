"""MLflow holds what the records say: once each, in their own time, whatever happened to a sync before."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import record as records
from benchmarks import tracking
from benchmarks.errors import BenchmarkError
from benchmarks.running.checkpoint import saved
from benchmarks.running.current import choose
from benchmarks.suite import load, plan
from benchmarks.tables import build, evaluate
from benchmarks.tracking import dashboard, runs, store
from benchmarks.tracking.sync import all_runs

GOLDEN = Path(__file__).parent / "golden"
SUITE = load(GOLDEN / "suite.yaml")
USED = {r.key for r in choose(records.load_all(GOLDEN / "results"), plan(SUITE)).records}


@pytest.fixture(scope="module")
def synced(tmp_path_factory) -> Path:
    """The golden records and their tables, synced once."""
    results = tmp_path_factory.mktemp("golden")
    for record in records.load_all(GOLDEN / "results"):
        times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00"}
        records.write(results, record.model_copy(update=times))
    build(evaluate(SUITE, results), results, figures=False)
    tracking.sync(results, say=lambda line: None)
    return results


@pytest.fixture
def results(synced, tmp_path) -> Path:
    """A copy of the synced results, for a test to spoil."""
    shutil.copytree(synced, tmp_path / "results")
    return tmp_path / "results"


def stored(results: Path) -> dict[str, list]:
    client = store.client(store.resolve(results))
    found: dict[str, list] = {}
    for experiment in client.search_experiments():
        for run in all_runs(client, experiment.experiment_id):
            found.setdefault(run.data.tags.get(runs.BUNDLE, "summary"), []).append(run)
    return found


def places(results: Path) -> set[str]:
    return {f"{r.spec.bundle}/seed{r.spec.seed}" for r in records.load_all(results)}


def quiet_sync(results: Path, **options):
    return tracking.sync(results, say=lambda line: None, **options)


def test_every_record_is_there_once(synced):
    found = stored(synced)
    summaries = found.pop("summary")
    assert {place: len(of) for place, of in found.items()} == dict.fromkeys(places(synced), 1)
    assert len(summaries) == len({r.spec.table for r in records.load_all(synced)})


def test_runs_are_filed_by_the_suite_that_is_synced(results):
    """A record that moved here from another suite is no second experiment."""
    shutil.rmtree(results / "mlflow")
    quiet_sync(results, suite="merged")
    client = store.client(store.resolve(results))
    names = {e.name for e in client.search_experiments()} - {"Default"}
    tables = {r.spec.bundle.split("/")[0] for r in records.load_all(results)}
    assert names == {f"saflex/merged/{table}" for table in tables}
    assert {run.data.tags["suite"] for of in stored(results).values() for run in of} == {"merged"}
    assert set(+quiet_sync(results, suite="merged").counts) == {"unchanged"}
    assert tracking.check(results, suite="merged", used=USED, say=lambda line: None) == 0


def test_second_sync_changes_nothing(results):
    quiet_sync(results)  # the copied store's artifacts are beside it from now on
    before = (results / "mlflow" / "mlflow.db").read_bytes()
    outcome = quiet_sync(results)
    assert set(+outcome.counts) == {"unchanged"}
    assert outcome.counts["unchanged"] == len(places(results))
    assert (results / "mlflow" / "mlflow.db").read_bytes() == before


def test_run_carries_the_record(synced):
    record = next(
        r for r in records.load_all(synced) if r.status == "complete" and r.spec.seed == 1
    )
    spec = record.spec
    (run,) = stored(synced)[f"{spec.bundle}/seed1"]
    tags, data = run.data.tags, run.data
    assert run.info.run_name == f"{spec.bundle.split('/', 1)[1]}/seed1"
    for name in ("suite", "table", "dataset", "backbone", "upstream", "metric"):
        assert {**tags, **data.params}[name] == str(getattr(spec, name))
    assert tags["refiner"] == spec.row
    assert (tags["seed"], tags["status"]) == ("1", "complete")
    for selection in runs.SELECTIONS:
        for name, value in record.metrics[selection].items():
            if name.startswith("test/"):
                assert data.metrics[f"{selection}/{name}"] == value
    assert data.params["recipe.epochs"] == str(spec.settings.recipe.epochs)
    assert run.info.start_time == runs.milliseconds(record.started)
    assert run.info.end_time == runs.milliseconds(record.finished)
    (data_set,) = run.inputs.dataset_inputs
    assert data_set.dataset.name == spec.dataset


def test_curves_have_epochs_as_steps(synced):
    record = next(r for r in records.load_all(synced) if len(r.curves.get("epoch", [])) > 1)
    name = next(name for name in record.curves if name != "epoch")
    (run,) = stored(synced)[f"{record.spec.bundle}/seed{record.spec.seed}"]
    client = store.client(store.resolve(synced))
    points = client.get_metric_history(run.info.run_id, name)
    assert [point.step for point in points] == [round(e) for e in record.curves["epoch"]]
    assert [point.value for point in points] == record.curves[name]


def test_description_has_the_papers_number(synced):
    run = stored(synced)["table2/qsar/mlp/cutmix/saflex/seed0"][0]
    published = next(
        cell
        for cell in runs.paper.published()
        if (cell.table, cell.dataset, cell.backbone, cell.refiner) == ("2", "qsar", "mlp", "saflex")
    )
    assert f"{published.mean:g} ± {published.std:g}" in run.data.tags["mlflow.note.content"]


def test_failed_record_is_a_failed_run_with_its_reason(synced):
    failed = next(r for r in records.load_all(synced) if r.status == "failed")
    (run,) = stored(synced)[f"{failed.spec.bundle}/seed{failed.spec.seed}"]
    assert run.info.status == "FAILED"
    assert failed.error in run.data.tags["mlflow.note.content"]


def test_tables_are_artifacts_of_the_summary(synced):
    client = store.client(store.resolve(synced))
    summary = next(r for r in stored(synced)["summary"] if r.data.tags["table"] == "2")
    found = {artifact.path for artifact in client.list_artifacts(summary.info.run_id, "tables")}
    assert {"tables/table2.csv", "tables/table2.html", "tables/claims.csv"} <= found
    local = client.download_artifacts(summary.info.run_id, "tables/table2.csv")
    assert Path(local).read_bytes() == (synced / "tables" / "table2.csv").read_bytes()


def test_kept_weights_are_attached_once(results):
    record = next(r for r in records.load_all(results) if r.status == "complete")
    path = records.weights_path(results, record.key)
    saved({"layer.weight": torch.arange(6.0).reshape(2, 3)}, path)
    for _ in range(2):
        assert set(+quiet_sync(results).counts) == {"unchanged"}
        (run,) = stored(results)[f"{record.spec.bundle}/seed{record.spec.seed}"]
        client = store.client(store.resolve(results))
        (artifact,) = client.list_artifacts(run.info.run_id, "weights")
        local = client.download_artifacts(run.info.run_id, artifact.path)
        read = torch.load(local, weights_only=True)
        assert torch.equal(read["layer.weight"], torch.arange(6.0).reshape(2, 3))


def test_new_record_in_place_of_an_old_one_replaces_its_run(results):
    path = next((results / "records" / "table2").rglob("seed0.json"))
    old = records.read(path)
    recipe = old.spec.settings.recipe.model_copy(update={"epochs": 7})
    spec = old.spec.model_copy(
        update={"settings": old.spec.settings.model_copy(update={"recipe": recipe})}
    )
    new = old.model_copy(update={"spec": type(spec).model_validate(spec.model_dump())})
    new = new.model_copy(update={"key": new.spec.key})
    assert new.key != old.key
    records.write(results, new)
    assert quiet_sync(results).counts["replaced"] == 1
    (run,) = stored(results)[f"{spec.bundle}/seed0"]
    assert (run.data.tags[runs.KEY], run.data.params["recipe.epochs"]) == (new.key, "7")


def test_changed_table_replaces_its_summary(results):
    (results / "tables" / "table2.md").write_text("changed")
    assert quiet_sync(results).counts["summaries"] == 1
    assert len(stored(results)["summary"]) == len({r.spec.table for r in records.load_all(results)})


def test_damaged_record_is_named_and_the_others_are_synced(results):
    damaged, touched = sorted((results / "records" / "table2").rglob("upstream/seed0.json"))[:2]
    damaged.write_text(damaged.read_text()[:100])
    content = json.loads(touched.read_text())
    touched.write_text(json.dumps(content | {"device": "another"}))
    said = []
    with pytest.raises(BenchmarkError, match=damaged.name):
        tracking.sync(results, say=said.append)
    assert "1 replaced" in said[-1]


def test_check_agrees_with_the_tables(synced):
    said = []
    assert tracking.check(synced, used=USED, say=said.append) == 0, said
    assert "all cells agree" in said[-1]


def test_check_finds_one_changed_number(results):
    path = results / "tables" / "table2.csv"
    lines = path.read_text().splitlines()
    columns = lines[0].split(",")
    number = next(i for i, line in enumerate(lines[1:], 1) if ",qsar,test,mlp,saflex," in line)
    fields = lines[number].split(",")
    fields[columns.index("mean")] = str(float(fields[columns.index("mean")]) + 0.001)
    lines[number] = ",".join(fields)
    path.write_text("\n".join(lines) + "\n")
    said = []
    assert tracking.check(results, used=USED, say=said.append) == 1
    assert len(said) == 2
    assert "qsar mlp cutmix saflex" in said[0]


def test_check_finds_a_missing_run(results):
    client = store.client(store.resolve(results))
    client.delete_run(stored(results)["table2/qsar/mlp/cutmix/saflex/seed0"][0].info.run_id)
    assert tracking.check(results, used=USED, say=lambda line: None) == 1


KILLED_AT_THE_ELEVENTH = """
import os, signal, sys
from itertools import count
from benchmarks import tracking
from benchmarks.tracking import runs
made, whole = count(1), runs.dataset_inputs
def dataset_inputs(record):  # after a run's numbers, before its digest
    if next(made) == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(record)
runs.dataset_inputs = dataset_inputs
tracking.sync(sys.argv[1])
"""


def test_killed_sync_is_finished_by_the_next(results):
    """Killed when some runs are there and one is half-way: none twice, none lost afterwards."""
    for run in [run for of in stored(results).values() for run in of]:
        store.client(store.resolve(results)).delete_run(run.info.run_id)
    line = [sys.executable, "-c", KILLED_AT_THE_ELEVENTH, str(results)]
    killed = subprocess.run(
        line, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": "."}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    there = stored(results).keys() - {"summary"}
    assert len(there) == 11 < len(places(results)), "killed half-way"
    quiet_sync(results)
    found = stored(results)
    found.pop("summary")
    assert {place: len(of) for place, of in found.items()} == dict.fromkeys(places(results), 1)
    assert tracking.check(results, used=USED, say=lambda line: None) == 0


def test_interrupted_store_is_not_left_behind(tmp_path, monkeypatch):
    """The schema is laid in a file beside and renamed."""

    def fail(uri):
        Path(uri.removeprefix(store.SQLITE)).write_bytes(b"half")
        raise BenchmarkError("stopped")

    monkeypatch.setattr(store, "_upgrade", fail)
    uri = store.resolve(tmp_path)
    with pytest.raises(BenchmarkError, match="stopped"):
        store.prepare(uri)
    assert [p for p in (tmp_path / "mlflow").iterdir()] == []


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("mlruns", "no known kind"),
        ("file:///tmp/mlruns", "no file store"),
        ("", "no known kind"),
        (None, None),
    ],
)
def test_store_uri(tmp_path, monkeypatch, uri, said):
    monkeypatch.chdir(tmp_path)
    if said:
        with pytest.raises(BenchmarkError, match=said):
            store.resolve(Path("results"), uri)
    else:
        expected = f"sqlite:///{tmp_path}/results/mlflow/mlflow.db"
        assert store.resolve(Path("results"), uri) == expected
        assert store.resolve(Path("r"), "sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"


def test_sqlite_on_a_network_file_system_is_refused(monkeypatch):
    mounts = "host:/export /cluster nfs4 rw 0 0\n/dev/sda1 / ext4 rw 0 0\n"
    assert store.file_system(Path("/cluster/me/mlflow.db"), mounts) == "nfs4"
    assert store.file_system(Path("/home/me/mlflow.db"), mounts) == "ext4"
    monkeypatch.setattr(store, "file_system", lambda path: "lustre")
    with pytest.raises(BenchmarkError, match="lustre, where sqlite loses data"):
        store.resolve(Path("results"))


def test_unreachable_server_is_one_line(tmp_path, synced, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(BenchmarkError, match="does not answer"):
        tracking.sync(synced, "http://127.0.0.1:9", say=lambda line: None)


def test_passwords_are_not_printed():
    uri = "postgresql://me:secret@db:5432/mlflow"
    assert store.without_password(uri) == "postgresql://me:***@db:5432/mlflow"


def test_dashboard_listens_on_loopback_alone(synced):
    line = dashboard.command(synced, port=5123)
    assert line[line.index("--host") + 1] == "127.0.0.1"
    assert line[line.index("--backend-store-uri") + 1] == store.resolve(synced)
