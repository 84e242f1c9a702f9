"""The dashboard in a real browser: the run list, one run with its curves, two refiners compared.

`SAFLEX_SCREENSHOTS=docs/images` makes the pictures of the documents anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from playwright.sync_api import expect, sync_playwright
from services import LOOPBACK, ROOT, environment, free_port, track
from waiting import wait_for

from benchmarks.tracking import runs, store, view
from benchmarks.tracking.sync import all_runs

CELL = Path("records") / "table2" / "qsar" / "mlp"
SECOND = 1000  # Playwright's unit is the millisecond

expect.set_options(timeout=120 * SECOND)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory):
    """Real runs of one data set in a store of their own, and the address `track ui` serves it at."""
    results = tmp_path_factory.mktemp("dashboard") / "results"
    # Fewer than the hundred runs that MLflow's list shows at a time.
    fewer = shutil.ignore_patterns("cutmix-*")
    shutil.copytree(ROOT / "results" / "cpu" / CELL, results / CELL, ignore=fewer)
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


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # Debian's Chromium rather than one of Playwright's own, which would be downloaded.
        yield playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )


@pytest.fixture
def page(browser, tmp_path):
    """An empty page of a browser that has never been here, MLflow's chat panel kept shut.

    When a test is over, what it showed is left as a picture.
    """
    shown = browser.new_page(viewport={"width": 1600, "height": 1000})
    shown.set_default_timeout(
        120 * SECOND
    )  # MLflow's page is megabytes of script on two busy cores
    shown.add_init_script(
        "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
    )
    yield shown
    shown.close()


def picture(page, name: str) -> None:
    folder = Path(os.environ.get("SAFLEX_SCREENSHOTS", "."))
    if "SAFLEX_SCREENSHOTS" in os.environ:
        page.screenshot(path=folder / f"mlflow_{name}.png")


def experiment(client) -> str:
    return client.get_experiment_by_name("saflex/cpu/table2").experiment_id


def run_of(client, refiner: str):
    return next(
        run
        for run in all_runs(client, experiment(client))
        if run.data.tags.get(runs.BUNDLE) == f"table2/qsar/mlp/cutmix/{refiner}/seed0"
    )


def test_run_list_is_grouped_by_data_set_and_refiner(dashboard, page):
    address, client = dashboard
    page.goto(address + view.path(experiment(client)))
    for refiner in ("saflex", "saflex-derived", "weights-only", "train+val"):
        group = f"dataset: qsar, upstream: cutmix, refiner: {refiner}"
        expect(page.get_by_title(group, exact=True)).to_be_attached()
        expect(page.get_by_role("gridcell", name=refiner, exact=True).first).to_be_attached()
    expect(page.get_by_text("last/test/auroc").first).to_be_visible()
    picture(page, "runs")


def test_run_page_has_the_papers_number_and_the_parameters(dashboard, page):
    address, client = dashboard
    run = run_of(client, "saflex")
    page.goto(f"{address}/#/experiments/{experiment(client)}/runs/{run.info.run_id}")
    expect(page.get_by_text("qsar/mlp/cutmix/saflex/seed0").first).to_be_visible()
    expect(
        page.get_by_text(
            re.compile(r"test auroc: \d\d\.\d\d \(last epoch\), .*; paper 92\.69 ± 0\.13")
        ).first
    ).to_be_visible()
    expect(page.get_by_text("recipe.epochs").first).to_be_visible()
    picture(page, "run")


def test_run_page_draws_curves(dashboard, page):
    address, client = dashboard
    run = run_of(client, "saflex")
    page.goto(f"{address}/#/experiments/{experiment(client)}/runs/{run.info.run_id}/model-metrics")
    page.get_by_placeholder("Search metric charts").fill("^(val|train)/")
    expect(page.get_by_text("val/auroc").first).to_be_visible()
    # A curve is a path of Plotly's with a point an epoch.
    expect(page.locator(".scatterlayer path.js-line").first).to_be_visible()
    picture(page, "curves")


def test_two_refiners_are_compared(dashboard, page):
    address, client = dashboard
    two = [run_of(client, refiner).info.run_id for refiner in ("upstream", "saflex")]
    query = f"runs={quote(json.dumps(two))}&experiments={quote(json.dumps([experiment(client)]))}"
    page.goto(f"{address}/#/compare-runs?{query}")
    for refiner in ("upstream", "saflex"):
        expect(page.get_by_text(f"qsar/mlp/cutmix/{refiner}/seed0").first).to_be_visible()
    expect(page.get_by_text("last/test/auroc").first).to_be_attached()
    expect(page.locator(".parcoords .axis").first).to_be_visible()  # drawn, not its grey bars
    picture(page, "compare")


def test_the_server_listens_on_loopback_alone(dashboard):
    address, _ = dashboard
    port = int(address.rpartition(":")[2])
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections()
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert listening == {LOOPBACK}
