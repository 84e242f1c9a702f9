"""Tables from records: golden files, what a cell says, and that rebuilding changes nothing."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks import record as records
from benchmarks.errors import BenchmarkError
from benchmarks.paper import published
from benchmarks.record import Record, load_all
from benchmarks.suite import plan
from benchmarks.tables import build, evaluate, summary, tables
from benchmarks.tables.cells import Row
from benchmarks.tables.efficiency import measure
from benchmarks.tables.layout import lay_out, number
from benchmarks.tables.verdicts import grade

GOLDEN = Path(__file__).parent / "golden"
COLUMNS = (
    "table,dataset,split,backbone,refiner,upstream,metric,selection,n,planned,mean,std,paper_mean,"
    "paper_std,difference,note"
)
CLAIM_COLUMNS = (
    "table,claim,dataset,refiner,baseline,n,difference,low,high,p,p_holm,verdict,protocol"
)


def _golden():
    spec = importlib.util.spec_from_file_location("golden_records", GOLDEN / "golden_records.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _golden()


@pytest.fixture(scope="module")
def suite():
    return golden.suite()


@pytest.fixture(scope="module")
def built(suite, tmp_path_factory):
    """Folder with everything built from the golden records, figures left out."""
    out = tmp_path_factory.mktemp("built")
    build(evaluate(suite, GOLDEN / "results"), out, figures=False)
    return out


@pytest.fixture(scope="module")
def cells(built):
    """Lines of every table's CSV."""
    found = []
    for path in sorted((built / "tables").glob("table*.csv")):
        found += _lines(path)
    return found


def _lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def _cell(cells, **wanted):
    wanted = {"selection": "last", "metric": "auroc", "table": "2", **wanted}
    found = [c for c in cells if all(c[key] == value for key, value in wanted.items())]
    assert len(found) == 1, (wanted, len(found))
    return found[0]


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Golden ---------------------------------------------------------------------------------------------


def test_tables_of_the_golden_records_are_the_golden_tables(built):
    expected, got = _contents(GOLDEN / "expected"), _contents(built)
    assert sorted(got) == sorted(expected)
    for name in expected:
        assert got[name].decode() == expected[name].decode(), name


def test_golden_records_are_what_the_script_makes(suite, tmp_path):
    golden.fabricate(tmp_path)
    assert _contents(tmp_path / "records") == _contents(GOLDEN / "results" / "records")


def test_rebuilding_changes_no_byte(suite, tmp_path):
    first = build(evaluate(suite, GOLDEN / "results"), tmp_path, figures=False)
    before = _contents(tmp_path)
    assert build(evaluate(suite, GOLDEN / "results"), tmp_path, figures=False) == first
    assert _contents(tmp_path) == before


def test_order_of_the_files_on_disk_does_not_matter(suite, monkeypatch):
    from benchmarks.tables import collect

    found = list(load_all(GOLDEN / "results"))
    forwards = collect.collect(suite, plan(suite), found)
    backwards = collect.collect(suite, plan(suite), reversed(found))
    for a, b in zip(forwards, backwards, strict=True):
        assert repr(a.cells) == repr(b.cells)
        assert a.dataset_notes == b.dataset_notes


# The long CSV ---------------------------------------------------------------------------------------


def test_csv_columns_are_those_other_tools_rely_on(built):
    assert (built / "tables/table2.csv").read_text().splitlines()[0] == COLUMNS
    for name in ("claims.csv", "claims-best-validation.csv"):
        assert (built / "tables" / name).read_text().splitlines()[0] == CLAIM_COLUMNS


def test_a_cell_is_mean_and_sample_deviation_in_per_cent_of_its_seeds(cells):
    values = [
        100 * r.metrics["last"]["test/auroc"]
        for r in load_all(GOLDEN / "results")
        if (r.spec.dataset, r.spec.row) == ("qsar", "saflex")
    ]
    cell = _cell(cells, dataset="qsar", refiner="saflex", backbone="mlp")
    assert len(values) == 3
    assert float(cell["mean"]) == pytest.approx(statistics.mean(values))
    assert float(cell["std"]) == pytest.approx(statistics.stdev(values))
    assert (cell["n"], cell["planned"]) == ("3", "3")
    assert float(cell["difference"]) == pytest.approx(statistics.mean(values) - 92.69)


