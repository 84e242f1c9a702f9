"""Table 4's cost by arithmetic: FLOPs of the published architecture, five seeds, each refiner."""

from __future__ import annotations

import subprocess
import sys

import pytest
from image_text_runs import spec

from benchmarks import suite
from benchmarks.forecast import clip as cost


@pytest.fixture(scope="module")
def table():
    return cost.estimate(suite.plan(suite.load("paper"), table="4"))


def row(table, name, upstream="randaugment"):
    return next(r for r in table.rows if (r.row, r.upstream) == (name, upstream))


def test_flops_are_those_published_for_vit_b16():
    """17.5 billion multiply-adds for the image tower at 224 px (Dosovitskiy et al. 2021), here in FLOPs."""
    assert cost.IMAGE.flops / 2 == pytest.approx(17.5e9, rel=0.01)


def test_every_row_has_five_seeds_of_twenty_epochs(table):
    assert {r.runs for r in table.rows} == {5}
    assert row(table, "flyp", "none").steps == 20 * 508
    assert row(table, "zero-shot", "none").steps == 0
    assert row(table, "train+val").steps == 20 * 508  # as many as without the validation rows


def test_download_is_the_archive_and_the_weights(table):
    assert table.download_gb == pytest.approx(11.96 + 0.60, abs=0.01)


def test_a_saflex_step_costs_what_its_parts_cost():
    """Clean and augmented batch, validation gradient at B' = 128, and Pi."""
    image, text = 256 * cost.IMAGE.flops, 256 * cost.TEXT.flops
    flyp = spec(batch_size=256)
    saflex = spec(refiner="saflex", clean_share=0.5, batch_size=256)
    assert cost._step_flops(flyp) == pytest.approx(3 * (image + text))
    expected = 3 * (2 * image + text) + 3 * (image + text) / 2 + 3 * (image + text)
    assert cost._step_flops(saflex) == pytest.approx(expected)


def test_rows_are_ordered_by_what_they_do(table):
    hours = [
        row(table, *place).hours
        for place in (
            ("zero-shot", "none"),
            ("flyp", "none"),
            ("upstream",),
            ("clean+aug",),
            ("saflex",),
        )
    ]
    assert hours == sorted(hours)


def test_memory_levers_lower_memory_and_raise_time():
    def of(**model):
        return cost.row_cost([spec(refiner="saflex", clean_share=0.5, batch_size=256, model=model)])

    plain, checkpointed, micro = of(), of(gradient_checkpointing=True), of(micro_batch=32)
    assert checkpointed.memory_gb < plain.memory_gb / 3
    assert micro.memory_gb < plain.memory_gb
    assert checkpointed.hours > plain.hours
    assert micro.hours > plain.hours


def test_batch_256_fits_80_gb(table):
    assert 20 < table.memory_gb < 80


def test_printing_imports_no_torch():
    script = (
        "import sys; from benchmarks.forecast import clip; clip.main(); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "12.56 GB to download" in done.stdout
    assert "H100 80 GB" in done.stdout
