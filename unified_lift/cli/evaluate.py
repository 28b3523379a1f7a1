"""eval.py: scores of a trained scene on its held-out views, as a table, JSON files and an HTML report."""

import functools
from dataclasses import dataclass
from typing import Literal

from unified_lift.cli.model_flags import SceneFlags
from unified_lift.errors import UserError
from unified_lift.evaluation.evaluate import ReferenceImage, Result, candidates_of, evaluate, evaluate_candidates
from unified_lift.evaluation.grounding import grounding_of
from unified_lift.evaluation.pictures import stored_renderings
from unified_lift.evaluation.protocols import PROTOCOLS, metric_of
from unified_lift.evaluation.report import write_result
from unified_lift.fileio import write_json
from unified_lift.metrics.base import ColorCorrect
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.train.logs import read_log
from unified_lift.types import Scene


@dataclass(frozen=True, kw_only=True)
class EvalCommand(SceneFlags):
    """Score a trained scene on its held-out views; pictures that are missing or old are rendered first.

    Example: unified-lift eval -m output/desk
    """

    protocol: str = "auto"
    """`generic`, `messy_rooms`, `replica` or `lerf_mask`, see docs/protocols.md; `auto`: the dataset's own."""
    grounding: str | None = None
    """lerf_mask: what finds the prompts in the first test view: a folder of `<prompt>.png`, or `dino:DIR,sam:DIR` with
    weights as `transformers` saves them."""
    reference_image: ReferenceImage = "dataset"
    """lerf_mask: the picture in which they are found: the photo or the model's rendering [Gaussian Grouping]."""
    color_correct: ColorCorrect | Literal["auto"] = "auto"
    """Also score pictures whose colours are fitted to the photo's (cc_PSNR, cc_SSIM): `affine` [gsplat], `quadratic`
    [multinerf], `none`; `auto`: affine after a training with --exposure."""
    oracle_codebooks: bool = False
    """Also score every clustering that the method kept, into oracle.json; the best of them read the annotations."""


def eval_main(argv: list[str]) -> int:
    """Parse, render what is missing, score, write, print. Return the exit code."""
    command = EvalCommand.parsed(argv, command="eval")
    if command.protocol not in ("auto", *PROTOCOLS):
        raise UserError(f"--protocol {command.protocol}: there are auto, {', '.join(PROTOCOLS)}")
    model, scene = command.open()
    words = command.grounding
    if command.oracle_codebooks:
        candidates_of(model)  # raises early
    result = evaluate(
        model,
        scene,
        command.protocol,
        renderings=functools.partial(stored_renderings, model, quiet=command.quiet),
        grounding=None if words is None else grounding_of(words, device=model.gaussians.device),
        reference_image=command.reference_image,
        color_correct=command.color_correct,
    )
    write_result(model, scene, result, log_lines=read_log(model.path))
    _print_scores(model, scene, result)
    if command.oracle_codebooks:
        sweep = evaluate_candidates(model, scene, result, quiet=command.quiet)
        write_json(model.path / "oracle.json", sweep)
        metric = metric_of(sweep["headline"])
        for name, scores in sweep["candidates"].items():
            marks = [mark for mark in ("best", "chosen") if sweep[mark] == name]
            value = metric.text(scores[metric.name]) if metric.name in scores else "does not apply"
            print(f"  {name}: {metric.name} {value} {', '.join(marks)}".rstrip())
        print(f"warning: {sweep['warning']}")
        print(f"{model.path / 'oracle.json'}: all candidates")
    return 0


def _print_scores(model: TrainedScene, scene: Scene, result: Result) -> None:
    protocol = f", protocol {result.protocol.name}" if result.report else ""
    print(f"{scene.name}, iteration {model.iteration}, {len(scene.test)} held-out views{protocol}")
    width = max(map(len, result.scores))
    for name, value in result.scores.items():
        print(f"  {name:<{width}}  {metric_of(name).text(value):>10}")
    unseen = [1 - float(view.valid.float().mean()) for view in scene.test if view.valid is not None]
    if unseen:
        print(f"note: {max(unseen):.1%} of the pixels (black frame, excluded) are left out of the scores")
    if not result.report:
        if model.is_lifted:
            print("note: the held-out views have no annotations: no scores against ground truth")
        else:
            print("note: this model knows no objects (no lift was trained): only image scores")
        if "mask_agreement" in result.scores:
            print("note: mask_agreement and coverage compare with the views' own masks, which err; they are not mIoU")
    for warning in result.report.get("warnings", ()):
        print(f"warning: {warning}")
    print(f"{model.path / 'report.html'}: pictures and plots")
