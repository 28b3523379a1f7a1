"""Photos or the sharp frames of a video as pictures for a reconstruction: upright RGB JPEG files of a chosen size.

Of the EXIF data they keep only what tells the focal length: no places, no times.
"""

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from unified_lift.data.images import IMAGE_SUFFIXES, Progress, opened, parallel_map, read_image
from unified_lift.errors import UserError
from unified_lift.reading import as_text

_HEIC_SUFFIXES = (".heic", ".heif")
_VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".3gp")
_QUALITY = 97  # of the JPEG files: features and later training should not see our compression
_MAKE, _MODEL, _ORIENTATION, _EXIF_IFD = 0x010F, 0x0110, 0x0112, 0x8769
_FOCAL, _FOCAL_35MM = 0x920A, 0xA405
_SHARPNESS_SIDE = 640  # px: noise would count as sharpness at full size


def is_video(source: Path) -> bool:
    """Return whether the path is a video file rather than a folder of photos; a UserError says that it is neither."""
    if not source.exists():
        raise UserError(f"{source}: no such folder or file; give a folder of photos or a video")
    if source.is_file() and source.suffix.lower() not in _VIDEO_SUFFIXES:
        kinds = ", ".join(_VIDEO_SUFFIXES)
        raise UserError(f"{source}: neither a folder of photos nor a video ({kinds}); give one of them")
    return source.is_file()


def list_photos(folder: Path) -> list[Path]:
    """Return the photos below a folder, sorted by relative path; hidden files and folders are left out.

    A UserError says that there is none, that HEIC files cannot be read here, or that two differ only in the suffix.
    """
    kinds = sorted({*_HEIC_SUFFIXES, *(suffix.lower() for suffix in IMAGE_SUFFIXES)})
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in kinds and path.is_file()]
    photos = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if heic := [path for path in photos if path.suffix.lower() in _HEIC_SUFFIXES]:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            cannot = f"{len(heic)} HEIC photos cannot be read here"
            raise UserError(f"{heic[0]}: {cannot}; pip install pillow-heif, or export them as JPEG") from None
        register_heif_opener()
    if not photos:
        raise UserError(f"{folder}: holds no photos ({', '.join(kinds)}); give the folder they are in")
    seen: dict[str, Path] = {}
    for path in photos:
        other = seen.setdefault(photo_name(path, folder), path)
        if other is not path:
            raise UserError(f"{path}: has the same name as {other.name} but for the suffix; rename or remove one")
    return photos


def photo_name(path: Path, folder: Path) -> str:
    """Return the name a photo gets in the scene: its path below `folder`, with the suffix .jpg."""
    return path.relative_to(folder).with_suffix(".jpg").as_posix()


def write_photos(photos: Sequence[Path], source: Path, folder: Path, max_size: int, progress: Progress) -> None:
    """Write photos below `source` to `folder`, at most `max_size` pixels long; a UserError names a damaged photo."""
    parallel_map(partial(_write_photo, source=source, folder=folder, max_size=max_size), photos, progress)


def _write_photo(path: Path, *, source: Path, folder: Path, max_size: int) -> None:
    target = folder / photo_name(path, source)
    target.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(read_image(path))
    with opened(path) as stored:
        exif, as_it_is = stored.getexif(), stored.format == "JPEG" and stored.mode == "RGB"
    if as_it_is and not exif and max(picture.size) <= max_size:
        shutil.copyfile(path, target)  # encoding again could only lose
        return
    picture.getexif()[_ORIENTATION] = exif.get(_ORIENTATION, 1)
    kept, details = Image.Exif(), exif.get_ifd(_EXIF_IFD)
    kept.update({tag: exif[tag] for tag in (_MAKE, _MODEL) if tag in exif})
    if focal := {tag: details[tag] for tag in (_FOCAL, _FOCAL_35MM) if tag in details}:
        kept[_EXIF_IFD] = focal
    _save(ImageOps.exif_transpose(picture), target, max_size, kept)


def shrunk(image: np.ndarray, longest: float) -> np.ndarray:
    """Return a picture [H, W] or [H, W, 3] whose longer side is at most `longest` pixels."""
    scale = longest / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return image if scale >= 1 else cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _save(image: Image.Image, path: Path, max_size: int, exif: Image.Exif) -> None:
    Image.fromarray(shrunk(np.asarray(image), max_size)).save(path, quality=_QUALITY, subsampling=0, exif=exif)


def write_sharp_frames(video: Path, folder: Path, count: int, max_size: int, progress: Progress) -> int:
    """Write the sharpest frame of each of `count` equal stretches of a video, and return how many the video has.

    Files are called `frame_<number in the video>.jpg`. The video is decoded twice, as containers often misstate how
    many frames they hold; until the second pass the total for `progress` is an estimate. A UserError says that the
    video cannot be decoded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if as_text(str(video)) != str(video):  # OpenCV crashes
        raise UserError(f"{video}: its name holds bytes that are no text; rename it")
    guess, scores = int(cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FRAME_COUNT)), []
    for frame in _decoded(video):
        scores.append(sharpness(frame))
        progress(len(scores), 2 * max(guess, len(scores)))
    if not scores:
        raise UserError(f"{video}: no frame of this video can be decoded; convert it to H.264 .mp4 or give photos")
    chosen = set(sharpest(scores, count=count))
    for number, frame in enumerate(_decoded(video)):
        if number in chosen:
            picture = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            _save(picture, folder / f"frame_{number:06d}.jpg", max_size, Image.Exif())
        progress(len(scores) + number + 1, 2 * len(scores))
    return len(scores)


def sharpness(image: np.ndarray) -> float:
    """Return the variance of the Laplacian of a BGR frame [H, W, 3] at 640 px: large where edges are crisp."""
    grey = shrunk(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), _SHARPNESS_SIDE)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def sharpest(scores: Sequence[float], *, count: int) -> list[int]:
    """Return the index of the best score in each of `count` equal windows (all indices where there are fewer)."""
    edges = np.linspace(0, len(scores), min(count, len(scores)) + 1).round().astype(int).tolist()
    return [low + int(np.argmax(scores[low:high])) for low, high in zip(edges[:-1], edges[1:], strict=True)]


def _decoded(video: Path) -> Iterator[np.ndarray]:
    """Yield the frames as BGR, turned as the file says."""
    capture = cv2.VideoCapture(str(video))
    while (frame := capture.read()[1]) is not None:
        yield frame
