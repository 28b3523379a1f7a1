"""Unified-Lift: contrastive features, an object-level codebook, and the matching that ties them (CVPR 2025).

Paper: Messy Rooms mean PQ_scene 69.0, LERF-Mask mIoU 80.9, Replica mIoU 41.6.
"""

from unified_lift.methods.base import MethodEntry
from unified_lift.methods.unified_lift.method import UnifiedLift
from unified_lift.methods.unified_lift.settings import UnifiedLiftSettings

METHOD = MethodEntry("unified_lift", UnifiedLiftSettings, UnifiedLift)
