"""Files that may be anything: one line that names the file, no traceback, no wait, no memory."""

import io
import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from tests.saved_model import save_model
from unified_lift.data.images import image_size, read_image
from unified_lift.data.masks import mask_at, read_mask, read_stored_mask
from unified_lift.errors import UserError
from unified_lift.fileio import read_json
from unified_lift.model.files import read_splat
from unified_lift.modelfolder.checkpoint import load_checkpoint
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.outputs import iteration_dir
from unified_lift.plyio import read_vertices
from unified_lift.reading import read_columns, read_tensors, shown
from unified_lift.settings.yaml import read_settings_file


def columns(path):
    return read_columns(path, ["a"], rows=3, fix="train again")


def tensors(path):
    return read_tensors(path, fix="train again")


READERS = {
    "a.json": [read_json, read_mask, read_settings_file],
    "a.yaml": [read_settings_file],
    "a.npz": [columns, read_mask],
    "a.npy": [read_mask],
    "a.pth": [tensors, load_checkpoint],
    "a.ply": [read_vertices, read_splat],
    "a.spz": [read_splat],
    "a.sog": [read_splat],
    "a.splat": [read_splat],
    "a.png": [read_image, image_size, read_mask],
}
CASES = [(name, read) for name, readers in READERS.items() for read in readers]
NOTHING = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
}
CONTENTS = [
    b"PK",
    b"[" * 100_000,
    b"{a: " * 20_000,
    b"\xff\xfe\xff\0",
    b'{"a": ' + b"9" * 5_000 + b"}",
    b"ply\nformat ascii 1.0",
]


def saved(save, *args, **named):
    out = io.BytesIO()
    save(out, *args, **named)
    return out.getvalue()


@pytest.mark.parametrize(("name", "read"), CASES)
@pytest.mark.parametrize("state", NOTHING)
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path, name, read, state):
    NOTHING[state](tmp_path / name)
    with pytest.raises(UserError, match=rf"^[^\n]*{name}[^\n]*$"):
        read(tmp_path / name)


@pytest.mark.parametrize(("name", "read"), CASES)
def test_damaged_content_is_one_line_that_names_the_file(tmp_path, name, read):
    whole = {
        "a.npz": saved(np.savez_compressed, a=np.arange(3)),
        "a.pth": saved(lambda out: torch.save({"a": torch.ones(3)}, out)),
    }
    cut = [whole[name][:size] for size in range(1, len(whole[name]), 40)] if name in whole else []
    for content in (*CONTENTS, *cut):
        content += bytes(len(content) % 32 == 0)  # else a .splat of whole rows
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"^[^\n]*{name}[^\n]*$"):
            read(tmp_path / name)


def test_a_flipped_bit_of_a_compressed_array_is_told(tmp_path):
    whole = bytearray(saved(np.savez_compressed, a=np.arange(5000) % 700))
    whole[len(whole) // 2] ^= 4
    (tmp_path / "a.npz").write_bytes(whole)
    with pytest.raises(UserError, match="a.npz: not a readable"):
        read_mask(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "values",
    [np.arange(4), np.arange(3)[:, None], np.array([0, 1, np.nan]), np.array(["a"] * 3), np.array([None] * 3), None],
)
def test_columns_are_finite_numbers_one_for_each_row(tmp_path, values):
    np.savez(tmp_path / "a.npz", **({"b": np.arange(3)} if values is None else {"a": values}))
    with pytest.raises(UserError, match="a.npz: not a readable NPZ"):
        columns(tmp_path / "a.npz")


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    torch.save(torch.zeros(1).expand(2**33, 16), tmp_path / "a.pth")
    with pytest.raises(UserError, match="a.pth.*more than it holds"):
        tensors(tmp_path / "a.pth")
    header = saved(
        np.lib.format.write_array_header_1_0, {"descr": "|u1", "fortran_order": False, "shape": (2**15, 2**15)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w") as member:
        member.write(header)
        for _ in range(2**10):
            member.write(bytes(2**20))
    with pytest.raises(UserError, match=r"a.npz.*a\.? holds more than 3"):
        columns(tmp_path / "a.npz")
    with pytest.raises(UserError, match="a.npz.*32768 x 32768 numbers"):
        read_mask(tmp_path / "a.npz")


def test_messages_show_the_beginning_of_what_aliases_make_endless():
    value = ["x"]
    for _ in range(40):
        value = [value] * 9
    assert len(shown(value)) < 2_000


CODES = torch.eye(4, 16)


@pytest.mark.parametrize(
    "codes",
    [None, {}, [1], "x", CODES[:, :3], CODES[:0], CODES[:2], CODES[0], CODES.int(), CODES * torch.nan, CODES.cfloat()],
    ids=str,
)
def test_codes_that_tell_no_object_are_refused(tmp_path, codes):
    model = save_model(tmp_path)
    torch.save(codes, iteration_dir(model, 40) / "classifier.pth")
    with pytest.raises(UserError, match=r"^[^\n]*classifier.pth[^\n]*--resume again$"):
        load_model(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda ids, confidence: (ids[:5], confidence),
        lambda ids, confidence: (ids, confidence[:0]),
        lambda ids, confidence: (ids - 50, confidence),
        lambda ids, confidence: (ids + 0.5, confidence),
        lambda ids, confidence: (ids, confidence * np.nan),
        lambda ids, confidence: (ids, confidence + 2),
        lambda ids, confidence: (ids[:, None], confidence),
        lambda ids, confidence: (ids.astype(np.int64) * 10**9, confidence),
        lambda ids, confidence: (ids.astype(str), confidence),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, change):
    model = save_model(tmp_path)
    path = iteration_dir(model, 40) / "segmentation.npz"
    with np.load(path) as before:
        ids, confidence = change(before["object_id"], before["confidence"])
    np.savez(path, object_id=ids, confidence=confidence)
    with pytest.raises(UserError, match=r"^[^\n]*(segmentation.npz|classifier.pth)[^\n]*--resume again$"):
        load_model(model)


@pytest.mark.parametrize("size", [(24, 32), (32, 24), (9000, 3000)])
def test_a_mask_that_claims_far_more_pixels_than_its_photo_is_not_decoded(tmp_path, size):
    Image.new("1", (13_000, 13_000)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=f"a.png: claims 13000x13000 pixels, its photo has {size[0]}x{size[1]}"):
        read_stored_mask(mask_at(tmp_path / "a.png"), size=size)
