"""A stand-in for pycolmap: same calls, same files, poses from a circle, every projection off by (0.3, 0.4) pixels."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

from tests.data.fixtures.colmap_model import points_2d, points_of, write_model
from tests.data.fixtures.floor import floor_cloud, orbit, quaternion_from_rigid
from unified_lift.data.colmap_tables import ColmapCamera, ColmapImage, read_images
from unified_lift.data.images import image_size
from unified_lift.ops.cameras import project

NUM_POINTS = 20
ERROR_PX = 0.5  # of every observation: (0.3, 0.4)


class FakeColmap:
    """What `import pycolmap` gives in tests."""

    CameraMode = SimpleNamespace(SINGLE="single", PER_IMAGE="each")

    def __init__(self, *, groups=None, interrupt="", error=KeyboardInterrupt):
        """Let mapping find models of these sizes, None = one of all photos, and raise `error` once in a function."""
        self.groups, self.interrupt, self.error = groups, interrupt, error
        self.calls, self.extracted, self.matched = [], [], []  # names of the functions called, and what they saw
        self.block_size = 0
        self.logging = SimpleNamespace(minloglevel=0)

    def set_random_seed(self, seed: int) -> None:
        assert seed == 0

    def ExhaustivePairingOptions(self) -> SimpleNamespace:  # noqa: N802 (their name)
        return SimpleNamespace(block_size=50)

    def extract_features(self, database: str, photos: str, names: list[str], mode: str) -> None:
        self.extracted.append((list(names), mode))
        with closing(sqlite3.connect(database)) as connection:
            for table in ("images", "keypoints", "two_view_geometries"):
                connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY)")
            for name in names:
                assert (Path(photos) / name).is_file()
                connection.execute("INSERT INTO images VALUES (?)", [name])
                connection.execute("INSERT INTO keypoints VALUES (?)", [name])
            connection.commit()
        self._called("extract_features")

    def match_sequential(self, database: str) -> None:
        self.match_exhaustive(database, function="match_sequential")

    def match_exhaustive(self, database: str, *, pairing_options=None, function: str = "match_exhaustive") -> None:
        self.block_size = 0 if pairing_options is None else pairing_options.block_size
        with closing(sqlite3.connect(database)) as connection:
            names = [name for (name,) in connection.execute("SELECT key FROM images ORDER BY key")]
            known = {pair for (pair,) in connection.execute("SELECT key FROM two_view_geometries")}
            pairs = [f"{a}|{b}" for n, a in enumerate(names) for b in names[n + 1 :]]
            wanted = [pair for pair in pairs if pair not in known]
            if self.interrupt == function:
                wanted = wanted[: len(wanted) // 2]
            connection.executemany("INSERT INTO two_view_geometries VALUES (?)", [[pair] for pair in wanted])
            connection.commit()
        self.matched.append(len(wanted))
        self._called(function)

    def incremental_mapping(self, database, photos, output, *, initial_image_pair_callback, next_image_callback):
        names = sorted(path.relative_to(photos).as_posix() for path in Path(photos).rglob("*.jpg"))
        start = 0
        for n, size in enumerate(self.groups if self.groups is not None else [len(names)]):
            initial_image_pair_callback()
            for _ in range(size - 2):
                next_image_callback()
            _write_group(Path(output) / str(n), Path(photos), names[start : start + size])
            start += size
        self._called("incremental_mapping")

    def undistort_images(self, output: str, model: str, photos: str) -> None:
        target = Path(output)
        for image in read_images(Path(model) / "images.bin").values():
            (target / "images" / image.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(photos) / image.name, target / "images" / image.name)
        shutil.copytree(model, target / "sparse")
        (target / "run-colmap-geometric.sh").write_text("")
        self._called("undistort_images")

    def _called(self, function: str) -> None:
        self.calls.append(function)
        if self.interrupt == function:
            self.interrupt = ""
            raise self.error(f"in {function}")


def _write_group(folder: Path, photos: Path, names: list[str]) -> None:
    """Write a model in which every photo sees all points."""
    points = points_of(*floor_cloud(NUM_POINTS))
    width, height = image_size(photos / names[0])
    cameras = orbit(len(names), width=width, height=height)
    images = {}
    for n, (name, camera) in enumerate(zip(names, cameras, strict=True)):
        pixels = project(points.positions, camera)[0] + [0.3, 0.4]
        observed = [(u, v, key) for (u, v), key in zip(pixels.tolist(), points.ids.tolist(), strict=True)]
        pose = camera.cam_from_world
        qvec, tvec = tuple(quaternion_from_rigid(pose).tolist()), tuple(pose[:3, 3].tolist())
        points2d = points_2d([(1.0, 2.0, -1), *observed])
        images[n + 1] = ColmapImage(qvec=qvec, tvec=tvec, camera_id=1, name=name, points2d=points2d)
    lens = (cameras[0].fx, cameras[0].fy, cameras[0].cx, cameras[0].cy)
    pinhole = ColmapCamera(model="PINHOLE", width=width, height=height, params=lens)
    write_model(folder, {1: pinhole}, images, points)
