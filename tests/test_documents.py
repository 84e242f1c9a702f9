"""What README and CONTRIBUTING show is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent.parent


def code_blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_three_lines_of_the_readme_train_a_model():
    torch.manual_seed(0)
    y = torch.arange(64) % 3
    x = torch.randn(64, 4) + 3 * torch.eye(4)[y]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
    model = nn.Linear(4, 3)
    before = nn.functional.cross_entropy(model(x), y).item()
    (block,) = code_blocks("README.md", "python")
    names = {
        "model": model,
        "loader": loader,
        "validation_loader": loader,
        "augment": lambda x, y: (x + 0.1, y),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.5),
    }
    exec(block, names)
    assert nn.functional.cross_entropy(model(x), y).item() < before


def test_the_loop_of_the_readme_trains_the_suites_row_saflex():
    """Same data set, seeds and settings: every parameter equal to the last bit."""
    from benchmarks import suite
    from benchmarks.running.execute import load_data
    from benchmarks.train import Training

    (found,) = [
        spec
        for spec in suite.plan(suite.load("demo"))
        if (spec.dataset, spec.row, spec.seed) == ("digits", "saflex", 0)
    ]
    recipe = found.settings.recipe.model_copy(update={"epochs": 3})
    spec = found.model_copy(
        update={"settings": found.settings.model_copy(update={"recipe": recipe})}
    )
    row = Training(spec, load_data(spec, "cpu"))
    row.run()

    own = Training(spec, load_data(spec, "cpu"))  # for its streams; only the block below trains
    raw = []

    def loader():
        for own.epoch in range(recipe.epochs):
            own.model.train()
            for index in own.order().split(recipe.batch_size):
                raw.append(own.task.rows(own.train, index, own.generators))
                yield own.data.normalize(raw[-1]), own.train.y[index]

    def augment(x, y):
        augmented = own.upstream(raw[-1], y, own.generators["upstream"])
        return augmented.x, augmented.y

    names = {
        "model": own.model,
        "loader": loader(),
        "validation_loader": lambda: own._validation_batch(128),
        "augment": augment,
        "optimizer": own.optimizer,
    }
    (block,) = code_blocks("README.md", "python")
    exec(block, names)
    assert names["refine"].diagnostics()["steps"] == row.steps
    for name, p in row.model.named_parameters():
        assert torch.equal(p, own.model.get_parameter(name)), name
    assert torch.equal(row.logits(row.data.test), own.logits(own.data.test))
    # ... and it is not what training on the same batches without refinement gives.
    plain = Training(
        spec.model_copy(
            update={
                "settings": spec.settings.model_copy(
                    update={"refiner": spec.settings.refiner.model_copy(update={"name": "uniform"})}
                )
            }
        ),
        load_data(spec, "cpu"),
    )
    plain.run()
    assert not torch.equal(plain.logits(plain.data.test), own.logits(own.data.test))


def test_the_refiner_of_contributing_is_a_refiner():
    import sys

    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    from small_runs import blobs, spec

    from benchmarks import registry
    from benchmarks.train import Training

    (block,) = code_blocks("CONTRIBUTING.md", "python")
    names = {"__name__": "benchmarks.refiners.example"}
    exec(block, names)
    training = Training(spec(), blobs())
    refiner = names["RandomWeights"](training.refiner.context)
    training.refiner = refiner
    training.run()
    weights = training.seen[1].w
    assert weights.sum().item() == pytest.approx(1)
    assert weights.std() > 0
    registry._registered.pop(("refiners", "random-weights"))


def test_every_command_of_the_readme_exists():
    from typer.testing import CliRunner

    from benchmarks.__main__ import app

    commands = re.findall(r"python -m benchmarks ((?:[a-z]+ ?)+)", (ROOT / "README.md").read_text())
    assert commands
    for command in commands:
        assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0, command


def test_files_that_the_readme_links_to_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_the_numbers_of_the_readme_are_those_of_the_committed_table():
    import csv

    path = ROOT / "results" / "cpu" / "tables" / "table2.csv"
    cells = {
        (cell["dataset"], cell["refiner"]): cell
        for cell in csv.DictReader(path.read_text(encoding="utf-8").splitlines())
        if cell["selection"] == "last"
        and cell["backbone"] == "mlp"
        and cell["metric"] == "auroc"
        and cell["upstream"] in ("none", "cutmix")
    }
    lines = [
        [part.strip(" *") for part in line.strip("|\n ").split("|")]
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    (start,) = [i for i, line in enumerate(lines) if line[0] == "AUROC, %"]
    datasets, checked = lines[start][1:], 0
    for row in lines[start + 2 : start + 14]:
        for dataset, shown in zip(datasets, row[1:], strict=True):
            cell = cells[dataset, row[0].removeprefix("paper: ")]
            expected = f"{float(cell['mean']):.2f} ± {float(cell['std']):.2f}"
            if row[0].startswith("paper: "):
                expected = f"{float(cell['paper_mean']):.2f}"
            assert shown == expected, (row[0], dataset)
            checked += 1
    assert checked == 12 * len(datasets)


def test_the_numbers_of_the_stand_ins_are_those_of_the_committed_tables():
    import csv

    columns = (
        ("table3", "test", "stand-in", "accuracy"),
        ("table4", "id_test", "randaugment", "macro_f1"),
        ("table4", "ood_test", "randaugment", "macro_f1"),
    )
    shown = {}
    for column, (table, split, upstream, metric) in enumerate(columns, 1):
        path = ROOT / "results" / "cpu" / "tables" / f"{table}.csv"
        for cell in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            place = (cell["selection"], cell["split"], cell["metric"]) == ("last", split, metric)
            ours = cell["backbone"] in ("efficientnet-lite0-frozen", "clip-tiny")
            if place and ours and cell["n"] == "5" and cell["upstream"] in ("none", upstream):
                text = f"{float(cell['mean']):.2f} ± {float(cell['std']):.2f}"
                shown[cell["refiner"], column] = text
    lines = [
        [part.strip() for part in line.strip("|\n ").split("|")]
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    (start,) = [i for i, line in enumerate(lines) if line[0] == "stand-ins, %"]
    rows, checked = lines[start + 2 : start + 12], 0
    for names, *cells in rows:
        for column, text in enumerate(cells, 1):
            expected = {shown.get((name, column)) for name in names.split("; ")} - {None}
            assert {text} - {""} == expected, (names, column)
            checked += bool(text)
    assert checked == 26


def test_the_numbers_of_the_controls_are_those_of_the_committed_table():
    import csv

    names = {
        "training on the validation rows alone": "val-only",
        "L2RW (weights by the same gradient, no new labels)": "l2rw",
        "saflex-derived, best of 30 settings on validation": "saflex-derived-tuned",
        "saflex-printed, best of 30 settings on validation": "saflex-printed-tuned",
    }
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("**", "")
    lines = [
        [part.strip() for part in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    (start,) = [i for i, line in enumerate(lines) if line[0] == "40 % wrong training labels"]
    shown = {
        (names.get(name, name), dataset): cell
        for name, *cells in lines[start + 2 : start + 10]
        for dataset, cell in zip(lines[start][1:], cells, strict=True)
    }
    path = ROOT / "results" / "controls" / "tables" / "tablecontrols-tabular-noise40.csv"
    found = {}
    for cell in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
        dataset = cell["dataset"].removesuffix("-noise40")
        metric = "accuracy" if dataset == "digits" else "auroc"
        if (cell["selection"], cell["metric"], cell["n"]) == ("last", metric, "3"):
            mean, std = float(cell["mean"]), float(cell["std"])
            found[cell["refiner"], dataset] = f"{mean:.1f} ± {std:.1f}"
    assert len(shown) == 24
    assert shown == {place: found[place] for place in shown}
