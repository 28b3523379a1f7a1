"""The console command `unified-lift`: sub-commands, and errors as one line."""

import importlib
import io
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import unified_lift
from unified_lift import ranks
from unified_lift.cli.names import addressed, near_text, nearest
from unified_lift.errors import UserError
from unified_lift.memory import described, is_on_gpu, lack_of_memory

COMMANDS = {
    "demo": ("unified_lift.cli.demo", "demo_main", "make a synthetic scene, train, render and score it"),
    "doctor": ("unified_lift.cli.doctor", "doctor_main", "say what this machine can do and what is missing"),
    "sfm": ("unified_lift.cli.sfm", "sfm_main", "find the camera poses of your photos or of a video"),
    "masks": ("unified_lift.cli.masks", "masks_main", "make the masks of a scene's photos, from a 2D model or without"),
    "check-data": ("unified_lift.cli.check_data", "check_data_main", "say what a scene folder holds and what is wrong"),
    "train": ("unified_lift.cli.train", "train_main", "train a scene: geometry, then features and objects"),
    "render": ("unified_lift.cli.render", "render_main", "render views, ids, overlays and a video of a trained scene"),
    "eval": ("unified_lift.cli.evaluate", "eval_main", "score a trained scene on its held-out views"),
    "query": ("unified_lift.cli.query", "query_main", "tell which object is meant: by a point, by words, by likeness"),
    "edit": ("unified_lift.cli.edit", "edit_main", "remove, copy, move, paint and rename objects of a trained scene"),
    "view": ("unified_lift.cli.view", "view_main", "open a trained scene in the browser: select, edit, save, film"),
    "export": ("unified_lift.cli.export", "export_main", "write scene, objects or background for other programs"),
    "import-edit": ("unified_lift.cli.export", "import_edit_main", "label a .ply that was edited elsewhere"),
    "bench": ("unified_lift.cli.bench", "bench_main", "train and score a table of the paper: scenes, methods, seeds"),
}

_HIDDEN = {"--completion": ("unified_lift.cli.completion", "completion_main", "print what completes words in a shell")}


def main(argv: list[str] | None = None) -> int:
    """Run a sub-command and return the exit code: 0 done, 1 diverged, 2 the user can repair it, 130 interrupted."""
    try:
        return _answered(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        return 0


def _answered(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "--help-all") or argv == ["help"]:
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(f"unified-lift {unified_lift.__version__}")
        return 0
    if argv[0] == "help" and argv[1:]:
        argv = [argv[1], "--help"]
    if argv[0] not in COMMANDS | _HIDDEN:
        near = nearest(argv[0], [*COMMANDS, *_HIDDEN, "--help", "--version"])
        print(f"error: no command {argv[0]!r}{near or '; there are:'}", file=sys.stderr)
        print("unified-lift --help lists them" if near else _usage(), file=sys.stderr)
        return 2
    return run(argv[0], argv[1:])


def run(command: str, argv: list[str] | None = None) -> int:
    """Run one sub-command with `argv` (default: the process's own arguments)."""
    _prepare_environment()
    for stream in (sys.stdout, sys.stderr):  # names may hold bytes that are no text, and a terminal may know ASCII only
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # a pipe sees lines as they come
    module, function, _ = (COMMANDS | _HIDDEN)[command]
    ranks.hush()
    try:
        if command != "train" and ranks.launched():
            raise UserError(f"{command}: runs in one process; start it without torchrun")
        start: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
        code = start(sys.argv[1:] if argv is None else argv)
        ranks.leave()
        return code
    except UserError as error:
        code, text = 2, f"error: {error}"
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0].replace("_", "-")
        if package not in ("diff-gaussian-rasterization", "simple-knn"):
            raise
        fix = f"pip install --no-build-isolation ./submodules/{package} (the wheel from `make dist` works too)"
        code, text = 2, f"error: the package {package} is missing; install it from this repository: {fix}"
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        return 0
    except FloatingPointError as error:
        advice = "earlier checkpoints are intact; train with lower rates into another -m folder"
        code, text = 1, f"error: {error}; {advice}"
    except Exception as error:
        if (cause := lack_of_memory(error)) is not None:
            code, text = 2, f"error: {command}: {described(cause)}; {_what_to_lower(command, on_gpu=is_on_gpu(cause))}"
        elif isinstance(error, OSError):
            code, text = 2, f"error: {error}; check that the disk is writable and not full"
        elif ranks.may_report():
            raise
        else:
            return 1
    except KeyboardInterrupt:
        code, text = 130, "interrupted"
    if ranks.may_report():
        print(near_text(addressed(text)), file=sys.stderr)
    return code


def _what_to_lower(command: str, *, on_gpu: bool) -> str:
    """Return what makes a command ask for less memory."""
    flags = {
        "train": "--resolution, --max_gaussians or --sh_degree",
        "masks": "--points_per_batch (of sam and hf)" if on_gpu else "--jobs",
        "sfm": "--max_size",
        "bench": "--jobs",
    }
    lower = f"lower {flags[command]}, or " if command in flags else ""
    return lower + ("use --device cpu" if on_gpu else "end other programs that hold some")


def _prepare_environment() -> None:
    """Set what torch reads when it is imported, unless the user has set it. Only the program does this, no import."""
    # Waiting OpenMP threads spin by default; on a shared machine a training step then takes ten times the CPU time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Densification changes the size of every array time and again. Memory that can grow and shrink in place keeps a
    # training's reserved memory near what it uses: one scene reserved ten times as much without.
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # torch warns about the first from 2.9 on
    try:
        is_new = tuple(int(part) for part in version("torch").split(".")[:2]) >= (2, 9)
    except PackageNotFoundError:  # a torch that was not installed by pip
        is_new = True
    if not any(name in os.environ for name in names):
        os.environ[names[is_new]] = "expandable_segments:True"


def _usage() -> str:
    lines = [
        "usage: unified-lift COMMAND [...], each with --help and --help-all; --version; --completion bash|zsh|fish"
    ]
    return "\n".join(lines + [f"  {name:<12} {text}" for name, (_, _, text) in COMMANDS.items()])


if __name__ == "__main__":
    sys.exit(main())
