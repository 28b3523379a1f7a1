"""`.splat`, byte by byte."""

import math
import struct

from tests.editing.small_scene import gaussians_of, scene_of
from unified_lift.editing.formats.splat import write
from unified_lift.model.gaussians import SH_C0


def written(tmp_path, **columns):
    write(tmp_path, "scene", scene_of(gaussians_of(**columns)))
    return (tmp_path / "scene.splat").read_bytes()


def test_a_gaussian_is_32_bytes_position_scale_colour_opacity_rotation(tmp_path):
    data = written(
        tmp_path,
        means=[[1, -2, 3.5]],
        log_scales=[[0, math.log(2), math.log(0.25)]],
        sh0=[[[0.1 / SH_C0, -0.1 / SH_C0, 0]]],  # colours 0.6, 0.4, 0.5: 153, 102, 127.5
        logit_opacities=[math.log(3)],  # 0.75: 191.25
        quats=[[0, 2, 0, -2]],  # length one: (0, 0.7071, 0, -0.7071), times 128: 90.5
    )
    assert len(data) == 32
    assert struct.unpack("<3f", data[:12]) == (1, -2, 3.5)
    assert struct.unpack("<3f", data[12:24]) == (1, 2, 0.25)
    assert list(data[24:28]) == [153, 102, 128, 191]
    assert list(data[28:32]) == [128, 219, 128, 37]


def test_colours_and_rotations_out_of_range_are_clipped_not_wrapped(tmp_path):
    data = written(tmp_path, sh0=[[[9, -9, 0]]], logit_opacities=[50], quats=[[1, 0, 0, 0]])
    assert list(data[24:32]) == [255, 0, 128, 255, 255, 128, 128, 128]


def test_rows_stay_in_the_order_of_the_scene(tmp_path):
    # Other writers would put the large opaque one first.
    data = written(tmp_path, means=[[1, 0, 0], [2, 0, 0]], log_scales=[[-5] * 3, [3] * 3], logit_opacities=[-3, 3])
    assert [struct.unpack("<f", data[at : at + 4])[0] for at in (0, 32)] == [1, 2]
