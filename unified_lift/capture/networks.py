"""Networks of other packages: whether they run here, whether a file holds their weights, one line for what fails."""

import importlib
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unified_lift.capture.masks import MaskGenerator
from unified_lift.errors import UserError
from unified_lift.memory import lack_of_memory
from unified_lift.reading import read_tensors, reading

_FETCH = "fetch it again"
_WRAPPERS = ("model", "state_dict")  # under which some programs keep the tensors of a network
_TRIAL_SIZE = (48, 64)  # pixels, height and width


@contextmanager
def one_line(what: str, *, fix: str) -> Iterator[None]:
    """Turn whatever the block raises into a UserError `what (reason); fix`; those it raises and lack of memory pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # networks raise anything
        if lack_of_memory(error) is not None:
            raise
        raise UserError(f"{what} ({reason_of(error)}); {fix}") from error


def reason_of(error: BaseException) -> str:
    """Return the first line of what an error says, after its kind, at most 200 characters."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}"[:200].removesuffix(": ")


def needed_library(name: str, provider: str, install: str) -> ModuleType:
    """Return the module that a generator needs; a UserError says how to install it, or what is wrong with it."""
    who = f"--provider {provider}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what its authors should change
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{who}: {error.name or name} is not installed; run pip install {install}") from None
    except Exception as error:  # packages built for other versions raise anything
        if lack_of_memory(error) is not None:
            raise
        require_torchvision(provider, torch.device("cpu"))  # the usual reason
        what = f"{name} is installed but fails on import ({reason_of(error)})"
        raise UserError(f"{who}: {what}; run pip install --upgrade {install}") from error


def require_torchvision(provider: str, device: torch.device) -> None:
    """Run torchvision's suppression of boxes, which every generator calls; a UserError names the build that fits torch.

    A torchvision for another torch can be imported in some versions and then fails at the first photo.
    """
    boxes, scores = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3]]), torch.tensor([0.5, 0.9])
    try:
        kept = importlib.import_module("torchvision").ops.nms(boxes.to(device), scores.to(device), 0.5).tolist()
        if kept != [1]:
            raise RuntimeError(f"of two boxes it keeps {kept}")
    except Exception as error:
        if lack_of_memory(error) is not None:
            raise
        missing = isinstance(error, ModuleNotFoundError) and error.name == "torchvision"
        what = (
            "is not installed"
            if missing
            else f"{installed_version('torchvision')} does not fit torch {torch.__version__}"
        )
        why = "" if missing else f" ({reason_of(error)})"
        raise UserError(f"--provider {provider}: torchvision {what}{why}; run {fitting_torchvision()}") from None


def fitting_torchvision(torch_version: str | None = None) -> str:
    """Return the line that installs the torchvision made for a torch, by default this one.

    Source: the table of versions in torchvision's README: torch 2.n goes with torchvision 0.(n + 15).
    """
    number, _, build = (torch_version or torch.__version__).partition("+")
    found = re.match(r"2\.(\d+)\.", number)
    which = f'"torchvision==0.{int(found[1]) + 15}.*"' if found else "--upgrade torch torchvision"
    is_named = re.fullmatch(r"cpu|cu\d+|xpu|rocm[\d.]+", build)
    return f"pip install {which}" + (f" --index-url https://download.pytorch.org/whl/{build}" if is_named else "")


def installed_version(package: str) -> str:
    """Return the version of an installed module's package, or that it has none."""
    try:
        return version(packages_distributions().get(package, [package])[0])
    except PackageNotFoundError:
        return "of unknown version"


def require_download(path: Path) -> None:
    """Raise a UserError where a file is what failed downloads leave: nothing, a web page, a pointer of Git LFS."""
    with reading(path, "file", fix=_FETCH), path.open("rb") as file:
        head = file.read(512)
    if not head.strip(b"\0"):
        state = "is empty" if not head else "begins with zeros only: its download did not end"
        raise UserError(f"--weights {path}: {state}; {_FETCH}")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"--weights {path}: is a pointer of Git LFS, not the file itself; run git lfs pull beside it")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        raise UserError(f"--weights {path}: is a web page saved under this name; {_FETCH} by its direct link")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a network that torch saved, on the CPU; a UserError says what else the file is."""
    require_download(path)
    with path.open("rb") as file:
        head = file.read(2)
    if head != b"PK" and head[:1] != b"\x80":  # a ZIP, or a pickle as torch saved before 1.6
        kind = "of safetensors: give its folder to --provider hf" if path.suffix == ".safetensors" else "torch saves"
        what = f"is a file {kind}" if path.suffix == ".safetensors" else f"is no file that {kind}; {_FETCH}"
        raise UserError(f"--weights {path}: {what}")
    if head == b"PK" and not zipfile.is_zipfile(path):
        raise UserError(f"--weights {path}: is cut short, its end is missing; {_FETCH}")
    content = read_tensors(path, fix=f"it is damaged or cut short: {_FETCH}")
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content or not all(isinstance(one, Tensor) for one in content.values()):
        raise UserError(f"--weights {path}: holds no tensors by name; give the checkpoint of a network")
    require_finite(path, content)
    return content


def require_finite(path: Path, state: dict[str, Tensor]) -> None:
    """Raise a UserError where weights hold NaN or infinite numbers, with which a network finds nothing."""
    wrong = next((name for name, one in state.items() if not bool(one.isfinite().all())), None)
    if wrong is not None:
        raise UserError(f"--weights {path}: {wrong} holds NaN or infinite numbers; {_FETCH}")


def load_state(network: Any, state: dict[str, Tensor], path: Path, what: str) -> None:
    """Give a network its weights; a UserError says by how much they are of another one than `what`."""
    mine = network.state_dict()
    missing = [name for name in mine if name not in state]
    other = [name for name in mine if name in state and mine[name].shape != state[name].shape]
    more = [name for name in state if name not in mine]
    if missing or other or more:
        kinds = (("lacks {}", missing), ("has {} of other shape", other), ("has {} more", more))
        counts = ", ".join(text.format(len(names)) for text, names in kinds if names)
        first = (missing + other + more)[0]
        reason = f"of {len(mine)} tensors it {counts}, first {first}"
        raise UserError(f"--weights {path}: not a checkpoint of {what} ({reason}); name its network with --model")
    network.load_state_dict(state)


def tried(make: Callable[[], MaskGenerator]) -> str:
    """Make a generator with a random network and run it on a small picture; say what came out.

    Raises:
        RuntimeError: No mask came out, or one of another size.
    """
    height, width = _TRIAL_SIZE
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = make().propose(image, ["whole"])
    if not found or any(one.mask.shape != (height, width) for one in found):
        raise RuntimeError(f"a small random network gave {len(found)} masks of {height} x {width} pixels")
    return f"a small random network gives masks ({len(found)})"
