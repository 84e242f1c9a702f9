"""A copy of the source tree to run the workflow in, with a suite of a few seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import record as records

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ("benchmarks", "saflex", "workflow", "profiles")

TINY = """\
suite: tiny
seeds: {seeds}
tables:
  tiny:
    metric: auroc
    datasets: [breast-cancer]
    backbones: [mlp]
    upstreams: {{cutmix: {{settings: {{probability: 0.3}}}}}}
    rows: [upstream, saflex]
    recipe: {{batch_size: 64, epochs: {epochs}}}
"""


@dataclass(frozen=True)
class Tree:
    """A copy of the sources with the tiny suite in it, and its results."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)  # such as SAFLEX_DATA

    @property
    def results(self) -> Path:
        return self.root / "results" / "tiny"

    def command(self, *arguments: str, suite: str = "tiny.yaml") -> list[str]:
        base = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
        return [*base, "--config", f"suite={suite}", "track=false"]

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SAFLEX_", "SNAKEMAKE"))}
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.root)}
        return {**kept, **own, **self.variables}

    def start(self, command: list[str]) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def snakemake(self, *arguments: str, suite: str = "tiny.yaml") -> str:
        answer = self.run(self.command(*arguments, suite=suite))
        assert answer.returncode == 0, answer.stdout
        return answer.stdout

    def planned(self, *, suite: str = "tiny.yaml") -> set[str]:
        """Bundles that a dry run lists."""
        text = self.snakemake("-n", "--quiet", "host", suite=suite)
        return {
            line.partition("bundle=")[2].strip() for line in text.splitlines() if "bundle=" in line
        }

    def bench(self, *arguments: str) -> str:
        answer = self.run([sys.executable, "-m", "benchmarks", *arguments])
        assert answer.returncode == 0, answer.stdout
        return answer.stdout

    def canonical(self) -> dict[str, str]:
        """Every record's canonical text by its place."""
        found = sorted((self.results / "records").rglob("seed*.json"))
        place = self.results / "records"
        return {str(p.relative_to(place)): records.canonical(records.read(p)) for p in found}


def copy_tree(to: Path, *, seeds: int = 1, epochs: int = 2, source: Path = ROOT) -> Tree:
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in SOURCE:
        shutil.copytree(source / name, to / name, ignore=ignore)
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(source / name, to / name)
    (to / "tiny.yaml").write_text(TINY.format(seeds=seeds, epochs=epochs))
    return Tree(to)
