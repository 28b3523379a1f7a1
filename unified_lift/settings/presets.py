"""Presets: YAML files of differences, shipped with the package (`configs/` in the repository is the same folder)."""

from collections.abc import Iterator
from pathlib import Path

from unified_lift.errors import UserError
from unified_lift.settings.yaml import read_settings_file

PRESET_DIR = Path(__file__).with_name("presets")


def preset_chain(preset: str) -> Iterator[tuple[Path, dict]]:
    """Yield file and content of a preset (a shipped name or a YAML file), then of what it extends, and so on."""
    seen: list[Path] = []
    name: str | None = preset
    while name is not None:
        path = Path(name) if name.endswith((".yaml", ".yml")) else PRESET_DIR / f"{name}.yaml"
        if not path.exists():
            names = sorted(str(p.relative_to(PRESET_DIR).with_suffix("")) for p in PRESET_DIR.rglob("*.yaml"))
            origin = f"{seen[-1]}: extends" if seen else "--preset"
            raise UserError(f"{origin} {name}: no such preset; there are {', '.join(names)}, or give a .yaml file")
        if path in seen:
            raise UserError(f"{path}: extends itself, through {' -> '.join(map(str, seen))}")
        seen.append(path)
        content = read_settings_file(path)
        name = content.pop("extends", None)
        yield path, content
