"""Break the files that the program reads, one at a time, and see what each command makes of them.

    python scripts/fuzz.py --runs 300 --seed 1
    python scripts/fuzz.py --groups model settings --keep output/fuzz

A miniature scene, or a miniature model, is copied, a file of the copy is damaged, and a command reads it in a process
of its own. It may take it or refuse it in one line. A traceback, another exit code, a warning, more than 2 GiB
or 60 seconds is a fault; these are counted by the line of the program that they come from, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import random
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from plyfile import PlyData, PlyElement

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.cli.test_train import SHORT
from tests.data.fixtures import write_dataset
from unified_lift.cli.main import COMMANDS
from unified_lift.cli.main import main as command
from unified_lift.modelfolder.settings import TrainSettings
from unified_lift.settings.yaml import to_dict

MOST_BYTES, MOST_SECONDS = 2 << 30, 60.0
# In commands `@` is the copy of the folder, `%` a new folder, `&` the flags of a short training.
CHECK, TRAIN, ITERATION = "check-data -s @ --quiet", "train -s @ -m % &", "model/point_cloud/iteration_12/"
MASKS = "masks -s @ --out @/made --provider regions --jobs 1 --quiet --min-area 4"
QUERY, EDIT, EVAL = "query -m @/model --list", "edit -m @/model --remove 1 --out %", "eval -m @/model --quiet"
EXPORT = "export -m @/model --objects 1 scene --format ply,html,labels --out %"
RENDER = "render -m @/model --skip-train --no-video --quiet"
RESUME = "train -m @/model --resume --lift_iterations 12 --quiet --logger none"
SCENES = {  # group -> layout, and its files that are damaged
    "transforms": ("transforms", "transforms.json points3D.ply"),
    "colmap": ("colmap", "sparse/0/cameras.bin sparse/0/images.bin sparse/0/points3D.bin"),
    "tables": ("colmap", "sparse/0/cameras.txt sparse/0/images.txt sparse/0/points3D.txt"),
    "messy_rooms": ("messy_rooms", "metadata.json"),
    "replica": ("replica", "traj.txt cam_params.json"),
    "lerf_mask": ("lerf_mask", "sparse/0/images.bin"),
    "pictures": ("colmap", "images/cam1/0001.png object_mask/cam1/0001.png object_mask/cam2/0001.npz"),
}
MODEL = {
    ITERATION + "objects.json": [QUERY, EXPORT],
    ITERATION + "segmentation.npz": [QUERY, EXPORT, EDIT],
    ITERATION + "classifier.pth": [QUERY, RENDER],
    ITERATION + "point_cloud_objects.ply": [QUERY, EXPORT],
    ITERATION + "point_cloud.ply": [f"train -s @ -m % & --init_ply @/{ITERATION}point_cloud.ply"],
    "model/config.yaml": [QUERY, RENDER],
    "model/chkpnt17.pth": [RESUME],
    "model/metrics.jsonl": [EVAL, RESUME],
    **{f"model/{name}.json": [EVAL, EXPORT] for name in ("cameras", "results", "manifest", "evaluation", "frame")},
}
EDITS = """- clean: {objects: [1], min_confidence: 0.5, outliers: 5}
- recolour: {objects: [1], color: '#ff0000', strength: 0.8}
- duplicate: {objects: [1], rotate: {axis: [0, 1, 0], degrees: 9}, translate: [1, 0, 0], about: [0, 0, 1], new_ids: [9]}
- move: {objects: [9], translate: [0, 0, 0.1], scale: 1.2}
- rename: {1: mug}
"""
GROUPS = (*SCENES, "settings", "masks", "edits", "model")
BAD = [None, True, -1, 0, 2**31, 10**20, 1e30, 1e308, 1e-300, float("nan"), float("inf"), "x", "", "a\0b", [], {}, [[]]]
ENDLESS = {
    b"[" * 10**5,
    b'{"a": ' + b"9" * 5000 + b"}",
    b"a: &a [x]\nb: &b [*a, *a]\n",
    b"\xff\xfe\xff",
    b"hello\nworld\n",
}


def targets(group: str, root: Path) -> list[tuple[str, list[str]]]:
    """Write the folder of a group; return its files that are damaged, and the commands that read them."""
    root.mkdir(parents=True)
    layout, files = SCENES.get(group, ("transforms", ""))
    write_dataset(layout, root)
    if group == "pictures":
        mask = root / "object_mask/cam2/0001.png"
        np.savez_compressed(mask.with_suffix(".npz"), ids=np.arange(24 * 32).reshape(24, 32) % 7)
        mask.unlink()
    if group == "tables":
        shutil.rmtree(root / "sparse")
        shutil.move(root / "sparse_text", root / "sparse")
    if group in SCENES:
        return [(file, [CHECK, TRAIN]) for file in files.split()]
    if group == "settings":
        (root / "my.yaml").write_text(yaml.safe_dump(to_dict(TrainSettings())))
        return [("my.yaml", ["train -s @ -m % --config @/my.yaml &"])]
    if group == "masks":
        run(MASKS, root)
        return [("made/masks.json", [MASKS])]
    run("train -s @ -m @/model & --eval --checkpoint_iterations 17", root)
    run(EVAL, root)
    (root / "model/frame.json").write_text('{"offset": [0.0, 0.0, 0.0], "scale": 1.0}')
    (root / "edits.yaml").write_text(EDITS)
    return (
        list(MODEL.items()) if group == "model" else [("edits.yaml", ["edit -m @/model --script @/edits.yaml --out %"])]
    )


def damaged(path: Path, rng: random.Random) -> tuple[str, bytes | None]:
    """Return what is done to a file, and its new content; None: `put` puts something that is no file in its place."""
    data, kind = path.read_bytes(), path.suffix
    if rng.random() < 0.05:
        return rng.choice(("missing", "folder", "pipe", "device")), None
    if kind in _READ and rng.random() < 0.7:
        read, write = _READ[kind]
        tree = {"": read(io.BytesIO(data))}
        try:
            with np.errstate(all="ignore"):
                return _change_node(tree, rng), write(tree[""])
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, yaml.YAMLError):
            pass  # such a file cannot be written
    start, size = rng.randrange(max(1, len(data) - 8)), len(data)
    if kind in (".txt", ".jsonl") and rng.random() < 0.6:
        words = re.split(rb"(\s+)", data)
        words[rng.randrange(0, len(words), 2)] = rng.choice(
            (b"nan", b"inf", b"-1", b"1e400", b"9" * 20, b"x", b"", b"[]")
        )
        return "a word", b"".join(words)
    cuts = [data[: rng.choice((0, 1, size // 50, size // 2, size - 1))], data + b"\0\1more" * 9, rng.randbytes(2000)]
    number = rng.choice((struct.pack("<d", float("nan")), struct.pack("<q", 2**60), b"\xff" * 8, b"\0" * 8))
    places = [data[:at] + number + data[at + 8 :] for at in (0, start)]
    bits = bytearray(data or b"?")
    for _ in range(rng.choice((1, 1, 8))):
        bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(8)
    return "bytes", rng.choice((*cuts, *places, bytes(bits), bytes(bits), rng.choice(sorted(ENDLESS))))


def _change_node(tree: Any, rng: random.Random) -> str:
    """Change a node of a tree of objects, lists and arrays in place; the entries of a list count as one node."""
    alike = defaultdict(list)
    for path in _paths(tree):
        alike[tuple("*" if isinstance(key, int) else key for key in path)].append(path)
    path, node = rng.choice(alike[rng.choice(list(alike))]), tree
    for key in path[:-1]:
        node = node[key]
    value = node[path[-1]]
    ways: dict[str, Any] = {repr(bad): copy.deepcopy(bad) for bad in BAD}
    if isinstance(value, (np.ndarray, torch.Tensor)) and rng.random() < 0.8:
        ways = {"no rows": value[:0], "5 rows": value[:5], "nan": value * float("nan"), "+ 0.5": value + 0.5}
        ways |= {"large": value * 10**8, "negative": -value - 1, "flat": value.reshape(-1), "axis": value[..., None]}
        ways |= {"columns": value[..., :-1]} if value.ndim else {}
        if isinstance(value, torch.Tensor):
            ways |= {"endless": value.flatten()[:1].expand(2**33), "whole": value.int()}
    label = rng.choice(list(ways))
    if len(path) > 1 and rng.random() < 0.1:
        del node[path[-1]]
        return f"without {path[1:]}"
    node[path[-1]] = ways[label]
    return f"{path[1:]}: {label}"


def _paths(tree: Any, above: tuple = ()) -> Iterator[tuple]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*above, key)
        yield from _paths(value, (*above, key))


def _columns(file: io.BytesIO) -> dict[str, np.ndarray]:
    rows = PlyData.read(file)["vertex"].data
    return {name: np.array(rows[name]) for name in rows.dtype.names}


def _ply(columns: dict[str, np.ndarray]) -> bytes:
    least, out = min(len(column) for column in columns.values()), io.BytesIO()
    rows = np.rec.fromarrays([column[:least] for column in columns.values()], names=list(columns))
    PlyData([PlyElement.describe(np.array(rows), "vertex")], byte_order="<").write(out)
    return out.getvalue()


def _saved(save: Any, *, swapped: bool = False) -> Any:
    def write(tree: Any) -> bytes:
        out = io.BytesIO()
        save(tree, out) if swapped else save(out, **tree)
        return out.getvalue()

    return write


_READ: dict[str, tuple[Any, Any]] = {  # suffix -> what makes a tree of it, and a file of the tree
    ".json": (json.load, lambda tree: json.dumps(tree).encode()),
    ".yaml": (yaml.safe_load, lambda tree: yaml.safe_dump(tree).encode()),
    ".npz": (lambda file: dict(np.load(file)), _saved(np.savez_compressed)),
    ".pth": (lambda file: torch.load(file, weights_only=True), _saved(torch.save, swapped=True)),
    ".ply": (_columns, _ply),
}


def put(path: Path, label: str, content: bytes | None) -> None:
    """Put the new content, or what is no file, in the place of a file."""
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    elif label != "missing":
        {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero")}[label]()


def run(line: str, folder: Path, fresh: Path = Path()) -> tuple[str, str, str]:
    """Run a command in a fork; return it, its fault, "" = none, and what it printed."""
    argv = [part.replace("@", str(folder)).replace("%", str(fresh)) for part in line.split()]
    argv = [word for part in argv for word in (SHORT if part == "&" else [part])]
    with tempfile.TemporaryFile() as printed:
        began, child = time.monotonic(), os.fork()
        if not child:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            sys.stdout = sys.stderr = os.fdopen(1, "w")
            resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
            code: Any = 1
            try:
                code = command(argv)
            except SystemExit as error:
                code = error.code
            except BaseException:  # noqa: BLE001  # what is looked for
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 2)
        fault = ""
        while not (ended := os.wait4(child, os.WNOHANG))[0]:
            used = int(Path(f"/proc/{child}/statm").read_text().split()[1]) * resource.getpagesize()
            fault = fault or ("over 2 GiB" if used > MOST_BYTES else "")
            fault = fault or ("over 60 seconds" if time.monotonic() - began > MOST_SECONDS else "")
            if fault:
                os.kill(child, 9)
            time.sleep(0.005)
        printed.seek(0)
        text, code = printed.read().decode(errors="replace"), os.waitstatus_to_exitcode(ended[1])
    warning = re.search(r"\w*Warning: .*", text)
    if "Traceback" in text:
        lines = re.findall(r'File "[^"]*?/((?:unified_lift|submodules)/[^"]*)", line (\d+)', text)
        fault = f"{':'.join(lines[-1]) if lines else '?'}: {text.strip().splitlines()[-1][:160]}"
    elif not fault and code and not (code in (1, 2) and re.search(r"error: |problem|─", text)):
        fault = f"exit code {code}"
    return " ".join(argv), fault or (warning[0] if warning else ""), text


def fuzz(groups: list[str], runs: int, seed: int, work: Path, keep: Path | None = None) -> Counter[str]:
    """Make so many runs in each group; return how often each fault was met. `keep` is for what led to them."""
    faults: Counter[str] = Counter()
    for group in groups:
        rng, files = random.Random(f"{seed} {group}"), targets(group, work / group)
        began, done, before = time.monotonic(), 0, faults.total()
        while done < runs:
            file, commands = rng.choice(files)
            label, content = damaged(work / group / file, rng)
            for line in commands:
                for folder in ("in", "out"):
                    shutil.rmtree(work / folder, ignore_errors=True)
                shutil.copytree(work / group, work / "in")
                put(work / "in" / file, label, content)
                argv, fault, text = run(line, work / "in", work / "out")
                done += 1
                if fault:
                    faults[f"{line.split()[0]}: {fault}"] += 1
                    kept = (keep or work / "kept") / f"{group}_{done}"
                    kept.mkdir(parents=True, exist_ok=True)
                    (kept / "log.txt").write_text(f"{argv}\n{file}: {label}\n{fault}\n{text[-6000:]}")
                    (kept / Path(file).name).write_bytes(content or b"")
        print(f"{group}: {done} runs, {faults.total() - before} faults, {time.monotonic() - began:.0f} s", flush=True)
    return faults


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--runs", type=int, default=100, help="in each group, %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files and commands that led to a fault")
    args = parser.parse_args(argv)
    for module, *_ in COMMANDS.values():  # once, not in every fork
        __import__(module)
    with tempfile.TemporaryDirectory() as work:
        faults = fuzz(args.groups, args.runs, args.seed, Path(work), args.keep)
    print("".join(f"{count:5} {fault}\n" for fault, count in faults.most_common()) or "no faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
