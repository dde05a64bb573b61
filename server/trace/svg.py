"""Draws a film as SVG that moves by itself, in any browser and in an `<img>`; it needs no script and no font file."""

from xml.sax.saxutils import escape

from server.trace.film import HOLD_SECONDS, STEP_SECONDS, WIDTH, Cell, Film

CHARACTER, LINE, MARGIN = 8.4, 24.0, 16.0
"""In pixels; of the font's width, of a line's height, and round the text."""

_STYLE = """\
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre; }
.ground { fill: #ffffff; } .mask { fill: #d8dce3; } .word { fill: #1b1f24; } .note { fill: #6a737d; }
@media (prefers-color-scheme: dark) {
  .ground { fill: #0d1117; } .mask { fill: #30363d; } .word { fill: #e6edf3; } .note { fill: #8b949e; }
}
"""


def drawn(film: Film) -> str:
    """The picture as the text of a file."""
    width = 2 * MARGIN + WIDTH * CHARACTER
    height = 2 * MARGIN + (film.num_lines + 1) * LINE
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{escape(film.caption)}</title>',
        f"<style>{_STYLE}{_motion(film)}</style>",
        f'<rect class="ground" width="{width:.0f}" height="{height:.0f}" rx="8"/>',
        *map(_cell, film.cells),
        f'<text class="note" x="{MARGIN}" y="{height - MARGIN:.1f}">{escape(film.caption)}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _motion(film: Film) -> str:
    """For each step the moment at which its tokens take the place of their masks."""
    seconds = (film.num_steps + 1) * STEP_SECONDS + HOLD_SECONDS
    rules = []
    for step in sorted({cell.step for cell in film.cells}):
        at = 100 * step * STEP_SECONDS / seconds
        for name, before, behind in (("s", 0, 1), ("m", 1, 0)):
            frames = f"0%, {at:.2f}% {{ opacity: {before}; }} {at + 0.01:.2f}%, 100% {{ opacity: {behind}; }}"
            rules.append(f"@keyframes {name}{step} {{ {frames} }}")
            rules.append(f".{name}{step} {{ animation: {name}{step} {seconds:.2f}s infinite; }}")
    return "\n".join(rules) + "\n"


def _cell(cell: Cell) -> str:
    x, top = MARGIN + cell.column * CHARACTER, MARGIN + cell.line * LINE
    width = len(cell.text) * CHARACTER
    hue = round(120 * cell.confidence)
    return (
        f'<rect class="mask m{cell.step}" x="{x + 1:.1f}" y="{top + 3:.1f}" width="{max(width - 2, 2):.1f}" '
        f'height="{LINE - 8:.0f}" rx="3"/>'
        f'<g class="s{cell.step}"><rect x="{x:.1f}" y="{top + LINE - 5:.1f}" width="{width:.1f}" height="2" '
        f'fill="hsl({hue} 60% 50%)"/>'
        f'<text class="word" xml:space="preserve" x="{x:.1f}" y="{top + LINE - 9:.1f}" '
        f'textLength="{width:.1f}">{escape(cell.text)}</text></g>'
    )
