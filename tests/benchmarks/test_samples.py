"""The sample inspector: pictures of what was trained on, with the labels and weights it got."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_runs import image_spec, stripes
from matplotlib.colors import to_hex
from matplotlib.image import imread

from benchmarks.errors import BenchmarkError
from benchmarks.spec import Component
from benchmarks.studies import samples as inspect_samples
from benchmarks.studies.samples import SampleInspector
from benchmarks.train import Training
from saflex import Batch

FEW = Component(name="digits-images", settings={"limit": 60})


def trained(**changes) -> Training:
    run = Training(image_spec(**changes), stripes())
    run.step(torch.arange(16))
    return run


def test_pixels_are_what_the_normalisation_was_given():
    data = stripes()
    back = inspect_samples.to_pixels(data.normalize(data.train.x[:5]), data)
    assert back.shape == (5, 16, 16, 3)
    expected = data.train.x[:5].permute(0, 2, 3, 1).numpy() / 255
    assert np.allclose(back, expected, atol=1e-6)


def test_a_picture_shows_clean_and_augmented_images_labels_and_weights():
    run = trained(upstream="mixup", refiner="saflex")
    augmented, refined = run.seen
    w = refined.w.clone()
    w[1], w[2] = 0, 2.5 / 16
    run.seen = augmented, Batch(refined.x, refined.y, w)
    figure = inspect_samples.draw(run, count=4)
    by_sample = [figure.axes[3 * i : 3 * i + 3] for i in range(4)]
    for i, (clean, shown, bars) in enumerate(by_sample):
        raw = run.train.x[i].permute(1, 2, 0).numpy() / 255
        assert np.allclose(clean.images[0].get_array(), raw, atol=1e-6)
        pixels = inspect_samples.to_pixels(augmented.x[i : i + 1], run.data)[0]
        assert np.allclose(shown.images[0].get_array(), pixels)
        heights = [bar.get_height() for bar in bars.patches]
        assert np.allclose(heights, [*augmented.y[i], *refined.y[i]])
    titles = [shown.title for _, shown, _ in by_sample]
    assert titles[1].get_text() == "w = 0.00/B"
    assert to_hex(titles[1].get_color()) == inspect_samples.REJECTED
    assert titles[2].get_text() == "w = 2.50/B"


def test_a_changed_class_is_starred():
    run = trained()
    augmented, refined = run.seen
    y = refined.y.clone()
    y[0] = torch.tensor([0.1, 0.1, 0.8])
    run.seen = augmented, Batch(refined.x, y, refined.w)
    figure = inspect_samples.draw(run, count=2)
    assert figure.axes[2].get_title() == "0 → 2 *"
    assert figure.axes[5].get_title() == "1 → 1"
    assert "94 % of the labels keep their class" in figure.get_suptitle()


def test_chosen_epochs_are_drawn_without_a_record(tmp_path):
    spec = image_spec(dataset=FEW, upstream="randaugment", refiner="saflex", clean_share=0.5)
    paths = inspect_samples.inspect(spec, tmp_path, epochs=[1, 2])
    folder = tmp_path / "figures" / "samples" / spec.bundle / "seed0"
    assert paths == [folder / "epoch1.png", folder / "epoch2.png"]
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == paths
    assert imread(paths[0]).std() > 0.05
    assert not np.array_equal(imread(paths[0]), imread(paths[1]))


def test_the_observed_run_is_the_run_itself(tmp_path):
    spec = image_spec(upstream="randaugment", refiner="saflex-printed", clean_share=0.5)
    plain, observed = Training(spec, stripes()), Training(spec, stripes())
    plain.run()
    observed.run(after_step=SampleInspector(tmp_path, epochs=[1, 3], count=2))
    assert plain.last == observed.last
    assert plain.curves == observed.curves


def test_impossible_requests_are_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="epoch 9 to inspect"):
        inspect_samples.inspect(image_spec(), tmp_path, epochs=[9])
    with pytest.raises(BenchmarkError, match="no images"):
        inspect_samples.inspect(image_spec(dataset=Component(name="digits")), tmp_path, epochs=[1])
    with pytest.raises(BenchmarkError, match="count from 1"):
        SampleInspector(tmp_path, epochs=[0])
