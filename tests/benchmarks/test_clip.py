"""CLIP by name: weights from a file or the hub, OpenAI's activation, clear words where there are none."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from image_text_runs import squares
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from small_runs import blobs

from benchmarks.errors import BenchmarkError, DataError
from benchmarks.models import clip as clips

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 14, "layers": 1, "width": 64, "patch_size": 7, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
}


@pytest.fixture
def architecture(tmp_path, monkeypatch):
    """An architecture of open_clip's own kind, small, and an empty data folder."""
    (tmp_path / "tiny-test.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path))
    return "tiny-test"


def test_weights_are_read_from_the_data_folder(architecture, tmp_path):
    torch.manual_seed(3)
    theirs = open_clip.create_model(architecture)
    (tmp_path / "weights").mkdir()
    save_file(theirs.state_dict(), tmp_path / "weights" / f"{architecture}-openai.safetensors")
    model = clips.build_vit_b16(squares(), architecture=architecture)
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, model.towers.state_dict()[name])
    # A file does not say that OpenAI trained with QuickGELU.
    assert any(isinstance(module, QuickGELU) for module in model.modules())


def test_a_path_is_a_file_too(architecture, tmp_path):
    theirs = open_clip.create_model(architecture)
    save_file(theirs.state_dict(), tmp_path / "mine.safetensors")
    model = clips.build_vit_b16(
        squares(), architecture=architecture, weights=str(tmp_path / "mine.safetensors")
    )
    assert torch.equal(model.towers.logit_scale, theirs.logit_scale)


def test_captions_of_every_class_and_template_are_tokenised(architecture):
    model = clips.build_vit_b16(squares(), architecture=architecture, weights="random")
    assert model.tokens.shape == (4, 2, 77)
    expected = open_clip.get_tokenizer("ViT-B-16")(["blue under the microscope."])
    assert torch.equal(model.tokens[2, 1], expected[0])


def test_missing_weights_are_one_line_with_their_place(architecture):
    with pytest.raises(DataError, match=r"weights/tiny-test-openai\.safetensors") as error:
        clips.build_vit_b16(squares(), architecture=architecture)
    assert "\n" not in str(error.value)


def test_weights_that_are_a_pointer_are_named(tmp_path, architecture):
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match=r"x\.safetensors is a Git-LFS pointer"):
        clips.build_vit_b16(squares(), architecture=architecture, weights=str(path))


def test_tables_model_is_the_papers():
    config = open_clip.get_model_config("ViT-B-16")
    assert config["embed_dim"] == 512
    assert config["vision_cfg"]["patch_size"] == 16
    assert "openai" in open_clip.list_pretrained_tags_by_model("ViT-B-16")


@pytest.mark.parametrize("build", [clips.build_vit_b16, clips.build_tiny])
def test_data_without_captions_are_refused(build):
    with pytest.raises(BenchmarkError, match="blobs has none"):
        build(blobs())


def test_tiny_vocabulary_holds_the_captions_and_ends_with_their_end(architecture):
    model = clips.build_tiny(squares(), width=32, layers=1, pretraining_epochs=0)
    size = model.towers.token_embedding.num_embeddings
    assert size < 40
    assert (model.tokens.amax(-1) == size - 1).all()  # the text tower pools where the id is largest


def test_pretraining_is_done_once_and_kept(architecture, tmp_path):
    data = squares()
    first = clips.build_tiny(data, width=32, layers=1, pretraining_epochs=1)
    files = list((tmp_path / "weights").glob("*.safetensors"))
    assert len(files) == 1
    changed = files[0].stat().st_mtime_ns
    again = clips.build_tiny(data, width=32, layers=1, pretraining_epochs=1)
    assert files[0].stat().st_mtime_ns == changed
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    clips.build_tiny(data, width=32, layers=1, pretraining_epochs=2)
    assert len(list((tmp_path / "weights").glob("*.safetensors"))) == 2


def test_pretraining_teaches_the_captions(architecture):
    """Zero-shot classification of other images than those of pre-training."""
    data = squares()
    found = {}
    for epochs in (0, 150):
        model = clips.build_tiny(data, width=32, layers=1, pretraining_epochs=epochs)
        features = model.features(data.test.x, data.normalize)
        predicted = (features @ model.text_head().detach().T).argmax(-1)
        found[epochs] = (predicted == data.test.y).float().mean().item()
    assert found[150] > 0.9 > found[0]
