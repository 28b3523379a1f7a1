import dataclasses
import os

import numpy as np
import pytest
import torch

from tests.data.fixtures import write_dataset
from tests.scenes import circle_camera, exact_ids
from tests.train.test_training import assert_same_state, final_state, settings_for
from unified_lift.data import DATASETS, cache, load_scene
from unified_lift.data.cache import CacheChoice, DataCache, choose_cache, free_bytes, scene_bytes
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.memory import available_memory
from unified_lift.train.run import run
from unified_lift.train.views import Prefetcher
from unified_lift.types import View

CPU = torch.device("cpu")
GIB = 2**30
GPU_RUN = {"cuda": 8 * GIB, "cpu": 10 * GIB, "disk": 100 * GIB}
CPU_RUN = {"cpu": 10 * GIB, "disk": 100 * GIB}


@pytest.mark.parametrize(
    ("free", "gib", "expected"),
    [
        (GPU_RUN, 2.0, "cuda"),  # a quarter of 8
        (GPU_RUN, 2.001, "cpu"),
        (GPU_RUN, 5.0, "cpu"),  # half of 10
        (GPU_RUN, 5.001, "disk"),
        (CPU_RUN, 2.0, "cpu"),
        (CPU_RUN, 5.001, "disk"),
    ],
)
def test_auto_takes_the_first_place_that_is_filled_only_in_part(free, gib, expected):
    chosen = choose_cache("auto", int(gib * GIB), free)
    assert chosen == CacheChoice(expected, int(gib * GIB), free[expected])


