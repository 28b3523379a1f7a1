"""What the files of a job tell: its record, and what it measured. Whatever is wrong with them is one line."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from unified_lift.bench.grid import Job, without_places
from unified_lift.errors import UserError
from unified_lift.reading import parsed_json, shown

_FIX = "delete it, and its job is done again"
_MOST = 1e18


class Memory(TypedDict):
    """Of `torch.cuda`, in bytes."""

    reserved: float


class MethodFacts(TypedDict, total=False):
    """What tables show of a method's summary."""

    num_groups: float | None


class Manifest(TypedDict, total=False):
    """What tables show of the manifest.json of a training."""

    seconds: dict[str, float]
    peak_gpu_bytes: dict[str, Memory]
    num_gaussians: float | None
    method: MethodFacts
    program: str
    commit: str | None
    torch: str
    device: str


class Figures(TypedDict, total=False):
    """What was measured: name of these results, scores, manifest of the training, scores of oracle candidates."""

    results: str
    scores: dict[str, float | str | bool | list | dict | None]
    manifest: Manifest
    candidates: dict[str, dict[str, float | None]]


class _Oracle(TypedDict, total=False):
    best: str
    candidates: dict[str, dict[str, float | None]]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What cell.json says of a job; steps are its commands, the message is the last line of its log."""

    commands: list[list[str]] = field(default_factory=list)
    status: Literal["new", "running", "interrupted", "done", "failed", "blocked"] = "new"
    """`blocked`: a job that it depends on failed."""
    finished_steps: int = 0
    seconds: float = 0.0  # over all attempts
    exit_code: int | None = None
    message: str = ""
    figures: Figures = field(default_factory=Figures)

    def is_of_other_commands(self, job: Job) -> bool:
        """Return whether it tells of other commands than those of the job; places do not count."""
        return bool(self.commands) and without_places(self.commands) != job.recorded


def read_record(job: Job, *, of_any: bool = False) -> Record:
    """Return what the files tell of a job; a record of other commands does not count unless it may be `of_any`.

    A damaged one is new, a job with damaged results has failed; the message is the line that names the file.
    """
    try:
        content = _read(job.record, dict[str, Any])
        hints = get_type_hints(Record)
        for name, value in content.items():
            _require(value, hints.get(name, NoReturn), name, job.record)
        if content.get("finished_steps", 0) < 0:
            raise UserError(f"{job.record}: finished_steps cannot be {content['finished_steps']}; {_FIX}")
        if content.get("figures"):
            content["figures"] = Figures(results="", scores={}, manifest={}, candidates={}) | content["figures"]
        record = Record(**content)
        _require_name(record.figures, job.record)
        if not of_any and (record.is_of_other_commands(job) or not record.commands):
            return Record()
        if record.status == "running":
            return replace(record, status="interrupted", message="broken off")
        if record.status == "done" and not all(path.exists() for path in job.artefacts):
            return Record(message="its files are gone")
    except UserError as error:
        return Record(message=str(error))
    try:  # older records hold no figures
        return replace(record, figures=record.figures or figures_of(job)) if record.status == "done" else record
    except UserError as error:
        return replace(record, status="failed", message=str(error))


def figures_of(job: Job) -> Figures:
    """Return what a job measured, from the files in its model folder; a UserError names one that is damaged."""
    results = _read(path := job.model / "results.json", dict[str, dict])
    name, scores = next(reversed(results.items()), ("", {}))
    figures = Figures(results=name, scores=scores, candidates={})
    figures["manifest"] = _read(job.model / "manifest.json", Manifest)
    if job.artefacts[0].name == "oracle.json":
        oracle = _Oracle(best="", candidates={}) | _read(path := job.artefacts[0], _Oracle)
        figures["candidates"], figures["scores"] = oracle["candidates"], oracle["candidates"].get(oracle["best"], {})
    _require(figures["scores"], Figures.__annotations__["scores"], "scores", path)
    _require_name(figures, path)
    return figures


def _read(path: Path, hint: Any) -> Any:
    """Return a JSON file of a job as such a mapping, empty where there is none."""
    if not path.exists():
        return {}
    content = parsed_json(path, fix=_FIX)
    _require(content, hint, "its content", path)
    return content


def _require_name(figures: Figures, path: Path) -> None:
    """Raise a UserError where the name of the results, which is that of a folder of pictures, leads elsewhere."""
    if "/" in (name := figures.get("results", "")) or name == "..":
        raise UserError(f"{path}: results cannot be {shown(name)[:80]}; {_FIX}")


def _require(value: Any, hint: Any, name: str, path: Path) -> None:
    """Raise a UserError that names the file, and the field at `name` or below, if a value is not as its type says."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_typeddict(hint) or origin is dict:
        fits = isinstance(value, dict)
        hints = get_type_hints(hint) if is_typeddict(hint) else dict.fromkeys(value if fits else (), arguments[1])
        needed = hint.__required_keys__ if is_typeddict(hint) else ()
        for key in [key for key in hints if fits and (key in value or key in needed)]:
            _require(value.get(key), hints[key], f"{name}: {str(key)[:80]}", path)
    elif origin is list:
        fits = isinstance(value, list)
        for item in value if fits else ():
            _require(item, arguments[0], name, path)
    else:
        kinds = arguments if origin is UnionType else (hint,)
        fits = any(_is_a(value, kind) for kind in kinds)
    if not fits:
        raise UserError(f"{path}: {name} cannot be {shown(value)[:80]}; {_FIX}")


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is int:
        return type(value) is int and abs(value) < _MOST
    if kind is float:
        return type(value) in (int, float) and abs(value) < _MOST  # neither NaN nor infinite
    return kind is Any or (kind is not NoReturn and isinstance(value, kind))
