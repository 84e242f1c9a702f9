"""Experiment tracking: records into MLflow by one writer, any number of times with one outcome.

Training jobs never talk to MLflow. `sync` brings a store up to date with the records, `check` says
whether it agrees with the tables, `ui` shows it.
"""

import os

# Before MLflow is imported anywhere: no reports home, a server that is down is said within a minute
# instead of after five of silent retries, and no two lines a run on the terminal.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")

from benchmarks.tracking.check import check
from benchmarks.tracking.dashboard import ui
from benchmarks.tracking.sync import sync

__all__ = ["check", "sync", "ui"]
