"""unified-lift query: which object is meant, by a point, by words, or by likeness."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

from unified_lift.cli.model_flags import Device, ObjectFlags, SourcePath
from unified_lift.device import chosen_device
from unified_lift.editing import query
from unified_lift.errors import UserError
from unified_lift.evaluation.grounding import grounding_of
from unified_lift.modelfolder.inference import TrainedScene, object_at, views_of
from unified_lift.modelfolder.labels import describe_objects
from unified_lift.settings.limits import Range
from unified_lift.types import View

_ROBUST_HEAD = "box of 90 % (5 % .. 95 %)"


@dataclass(frozen=True, kw_only=True)
class QueryCommand(ObjectFlags):
    """Tell which objects of a trained scene are meant, and what is known of them. Exit code 1: none was found.

    Example: unified-lift query -m output/desk --point 80,60 --view 0051
    """

    list: bool = False  # noqa: A003
    """All objects."""
    point: str | None = None
    """The object at pixel U,V of --view: U to the right, V down, (0.5, 0.5) is the centre of the first pixel."""
    like: int | None = None
    """The objects whose features are most like those of this one, by cosine."""
    text: str | None = None
    """The objects that words describe; needs --model, or --grounding and --view."""
    view: str | None = None
    """Name of a view, as render.py writes it."""
    model: Path | None = None
    """With --text: folder of a CLIP model as `transformers` saves it."""
    grounding: str | None = None
    """With --text: what finds the words in the photo of --view: a folder of <text>.png, or `dino:DIR,sam:DIR`."""
    top: Annotated[int, Range(1)] = 5
    """Most objects that --like and --text name."""
    out: Path | None = None
    """Folder for <id>.png (the object in --view, or where it is seen best, the rest dimmed) and <id>_mask.png."""
    source_path: SourcePath = None
    device: Device = "auto"


def query_main(argv: list[str]) -> int:
    """Parse, ask, print, write. Return the exit code."""
    command = QueryCommand.parsed(argv, command="query")
    asked = [command.list, command.point is not None, command.like is not None, command.text is not None]
    if sum(asked) != 1:
        raise UserError("ask one thing: --list, --point U,V --view NAME, --text WORDS --model DIR, or --like ID")
    if command.point is not None and command.view is None:
        raise UserError("--point needs --view NAME: the view whose pixel it is")
    if command.text is not None and (command.model is None) == (command.grounding is None):
        raise UserError("--text needs --model DIR (CLIP), or --grounding and --view NAME; one of them")
    if command.grounding is not None and (command.text is None or command.view is None):
        raise UserError("--grounding needs --text and --view NAME: what is sought, and the photo in which it is")
    if command.model is not None and command.text is None:
        raise UserError("--model needs --text: what is sought")
    scene = command.load(device=chosen_device(command.device), source_path=command.source_path)
    scene.require_labels()
    needs_views = command.point or command.text or command.out
    views = query.views_to_ask(views_of(scene), command.view) if needs_views else []
    found = _found(command, scene, views)
    if not found:
        print("no object there" if command.point else "no object found")
        return 1
    _print_table(scene, found, score="cosine" if command.like is not None else "fit" if command.text else "")
    if command.out is not None:
        shown = query.write_best_views(scene, found, views, command.out)
        for object_id in found:
            if object_id in shown:
                print(f"{command.out / str(object_id)}.png: object {object_id} in view {views[shown[object_id]].name}")
            else:
                print(f"note: object {object_id} is hidden in the view" + ("s" if len(views) > 1 else ""))
    return 0


def _found(command: QueryCommand, scene: TrainedScene, views: Sequence[View]) -> query.Found:
    device, text = scene.gaussians.device, command.text or ""
    if command.list:
        return dict.fromkeys(scene.objects, 1.0)
    if command.point is not None:
        try:
            u, v = map(float, command.point.split(","))
        except ValueError:
            raise UserError(f"--point {command.point}: write U,V in pixels, such as 80,60") from None
        object_id = object_at(scene, views[0].camera, u, v)
        return {} if object_id is None else {object_id: 1.0}
    if command.like is not None:
        found = query.objects_like(scene, command.like)
    elif command.model is not None:
        encode = query.clip_encoder(command.model, device=device)
        found = query.objects_by_text(scene, text, [view.camera for view in views], encode)
    else:
        grounding = grounding_of(command.grounding or "", device=device)
        found = query.objects_by_grounding(scene, text, views[0], grounding)
    return dict(islice(found.items(), command.top))


def _print_table(scene: TrainedScene, found: query.Found, *, score: str) -> None:
    """Print what is known of the objects; boxes are those of Gaussians that a camera saw, if there are any."""
    facts = describe_objects(scene.gaussians, scene.require_labels(), names=scene.names, frame=scene.frame)
    digits = 10 if any(scene.frame.offset) else 3
    width = max(len(facts[object_id]["name"]) for object_id in found)
    head = f"{'id':>5}  {'name':<{width}}  {'Gaussians':>9}  {'confidence':>10}" + (f"  {score:>6}" if score else "")
    # A column as wide as its widest box.
    boxes = {object_id: _box_text(facts[object_id]["bbox_90"], digits) for object_id in found}
    wide = max(len(text) for text in (*boxes.values(), _ROBUST_HEAD))
    print(f"{head}  {_ROBUST_HEAD:<{wide}}  box (min .. max)")
    for object_id, fit in found.items():
        entry = facts[object_id]
        line = f"{object_id:>5}  {entry['name']:<{width}}  {entry['count']:>9}  {entry['score']:>10.3f}"
        print(
            line
            + (f"  {fit:>6.3f}" if score else "")
            + f"  {boxes[object_id]:<{wide}}  {_box_text(entry['bbox'], digits)}"
        )


def _box_text(box: Sequence[Sequence[float]], digits: int) -> str:
    return " .. ".join(" ".join(f"{value:.{digits}g}" for value in corner) for corner in box)
