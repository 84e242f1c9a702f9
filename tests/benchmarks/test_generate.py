"""Generation: plans by the protocol, addresses, resuming, the four pipelines, stand-in truth, sheets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fabricate import image_folders
from PIL import Image
from waiting import wait_for

from benchmarks.datasets import cub
from benchmarks.datasets.image_files import ImageList, Index
from benchmarks.errors import BenchmarkError, DataError, UnknownName
from benchmarks.forecast import images as cost
from benchmarks.generate import diffusion_weights as weights
from benchmarks.generate import manifest, plan, prompts, sheets
from benchmarks.generate.make import make
from benchmarks.generate.pipelines import Diffusion, recipe
from benchmarks.generate.stand_in import RandAugmentViews, StandIn

PIPELINES = ("text2img", "instructpix2pix", "img2img", "img2img-finetuned")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def index(tmp_path, monkeypatch) -> Index:
    """Three fabricated classes of nine training and five extra images each."""
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    image_folders.cub(tmp_path / "data", training=14, test=2)
    return cub.index()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, Path]:
    """Weights folders of the real diffusers classes, randomly initialised."""
    from fabricate import diffusion

    folder = tmp_path_factory.mktemp("weights")
    stable = diffusion.pipeline(folder)
    return {
        "text2img": stable,
        "img2img": stable,
        "img2img-finetuned": stable,
        "instructpix2pix": diffusion.pipeline(folder, instruct=True),
    }


def diffusion_of(name: str, tiny: dict[str, Path], index: Index, **changes) -> Diffusion:
    chosen = recipe(name, "cub")
    if chosen.finetuned:
        from benchmarks.generate.finetune import FineTuning, finetune

        settings = FineTuning(steps=2, rank=2, batch_size=2, size=32)
        changes["adapter"] = finetune(index, tiny[name], settings, device="cpu")
    settings = {"size": 32, "batch_size": 4, "dtype": "float32", "device": "cpu"}
    settings |= {"call": {"num_inference_steps": 4}, **changes}
    return Diffusion(recipe=chosen, folder=tiny[name], **settings)


def content(name: str) -> dict[str, bytes]:
    """Every file of a set, lock aside."""
    folder = manifest.location("cub", name).folder
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in folder.rglob("*")
        if f.is_file() and f.suffix != ".lock"
    }


# Plans ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instructions", [False, True])
def test_edits_have_the_extra_set_s_histogram_and_no_source_twice(index, instructions):
    requests = plan.edit_requests(index, instructions=instructions)
    assert Counter(r.label for r in requests) == Counter(index.splits["extra"].labels)
    assert len({r.source for r in requests}) == len(requests)
    training = dict(zip(index.splits["train"].files, index.splits["train"].labels, strict=True))
    assert all(training[index.root / r.source] == r.label for r in requests)
    assert all(index.class_names[r.label] in r.prompt for r in requests)
    assert all(r.prompt.startswith("put the") == instructions for r in requests)


def test_prompts_are_those_that_alia_names_its_folders_after():
    """configs/iWildCamMini/alia.yaml and alia_instruct.yaml: class by its own name, or no class."""
    words = prompts.of("iwildcam-subset")
    assert words.name("empty") == "background"
    assert [p.format("zebras") for p in words.edits] == [
        "a photo of a zebras in a grassy field with trees and bushes.",
        "a photo of zebras in a forest in the dark.",
        "a photo of zebras near a large body of water in the middle of a field.",
        "a photo of zebras walking on a dirt trail with twigs and branches.",
    ]
    assert [p.format("zebras") for p in words.instructions] == [
        "put the zebras in a grassy field with trees and bushes",
        "put the animal in the middle of a forest at night",
        "put the animal near a lake",
        "put the animal in a field with twigs",
    ]
    assert prompts.of("cub").name("Geococcyx") == "Roadrunner"
    assert prompts.of("cub").name("Whip poor Will") == "Eastern whip-poor-will"


def test_rows_of_the_table_edit_the_same_sources(index):
    both = [plan.edit_requests(index, instructions=value) for value in (False, True)]
    assert [r.source for r in both[0]] == [r.source for r in both[1]]


def test_text2img_asks_for_at_most_fifty_a_class(index):
    many = ImageList(index.splits["extra"].files * 13, index.splits["extra"].labels * 13)
    index = replace(index, splits={**index.splits, "extra": many})
    assert Counter(r.label for r in plan.text_requests(index)) == {0: 50, 1: 50, 2: 50}
    assert len({r.seed for r in plan.text_requests(index)}) == 150


def test_more_edits_than_sources_is_an_error(index):
    many = ImageList(index.splits["extra"].files * 2, index.splits["extra"].labels * 2)
    index = replace(index, splits={**index.splits, "extra": many})
    with pytest.raises(BenchmarkError, match=r"10 edits of class .* has 9 training images"):
        plan.edit_requests(index, instructions=False)


def test_address_changes_with_everything_that_makes_the_image(index):
    request = plan.edit_requests(index, instructions=False)[0]
    made_by = {"pipeline": "img2img", "weights": "sha256:1", "call": {"strength": 0.6}}
    others = [
        replace(request, prompt="another").address(made_by),
        replace(request, seed=1).address(made_by),
        replace(request, source_sha256="0").address(made_by),
        request.address({**made_by, "weights": "sha256:2"}),
        request.address({**made_by, "call": {"strength": 0.5}}),
        request.address({**made_by, "pipeline": "text2img"}),
    ]
    assert len({request.address(made_by), *others}) == 7
    assert request.address(made_by) == replace(request).address(dict(reversed(made_by.items())))


# Making ---------------------------------------------------------------------------------------------


class Counting(StandIn):
    """A stand-in that counts images and may stop after some, as a killed process does."""

    def stop_after(self, images: int) -> Counting:
        object.__setattr__(self, "made", 0)
        object.__setattr__(self, "stop", images)
        return self

    def make(self, requests, index):
        if self.made >= self.stop:
            raise KeyboardInterrupt
        object.__setattr__(self, "made", self.made + len(requests))
        return super().make(requests, index)


def test_interrupted_set_has_no_manifest_and_resumes_to_the_same_bytes(
    index, monkeypatch, tmp_path
):
    with pytest.raises(KeyboardInterrupt):
        make(index, "stand-in", Counting(batch_size=4).stop_after(8))
    assert not manifest.location("cub", "stand-in").manifest.exists()
    with pytest.raises(DataError, match=r"stand-in are not at hand.*generate make --dataset cub"):
        manifest.read(manifest.location("cub", "stand-in"))
    rest = Counting(batch_size=4).stop_after(100)
    make(index, "stand-in", rest)
    assert rest.made == 27 - 8
    resumed = content("stand-in")
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "other"))
    make(index, "stand-in", StandIn(batch_size=4))
    assert content("stand-in") == resumed


def test_finished_set_makes_nothing_again(index):
    make(index, "stand-in", StandIn())
    again = Counting().stop_after(0)
    make(index, "stand-in", again)
    assert again.made == 0


def test_other_settings_keep_the_images_that_do_not_change(index):
    """The share of swapped images is part of the address: another share is another set."""
    first = make(index, "stand-in", StandIn(swapped=0.3))
    second = make(index, "stand-in", StandIn(swapped=0.4))
    assert not {e.address for e in first.images} & {e.address for e in second.images}
    assert first.content != second.content


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline_of_the_real_class_makes_a_repeatable_set(
    index, tiny, name, tmp_path, monkeypatch
):
    made = make(index, name, diffusion_of(name, tiny, index))
    place = manifest.location("cub", name)
    files = manifest.verified_files(place, made)
    assert len(files) == 15
    for file in files:
        with Image.open(file) as image:
            assert image.size == (32, 32)
    assert len({e.sha256 for e in made.images}) == 15
    assert not made.stand_in
    first = content(name)
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "other"))
    make(index, name, diffusion_of(name, tiny, index))
    assert {k: v for k, v in content(name).items()} == first


@pytest.mark.parametrize("name", ["text2img", "img2img"])
def test_half_finished_pipeline_resumes_to_the_same_manifest(index, tiny, name):
    whole = make(index, name, diffusion_of(name, tiny, index))
    place = manifest.location("cub", name)
    for entry in whole.images[5:]:  # in the middle of a batch of four
        place.image(entry.address).unlink()
    place.manifest.unlink()
    assert make(index, name, diffusion_of(name, tiny, index)) == whole


def test_finetuning_changes_what_img2img_makes_and_resumes_bit_for_bit(index, tiny, tmp_path):
    from benchmarks.generate.finetune import FineTuning, finetune

    settings = FineTuning(steps=6, rank=2, lr=1e-2, batch_size=2, size=32, save_every=2)

    def stop(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(index, tiny["img2img"], settings, device="cpu", after_step=stop)
    adapter = finetune(index, tiny["img2img"], settings, device="cpu")
    resumed = adapter.read_bytes()
    adapter.unlink()
    assert finetune(index, tiny["img2img"], settings, device="cpu").read_bytes() == resumed
    plain = diffusion_of("img2img", tiny, index)
    tuned = Diffusion(
        **{**vars(plain), "recipe": recipe("img2img-finetuned", "cub")} | {"adapter": adapter}
    )
    requests = plain.requests(index)[:2]
    before, after = plain.make(requests, index), tuned.make(requests, index)
    assert np.abs(np.float32(before[0]) - np.float32(after[0])).mean() > 0.5
    assert plain.identity() != tuned.identity()


def test_finetuned_pipeline_without_its_adapter_is_an_error(tiny):
    with pytest.raises(BenchmarkError, match="needs fine-tuned weights"):
        Diffusion(recipe=recipe("img2img-finetuned", "cub"), folder=tiny["img2img"])


def test_half_precision_without_a_gpu_is_an_error(index, tiny):
    with pytest.raises(BenchmarkError, match="float16 needs a GPU"):
        diffusion_of("img2img", tiny, index, dtype="float16")


def test_settings_are_the_protocol_s():
    assert recipe("img2img", "cub").call["strength"] == 0.6
    assert recipe("img2img", "iwildcam-subset").call["strength"] == 0.5
    assert recipe("img2img-finetuned", "cub").call["guidance_scale"] == 7.5
    instruct = recipe("instructpix2pix", "cub").call
    assert (instruct["image_guidance_scale"], instruct["guidance_scale"]) == (1.3, 5.0)


def test_killed_process_goes_on_to_the_same_manifest(index, tmp_path, monkeypatch):
    """SIGKILL of the real command, in the middle; the same command finishes what is left."""
    command = [sys.executable, "-m", "benchmarks", "generate", "make", "-d", "cub", "-i"]
    command += ["randaugment-views"]
    whole = make(index, "randaugment-views", RandAugmentViews())
    expected = content("randaugment-views")
    other = tmp_path / "other"
    environment = {**os.environ, "SAFLEX_HOME": str(other), "PYTHONPATH": str(ROOT)}
    images = other / "generated" / "cub" / "randaugment-views" / "images"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    wait_for(lambda: any(images.glob("*.png")), "a first image", process, every=0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert whole.content in done.stdout
    monkeypatch.setenv("SAFLEX_HOME", str(other))
    found = {k: v for k, v in content("randaugment-views").items() if not k.endswith(".tmp")}
    assert found == expected


def test_command_line_makes_images_through_a_weights_folder(index, tiny):
    from typer.testing import CliRunner

    from benchmarks.__main__ import app

    options = ["--weights", str(tiny["img2img"]), "--device", "cpu", "--dtype", "float32"]
    options += ["--size", "32", "--steps", "4"]
    result = CliRunner().invoke(app, ["generate", "make", "-d", "cub", "-i", "img2img", *options])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["generate", "sheet", "-d", "cub", "-i", "img2img"])
    assert result.exit_code == 0, result.output
    with Image.open(result.output.strip()) as page:
        assert page.width > 1000
    wrong = CliRunner().invoke(app, ["generate", "make", "-d", "cub", "-i", "img2imgs"])
    assert isinstance(wrong.exception, UnknownName)
    assert "did you mean 'img2img'?" in str(wrong.exception)


# Weights --------------------------------------------------------------------------------------------


def test_weights_without_copy_or_network_are_named_with_size_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))

    def offline(*arguments, revision, **settings):
        assert len(revision) == 40
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(DataError, match=r"4\.3 GB.*no network.*weights/stable-diffusion-v1-5"):
        weights.folder(weights.STABLE_DIFFUSION)
    with pytest.raises(DataError, match=r"model_index\.json is missing"):
        weights.folder(weights.STABLE_DIFFUSION, tmp_path)


def test_weights_digest_ignores_where_they_lie_and_sees_what_they_are(tiny, tmp_path):
    import shutil

    copy = Path(shutil.copytree(tiny["img2img"], tmp_path / "copy"))
    (copy / "README.md").write_text("not loaded")
    assert weights.digest(copy) == weights.digest(tiny["img2img"])
    config = copy / "unet" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert weights.digest(copy) != weights.digest(tiny["img2img"])


# Manifest, stand-in, sheets, cost -------------------------------------------------------------------


def test_altered_and_missing_images_are_refused(index):
    made = make(index, "stand-in", StandIn())
    place = manifest.location("cub", "stand-in")
    victim = place.image(made.images[3].address)
    Image.new("RGB", (8, 8)).save(victim)
    with pytest.raises(DataError, match="not the image in the manifest"):
        manifest.verified_files(place, made)
    victim.unlink()
    with pytest.raises(DataError, match="missing"):
        manifest.verified_files(place, made)
    place.manifest.write_text(json.dumps({"images": []}))
    with pytest.raises(DataError, match="is no manifest"):
        manifest.read(place)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_stand_in_swaps_exactly_its_share_and_writes_the_truth_down(index, share):
    listed = index.splits["train"]
    truth = dict(zip(listed.files, listed.labels, strict=True))
    requests = StandIn(swapped=share).requests(index)
    assert [r.label for r in requests] == list(listed.labels)
    assert sum(r.content != r.label for r in requests) == round(share * len(requests))
    assert all(truth[index.root / r.source] == r.content for r in requests)


def test_stand_in_edits_are_strong_and_repeatable(index):
    requests = StandIn().requests(index)[:4]
    first, second = (StandIn().make(requests, index) for _ in range(2))
    for request, a, b in zip(requests, first, second, strict=True):
        assert a.tobytes() == b.tobytes()
        source = Image.open(index.root / request.source).convert("RGB").resize(a.size)
        assert np.abs(np.float32(a) - np.float32(source)).mean() > 10


def test_learned_sheet_frames_found_missed_and_wronged_images():
    names = ("a", "b")
    base = {
        "address": "0",
        "sha256": "",
        "source": "",
        "source_sha256": "",
        "prompt": "",
        "seed": 0,
    }
    swapped = manifest.Entry(**base, label=0, content=1)
    good = manifest.Entry(**base, label=0, content=0)
    grey = Image.new("RGB", (8, 8), "grey")
    page = sheets.learned(
        [(swapped, grey, 1.0, 1, 0.9), (swapped, grey, 1.0, 0, 0.9), (good, grey, 0.0, 0, 0.9)],
        names,
        title="stand-in",
    )
    colours = {page.getpixel((x, 2 * sheets.LINE + 20)) for x in range(page.width)}
    assert {(0x11, 0x77, 0x33), (0xCC, 0x33, 0x11), (0xEE, 0x77, 0x33)} <= colours


def test_cost_names_weights_disk_and_time_of_the_paper_s_sets(tmp_path, monkeypatch):
    from benchmarks import suite

    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path))
    specs = suite.plan(suite.load("paper"), table="3")
    estimates = {(e.dataset, e.name): e for e in cost.estimate(specs)}
    assert set(estimates) == {(d, n) for d in ("cub", "iwildcam-subset") for n in PIPELINES}
    assert estimates["cub", "img2img"].images == 1000
    assert estimates["iwildcam-subset", "img2img"].images == 2224
    assert all(e.gpu_hours > 0 and e.weights.gigabytes > 4 for e in estimates.values())
    assert cost.missing(specs) == [weights.STABLE_DIFFUSION, weights.INSTRUCT_PIX2PIX]
    assert len(cost.unmade(specs)) == 8
    assert "4.3 GB" in cost.absent(weights.INSTRUCT_PIX2PIX)


@pytest.mark.data
def test_counts_of_the_cost_estimate_are_those_of_the_real_lists():
    import csv

    from benchmarks.datasets.iwildcam_subset import LISTS

    path = Path(os.environ["SAFLEX_DATA"]) / LISTS["extra"].path
    with path.open(newline="") as stream:
        wanted = Counter(row["y"] for row in csv.DictReader(stream))
    assert cost.IMAGES["iwildcam-subset", "edit"] == sum(wanted.values())
    assert cost.IMAGES["iwildcam-subset", "text2img"] == sum(min(n, 50) for n in wanted.values())
