"""Records: atomic, self-checking, and compared without what two equal runs may differ in."""

from __future__ import annotations

import pytest
from small_runs import spec

from benchmarks import record as records
from benchmarks.errors import BenchmarkError
from benchmarks.record import Record


def a_record(**changes) -> Record:
    run = spec()
    fields = {
        "key": run.key,
        "status": "complete",
        "spec": run,
        "metrics": {"last": {"test/accuracy": 0.5, "test/nll": float("inf")}},
        "seconds": {"total": 1.0},
    }
    return Record(**{**fields, **changes})


def test_a_record_reads_back_as_it_was_written_infinities_included(tmp_path):
    path = records.write(tmp_path, a_record())
    assert path == tmp_path / "records/test/blobs/mlp/cutmix/uniform/seed0.json"
    assert records.read(path) == a_record()


def test_a_failed_write_leaves_the_old_record_and_no_rubbish(tmp_path, monkeypatch):
    path = records.write(tmp_path, a_record())

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        records.write(tmp_path, a_record(status="failed"))
    assert records.read(path).status == "complete"
    assert list(path.parent.iterdir()) == [path]


def test_a_truncated_record_is_named(tmp_path):
    path = records.write(tmp_path, a_record())
    path.write_text(path.read_text()[:100])
    with pytest.raises(BenchmarkError, match=r"seed0\.json is not a record"):
        records.read(path)


def test_an_edited_spec_is_noticed(tmp_path):
    path = records.write(tmp_path, a_record())
    path.write_text(path.read_text().replace('"epochs": 3', '"epochs": 4'))
    with pytest.raises(BenchmarkError, match="is not the hash of its spec"):
        records.read(path)


def test_canonical_text_ignores_times_and_nothing_else():
    one = a_record()
    assert records.canonical(one) == records.canonical(
        a_record(seconds={"total": 9.0}, commit="abc")
    )
    other = a_record(metrics={"last": {"test/accuracy": 0.6}})
    assert records.canonical(one) != records.canonical(other)


def test_a_record_without_a_protocol_is_of_the_first_and_a_new_one_is_not(tmp_path):
    path = records.write(tmp_path, a_record(protocol=records.PROTOCOL))
    assert records.read(path).protocol == records.PROTOCOL > 1
    text = path.read_text()
    path.write_text(text.replace(f' "protocol": {records.PROTOCOL},\n', ""))
    assert path.read_text() != text
    assert records.read(path).protocol == 1
