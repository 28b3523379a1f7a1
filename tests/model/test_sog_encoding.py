"""`.sog`, written: codebooks and the palette of harmonics. Round trips are in tests/editing/test_round_trip.py."""

import io
import json
import zipfile

import numpy as np
import torch

from tests.editing.small_scene import random_gaussians
from unified_lift.model import sog_encoding
from unified_lift.model.files import read_splat


def test_no_value_is_farther_from_its_level_than_half_an_even_step():
    values = np.concatenate([np.random.default_rng(0).normal(0, 0.01, 1000), [-3.0, 5.0]])
    codebook, index = sog_encoding._quantised(values)
    found = np.array(codebook)[index]
    assert len(codebook) == 256
    assert (index == np.abs(values[:, None] - codebook).argmin(axis=1)).mean() > 0.99  # ties aside, the nearest
    assert np.abs(found - values).max() <= 8 / 127 / 2
    assert np.abs(found - values)[:1000].max() < 0.01  # where most are, levels lie dense
    assert sog_encoding._quantised(np.full((2, 3), 7.0))[1].shape == (2, 3)


def test_many_harmonics_share_a_palette_of_their_means(monkeypatch, tmp_path):
    monkeypatch.setattr(sog_encoding, "_MOST_ENTRIES", 100)
    monkeypatch.setattr(sog_encoding, "_BRANCH", 8)
    gaussians = random_gaussians(2000)
    kinds = torch.randn(6, 15, 3, generator=torch.Generator().manual_seed(0)) * 0.2
    noise = torch.randn(2000, 15, 3, generator=torch.Generator().manual_seed(1)) * 0.01
    which = torch.arange(2000) % 6
    gaussians.set("shN", kinds[which] + noise)
    data = sog_encoding.encode_sog(gaussians)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert 6 < json.loads(archive.read("meta.json"))["shN"]["count"] <= 64
    (tmp_path / "a.sog").write_bytes(data)
    order = sog_encoding.morton_order(gaussians.means.detach().numpy())
    error = read_splat(tmp_path / "a.sog")[0].shN.detach() - kinds[which[order]]
    assert float(error.abs().max()) < 0.05
    assert float(error.std()) < 0.009  # less than of single rows
