"""Lifting methods, one file each."""

from unified_lift.methods.unified_lift import UnifiedLift

METHODS = {"unified_lift": UnifiedLift}