def test_nll_stays_in_nats(cells):
    cell = _cell(cells, dataset="qsar", refiner="none", backbone="mlp", metric="nll")
    assert 0 < float(cell["mean"]) < 1
    assert cell["paper_mean"] == ""


def test_every_published_cell_of_a_table_is_in_its_csv_in_both_selections(cells):
    here = {c["table"] for c in cells}
    for paper in published():
        if paper.table in here:
            mine = [
                c
                for c in cells
                if (c["table"], c["dataset"], c["split"], c["backbone"], c["upstream"], c["metric"])
                == (
                    paper.table,
                    paper.dataset,
                    paper.split,
                    paper.backbone,
                    paper.upstream,
                    paper.metric,
                )
                and (c["refiner"] == paper.refiner or c["refiner"].startswith(paper.refiner + "-"))
            ]
            assert {c["selection"] for c in mine} == {"last", "best_validation"}, paper
            assert {float(c["paper_mean"]) for c in mine} == {paper.mean}
            assert {float(c["paper_std"]) for c in mine} == {paper.std}


def test_every_saflex_row_stands_beside_the_papers_one(cells):
    rows = [c for c in cells if c["dataset"] == "qsar" and c["refiner"].startswith("saflex")]
    papers = {
        c["refiner"]: c["paper_mean"]
        for c in rows
        if c["backbone"] == "mlp" and c["metric"] == "auroc"
    }
    assert papers == {"saflex": "92.69", "saflex-printed": "92.69"}


def test_no_cell_is_blank(cells):
    for cell in cells:
        if cell["n"] == "0":
            assert cell["note"], cell
            assert cell["mean"] == ""
        else:
            assert cell["mean"], cell


@pytest.mark.parametrize(
    ("wanted", "note"),
    [
        ({"dataset": "volkert", "refiner": "none", "backbone": "mlp", "metric": "accuracy"},
         "not run: data not at hand (OpenML 41166)"),
        ({"dataset": "click", "refiner": "none", "backbone": "mlp"}, "not run: not part of this suite"),
        ({"dataset": "qsar", "refiner": "saflex", "backbone": "saint"}, "not run: not part of this suite"),
        ({"dataset": "kdd99", "refiner": "saflex-printed"}, "not run: collapses"),
        ({"dataset": "qsar", "refiner": "saflex-printed"},
         "failed: 3 seeds: loss is not finite at step 17 (epoch 1)"),
        ({"dataset": "octmnist", "refiner": "none", "metric": "accuracy", "table": "1"},
         "not run: data not at hand"),
        ({"dataset": "credit", "refiner": "none", "backbone": "mlp"}, "5 of 200 epochs"),
        ({"dataset": "credit", "refiner": "upstream", "backbone": "mlp"},
         "1 seed not run yet; 5 of 200 epochs"),
        ({"dataset": "credit", "refiner": "saflex-printed"},
         "1 seed failed: loss is not finite at step 19 (epoch 1); 5 of 200 epochs"),
        ({"dataset": "qsar", "refiner": "none", "backbone": "mlp"}, ""),
    ],
)  # fmt: skip
def test_a_note_says_what_is_missing_and_why(cells, wanted, note):
    assert _cell(cells, **wanted)["note"] == note


def test_an_infinite_value_is_shown_and_an_unknown_one_is_not_counted(cells):
    infinite = _cell(cells, dataset="credit", refiner="saflex-printed", metric="nll")
    assert (infinite["mean"], infinite["std"]) == ("inf", "")
    assert "nll infinite in 1 seed" in infinite["note"]
    unknown = _cell(
        cells, dataset="credit", refiner="none", backbone="mlp", metric="average_precision"
    )
    assert (unknown["n"], unknown["planned"]) == ("2", "3")
    assert "average_precision not available for 1 seed" in unknown["note"]


def test_one_seed_has_no_deviation(cells):
    cell = _cell(cells, table="demo-digits", dataset="digits", refiner="saflex", metric="accuracy")
    assert (cell["n"], cell["planned"], cell["std"]) == ("1", "3", "")


def test_a_table_of_ours_has_no_published_cells(cells):
    mine = [c for c in cells if c["table"] == "demo-digits"]
    assert mine
    assert {c["paper_mean"] + c["paper_std"] + c["difference"] for c in mine} == {""}


# Which records count --------------------------------------------------------------------------------


