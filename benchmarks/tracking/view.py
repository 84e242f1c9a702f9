"""A view of the run list to link to: runs grouped by data set and refiner, the table's metric beside.

MLflow keeps views that somebody shared as tags of the experiment. Its page reads them; what is in one
is the page's own state (MLflow 3.17), so a later MLflow that does not know it shows the plain list.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks.record import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "by-dataset-and-refiner"
TAG = f"mlflow.sharedViewState.{NAME}"

# The page shows training runs rather than prompts and traces.
KIND = {"mlflow.experimentKind": "custom_model_development"}


def share(client: MlflowClient, experiment: str, records: list[Record]) -> None:
    """Lay the view beside an experiment, unless it lies there already."""
    wanted = {TAG: json.dumps(state(records), sort_keys=True), **KIND}
    known = client.get_experiment(experiment).tags
    for name, value in wanted.items():
        if known.get(name) != value:
            client.set_experiment_tag(experiment, name, value)


def state(records: list[Record]) -> dict:
    """State of MLflow's run list: grouping, order and columns."""
    metrics = sorted({record.spec.metric for record in records})
    columns = [f"tags.`{name}`" for name in ("dataset", "upstream", "refiner")]
    columns += [f"metrics.`last/test/{metric}`" for metric in [*metrics, "nll", "ece"]]
    return {
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [
                {"mode": "tag", "groupByData": "dataset"},
                {"mode": "tag", "groupByData": "upstream"},
                {"mode": "tag", "groupByData": "refiner"},
            ],
        },
        "selectedColumns": columns,
        "viewMaximized": False,
    }


def path(experiment: str) -> str:
    """Path of the view below the dashboard's address."""
    return f"/#/experiments/{experiment}/runs?viewStateShareKey={NAME}"
