"""`.sog`, read: SuperSplat's splats as lossless WebP pictures, in a zip file or beside their `meta.json`."""

import io
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from unified_lift.errors import UserError
from unified_lift.model.raw import RawSplat, from_smallest_three, logits_of

META = "meta.json"
_MOST_PIXELS = 1024  # of positions, which hardly compress, to a byte of their picture
_MOST_SPARE = 2**16  # pixels of a picture beyond four a Gaussian
_MOST_DEFLATED = 1032  # bytes that one byte of a zip file can become
_MOST_SH = 24  # coefficients a colour: those of degree 4
_FAULTS = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_FAULTS_OF_FILES = (zlib.error, zipfile.BadZipFile, Image.DecompressionBombError)
PALETTE_WIDTH = 64  # entries in a row of the palette of harmonics


def read_sog(path: Path) -> RawSplat:
    """Return the splat of a `.sog` file, of a folder with its parts, or of the `meta.json` of these; versions 1 and 2.

    Pictures are not decoded before their sizes were held against the number of Gaussians and the length of the file.
    A UserError: damaged, incomplete, or of another version.
    """
    try:
        if path.is_dir() or path.name == META:
            folder = path if path.is_dir() else path.parent
            return _Parts(lambda name: (folder / Path(name).name).read_bytes()).splat()
        with zipfile.ZipFile(path) as archive:
            entries = {Path(entry.filename).name: entry for entry in archive.infolist()}
            if any(entry.file_size > _MOST_DEFLATED * (entry.compress_size + 1) for entry in entries.values()):
                raise ValueError("a file in it is too large for its length")
            return _Parts(lambda name: archive.read(entries[name])).splat()
    except (*_FAULTS, *_FAULTS_OF_FILES) as error:
        raise UserError(f"{path}: not a readable SOG ({error!r}); fetch or export it again") from None


class _Parts:
    """The files of a splat by name, and what meta.json says of them."""

    def __init__(self, part: Callable[[str], bytes]) -> None:
        """Whatever is wrong is a LookupError, TypeError or ValueError, here and below."""
        self.part, self.meta = part, json.loads(part(META))
        self.version = self.meta.get("version", 1)
        if self.version not in (1, 2):
            raise ValueError(f"version {self.version}; 1 and 2 are read")
        self.count = int(self.meta["count"] if self.version == 2 else self.meta["means"]["shape"][0])
        length = len(part(self.meta["means"]["files"][0]))
        if not 0 <= self.count <= _MOST_PIXELS * length:
            raise ValueError(f"{self.count} Gaussians in {length} bytes")

    def picture(self, key: str, index: int, *, least: int, most: int) -> np.ndarray:
        """Return a picture of so many pixels, uint8 [H, W, 4]."""
        data = io.BytesIO(self.part(self.meta[key]["files"][index]))
        with Image.open(data, formats=["WEBP"]) as picture:
            if not least <= picture.width * picture.height <= most:
                raise ValueError(f"{key} of {picture.width}x{picture.height} pixels")
            return np.asarray(picture.convert("RGBA"))

    def rows(self, key: str, index: int = 0) -> np.ndarray:
        """Return the pixel of each Gaussian, uint8 [N, 4]."""
        pixels = self.picture(key, index, least=self.count, most=4 * self.count + _MOST_SPARE)
        return pixels.reshape(-1, 4)[: self.count]

    def values(self, key: str, levels: np.ndarray, channels: slice | int = slice(3)) -> np.ndarray:
        """Return what levels 0 to 255 stand for: entries of a codebook; in version 1 numbers between two bounds."""
        if self.version == 2:
            codebook = np.array(self.meta[key]["codebook"], np.float32)
            if np.isnan(codebook[0]):  # some encoders left it out
                codebook[0] = codebook[1] - (codebook[255] - codebook[1]) / 255
            return codebook[levels]
        low, high = (np.array(self.meta[key][end], np.float64) for end in ("mins", "maxs"))
        low, high = (bound[channels] if bound.ndim else bound for bound in (low, high))
        return low + (high - low) * levels / 255

    @np.errstate(all="ignore")  # what is not finite is broken
    def splat(self) -> RawSplat:
        """Return what the files hold."""
        low, high = (np.array(self.meta["means"][end], np.float64) for end in ("mins", "maxs"))
        share = (self.rows("means")[:, :3] + 256.0 * self.rows("means", 1)[:, :3]) / 65_535
        place = low + np.where(high == low, 1, high - low) * share  # its logarithm: sign(x) ln(1 + |x|)
        color, turn = self.rows("sh0"), self.rows("quats")
        opacity = logits_of(color[:, 3] / 255) if self.version == 2 else self.values("sh0", color[:, 3], 3)
        table = {
            "means": np.sign(place) * np.expm1(np.abs(place)),
            "quats": from_smallest_three(turn[:, 3] & 3, (turn[:, :3] / 127.5 - 1) / np.sqrt(2)),  # 252: w
            "log_scales": self.values("scales", self.rows("scales")[:, :3]),
            "logit_opacities": opacity,
            "sh0": self.values("sh0", color[:, :3])[:, None],
        }
        columns = table | ({"shN": self.harmonics()} if self.meta.get("shN") else {})
        return RawSplat(columns, [], antialiased=self.meta.get("antialias") is True)

    def harmonics(self) -> np.ndarray:
        """Return the higher coefficients [N, K-1, 3]: of each Gaussian, a row of a palette."""
        palette = self.picture("shN", 0, least=1, most=2**16 * _MOST_SH)
        num_sh, label = palette.shape[1] // PALETTE_WIDTH, self.rows("shN", 1).astype(np.int64)
        entries = palette[:, : PALETTE_WIDTH * num_sh].reshape(-1, num_sh, 4)[label[:, 0] + 256 * label[:, 1]]
        return self.values("shN", entries[..., :3])