def test_a_record_of_other_settings_is_left_out_and_counted(suite, built):
    kdd99 = [
        r for r in load_all(GOLDEN / "results") if r.spec.dataset == "kdd99" and r.spec.seed == 9
    ]
    assert len(kdd99) == 1
    assert "Left out: 1 record on disk of settings" in (built / "tables/table2.md").read_text()


def test_records_of_a_suite_whose_recipe_changed_do_not_count(suite):
    table = suite.tables["2"]
    longer = table.model_copy(update={"recipe": table.recipe.model_copy(update={"epochs": 300})})
    changed = suite.model_copy(update={"tables": {"2": longer}})
    (rebuilt,) = [t for t in tables(changed, GOLDEN / "results") if t.id == "2"]
    qsar = [c for c in rebuilt.cells if c.dataset == "qsar" and c.planned]
    assert {c.n for c in qsar} == {0}
    assert {c.note for c in qsar} == {"not run: none of 3 seeds has a record yet"}


def test_no_record_at_all_gives_tables_that_say_so(suite, tmp_path):
    build(evaluate(suite, tmp_path), tmp_path, figures=False)
    lines = _lines(tmp_path / "tables/table2.csv")
    assert {line["n"] for line in lines} == {"0"}
    assert all(line["note"].startswith("not run: ") for line in lines)
    verdicts = {line["verdict"] for line in _lines(tmp_path / "tables/claims.csv")}
    assert all(v.startswith("not run: ") for v in verdicts)


def test_a_truncated_record_is_named_and_nothing_is_written(suite, tmp_path):
    shutil.copytree(GOLDEN / "results" / "records", tmp_path / "records")
    victim = next((tmp_path / "records" / "table2").rglob("seed1.json"))
    victim.write_text(victim.read_text()[:200])
    with pytest.raises(BenchmarkError, match=re.escape(str(victim))):
        build(evaluate(suite, tmp_path), tmp_path, figures=False)
    assert not (tmp_path / "tables").exists()


def test_stale_tables_go_and_other_files_stay(suite, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("table3.csv", "table3.html", "table5.csv", "table5.md", "notes.txt"):
        (folder / name).write_text("old")
    written = build(evaluate(suite, GOLDEN / "results"), tmp_path, figures=False)
    left = {p.name for p in folder.iterdir()} - {p.name for p in written}
    assert left == {"table5.csv", "table5.md", "notes.txt"}


# Formats --------------------------------------------------------------------------------------------


def test_markdown_rows_have_as_many_cells_as_their_heading(built):
    for path in (built / "tables").glob("*.md"):
        width = None
        for line in path.read_text(encoding="utf-8").splitlines():
            bars = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
            assert None in (width, bars) or bars == width, (path.name, line)
            width = bars


def test_latex_is_balanced_and_has_the_columns_it_declares(built):
    for path in (built / "tables").glob("*.tex"):
        text = path.read_text(encoding="utf-8")
        assert text.isascii(), path.name
        plain = re.sub(r"\\[{}]", "", text)
        assert plain.count("{") == plain.count("}")
        assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
        assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") > 0
        for block in text.split(r"\begin{tabular}")[1:]:
            columns = len(re.match(r"\{l(r*)\}", block)[1])
            body = block.split(r"\end{tabular}")[0].splitlines()
            rows = [line for line in body if line.endswith(r"\\") and "multicolumn" not in line]
            assert rows
            assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns}


class _Balance(HTMLParser):
    void = frozenset({"meta", "br", "link", "img"})

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_stands_alone_and_its_footnotes_exist(built):
    for path in (built / "tables").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        parser = _Balance()
        parser.feed(text)
        assert not parser.open
        assert {link[1:] for link in parser.links} <= set(parser.ids)
        assert "http" not in text
        assert "<script" not in text


def test_every_format_says_what_was_reduced_and_what_was_not_run(built):
    for suffix in ("md", "html", "tex"):
        text = (built / f"tables/table2.{suffix}").read_text(encoding="utf-8")
        assert "5 of 200 epochs" in text
        assert "not run" in text
        assert "OpenML 41166" in text
        assert "Time" in text, "the data set's own note"


