import dataclasses

import numpy as np
import pytest
import torch

from tests.data.fixtures import write_dataset
from tests.scenes import circle_camera, exact_ids
from tests.train.test_training import DEFAULT, assert_same_state, final_state, settings_for
from unified_lift.data import DATASETS, cache, load_scene
from unified_lift.data import view as views
from unified_lift.data.cache import CacheChoice, DataCache, choose_cache, scene_bytes
from unified_lift.data.masks import read_mask, write_mask
from unified_lift.data.on_demand import Decoder, Pixels, ViewOnDemand
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.memory import available_memory
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.train.geometry import GeometryStage
from unified_lift.train.run import run
from unified_lift.train.views import Prefetcher
from unified_lift.types import View

CPU = torch.device("cpu")
GIB = 2**30
GPU_RUN = {"cuda": 8 * GIB, "cpu": 10 * GIB}
CPU_RUN = {"cpu": 10 * GIB}


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
    assert chosen == CacheChoice(expected, int(gib * GIB), free.get(expected, 10 * GIB))
    assert chosen.max_decoded == pytest.approx(0.4 * chosen.free_bytes)


@pytest.mark.parametrize(("wanted", "most"), [("cuda", 0.8 * 8), ("cpu", 0.9 * 10)])
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
    on_disk = "photos and masks: 200.00 GiB on disk, decoded when they are used, 4.0 GiB kept"
    assert str(choose_cache("auto", 200 * GIB, GPU_RUN)) == on_disk


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


def store(wanted):
    return DataCache(wanted, device=CPU)


def test_pixels_are_counted_once_where_views_share_them(mixed):
    # 8 views of 24x20 (one without mask, two with the same 480 valid flags) and one of 31x22
    assert scene_bytes(mixed) == 8 * 480 * 3 + 7 * 480 * 4 + 480 + 31 * 22 * 7
    keeper = store("cpu")
    keeper.cached(mixed)
    assert keeper.choice.num_bytes == scene_bytes(mixed)


@pytest.fixture(params=sorted(DATASETS))
def folder(request, tmp_path):
    write_dataset(request.param, tmp_path / "scene")
    return tmp_path / "scene"


@pytest.mark.parametrize("looked_at", [64, 3])
@pytest.mark.parametrize("wanted", ["cpu", "disk"])
def test_the_same_scene_is_loaded_wherever_it_is_kept(folder, wanted, looked_at, monkeypatch):
    monkeypatch.setattr("unified_lift.data.scene._LOOKED_AT", looked_at)
    settings = DataSettings(source_path=folder, num_random_points=50, eval=True)
    keeper, plain = store(wanted), load_scene(settings)
    kept = load_scene(settings, cache=keeper)
    expected, placed = keeper.choice.num_bytes, keeper.cached(kept)
    assert placed.kept_on == wanted
    all_known = wanted == "cpu" or looked_at == 64
    assert scene_bytes(plain) == scene_bytes(placed) or not all_known
    assert scene_bytes(plain) == pytest.approx(expected, rel=0.2)  # what headers alone told
    told = [note for note in kept.notes if "views were looked at" in note]
    assert len(told) == (not all_known)
    assert plain.notes == kept.notes or not all_known
    assert (plain.frame, plain.zero_id, plain.void_ids) == (kept.frame, kept.zero_id, kept.void_ids)
    np.testing.assert_array_equal(plain.points.positions, kept.points.positions)
    for a, b, c in zip((*plain.train, *plain.test), (*kept.train, *kept.test), (*placed.train, *placed.test)):
        assert a.name == b.name
        if not a.has_mask and not all_known and b.has_mask:  # all black, which is seen when it is decoded
            assert not b.segments.any()
            b = b.having(segments=None)  # noqa: PLW2901
        np.testing.assert_array_equal(a.camera.cam_from_world, b.camera.cam_from_world)
        np.testing.assert_array_equal(a.camera.intrinsics, b.camera.intrinsics)
        for field in ("image", "segments", "valid", "alpha", "points"):
            one, two = getattr(a, field), getattr(b, field)
            assert (one is None) == (two is None)
            assert one is None or (torch.equal(one, two) and one.dtype == two.dtype)
        assert b.image is c.image  # it was there already


@pytest.mark.parametrize("schedule", ["staged", "joint"])
def test_training_from_memory_and_from_files_is_bit_identical(tmp_path, schedule):
    few = {"num_codes": 8, "contrastive_samples": 100}
    small = {"preset": "released", "method": few} if schedule == "joint" else {}
    write_dataset("transforms", tmp_path / "scene")
    small["data"] = {"source_path": tmp_path / "scene", "num_random_points": 50}
    for wanted in ("cpu", "disk"):
        manifest = run(settings_for(tmp_path / wanted, data_device=wanted, **small)).manifest
        assert manifest["data"]["kept_on"] == wanted
        assert {path.name for path in (tmp_path / wanted).iterdir()} >= {"manifest.json", "point_cloud"}
    total = 24 if schedule == "joint" else 44
    assert_same_state(final_state(tmp_path / "cpu", total), final_state(tmp_path / "disk", total))


