"""``python -m benchmarks generate make|sheet|purify|cost``: generated images for Table 3."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks import sources
from benchmarks.errors import BenchmarkError, UnknownName
from benchmarks.verbs.options import Results, folder_of

if TYPE_CHECKING:
    from benchmarks.datasets.image_files import Index

app = typer.Typer(help="Generated images for Table 3.", no_args_is_help=True)

Dataset = Annotated[str, typer.Option("--dataset", "-d", help="cub or iwildcam-subset")]
Images = Annotated[
    str,
    typer.Option(
        "--images",
        "-i",
        help="text2img, instructpix2pix, img2img, img2img-finetuned; stand-in, randaugment-views",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        parser=sources.path_given,
        help="folder of a diffusers pipeline; default: local copy or the hub",
    ),
]
Device = Annotated[str | None, typer.Option(help="cuda, cuda:1 or cpu; default: a GPU if any")]
Steps = Annotated[int | None, typer.Option(min=1, help="fewer denoising steps than the protocol's")]


@app.command()
def make(
    dataset: Dataset,
    images: Images,
    weights: Weights = None,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32 (CPU)")] = "float16",
    batch_size: Annotated[int, typer.Option(min=1, help="images at once")] = 8,
    size: Annotated[int, typer.Option(min=1, help="pixels; smaller only for tests")] = 512,
    steps: Steps = None,
    finetuning_steps: Annotated[int, typer.Option(min=1, help="img2img-finetuned only")] = 4000,
) -> None:
    """Make what is missing of a set; interrupted at any point, the same command goes on."""
    from benchmarks.generate.make import make as make_set

    index = _index(dataset)
    if (generator := _stand_ins().get(images)) is None:
        from benchmarks.running.machine import chosen_device

        device = chosen_device(device)
        settings = {"device": device, "dtype": dtype, "batch_size": batch_size, "size": size}
        generator = _diffusion(images, index, weights, settings, steps, finetuning_steps)
    make_set(index, images, generator)


@app.command()
def sheet(
    dataset: Dataset,
    images: Images,
    out: Annotated[Path | None, typer.Option(parser=sources.path_given)] = None,
):
    """Write a contact sheet of a finished set: sources beside generated images."""
    from benchmarks.generate import manifest as manifests
    from benchmarks.generate import sheets

    place = manifests.location(dataset, images)
    page = sheets.source_and_generated(manifests.read(place), place, _index(dataset))
    print(sheets.save(page, out or place.folder / "sheet.jpg"))


@app.command()
def purify(
    suite: Annotated[str, typer.Option("--suite", "-s")] = "cpu",
    results: Results = None,
    images: Images = "stand-in",
) -> None:
    """Measure which swapped images of a stand-in set each refiner finds; curves, figure, sheets."""
    from benchmarks import suite as suites
    from benchmarks.studies import curves, purification

    loaded = suites.load(suite)
    folder = folder_of(loaded.name, results)
    plan = suites.plan(loaded)
    watched = {
        name: specs
        for name, specs in suites.bundles(plan).items()
        if specs[0].settings.upstream.settings.get("images") == images
        and specs[0].settings.refiner.name != "uniform"
    }
    for name, specs in watched.items():
        print(f"{name}: {purification.purify(specs, folder)}")
    print(curves.figure(folder))
    print("\n".join(curves.summary(folder)))


@app.command()
def cost(suite: Annotated[str, typer.Option("--suite", "-s")] = "paper") -> None:
    """Say what the generated sets of a suite take, and what is missing for them here."""
    from benchmarks import suite as suites
    from benchmarks.forecast import images as costs

    specs = suites.plan(suites.load(suite))
    lines = costs.render(costs.estimate(specs)) or ["no set of this suite needs diffusion"]
    lines += [f"missing: {costs.absent(weights)}" for weights in costs.missing(specs)]
    lines += [f"not made yet: {name}" for name in costs.unmade(specs)]
    print("\n".join(lines))


def _index(dataset: str) -> Index:
    from benchmarks import registry

    module = registry.module("datasets", dataset)
    if not hasattr(module, "index"):
        raise BenchmarkError(f"{dataset} is no folder of images: nothing can be generated from it")
    return module.index()


def _stand_ins() -> dict[str, Any]:
    from benchmarks.generate.stand_in import RandAugmentViews, StandIn

    return {"stand-in": StandIn(), "randaugment-views": RandAugmentViews()}


def _diffusion(
    images: str,
    index: Index,
    given: Path | None,
    settings: dict[str, Any],
    steps: int | None,
    finetuning_steps: int,
) -> Any:
    from benchmarks.forecast.images import DIFFUSION
    from benchmarks.generate import diffusion_weights as weights
    from benchmarks.generate import pipelines

    if images not in DIFFUSION:
        raise UnknownName("set of images", images, [*DIFFUSION, *_stand_ins()])
    chosen = pipelines.recipe(images, index.name)
    folder = weights.folder(chosen.weights, given)
    adapter = None
    if chosen.finetuned:
        from benchmarks.generate.finetune import FineTuning, finetune

        tuning = FineTuning(steps=finetuning_steps, size=settings["size"])
        adapter = finetune(index, folder, tuning, device=settings["device"])
    call = {} if steps is None else {"num_inference_steps": steps}
    return pipelines.Diffusion(recipe=chosen, folder=folder, adapter=adapter, call=call, **settings)
