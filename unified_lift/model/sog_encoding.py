"""`.sog`, written: SuperSplat's splats as lossless WebP pictures in a zip file, version 2."""

import io
import json
import zipfile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unified_lift.model.gaussians import Gaussians
from unified_lift.model.raw import morton_order, smallest_three
from unified_lift.model.sog import META, PALETTE_WIDTH

_LEVELS = 256  # of a codebook
_MOST_ENTRIES = 2**16  # of the palette of harmonics: labels have two bytes
_BRANCH, _STEPS = 256, 6  # of k-means in two layers
_SAMPLE = 2**16  # rows on which the first layer is found
_AT_ONCE = 2**14  # rows whose distances are in memory together
_DATE = (1980, 1, 1, 0, 0, 0)  # so that equal scenes give equal files


def encode_sog(gaussians: Gaussians) -> bytes:
    """Return the bytes of a `.sog` file; Gaussians are sorted along a Z curve, so that pictures compress.

    Source: the format as splat-transform writes it.
    Differs: Half of the levels of a codebook are spread evenly, half are quantiles, where its own writer clusters; so
        no value is farther than 1/254 of the range from its level. Up to 65,536 Gaussians keep harmonics of their own;
        beyond, these share a palette found by k-means in two layers.
    """
    order = morton_order(gaussians.means.detach().cpu().numpy())
    table = {name: value.cpu().numpy()[order] for name, value in gaussians.state_dict().items()}
    count = len(order)
    width = 4 * int(np.ceil(np.sqrt(count) / 4))
    height = 4 * int(np.ceil(count / width / 4))
    files: dict[str, bytes] = {}

    def picture(name: str, rgb: np.ndarray, alpha: np.ndarray | int = 255) -> str:
        pixels = np.zeros((height * width, 4), np.uint8)
        pixels[:count, :3], pixels[:count, 3] = rgb, alpha
        files[f"{name}.webp"] = _webp(pixels.reshape(height, width, 4))
        return f"{name}.webp"

    places = np.sign(table["means"]) * np.log1p(np.abs(table["means"].astype(np.float64)))
    low, high = places.min(axis=0), places.max(axis=0)
    share = (places - low) / np.where(high > low, high - low, 1)
    fixed = np.rint(share * 65_535).astype(np.uint16)
    largest, others = smallest_three(table["quats"])
    sizes, size_levels = _quantised(table["log_scales"])
    colors, color_levels = _quantised(table["sh0"][:, 0])
    opacity = np.rint(gaussians.opacities.detach().cpu().numpy()[order] * 255).astype(np.uint8)
    meta = {
        "version": 2,
        "count": count,
        "antialias": gaussians.antialiased,
        "means": {
            "mins": low.tolist(),
            "maxs": high.tolist(),
            "files": [picture("means_l", fixed & 255), picture("means_u", fixed >> 8)],
        },
        "scales": {"codebook": sizes, "files": [picture("scales", size_levels)]},
        "quats": {"files": [picture("quats", np.rint((others * np.sqrt(2) + 1) * 127.5), alpha=252 + largest)]},
        "sh0": {"codebook": colors, "files": [picture("sh0", color_levels, alpha=opacity)]},
    }
    if num_sh := table["shN"].shape[1]:
        palette, label = _palette(torch.from_numpy(table["shN"]).reshape(count, -1))
        codebook, levels = _quantised(palette.reshape(len(palette), num_sh, 3))
        pixels = np.zeros((-(-len(palette) // PALETTE_WIDTH) * PALETTE_WIDTH, num_sh, 4), np.uint8)
        pixels[..., 3] = 255
        pixels[: len(palette), :, :3] = levels
        files["shN_centroids.webp"] = _webp(pixels.reshape(-1, PALETTE_WIDTH * num_sh, 4))
        labels = picture("shN_labels", np.column_stack([label & 255, label >> 8, 0 * label]))
        names = ["shN_centroids.webp", labels]
        meta["shN"] = {
            "count": len(palette),
            "bands": gaussians.sh_degree,
            "codebook": codebook,
            "files": names,
        }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        for name, data in {META: json.dumps(meta).encode(), **files}.items():
            bundle.writestr(zipfile.ZipInfo(name, _DATE), data)
    return archive.getvalue()


def _webp(pixels: np.ndarray) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), "WEBP", lossless=True, exact=True)
    return file.getvalue()


def _quantised(values: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Return a codebook of 256 rising levels, and the nearest level of each value, uint8 of the same shape."""
    spread = np.linspace(values.min(), values.max(), _LEVELS // 2)
    levels = np.sort(np.concatenate([spread, np.quantile(values, np.linspace(0, 1, _LEVELS // 2))]))
    index = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
    return levels.tolist(), index.astype(np.uint8)


def _palette(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return at most 65,536 entries for rows [N, D], float32 [K, D], and the entry of each, int64 [N]."""
    entries, label = torch.unique(rows, dim=0, return_inverse=True)
    if len(entries) <= _MOST_ENTRIES:
        return entries.numpy(), label.numpy()
    step = max(1, len(rows) // _SAMPLE)
    coarse = _nearest(rows, _centres(rows[::step]))
    found, label, start = [], torch.zeros(len(rows), dtype=torch.int64), 0
    for cell in range(_BRANCH):
        own = torch.nonzero(coarse == cell)[:, 0]
        if len(own):
            centres = _centres(rows[own])
            label[own] = start + _nearest(rows[own], centres)
            found.append(centres)
            start += len(centres)
    return torch.cat(found).numpy(), label.numpy()


def _centres(rows: Tensor) -> Tensor:
    """Return at most 256 centres of k-means of rows [n, D]; the first ones are rows evenly spread."""
    centres = rows[torch.linspace(0, len(rows) - 1, min(_BRANCH, len(rows))).long()].clone()
    for _ in range(_STEPS):
        nearest = _nearest(rows, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        counts = torch.bincount(nearest, minlength=len(centres))[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def _nearest(rows: Tensor, centres: Tensor) -> Tensor:
    """Return the nearest centre [k, D] of each row [n, D], int64 [n]."""
    bias = (centres**2).sum(dim=1) / 2
    return torch.cat([(part @ centres.T - bias).argmax(dim=1) for part in rows.split(_AT_ONCE)])
