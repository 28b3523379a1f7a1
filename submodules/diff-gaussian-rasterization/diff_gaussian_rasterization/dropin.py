"""The two class names that 3DGS scripts import, as a thin layer over `rasterize`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from .api import rasterize


class GaussianRasterizationSettings(NamedTuple):
    """One camera in the conventions of 3DGS; projmatrix, campos, prefiltered and debug change nothing."""

    image_height: int  # pixels
    image_width: int
    tanfovx: float  # tangent of half the field of view; the principal point is the image centre
    tanfovy: float
    bg: Tensor  # background colour, [3]
    scale_modifier: float  # factor on the scales
    viewmatrix: Tensor  # cam_from_world, transposed, [4, 4]
    projmatrix: Tensor
    sh_degree: int  # active degree of the harmonics
    campos: Tensor
    prefiltered: bool = False
    debug: bool = False
    antialiasing: bool = False  # `antialiased` of `rasterize`


class GaussianRasterizer(nn.Module):
    """Callable with the arguments and results of the 3DGS rasterizer."""

    def __init__(self, raster_settings: GaussianRasterizationSettings) -> None:
        super().__init__()
        self.raster_settings = raster_settings

    def markVisible(self, positions: Tensor) -> Tensor:
        """Return which centres lie in front of the near plane, bool [N]."""
        view = self.raster_settings.viewmatrix
        return (positions @ view[:3, 2] + view[3, 2]) > 0.2

    def forward(
        self, means3D: Tensor, means2D: Tensor, opacities: Tensor, shs: Tensor | None = None,
        colors_precomp: Tensor | None = None, scales: Tensor | None = None, rotations: Tensor | None = None,
        cov3D_precomp: Tensor | None = None, sh_objs: Tensor | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Return (colour [3, H, W], radii [N]) and, if sh_objs is given, features [D, H, W].

        Args:
            means3D: Centres, [N, 3].
            means2D: Zeros, [N, 3] or [N, 2]; its grad receives the derivative by normalised device position.
            opacities: [N, 1] or [N].
            shs: Harmonics, [N, K, 3]; exactly one of shs and colors_precomp.
            colors_precomp: Plain colours, [N, 3].
            scales, rotations: [N, 3] and wxyz [N, 4].
            cov3D_precomp: Not supported.
            sh_objs: Per-Gaussian features, [N, 1, D] or [N, D].
        Raises:
            ValueError: A combination of arguments that is not supported.
        Gradient: a loss on the features does not move the geometry.
        Differs: with antialiasing 3DGS leaves a Gaussian 0.005 of its opacity at least; here it may lose all.
        """
        if (shs is None) == (colors_precomp is None):
            raise ValueError("give exactly one of shs and colors_precomp")
        if cov3D_precomp is not None or scales is None or rotations is None:
            raise ValueError("give scales and rotations; cov3D_precomp is not supported")
        s = self.raster_settings
        width, height = int(s.image_width), int(s.image_height)
        intrinsics = means3D.new_tensor(
            [[0.5 * width / s.tanfovx, 0, 0.5 * width], [0, 0.5 * height / s.tanfovy, 0.5 * height], [0, 0, 1]]
        )
        pixels_per_ndc = means3D.new_tensor([0.5 * width, 0.5 * height])
        features = None if sh_objs is None else sh_objs.flatten(1)
        out = rasterize(
            means3D, rotations, scales * s.scale_modifier, opacities.reshape(-1),
            shs if colors_precomp is None else colors_precomp, features,
            s.viewmatrix.T[None].to(means3D), intrinsics[None], width, height,
            sh_degree=None if shs is None else int(s.sh_degree), backgrounds=s.bg.reshape(1, 3).to(means3D),
            means2d=(means2D[:, :2] * pixels_per_ndc)[None], antialiased=bool(s.antialiasing),
        )  # fmt: skip
        result = (out.image[0].permute(2, 0, 1), out.meta.radii[0])
        return result if features is None else (*result, out.features[0].permute(2, 0, 1))
