"""Contact sheets: source and generated image side by side, and what a refiner made of each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.datasets.image_files import Index, decoded
from benchmarks.generate.manifest import Entry, Location, Manifest

TILE = 160
LINE = 14
MARGIN = 6


@dataclass(frozen=True)
class Tile:
    """Pictures of one entry from left to right, lines of text below, and a colour around them."""

    pictures: tuple[Image.Image, ...]
    lines: tuple[str, ...]
    frame: str = "#cccccc"


def source_and_generated(
    manifest: Manifest, place: Location, index: Index, *, limit: int = 40
) -> Image.Image:
    """Every n-th image of a set beside its source, so that at most `limit` are shown."""
    step = max(1, -(-len(manifest.images) // limit))
    tiles = []
    for made in manifest.images[::step]:
        pictures = [decoded(place.image(made.address))]
        if made.source:
            pictures.insert(0, decoded(index.root / made.source))
        lines = [manifest.class_names[made.label], made.prompt]
        swapped = made.content not in (None, made.label)
        if swapped:
            lines[1] = f"shows {manifest.class_names[made.content]}"
        tiles.append(Tile(tuple(pictures), tuple(lines), "#cc3311" if swapped else "#cccccc"))
    kind = "STAND-IN, no diffusion model" if manifest.stand_in else manifest.generator["pipeline"]
    return sheet(tiles, title=f"{manifest.dataset}/{manifest.name}: {kind}")


def learned(
    entries: Sequence[tuple[Entry, Image.Image, float, int, float]],
    class_names: Sequence[str],
    *,
    title: str,
) -> Image.Image:
    """Images with what was learned: ``(entry, picture, weight, label, label's share)`` each.

    Lines: the upstream label; share and name of the learned label's arg max; the weight; and, of a
    swapped image, what it shows.

    The weight is 1 where the image counts like the average one of its batch. Frames: green a swapped
    image that was found, red one that was missed, orange a good one that was taken for swapped.
    """
    tiles = []
    for entry, picture, weight, label, share in entries:
        swapped = entry.content != entry.label
        found = weight == 0 or label != entry.label
        frame = ("#117733" if found else "#cc3311") if swapped else "#cccccc"
        frame = "#ee7733" if found and not swapped else frame
        lines = (
            f"upstream {class_names[entry.label]}",
            f"{share:.2f} {class_names[label]}",
            f"weight {weight:.2f}",
            f"shows {class_names[entry.content]}" if swapped else "",
        )
        tiles.append(Tile((picture,), lines, frame))
    return sheet(tiles, title=title, columns=8)


def sheet(tiles: Sequence[Tile], *, title: str, columns: int = 5) -> Image.Image:
    """Lay tiles out in rows under a title."""
    font = ImageFont.load_default(size=11)
    width = max(len(tile.pictures) for tile in tiles) * TILE + 2 * MARGIN
    lines = max(len(tile.lines) for tile in tiles)
    height = TILE + lines * LINE + 3 * MARGIN
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (columns * width, rows * height + 2 * LINE), "white")
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN), title, fill="black", font=ImageFont.load_default(size=14))
    for number, tile in enumerate(tiles):
        left = number % columns * width
        top = number // columns * height + 2 * LINE
        box = (left + 2, top + 2, left + width - 3, top + height - 3)
        draw.rectangle(box, outline=tile.frame, width=2)
        for position, picture in enumerate(tile.pictures):
            small = picture.resize((TILE, TILE), Image.Resampling.LANCZOS)
            page.paste(small, (left + MARGIN + position * TILE, top + MARGIN))
        for line, text in enumerate(tile.lines):
            where = (left + MARGIN, top + TILE + 2 * MARGIN + line * LINE)
            fitted = _fitted(text, width - 2 * MARGIN, font)
            draw.text(where, fitted, fill="black", font=font)
    return page


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip(" …") + "…"
    return text


def save(page: Image.Image, target: Path) -> Path:
    """Write a sheet as JPEG; a sheet is for looking at, the images themselves are kept as PNG."""
    target.parent.mkdir(parents=True, exist_ok=True)
    page.save(target, quality=80)
    return target