@pytest.mark.parametrize(("wanted", "most"), [("cuda", 0.8 * 8), ("cpu", 0.9 * 10), ("disk", 0.9 * 100)])
def test_a_place_that_was_asked_for_may_be_filled_further_and_is_refused_beyond(wanted, most):
    assert choose_cache(wanted, int(most * GIB), GPU_RUN).kept_on == wanted
    with pytest.raises(UserError, match=f"--data_device {wanted}: photos and masks need .* GiB, of .* GiB free"):
        choose_cache(wanted, int(most * GIB) + GIB // 100, GPU_RUN)


def test_choices_and_refusals_name_flag_numbers_and_fix():
    assert str(CacheChoice("cuda", GIB // 8, 78 * GIB)) == "photos and masks: 0.12 GiB on the GPU (78.0 GiB free)"
    with pytest.raises(UserError) as caught:
        choose_cache("cuda", 7 * GIB, GPU_RUN)
    assert str(caught.value) == (
        "--data_device cuda: photos and masks need 7.00 GiB, of 8.00 GiB free on the GPU they may take 80%; "
        "use auto or disk, or free some"
    )
    with pytest.raises(UserError, match="this run computes on the CPU; use auto, cpu or disk"):
        choose_cache("cuda", 1, CPU_RUN)
    with pytest.raises(UserError, match="--data_device disk: .* use a smaller --resolution"):
        choose_cache("auto", 200 * GIB, GPU_RUN)


@pytest.mark.parametrize(
    ("limit", "expected"),
    # taken 600, of which 200 are file cache that can go: 900 - 600 + 200
    [("900\n", 500), ("max\n", 1_024_000), ("9223372036854771712\n", 1_024_000), ("100\n", 0)],
)
@pytest.mark.parametrize(
    "names",
    [
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ],
)
def test_memory_of_a_container_is_what_its_limit_leaves(tmp_path, names, limit, expected):
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys/fs/cgroup/memory").mkdir(parents=True)
    text = "MemTotal: 99999999 kB\nMemAvailable:   1000 kB\nHugePages_Total:       0\n"
    (tmp_path / "proc/meminfo").write_text(text)
    for name, text in zip(names, (limit, "600\n", "anon 400\ninactive_file 200\n"), strict=True):
        (tmp_path / "sys/fs/cgroup" / name).write_text(text)
    assert available_memory(tmp_path) == expected
    assert 0 < available_memory() < 2**50


def test_free_space_of_a_folder_that_is_not_there_yet_is_that_of_its_disk(tmp_path):
    free = free_bytes(CPU, tmp_path / "not" / "yet")
    assert set(free) == {"cpu", "disk"}
    assert free["disk"] > 0
    assert not (tmp_path / "not").exists()


@pytest.fixture
def mixed(scene):
    """The scene with a view of another size, one without mask, and pixels that two lenses did not see."""
    wide = circle_camera(0.25, width=31, height=22)
    ids = exact_ids(wide)
    odd = View(
        name="odd",
        camera=wide,
        image=torch.from_numpy((ids[..., None] * np.array([60, 20, 40])).astype(np.uint8)),
        segments=torch.from_numpy(ids * 7),
    )
    valid = torch.ones(20, 24, dtype=torch.bool)
    valid[:, :3] = False
    views = [dataclasses.replace(view, valid=valid) if i in (1, 2) else view for i, view in enumerate(scene.train)]
    views[4] = dataclasses.replace(views[4], segments=None)
    return dataclasses.replace(scene, train=(*views, odd))


def store(wanted, folder):
    return DataCache(wanted, device=CPU, folder=folder)


def test_scene_on_disk_is_equal_and_leaves_nothing_in_the_folder(mixed, tmp_path):
    placed = store("disk", tmp_path / "model").cached(mixed)
    assert placed.kept_on == "disk"
    assert list((tmp_path / "model").iterdir()) == []  # the files have lost their names: any end of the run frees them
    for before, after in zip((*mixed.train, *mixed.test), (*placed.train, *placed.test), strict=True):
        for a, b in ((before.image, after.image), (before.segments, after.segments), (before.valid, after.valid)):
            assert (a is None) == (b is None)
            assert a is None or (torch.equal(a, b) and a.dtype == b.dtype and a is not b)
    assert placed.train[1].valid is placed.train[2].valid  # shared before, shared after


def test_pixels_are_counted_once_where_views_share_them(mixed, tmp_path):
    # 8 views of 24x20 (one without mask, two with the same 480 valid flags) and one of 31x22
    assert scene_bytes(mixed) == 8 * 480 * 3 + 7 * 480 * 4 + 480 + 31 * 22 * 7
    keeper = store("cpu", tmp_path)
    keeper.cached(mixed)
    assert keeper.choice.num_bytes == scene_bytes(mixed)


@pytest.mark.parametrize("schedule", ["staged", "joint"])
def test_training_from_memory_and_from_disk_is_bit_identical(mixed, tmp_path, schedule):
    few = {"num_codes": 8, "contrastive_samples": 100}
    small = {"preset": "released", "method": few} if schedule == "joint" else {}
    for wanted in ("cpu", "disk"):
        settings = settings_for(tmp_path / wanted, data_device=wanted, **small)
        manifest = run(settings, mixed).manifest
        assert manifest["data"]["kept_on"] == wanted
    total = 24 if schedule == "joint" else 44
    assert_same_state(final_state(tmp_path / "cpu", total), final_state(tmp_path / "disk", total))


@pytest.mark.parametrize("name", sorted(DATASETS))
@pytest.mark.parametrize("wanted", ["cpu", "disk"])
def test_reader_hands_every_array_to_the_store_and_loads_the_same_scene(name, wanted, tmp_path):
    write_dataset(name, tmp_path / "scene")
    settings = DataSettings(source_path=tmp_path / "scene", num_random_points=50, eval=True)
    keeper = store(wanted, tmp_path / "model")
    plain, kept = load_scene(settings), load_scene(settings, cache=keeper)
    expected, placed = keeper.choice.num_bytes, keeper.cached(kept)
    assert scene_bytes(plain) == scene_bytes(placed) == keeper.choice.num_bytes
    assert scene_bytes(plain) == pytest.approx(expected, rel=0.2)  # what headers alone told
    assert plain.notes == kept.notes
    np.testing.assert_array_equal(plain.points.positions, kept.points.positions)
    for a, b, c in zip((*plain.train, *plain.test), (*kept.train, *kept.test), (*placed.train, *placed.test)):
        assert torch.equal(a.image, b.image)
        assert (a.segments is None) == (b.segments is None)
        assert a.segments is None or torch.equal(a.segments, b.segments)
        assert b.image is c.image  # it was there already
    assert wanted == "cpu" or list((tmp_path / "model").iterdir()) == []


def test_scene_that_will_not_fit_is_refused_before_a_photo_is_decoded(tmp_path, monkeypatch):
    write_dataset("transforms", tmp_path / "scene")
    monkeypatch.setattr(cache, "free_bytes", lambda device, folder: {"cpu": 10_000, "disk": 10_000})
    monkeypatch.setattr("unified_lift.data.scene.read_photo", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(UserError, match="--data_device disk: photos and masks need"):
        load_scene(DataSettings(source_path=tmp_path / "scene"), cache=store("auto", tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_full_disk_is_named(mixed, tmp_path, monkeypatch):
    def full(**_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.tempfile, "NamedTemporaryFile", full)
    with pytest.raises(UserError, match=f"{tmp_path}/model: .*No space left on device.*--data_device cpu"):
        store("disk", tmp_path / "model").cached(mixed)


def test_files_of_a_run_that_was_killed_while_it_loaded_are_removed(mixed, tmp_path):
    (tmp_path / "views_abc.bin").write_bytes(b"x")
    (tmp_path / "mine.bin").write_bytes(b"x")
    store("disk", tmp_path).cached(mixed)
    assert os.listdir(tmp_path) == ["mine.bin"]


def test_blocks_of_memory_hold_tensors_side_by_side(monkeypatch):
    monkeypatch.setattr(cache, "_CHUNK", 1024)
    keep = cache._Chunks(pinned=False)
    sizes = [(5, 7, 3), (10, 10), (300,), (20, 30), (1,)]
    tensors = [torch.arange(int(np.prod(s)), dtype=torch.int32).view(s) for s in sizes]
    tensors += [tensor % 251 for tensor in tensors]
    tensors = [t.to(d) for t in tensors for d in (torch.uint8, torch.int32, torch.bool)]
    kept = [keep(tensor) for tensor in tensors]
    for before, after in zip(tensors, kept, strict=True):
        assert torch.equal(before, after)
        assert before.dtype == after.dtype
        assert after.data_ptr() % after.element_size() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", ["cuda", "cpu", "disk"])
def test_views_arrive_on_the_gpu_from_wherever_they_are_kept(mixed, tmp_path, wanted):
    device = torch.device("cuda")
    placed = DataCache(wanted, device=device, folder=tmp_path).cached(mixed)
    assert placed.train[0].image.is_cuda == (wanted == "cuda")
    assert placed.train[0].image.is_pinned() == (wanted == "cpu")
    source = Prefetcher(placed.train, ("image", "segments", "valid"), kept_on=placed.kept_on, device=device)
    indices = torch.randint(len(placed.train), (200,), generator=torch.Generator().manual_seed(0)).tolist()
    fetched = []
    for index, then in zip(indices, [*indices[1:], None], strict=True):
        view = source.get(index, then=then)
        assert view.image.is_cuda
        torch.rand(1000, 1000, device=device).square_()  # work that a copy which comes too late would overtake
        fetched.append([t.clone() for t in (view.image, view.segments, view.valid) if t is not None])
    source.close()
    for index, found in zip(indices, fetched, strict=True):
        view = mixed.train[index]
        expected = [t for t in (view.image, view.segments, view.valid) if t is not None]
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a, b.cpu())


@pytest.mark.gpu
def test_training_on_a_gpu_reports_place_and_memory(mixed, tmp_path):
    for wanted in ("cuda", "cpu", "disk"):
        manifest = run(settings_for(tmp_path / wanted, data_device=wanted, device="cuda"), mixed).manifest
        assert manifest["data"]["kept_on"] == wanted
        peaks = manifest["peak_gpu_bytes"]
        assert all(0 < peaks[part]["allocated"] <= peaks[part]["reserved"] for part in ("geometry", "lift", "finish"))