@pytest.mark.parametrize("text", ["5 % | of", "a_b*c", "<script>", "x & y", "{1} $2 #3 ~ ^ \\ ≥"])
def test_texts_cannot_break_out_of_their_format(suite, text):
    from benchmarks.tables import html, latex, markdown

    assert "<script>" not in html.escape(text)
    assert not re.search(r"(?<!\\)\|", markdown.escape(text))
    plain = re.sub(r"\\[{}]", "", latex.escape(text))
    assert plain.count("{") == plain.count("}")
    assert latex.escape(text).isascii()


def test_a_table_laid_out_has_primary_nll_and_calibration_in_both_selections(suite):
    table = next(t for t in tables(suite, GOLDEN / "results") if t.id == "2")
    titles = [block.title for block in lay_out(table).blocks if not block.detail]
    for start in ("Test results", "Test NLL", "Test calibration error"):
        assert len([t for t in titles if t.startswith(start)]) == 2
    assert titles[0] == "Test results, last epoch (primary selection)"


@pytest.mark.parametrize(
    ("value", "metric", "shown"),
    [
        (93.456, "auroc", "93.46"),
        (0.12345, "nll", "0.123"),
        (math.inf, "nll", "∞"),
        (math.nan, "auroc", "–"),
        (-0.001, "auroc", "0.00"),
        (-1.5, "auroc", "−1.50"),
    ],
)
def test_numbers_are_shown_in_the_tables_precision(value, metric, shown):
    assert number(value, metric) == shown


def test_signed_numbers_have_their_sign():
    assert number(1.234, "auroc", signed=True) == "+1.23"
    assert number(-1.234, "auroc", signed=True) == "−1.23"


# Time -----------------------------------------------------------------------------------------------


def test_overhead_is_paired_training_time_without_evaluation(suite):
    table = next(t for t in tables(suite, GOLDEN / "results") if t.id == "1")
    row = Row("resnet18", "randaugment", "saflex")
    (line,) = [x for x in measure(table) if x.row == row and x.dataset == "bloodmnist"]
    ours, theirs = (
        [sum(r.seconds[p] for p in ("upstream", "refine", "step")) for r in runs.values()]
        for runs in (
            table.runs[row, "bloodmnist"],
            table.runs[row._replace(refiner="upstream"), "bloodmnist"],
        )
    )
    expected = statistics.mean(100 * (a / b - 1) for a, b in zip(ours, theirs, strict=True))
    assert line.mean == pytest.approx(expected)
    (mean,) = [x for x in measure(table) if x.row == row and x.dataset == "mean"]
    assert mean.paper == 54


def test_records_without_times_have_no_overhead(suite, tmp_path):
    for record in load_all(GOLDEN / "results"):
        bare = Record.model_validate({**record.model_dump(), "seconds": {}})
        records.write(tmp_path, bare)
    assert all(not measure(table) for table in tables(suite, tmp_path))


def test_times_of_a_shared_machine_are_left_out_and_no_claim_is_graded_on_them(suite):
    shared = {
        name: table.model_copy(update={"untimed": "the machine was shared"})
        for name, table in suite.tables.items()
    }
    found = tables(suite.model_copy(update={"tables": shared}), GOLDEN / "results")
    assert all(not measure(table) for table in found)
    assert all("Training times are left out" in table.notes[-1] for table in found if table.runs)
    graded = [line for line in grade(found) if line.claim.kind == "time"]
    assert {line.verdict for line in graded} == {"not run: the machine was shared"}


# The package ----------------------------------------------------------------------------------------


def test_building_tables_imports_no_torch():
    code = (
        "import sys, benchmarks.tables, benchmarks.tables.figures\n"
        "heavy = {'torch', 'pandas', 'mlflow', 'scipy.stats'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_summary_prints_numbers_paper_difference_and_verdict(suite):
    from rich.console import Console

    console = Console(record=True, width=100, file=io.StringIO())
    summary(evaluate(suite, GOLDEN / "results"), console=console)
    text = console.export_text()
    assert re.search(r"saflex +93\.27 ± 0\.34 \(3\) +92\.69 \(\+0\.58\) +✓ upstream", text)
    assert "saflex-printed" in text
    assert "failed" in text
    assert "digits, mlp, accuracy" in text


def test_unknown_suite_is_one_clear_line(tmp_path):
    with pytest.raises(BenchmarkError, match="unknown suite 'cpuu': did you mean 'cpu'"):
        evaluate("cpuu", tmp_path)
