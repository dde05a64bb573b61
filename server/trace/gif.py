"""Draws a film as an animated GIF, a picture for each step."""

from pathlib import Path
from typing import TYPE_CHECKING

from engine import ConfigError
from server.trace.film import HOLD_SECONDS, STEP_SECONDS, WIDTH, Film

if TYPE_CHECKING:
    from PIL import Image, ImageFont

CHARACTER, LINE, MARGIN = 9, 24, 16
"""In pixels, as for SVG; the font is chosen so that a character is this wide."""
GROUND, MASK, WORD, NOTE = "#ffffff", "#d8dce3", "#1b1f24", "#6a737d"


def write(film: Film, path: Path) -> None:
    """Raises ConfigError where the extra `plot` is not installed, which brings a font and what writes GIFs."""
    try:
        from matplotlib import font_manager
        from PIL import ImageFont
    except ImportError:
        raise ConfigError("a GIF needs more: pip install 'unmask[plot]' (--svg does not)") from None
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono"), 15)
    first, *others = [_picture(film, step, font) for step in range(film.num_steps + 1)]
    durations = [round(1000 * seconds) for seconds in [STEP_SECONDS] * film.num_steps + [HOLD_SECONDS]]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


def _picture(film: Film, step: int, font: "ImageFont.FreeTypeFont") -> "Image.Image":
    """What stands there once `step` steps are done."""
    from PIL import Image, ImageColor, ImageDraw

    size = (2 * MARGIN + WIDTH * CHARACTER, 2 * MARGIN + (film.num_lines + 1) * LINE)
    picture = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(picture)
    for cell in film.cells:
        left, top = MARGIN + cell.column * CHARACTER, MARGIN + cell.line * LINE
        right = left + len(cell.text) * CHARACTER
        if cell.step > step:
            draw.rounded_rectangle((left + 1, top + 3, max(right - 2, left + 3), top + LINE - 6), 3, MASK)
        else:
            colour = ImageColor.getrgb(f"hsl({round(120 * cell.confidence)}, 60%, 50%)")
            draw.rectangle((left, top + LINE - 5, right - 1, top + LINE - 4), colour)
            draw.text((left, top), cell.text, WORD, font)
    draw.text((MARGIN, size[1] - MARGIN - LINE + 6), film.caption, NOTE, font)
    return picture
