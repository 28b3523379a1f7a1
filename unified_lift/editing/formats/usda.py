"""`.usda`: an OpenUSD particle field, exact, as text."""

from pathlib import Path

from unified_lift.editing.placement import for_float32
from unified_lift.model.usd import encode_usda
from unified_lift.modelfolder.inference import TrainedScene

TURNED_OVER = True  # right-up-back: y and z are turned over


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>.usda`; far from the origin inside of the scene's frame, with a frame.json beside it."""
    (folder / f"{stem}.usda").write_text(encode_usda(for_float32(folder, scene)), "utf-8")
