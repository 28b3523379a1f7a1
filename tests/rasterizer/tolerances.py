"""How far two computations of the same thing may differ, each with its reason; test_tolerances.py guards the values."""

# Two float32 programs evaluate exp and sums in different order: a few units in the last place per blended Gaussian.
MAP_ABSOLUTE = 5e-5

# A rounding difference can push one alpha over the 1/255 cut in one program only; the pixel then moves by at most one
# such contribution times the largest value blended. It happens to a few pixels in a hundred thousand.
CUT_ABSOLUTE = 1.0 / 255.0
CUT_FRACTION = 2e-3

# Relative error of a whole gradient tensor (2-norm): sums of up to thousands of float32 terms with cancellation.
GRADIENT_RELATIVE = 3e-4

# Losses of lifting: means of up to 1e5 float32 terms, sums in another order than the definition's.
LIFT_RELATIVE = 1e-5
# Their gradients subtract probabilities that are nearly equal.
LIFT_GRADIENT_RELATIVE = 5e-5
# Assignments are exact for scores rounded to 2^-29 of their range.
ASSIGNMENT_RELATIVE = 1e-6

# Hand-computed values carry seven digits.
HAND = 2e-6

# Pixel positions up to about 1000 in float32 (spacing 6e-5), after a handful of operations.
PIXEL = 5e-4

# W f recomputed from stored float32 weights, the same products in another order.
BLEND = 1e-5

# SSIM subtracts squared means from mean squares; float32 leaves about five digits of a value near one.
SSIM_VALUE = 1e-5
SSIM_GRADIENT_RELATIVE = 1e-3

# One Adam step: a division and a root, each correct to one unit in the last place.
ADAM = 1e-6

# Another program with fast exponentials and its own bounds: apart from pixels where an alpha falls on the other side of
# a cut (at most CUT_FRACTION of them) images agree to half an 8-bit step, gradients in direction (1 - cosine).
BASELINE_IMAGE = 2e-3
BASELINE_ANGLE = 1e-3
