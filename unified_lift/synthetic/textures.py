"""Procedural colour: patterns on solids, the floor, the rug and the walls. Soft edges, so that few pixels alias."""

import numpy as np

Rgb = tuple[float, float, float]
DOOR_WIDTH, DOOR_HEIGHT = 0.22, 0.7  # shares of the width and of the height of a wall
DOOR_PAINT = np.array([0.95, 0.93, 0.88])


def mix(first: Rgb | np.ndarray, second: Rgb | np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the blend from first (share 0) to second (share 1), [n, 3]."""
    return np.asarray(first) + (np.asarray(second) - np.asarray(first)) * share[:, None]


def smoothstep(values: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """Return the cubic ramp from 0 at low to 1 at high."""
    x = np.clip((values - low) / (high - low), 0, 1)
    return x * x * (3 - 2 * x)


def _wave(phase: np.ndarray, softness: float = 0.25) -> np.ndarray:
    """Return a square wave of period 1 with soft edges, in [0, 1]."""
    return smoothstep(np.sin(2 * np.pi * phase), -softness, softness)


def pattern_share(pattern: str, points: np.ndarray, frequency: float) -> np.ndarray:
    """Return the share of the second colour at local points [n, 3], given repeats per unit: [n] in about [0, 1]."""
    x, y, z = points.T * frequency
    match pattern:
        case "plain":  # a breath of tone, so that an image loss has something to hold on to
            return 0.5 + 0.25 * np.sin(5.1 * x + 2.3 * y) + 0.25 * np.sin(4.3 * z - 3.7 * y + 1)
        case "rings":
            return _wave(z)
        case "wedges":
            return _wave(np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) * frequency, 0.35)
        case "checker":
            return smoothstep(np.prod([np.sin(np.pi * (each + 0.25)) for each in (x, y, z)], axis=0), -0.12, 0.12)
        case "dots":
            return 1 - smoothstep(np.sqrt(sum((each - np.round(each)) ** 2 for each in (x, y, z))), 0.28, 0.4)
        case "ribbon":
            return 1 - smoothstep(np.minimum(np.abs(x), np.abs(y)), 0.13, 0.18)
        case "icing":
            return smoothstep(z + 0.05 * np.sin(5 * np.arctan2(points[:, 1], points[:, 0])), -0.06, 0.04)
        case "leaves":
            x, y, z = (each * 2 * np.pi for each in (x, y, z))
            return 0.5 + 0.22 * (np.sin(x + np.sin(y)) + np.sin(y + np.sin(z)) + 0.3 * np.sin(2 * z + x))
        case "grain":
            rings = 0.3 * np.sin(9 * np.hypot(x - 0.9, 0.35 * y) + np.sin(2 * y))
            return 0.5 + rings + 0.2 * np.sin(17 * x + 2 * np.sin(y) + z)
    raise ValueError(f"no pattern {pattern!r}")


def floor_color(points: np.ndarray, *, rug_radius: float, style: int = 0) -> np.ndarray:
    """Return planks, and a round rug in the middle, at points on the floor [n, 3]; `style` changes width and tint."""
    x, y, width = points[:, 0], points[:, 1], 0.45 + 0.11 * (style % 4)
    plank = np.floor(y / width)
    tone = 0.5 + 0.5 * np.sin(plank * 12.9898 + 1)
    grain = 0.5 + 0.5 * np.sin(9 * y + 1.5 * np.sin(1.3 * x + plank))
    seam = 1 - smoothstep(np.abs(y / width - np.round(y / width)) * width, 0.01, 0.035)
    wood = mix((0.62, 0.42, 0.26), (0.76, 0.55, 0.36), 0.7 * tone + 0.3 * grain) * (1 - 0.25 * seam[:, None])

    rho = np.hypot(x, y) / rug_radius
    petals = smoothstep(np.cos(12 * np.arctan2(y, x)) * 0.5 + 0.5, 0.3, 0.7) * smoothstep(rho, 0.66, 0.7)
    rug = mix((0.93, 0.88, 0.78), (0.26, 0.42, 0.62), petals * (1 - smoothstep(rho, 0.86, 0.9)))
    ring = smoothstep(rho, 0.55, 0.58) * (1 - smoothstep(rho, 0.63, 0.66)) + smoothstep(rho, 0.92, 0.95)
    rug = mix(rug, (0.75, 0.30, 0.25), np.clip(ring, 0, 1))
    # Steps of the golden ratio: however many styles, no two tints are near each other. The first is white.
    tint = 1 - 0.2 * (style > 0) * (1 + np.cos(2 * np.pi * (0.618 * style + np.arange(3) / 3)))
    return mix(wood, rug, 1 - smoothstep(rho, 0.985, 1.015)) * tint


WALL_COLORS = np.array([[0.56, 0.74, 0.76], [0.93, 0.78, 0.62], [0.72, 0.80, 0.64], [0.78, 0.70, 0.84]])


def wall_color(points: np.ndarray, wall: np.ndarray, doors: list[int], *, half: float, height: float) -> np.ndarray:
    """Return wallpaper over a white panel at points [n, 3] on walls +x, -x, +y, -y (0..3).

    Each has one picture, or, if it is one of `doors`, the frame of a door.
    """
    u, z = np.where(wall < 2, points[:, 1], points[:, 0]), points[:, 2]
    stripes = 0.5 + 0.5 * np.sin(2 * np.pi * u / 0.55)
    paper = WALL_COLORS[wall] * (0.92 + 0.08 * stripes)[:, None]
    panel = mix((0.80, 0.78, 0.74), (0.94, 0.92, 0.88), smoothstep(np.abs(np.sin(np.pi * u / 1.2)), 0.06, 0.14))
    color = mix(panel, paper, smoothstep(z, 0.24 * height, 0.25 * height + 0.02))
    rail = smoothstep(z, 0.225 * height, 0.235 * height) * (1 - smoothstep(z, 0.255 * height, 0.265 * height))
    color = mix(color, (0.97, 0.95, 0.91), rail)

    has_door = np.isin(wall, doors)
    beside = np.maximum(np.abs(u) - DOOR_WIDTH * half, z - DOOR_HEIGHT * height)
    color = mix(color, DOOR_PAINT, has_door * (1 - smoothstep(beside, 0.1, 0.12)))

    # A framed landscape where |u|, |v| < 1.
    u, v = u / (0.34 * half), (z - 0.56 * height) / (0.19 * height)
    edge = np.maximum(np.abs(u), np.abs(v))
    hills = 0.25 * np.sin(3 * u + 1.7 * wall) - 0.1
    sky = mix((0.98, 0.80, 0.55), (0.36, 0.60, 0.86), smoothstep(v, -0.4, 0.8))
    art = mix(sky, WALL_COLORS[(wall + 2) % 4] * [0.45, 0.65, 0.45], 1 - smoothstep(v, hills - 0.06, hills + 0.06))
    sun = np.hypot(u - 0.45 + 0.25 * wall, 0.8 * (v - 0.45))
    art = mix(art, (1.0, 0.95, 0.75), 1 - smoothstep(sun, 0.16, 0.24))
    framed = mix(art, (0.42, 0.26, 0.16), smoothstep(edge, 0.84, 0.88))
    return mix(color, framed, ~has_door * (1 - smoothstep(edge, 0.98, 1.02)))
