"""Unified-Lift: lift per-view 2D instance masks to a 3D Gaussian scene in which every object is known.

The names below are the public face. Each is imported when it is first used: `import unified_lift` alone is instant.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unified_lift.api import (
        camera_path,
        edit,
        evaluate,
        export,
        load_model,
        load_scene,
        object_at,
        render,
        segment,
        train_scene,
    )
    from unified_lift.errors import UserError

__version__ = "0.1.0"
__all__ = ["UserError", "__version__"]
__all__ += ["camera_path", "edit", "evaluate", "export", "load_model", "load_scene"]
__all__ += ["object_at", "render", "segment", "train_scene"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from unified_lift import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
