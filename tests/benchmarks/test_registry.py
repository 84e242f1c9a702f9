"""Discovery: names without imports, and the contract of everything registered."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from small_runs import blobs

from benchmarks import registry
from benchmarks.errors import UnknownName
from benchmarks.seeds import derive


def test_names_are_found_without_importing_anything():
    code = (
        "import sys; from benchmarks import registry as r;"
        "names = [n for f in r.FAMILIES for n in r.modules(f)];"
        "sys.exit(len(names) < 10 or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_every_name_loads_what_was_registered_under_it(family):
    assert registry.modules(family)
    for name in registry.modules(family):
        assert callable(registry.load(family, name)), name


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'saflex-printed'"):
        registry.load("refiners", "saflex-prnted")


def test_a_file_with_one_registered_class_is_all_a_new_upstream_takes(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("@register('mine')\nclass Mine: ...\n")
    assert registry._literal_names(tmp_path / "mine.py") == ["mine"]


def test_seeds_depend_on_data_set_index_and_purpose_alone():
    seeds = {derive(d, s, p) for d in ("a", "b") for s in range(3) for p in ("init", "order")}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive("qsar", 0, "init") == derive("qsar", 0, "init")


def test_the_mlp_tells_a_missing_value_from_the_mean():
    data = blobs()
    model = registry.load("models", "mlp")(data).eval()
    x = data.train.x[1:2].clone()
    x[0, 1] = 0.0
    absent = x.clone()
    absent[0, 1] = torch.nan
    assert model(absent).isfinite().all()
    assert not torch.allclose(model(x), model(absent))


def test_cutmix_replaces_the_stated_share_by_values_of_the_same_column():
    data = blobs(rows=4000)
    data.train.x[:] = torch.arange(data.train.x.numel()).reshape(data.train.x.shape)
    mix = registry.load("upstream", "cutmix")(data, probability=0.3)
    out = mix(data.train.x, data.train.y, torch.Generator().manual_seed(0))
    changed = out.x != data.train.x
    assert changed.float().mean() == pytest.approx(0.3, abs=0.01)
    assert (out.x % 5 == torch.arange(5)).all()  # every value stays in its column
    assert torch.equal(out.y, data.train.y)
