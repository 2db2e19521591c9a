"""A line plot of a few series, drawn with Pillow alone."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

SIZE, LEFT, RIGHT, TOP, BOTTOM = (1200, 720), 90, 190, 50, 80
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito 2008
GREY, TICKS = "#dddddd", 6

Point = tuple[float, float]


def line_plot(
    series: Mapping[str, Sequence[Point]], title: str, x_label: str, y_label: str, *, shown: Sequence[float] = ()
) -> Image.Image:
    """Points (x, y) of every series, joined and named at their right end; x on a logarithmic scale.

    shown: values of y that the picture reaches to in any case.
    """
    picture = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(picture)
    xs, ys = ([point[axis] for points in series.values() for point in points] for axis in (0, 1))
    low, high, step = round_range(min(*ys, *shown), max(*ys, *shown))
    frame = Frame(math.log(min(xs)), math.log(max(xs)), low, high)
    for k in range(round((high - low) / step) + 1):
        _rule(draw, frame, low + k * step)
    _numbers_below(draw, frame, sorted(set(xs)))
    _names_at(draw, frame, series)
    for colour, points in zip(COLOURS, series.values(), strict=False):
        places = [frame.place(*point) for point in sorted(points)]
        draw.line(places, colour, 3, joint="curve")
        for x, y in places:
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), colour)
    draw.text((LEFT, TOP - 34), title, "black", _font(20))
    draw.text((LEFT, SIZE[1] - 30), f"{x_label} (left to right), {y_label} (upwards)", "black", _font())
    return picture


class Frame:
    """From values to pixels."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        self.x_low, self.x_span = x_low, max(x_high - x_low, 1e-9)
        self.y_low, self.y_span = y_low, y_high - y_low

    def place(self, x: float, y: float) -> Point:
        """The pixel of a point."""
        right, up = (math.log(x) - self.x_low) / self.x_span, (y - self.y_low) / self.y_span
        return LEFT + right * (SIZE[0] - LEFT - RIGHT), SIZE[1] - BOTTOM - up * (SIZE[1] - TOP - BOTTOM)


def round_range(low: float, high: float) -> tuple[float, float, float]:
    """A range of round numbers round the given one, and the step between its ticks."""
    if high - low < 1e-9:
        low, high = low - 1, high + 1
    rough = (high - low) / TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough)
    return math.floor(low / step) * step, math.ceil(high / step) * step, step


def _rule(draw: ImageDraw.ImageDraw, frame: Frame, y: float) -> None:
    height = frame.place(1.0, y)[1]
    draw.line((LEFT, height, SIZE[0] - RIGHT, height), GREY)
    draw.text((LEFT - 10, height), f"{y:g}", "black", _font(), anchor="rm")


def _numbers_below(draw: ImageDraw.ImageDraw, frame: Frame, xs: Sequence[float]) -> None:
    """The values of x, without those that would run into the one before."""
    end = -math.inf
    for x in xs:
        across, down = frame.place(x, frame.y_low)
        if across - 14 > end:
            draw.text((across, down + 8), f"{x:g}", "black", _font(), anchor="mt")
            end = across + 14


def _names_at(draw: ImageDraw.ImageDraw, frame: Frame, series: Mapping[str, Sequence[Point]]) -> None:
    """The names at the heights where their lines end, moved apart where these are close."""
    ends = sorted((frame.place(*max(points))[1], k, name) for k, (name, points) in enumerate(series.items()))
    lowest = -math.inf
    for height, k, name in ends:
        lowest = max(height, lowest + 22)
        draw.text((SIZE[0] - RIGHT + 14, lowest), name, COLOURS[k % len(COLOURS)], _font(18), anchor="lm")


def _font(size: int = 16) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
