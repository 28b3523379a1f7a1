"""Labels for Gaussians that came back from another program, which kept positions and colours but not ours."""

from dataclasses import replace

import numpy as np
import torch
from scipy.spatial import cKDTree

from unified_lift.errors import UserError
from unified_lift.model.gaussians import Gaussians
from unified_lift.modelfolder.inference import TrainedScene

MAX_DISTANCE = 3.0
_MAX_UNKNOWN = 0.5  # of the edited Gaussians; beyond, it is another scene
_NUM_CANDIDATES = 4  # Gaussians at the very same place that are told apart by their looks


def reattach(
    edited: Gaussians, scene: TrainedScene, *, max_distance: float = MAX_DISTANCE
) -> tuple[TrainedScene, dict[str, int]]:
    """Return the edited Gaussians with the labels and features of those they were, and how they were found.

    Each goes back to the old Gaussian at its place (`same`); else to the one that shares colour and opacity with it to
    the last bit, which moving, turning and copying leave alone (`moved`); else to the nearest, within the limit
    (`near`: `max_distance` standard deviations along its longest axis) or with confidence 0 (`unknown`). These are
    counted as `num_same` and so on; `num_removed` are the old ones to which none goes back.
    A UserError: more than half of the Gaussians are unknown.
    """
    (places, looks), (old_places, old_looks) = map(_places_and_looks, (edited, scene.gaussians))
    count = min(_NUM_CANDIDATES, len(old_places))
    query = cKDTree(old_places).query(places, k=count, workers=-1)
    distances, found = (each.reshape(len(places), count) for each in query)
    unlike = np.abs(looks[:, None] - old_looks[found]).sum(axis=2)
    best = np.where(distances == distances[:, :1], unlike, np.inf).argmin(axis=1)  # of several at one place
    source, distance = found[np.arange(len(places)), best], distances[:, 0]
    same = distance == 0
    twin = _twins(looks[:, :4], old_looks[:, :4], scene.object_ids.cpu().numpy())
    moved = ~same & (twin >= 0)
    source = np.where(moved, twin, source)
    reach = max_distance * scene.gaussians.scales.detach().cpu().numpy().max(axis=1)
    near = ~same & ~moved & (distance <= reach[source])
    unknown = ~(same | moved | near)
    if unknown.mean() > _MAX_UNKNOWN:
        raise UserError(
            f"--ply: {int(unknown.sum())} of {len(unknown)} Gaussians are not near any of {scene.path}; is it that "
            f"model edited? If all were moved and recoloured, give more than --max_distance {max_distance:g}"
        )
    again = scene.subset(torch.from_numpy(source))
    again.confidence[torch.from_numpy(unknown)] = 0.0
    table = edited.state_dict() | {"features": again.gaussians.features}
    gaussians = scene.gaussians.like(table, takes_over=True)
    kinds = {"num_same": same, "num_moved": moved, "num_near": near, "num_unknown": unknown}
    counts = {name: int(kind.sum()) for name, kind in kinds.items()}
    counts["num_removed"] = len(old_places) - len(np.unique(source[~unknown]))
    return replace(again, gaussians=gaussians, is_edited=True), counts


def _places_and_looks(gaussians: Gaussians) -> tuple[np.ndarray, np.ndarray]:
    """Return centres, float64 [N, 3]; colour, opacity and size as stored, float32 [N, 7]."""
    table = {name: value.cpu() for name, value in gaussians.state_dict().items()}
    looks = torch.cat([table["sh0"][:, 0], table["logit_opacities"][:, None], table["log_scales"]], dim=1)
    return table["means"].double().numpy(), looks.numpy()


def _twins(new: np.ndarray, old: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the first old row with the same bits, -1 where there is none or such rows are of several objects."""
    bits = np.ascontiguousarray(np.concatenate([old, new])).view(np.uint32)
    _, first, kind = np.unique(bits, axis=0, return_index=True, return_inverse=True)
    of_old, of_new = np.split(kind.reshape(-1), [len(old)])
    several = np.zeros(len(first), dtype=bool)
    several[of_old[ids != ids[first[of_old]]]] = True
    return np.where(several | (first >= len(old)), -1, first)[of_new]
