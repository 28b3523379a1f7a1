"""`.spz`: header and columns by hand, and a decoder of our own against random Gaussians."""

import gzip
import math
import struct

import numpy as np
import pytest

from tests.editing.small_scene import gaussians_of, random_gaussians
from unified_lift.errors import UserError
from unified_lift.model.spz import encode_spz, pack_rotations


def encoded(**columns):
    return gzip.decompress(encode_spz(gaussians_of(**columns)))


def columns_of(data, degree):
    """Return the columns of a decompressed file as the public description lays them out."""
    count, num_sh = struct.unpack("<I", data[8:12])[0], 3 * ((degree + 1) ** 2 - 1)
    sizes = {"positions": 9, "alphas": 1, "colors": 3, "scales": 3, "rotations": 4, "sh": num_sh}
    assert len(data) == 16 + count * sum(sizes.values())
    result, at = {}, 16
    for name, size in sizes.items():
        result[name] = np.frombuffer(data[at : at + count * size], np.uint8).reshape(count, size)
        at += count * size
    return result


def test_the_header_says_ngsp_version_3_count_degree_and_fractional_bits():
    data = encoded(means=[[1, 2, 3], [0, 0, 0]], shN=np.zeros((2, 8, 3)))
    assert data[:4] == b"NGSP"
    assert struct.unpack("<II", data[4:12]) == (3, 2)
    assert list(data[12:16]) == [2, 16, 0, 0]  # degree 2, 16 bits after the point, no flag


def test_the_bytes_of_one_gaussian():
    data = encoded(
        means=[[1, 2, 3]],
        logit_opacities=[math.log(3)],  # 0.75 * 255 = 191.25
        sh0=[[[1, -1, 0]]],  # (0.5 + 0.15) * 255 = 165.75; 89.25; 127.5
        log_scales=[[0, -2, -10]],  # (10 + s) * 16
    )
    found = columns_of(data, 0)
    # 1, -2, -3 times 2^16, y and z turned over: 0x010000, 0xfe0000, 0xfd0000
    assert list(found["positions"][0]) == [0, 0, 0x01, 0, 0, 0xFE, 0, 0, 0xFD]
    assert list(found["alphas"][0]) == [191]
    assert list(found["colors"][0]) == [166, 89, 128]
    assert list(found["scales"][0]) == [160, 128, 0]
    assert list(found["rotations"][0]) == [0, 0, 0, 0xC0]  # the largest is w, number 3; the others are 0


def test_a_quarter_turn_about_y_is_packed_as_its_mirror_image():
    # (w, x, y, z) = (r, 0, r, 0) is (r, 0, -r, 0) in SPZ axes. y is the first of the largest: number 1, made positive,
    # so w becomes -r: sign bit and 511. x and z are 0.
    half = math.sqrt(0.5)
    assert pack_rotations(np.array([[half, 0, half, 0]])) == [(1 << 30) | (1 << 9) | 511]
    assert pack_rotations(np.array([[0, 0, 5.0, 0]])) == [1 << 30]  # of any length


def test_coefficients_are_128_for_zero_in_steps_of_8_and_16_and_turned_over_in_y_and_z():
    sh = np.zeros((1, 15, 3))
    sh[0, 0, 0] = 0.25  # degree 1, y: -32 -> 96, a multiple of 8
    sh[0, 1, 1] = 0.26  # z: -33.28 -> 95 -> (95 + 4) // 8 * 8
    sh[0, 2, 2] = 0.25  # x: +32
    sh[0, 4, 0] = 0.2  # y z: 25.6 -> 154 -> (154 + 8) // 16 * 16
    sh[0, 14, 0] = 5.0  # x (x x - 3 y y): clipped
    found = columns_of(encoded(shN=sh), 3)["sh"].reshape(15, 3)
    assert (found[0, 0], found[1, 1], found[2, 2], found[4, 0], found[14, 0]) == (96, 96, 160, 160, 255)
    assert (np.delete(found.reshape(-1), [0, 4, 8, 12, 42]) == 128).all()


def basis(x, y, z):
    """Return the 16 real spherical harmonics up to factors, as 3DGS orders them."""
    return np.array(
        [
            1, -y, z, -x,
            x * y, y * z, 2 * z * z - x * x - y * y, x * z, x * x - y * y,
            y * (3 * x * x - y * y), x * y * z, y * (4 * z * z - x * x - y * y),
            z * (2 * z * z - 3 * x * x - 3 * y * y), x * (4 * z * z - x * x - y * y), z * (x * x - y * y),
            x * (x * x - 3 * y * y),
        ]
    )  # fmt: skip


def test_random_gaussians_come_back_within_the_quantisation():
    gaussians = random_gaussians(200)
    found = columns_of(gzip.decompress(encode_spz(gaussians)), 3)
    table = {name: value.detach().numpy() for name, value in gaussians}
    fixed = found["positions"].reshape(-1, 3, 3).astype(np.int32) @ np.array([1, 1 << 8, 1 << 16])
    means = np.where(fixed >= 1 << 23, fixed - (1 << 24), fixed) / 2**16 * [1, -1, -1]
    assert np.abs(means - table["means"]).max() <= 2**-17
    assert np.abs(found["scales"] / 16 - 10 - table["log_scales"]).max() <= 1 / 32 + 1e-6
    # Rotations: three of x, y, z, w in 9 bits with sign, the largest from the length.
    packed = found["rotations"].copy().view("<u4")[:, 0]
    for row, quat in zip(packed, table["quats"] / np.linalg.norm(table["quats"], axis=1, keepdims=True), strict=True):
        largest, xyzw = int(row) >> 30, np.zeros(4)
        for place, index in enumerate(reversed([i for i in range(4) if i != largest])):
            bits = (int(row) >> (10 * place)) & 1023
            xyzw[index] = (-1 if bits >> 9 else 1) * (bits & 511) / 511 * math.sqrt(0.5)
        xyzw[largest] = math.sqrt(1 - (xyzw**2).sum())
        x, y, z, w = xyzw
        assert abs(np.dot([w, x, -y, -z], quat)) > 1 - 4e-6
    # Colour: what is seen from a direction is seen from the turned direction in SPZ axes.
    sh = (found["sh"].reshape(-1, 15, 3) - 128.0) / 128
    direction = np.array([0.36, 0.48, 0.8])
    ours = np.einsum("k,nkc->nc", basis(*direction)[1:], table["shN"])
    theirs = np.einsum("k,nkc->nc", basis(*(direction * [1, -1, -1]))[1:], sh)
    bound = np.abs(basis(*direction)[1:]) @ ([4.5 / 128] * 3 + [8.5 / 128] * 12)
    assert np.abs(ours - theirs).max() < bound
    assert np.corrcoef(ours.reshape(-1), theirs.reshape(-1))[0, 1] > 0.98


def test_far_positions_take_fewer_fractional_bits_and_very_far_ones_are_an_error():
    data = encoded(means=[[1000.0, 0, 0]])  # 2^23 / 1000: 13 bits
    assert data[13] == 13
    assert list(data[16:19]) == list((1000 << 13).to_bytes(3, "little"))
    with pytest.raises(UserError, match="SPZ reaches 8388607"):
        encoded(means=[[1e7, 0, 0]])


def test_equal_scenes_give_equal_files():
    assert encode_spz(random_gaussians(5)) == encode_spz(random_gaussians(5))