def test_no_more_is_decoded_before_the_first_step_than_is_looked_at(tmp_path, monkeypatch):
    write_dataset("transforms", tmp_path / "scene")
    decoded, read = [], views.read_photo
    monkeypatch.setattr("unified_lift.data.scene._LOOKED_AT", 2)
    monkeypatch.setattr(views, "read_photo", lambda path: decoded.append(path.name) or read(path))
    monkeypatch.setattr(cache, "free_bytes", lambda device: {"cpu": 10_000})
    keeper = store("auto")
    scene = keeper.cached(load_scene(DataSettings(source_path=tmp_path / "scene", num_random_points=50), cache=keeper))
    assert scene.kept_on == "disk"
    first = set(decoded)
    assert len(first) <= 2 < len(scene.train)
    assert len(scene.labelled) == len(scene.train)
    gaussians = gaussians_from_points(scene.points, sh_degree=0)
    GeometryStage(scene, gaussians, settings_for(tmp_path / "model").geometry, DEFAULT, seed=0)
    assert set(decoded) == first
    source = Prefetcher(scene.train, ("image", "segments"), kept_on="disk", device=CPU)
    for index, view in enumerate(source.all()):
        assert torch.equal(view.image, scene.train[index].image)
    source.close()
    assert len(set(decoded)) == len(scene.train)


def test_a_mask_of_nothing_that_nobody_looked_at_does_no_harm(tmp_path, monkeypatch):
    write_dataset("transforms", tmp_path / "scene")
    mask = sorted((tmp_path / "scene" / "object_mask").rglob("*.png"))[1]
    write_mask(mask, np.zeros(read_mask(mask).shape, np.int32))
    monkeypatch.setattr("unified_lift.data.scene._LOOKED_AT", 1)
    data = {"source_path": tmp_path / "scene", "num_random_points": 50}
    manifest = run(settings_for(tmp_path / "model", data_device="disk", data=data)).manifest
    assert manifest["num_codes"] > 0


def test_a_photo_that_is_found_broken_on_the_way_is_named(tmp_path, monkeypatch):
    write_dataset("transforms", tmp_path / "scene")
    photo = sorted((tmp_path / "scene" / "images").rglob("*.png"))[1]
    photo.write_bytes(photo.read_bytes()[:-60])
    monkeypatch.setattr("unified_lift.data.scene._LOOKED_AT", 1)
    scene = load_scene(DataSettings(source_path=tmp_path / "scene", num_random_points=50), cache=store("disk"))
    broken = next(view for view in scene.train if view.name.endswith(photo.stem))
    with pytest.raises(UserError, match=photo.name):
        _ = broken.image


def test_views_on_demand_keep_what_was_asked_for_last():
    made = []

    def decode(index):
        made.append(index)
        return Pixels(torch.full((1, 100, 3), index, dtype=torch.uint8), torch.full((1, 100), index))

    decoder = Decoder(decode, max_bytes=2 * (300 + 800))
    of = {index: Pixels._fields if index != 2 else ("image",) for index in range(4)}
    shown = [ViewOnDemand(decoder, i, name=str(i), camera=circle_camera(0.1), present=of[i]) for i in of]
    for index in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1, which is decoded again
        assert int(shown[index].image[0, 0, 0]) == index
    assert made == [0, 1, 2, 1]
    assert shown[3].has_mask
    assert (shown[2].has_mask, shown[2].segments) == (False, None)
    other = shown[3].having(name="other", segments=None, points=torch.ones(1, 3))
    assert (other.name, other.has_mask, other.segments, len(other.points)) == ("other", False, None, 1)
    assert made == [0, 1, 2, 1]  # nothing of this asks for pixels
    shown[3].begin()
    assert int(other.image[0, 0, 0]) == 3
    decoder.forget()
    assert int(other.image[0, 0, 0]) == 3
    assert made == [0, 1, 2, 1, 3, 3]


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
    keeper = DataCache(wanted, device=device)
    if wanted == "disk":
        write_dataset("transforms", tmp_path / "scene")
        mixed = load_scene(settings := DataSettings(source_path=tmp_path / "scene", num_random_points=50))
        placed = keeper.cached(load_scene(settings, cache=keeper))
    else:
        placed = keeper.cached(mixed)
    assert placed.train[0].image.is_cuda == (wanted == "cuda")
    assert placed.train[0].image.is_pinned() == (wanted == "cpu")
    source = Prefetcher(placed.train, ("image", "segments", "valid"), kept_on=placed.kept_on, device=device)
    indices = torch.randint(len(placed.train), (200,), generator=torch.Generator().manual_seed(0)).tolist()
    fetched = []
    for index, then in zip(indices, [*indices[1:], None], strict=True):
        view = source.get(index, then=() if then is None else (then,))
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
