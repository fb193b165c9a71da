"""The one colour language of every picture: a role's name in, a colour-blind safe colour out (Okabe
and Ito, 2008).
"""

from __future__ import annotations

from dataclasses import dataclass

from kdlib.errors import ConfigError


@dataclass(frozen=True)
class Role:
    """What a colour means, on paper and on a dark scene; line styles keep roles apart in grey print
    too.
    """

    title: str
    color: str  # on white
    dark: str  # on black
    dash: str = "solid"  # matplotlib line style
    # points; ground truth is a broad band, so that thin predictions on top leave it visible
    width: float = 1.4


ROLES: dict[str, Role] = {
    "truth": Role("ground truth", "#009E73", "#2EE6AC", width=3.4),
    "teacher": Role("teacher", "#0072B2", "#56B4E9"),
    "student": Role("student", "#E69F00", "#FFB000"),
    "miss": Role("missed object", "#882255", "#FF6FB5", dash="dashed"),
    "false_alarm": Role("false alarm", "#D55E00", "#FF5A36", dash="dotted"),
}

# For arms and runs that are none of the roles; the first is the neutral one.
SERIES = ("#7F7F7F", "#56B4E9", "#E69F00", "#CC79A7", "#009E73", "#0072B2", "#D55E00", "#F0E442")

INK = "#1F2933"  # text and axes
FAINT = "#8A97A6"  # secondary text, rings
GRID = "#E4E9EE"
NIGHT = "#0D1117"  # background of 3D scenes
NIGHT_INK = "#DCE3EA"
NIGHT_FAINT = "#303B48"

POINT_RAMP = ("#9FB3C8", "#5E7387", "#26323F")  # points on paper: low to high, no hue of a role
NIGHT_RAMP = ("#465B75", "#6B84A0", "#AFC2D4", "#F4F1E8")  # points in the dark: low to high


def role(name: str) -> Role:
    """Return a role by name.

    Raises:
        ConfigError: If there is none; the message lists those there are.
    """
    if name not in ROLES:
        raise ConfigError(f"unknown role '{name}'; there are: {', '.join(ROLES)}")
    return ROLES[name]


def on_dark(color: str) -> str:
    """Return a role colour's brighter twin for dark backgrounds; any other colour as it is."""
    return next((known.dark for known in ROLES.values() if known.color == color), color)


def rgb(color: str) -> tuple[float, float, float]:
    """Return red, green, blue in [0, 1] of '#RRGGBB'."""
    red, green, blue = bytes.fromhex(color[1:])
    return red / 255, green / 255, blue / 255
