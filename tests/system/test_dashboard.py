"""The dashboard in a real browser: the run list, one run with its curves, two refiners compared.

`SAFLEX_SCREENSHOTS=docs/images` makes the pictures of the documents anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from services import LOOPBACK, ROOT, environment, free_port, track
from waiting import wait_for

from benchmarks.tracking import runs, store, view
from benchmarks.tracking.sync import all_runs

CELL = Path("records") / "table2" / "qsar" / "mlp"
BROWSER = (
    *(
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--window-size=1600,1000", "--virtual-time-budget=60000"),
)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory):
    """Real runs of one data set in a store of their own, and the address `track ui` serves it at."""
    results = tmp_path_factory.mktemp("dashboard") / "results"
    shutil.copytree(ROOT / "results" / "cpu" / CELL, results / CELL)
    for folder in ("tables", "figures"):
        shutil.copytree(ROOT / "results" / "cpu" / folder, results / folder)
    options = ("--suite", "cpu", "--results", str(results))
    subprocess.run(track("sync", *options), env=environment(), check=True)
    port = free_port()
    process = subprocess.Popen(
        track("ui", *options, "--port", str(port)), env=environment(), stdout=subprocess.DEVNULL
    )
    address = f"http://{LOOPBACK}:{port}"

    def answers() -> bool:
        assert process.poll() is None
        try:
            return urllib.request.urlopen(f"{address}/health", timeout=2).status == 200
        except OSError:
            return False

    wait_for(answers, "the dashboard")
    yield address, store.client(store.resolve(results))
    process.terminate()
    process.wait(timeout=60)


@pytest.fixture
def look(tmp_path):
    """Open a page: the text of its document as the browser has it, and a picture."""

    def open_page(url: str, picture: str) -> str:
        browser = (*BROWSER, f"--user-data-dir={tmp_path / 'profile'}")
        folder = Path(os.environ.get("SAFLEX_SCREENSHOTS", tmp_path)).absolute()
        shot = folder / f"{picture}.png"
        subprocess.run(
            [*browser, f"--screenshot={shot}", url], check=True, capture_output=True, timeout=180
        )
        assert shot.stat().st_size > 20_000, "a picture of something"
        answer = subprocess.run(
            [*browser, "--dump-dom", url], check=True, capture_output=True, text=True, timeout=180
        )
        return answer.stdout

    return open_page


def experiment(client) -> str:
    return client.get_experiment_by_name("saflex/cpu/table2").experiment_id


def run_of(client, refiner: str):
    return next(
        run
        for run in all_runs(client, experiment(client))
        if run.data.tags.get(runs.BUNDLE) == f"table2/qsar/mlp/cutmix/{refiner}/seed0"
    )


def test_run_list_is_grouped_by_data_set_and_refiner(dashboard, look):
    address, client = dashboard
    page = look(address + view.path(experiment(client)), "mlflow_runs")
    assert "saflex/cpu/table2" in page
    assert "qsar" in page
    for refiner in ("saflex-derived", "weights-only", "train+val"):
        assert refiner in page
    assert "test/auroc" in page


def test_run_page_has_the_papers_number_and_the_parameters(dashboard, look):
    address, client = dashboard
    run = run_of(client, "saflex")
    place = f"{address}/#/experiments/{experiment(client)}/runs/{run.info.run_id}"
    page = look(place, "mlflow_run")
    assert "qsar/mlp/cutmix/saflex/seed0" in page
    assert "paper, test auroc: 92.69" in page
    assert "recipe.epochs" in page


def test_run_page_draws_curves(dashboard, look):
    address, client = dashboard
    run = run_of(client, "saflex")
    place = f"{address}/#/experiments/{experiment(client)}/runs/{run.info.run_id}/model-metrics"
    page = look(place, "mlflow_curves")
    assert "val/auroc" in page
    assert "plotly" in page


def test_two_refiners_are_compared(dashboard, look):
    address, client = dashboard
    two = [run_of(client, refiner).info.run_id for refiner in ("upstream", "saflex")]
    query = f"runs={quote(json.dumps(two))}&experiments={quote(json.dumps([experiment(client)]))}"
    page = look(f"{address}/#/compare-runs?{query}", "mlflow_compare")
    for refiner in ("upstream", "saflex"):
        assert f"qsar/mlp/cutmix/{refiner}/seed0" in page
    assert "last/test/auroc" in page


def test_the_server_listens_on_loopback_alone(dashboard):
    address, _ = dashboard
    port = int(address.rpartition(":")[2])
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections()
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert listening == {LOOPBACK}
