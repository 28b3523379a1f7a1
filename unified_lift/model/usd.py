"""OpenUSD particle fields (`.usda`, text), read and written: a ParticleField3DGaussianSplat of OpenUSD 26."""

import io
import re
from pathlib import Path

import numpy as np

from unified_lift.model.gaussians import Gaussians
from unified_lift.model.raw import RawSplat, logits_of, turned_over
from unified_lift.ops.quaternions import normalise
from unified_lift.reading import reading

HEAD = b"#usd"
_SCHEMA = "ParticleField3DGaussianSplat"
_HARMONICS = "radiance:sphericalHarmonics"


def encode_usda(gaussians: Gaussians) -> str:
    """Return the text of a `.usda` file, right-up-back as `upAxis = "Y"` wants; float32 numbers in nine digits."""
    unit = gaussians.state_dict() | {"quats": normalise(gaussians.quats.detach())}
    table = turned_over({name: value.cpu().numpy() for name, value in unit.items()})
    scales, opacities = (value.detach().cpu().numpy() for value in (gaussians.scales, gaussians.opacities))
    sh = np.concatenate([table["sh0"], table["shN"]], axis=1).reshape(-1, 3)
    reach = 3 * scales.max(axis=1, keepdims=True)
    extent = np.stack([(table["means"] - reach).min(axis=0), (table["means"] + reach).max(axis=0)])
    columns = {
        "float3[] extent": extent,
        "point3f[] positions": table["means"],
        "quatf[] orientations": table["quats"],
        "float3[] scales": scales,
        "float[] opacities": opacities,
        f"float3[] {_HARMONICS}Coefficients": sh,
    }
    lines = [f"    {name} = [{_listed(values)}]" for name, values in columns.items()]
    lines.append(f"    int {_HARMONICS}Degree = {gaussians.sh_degree}")
    lines.append('    uniform token sortingModeHint = "cameraDistance"')
    head = '#usda 1.0\n(\n    defaultPrim = "Splats"\n    metersPerUnit = 1\n    upAxis = "Y"\n)\n\n'
    return head + f'def {_SCHEMA} "Splats"\n{{\n' + "\n".join(lines) + "\n}\n"


def read_usda(path: Path) -> RawSplat:
    """Return the splats of a `.usda` file with one particle field of floats, in our axes; a UserError: another file."""
    with reading(path, "text of OpenUSD with one particle field", fix="convert it to .ply"):
        text = path.read_text("utf-8")
        if text.count(f"def {_SCHEMA} ") != 1:
            raise ValueError(f"{text.count(f'def {_SCHEMA} ')} prims of {_SCHEMA}")

        def column(name: str, width: int) -> np.ndarray:
            found = re.search(rf"\s{name} = \[([^\]]*)\]", text)
            if found is None:
                raise ValueError(f"no {name}")
            numbers = found[1].translate({ord("("): " ", ord(")"): " "}).split(",")
            return np.array(numbers, np.float32).reshape(-1, width)

        means = column("positions", 3)
        sh = column(f"{_HARMONICS}Coefficients", 3).reshape(len(means), -1, 3)
        if sh.shape[1] not in (1, 4, 9, 16):
            raise ValueError(f"{sh.shape[1]} coefficients of a colour")
        with np.errstate(divide="ignore", invalid="ignore"):
            log_scales = np.log(column("scales", 3))
        table = {"means": means, "quats": column("orientations", 4), "log_scales": log_scales}
        table |= {"logit_opacities": logits_of(column("opacities", 1)[:, 0]), "sh0": sh[:, :1], "shN": sh[:, 1:]}
        if len({len(value) for value in table.values()}) != 1:
            raise ValueError("its columns have several lengths")
        return RawSplat(turned_over(table), [])


def _listed(values: np.ndarray) -> str:
    file, one = io.StringIO(), ", ".join(["%.9g"] * (values.shape[1] if values.ndim > 1 else 1))
    np.savetxt(file, values, fmt=f"({one})" if values.ndim > 1 else one, newline=", ")
    return file.getvalue()[:-2]
