"""KDD Cup 1999, 10 % file: what Table 5 calls Appetency (39 features, 494,021 connections)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.datasets import prepared, tabular
from benchmarks.datasets.tabular import Raw
from benchmarks.registry import register
from benchmarks.sources import Source

if TYPE_CHECKING:
    from benchmarks.data import Data

GZIP = Source(
    name="KDD Cup 1999 (10 %)",
    path="tabular/kdd99/kddcup.data_10_percent.gz",
    urls=(
        "http://kdd.ics.uci.edu/databases/kddcup99/kddcup.data_10_percent.gz",
        "https://archive.ics.uci.edu/ml/machine-learning-databases/kddcup99-mld/kddcup.data_10_percent.gz",
        "https://ndownloader.figshare.com/files/5976042",
    ),
    checksum="sha256:8045aca0d84e70e622d1148d7df782496f6333bf6eb979a1b0837c42a9fd9561",
    size=2144903,
)
LICENCE = "public (KDD Cup 1999, UCI)"
SOURCES = {"kdd99": (GZIP,)}

# Columns of the file in its own order (kddcup.names); the constant ones are dropped.
_NAMES = """
duration protocol_type service flag src_bytes dst_bytes land wrong_fragment urgent hot
num_failed_logins logged_in num_compromised root_shell su_attempted num_root num_file_creations
num_shells num_access_files num_outbound_cmds is_host_login is_guest_login count srv_count
serror_rate srv_serror_rate rerror_rate srv_rerror_rate same_srv_rate diff_srv_rate
srv_diff_host_rate dst_host_count dst_host_srv_count dst_host_same_srv_rate dst_host_diff_srv_rate
dst_host_same_src_port_rate dst_host_srv_diff_host_rate dst_host_serror_rate
dst_host_srv_serror_rate dst_host_rerror_rate dst_host_srv_rerror_rate connection
"""
COLUMNS = _NAMES.split()
CATEGORICAL = ("protocol_type", "service", "flag")
CONSTANT = ["num_outbound_cmds", "is_host_login"]  # columns 19 and 20, counted from 0


def read(path: Path) -> Raw:
    """Drop the two constant columns; a `normal.` connection is the positive class."""
    types = dict.fromkeys((*CATEGORICAL, "connection"), "category")
    frame = tabular.read_csv(path, names=COLUMNS, dtype=types).drop(columns=CONSTANT)
    frame["connection"] = (frame["connection"] == "normal.").map({False: "attack", True: "normal"})
    return tabular.from_frame(
        frame, target="connection", classes=("attack", "normal"), categorical=CATEGORICAL
    )


def raw(name: str) -> Raw:
    return prepared.raw(name, SOURCES[name], read)


OFFERS = ("tabular",)


@register("kdd99")
def load(name: str, *, seed: int, label_noise: float = 0.0, limit: int | None = None) -> Data:
    return tabular.data(raw(name), name, seed=seed, label_noise=label_noise, limit=limit)
