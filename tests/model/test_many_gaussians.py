"""What many Gaussians need: files are read and written in blocks, so that memory holds the Gaussians and no copy."""

import tracemalloc
from contextlib import nullcontext

import pytest
import torch

from tests.model.test_ply import random_gaussians
from unified_lift.editing.formats import FORMATS, export
from unified_lift.errors import UserError
from unified_lift.memory import OutOfMemory
from unified_lift.model import gltf, ply
from unified_lift.model.files import read_splat
from unified_lift.model.ply import read_gaussians, write_gaussians
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.labels import GaussianLabels

COUNT = 2**18
BLOCK = 2**16 * 4 * 80  # bytes of the rows of a block, of at most 80 columns


@pytest.fixture(scope="module")
def scene():
    ids = torch.arange(COUNT) % 7
    return TrainedScene(gaussians=random_gaussians(COUNT), labels=GaussianLabels(ids, torch.ones(COUNT)))


def peak_of(work):
    """Return the most bytes of NumPy and Python while `work` runs, and what it returns."""
    tracemalloc.start()
    try:
        found = work()
        return tracemalloc.get_traced_memory()[1], found
    finally:
        tracemalloc.stop()


# Of the rows and a Gaussian: blocks while they are made; ids, confidence, order and colours of objects.json.
@pytest.mark.parametrize(("name", "per_gaussian"), [("ply", 0), ("splat", 0), ("points", 0), ("labels", 60)])
def test_writers_hold_blocks_and_no_copy(tmp_path, scene, name, per_gaussian):
    peak, _ = peak_of(lambda: FORMATS[name](tmp_path, "a", scene))
    assert peak < 2 * BLOCK + per_gaussian * COUNT  # a copy of all columns has 300 bytes a Gaussian, 3.75 blocks


@pytest.mark.parametrize("read", [read_gaussians, lambda path: read_splat(path)[0]])
def test_readers_hold_the_columns_once(tmp_path, scene, read):
    write_gaussians(tmp_path / "a.ply", scene.gaussians, object_ids=scene.object_ids.numpy())
    peak, found = peak_of(lambda: read(tmp_path / "a.ply"))
    assert peak < sum(value.nbytes for _, value in found) + 1.5 * BLOCK
    for name, value in scene.gaussians:
        assert torch.equal(getattr(found, name), value), name


def test_a_file_that_memory_cannot_hold_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write_gaussians(tmp_path / "a.ply", random_gaussians(1_000))  # 59 numbers: 236,000 bytes
    for there in (236_000, 235_999):
        monkeypatch.setattr(ply, "available_memory", lambda there=there: there)
        with nullcontext() if there == 236_000 else pytest.raises(OutOfMemory, match=r"a.ply: .*1,000 Gaussians need"):
            read_gaussians(tmp_path / "a.ply")


def test_a_whole_scene_is_exported_from_the_memory_it_is_in(tmp_path, scene, monkeypatch):
    def probe(folder, stem, part):
        shares.append(part.gaussians is scene.gaussians)
        (folder / f"{stem}.txt").touch()

    shares = []
    monkeypatch.setitem(FORMATS, "probe", probe)
    export(scene, tmp_path / "out", formats=["probe"], objects=["scene", 3])
    assert shares == [True, False]


def test_a_glb_that_32_bits_cannot_tell_of_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(gltf, "_MOST_BYTES", 1_000)
    with pytest.raises(UserError, match=r"^--format glb: .* take ply"):
        gltf.encode_glb(random_gaussians(5))
