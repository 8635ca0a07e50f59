"""Every threshold of the audit, with its source in one line; "ours" where the literature gives none.

Ours were set on models of other seeds than those that the published confusion table is measured on.
"""

# Croce and Hein 2020, AutoAttack's check for randomness: passes compared, and the L2 difference of the
# length-normalised logits, summed over the images, above which outputs count as random.
RANDOM_PASSES = 5
RANDOM_DIFFERENCE = 1e-4

# Croce and Hein 2020, AutoAttack's check for probabilities: how far rows in [0, 1] may sum from 1.
PROBABILITY_TOLERANCE = 1e-5

# Ours: relative change of an image's logits with its neighbours; rounding alone stays under 1e-5 (float32).
BATCH_DIFFERENCE = 1e-3

# Athalye et al. 2018: vanishing or missing gradients; ours: when they concern more than half of the images.
ZERO_SHARE = 0.5

# Ours: points that differ by 1e-5 per pixel and still have equal logits, for more than half of the pairs.
CONSTANT_RADIUS = 1e-5
CONSTANT_SHARE = 0.5

# Ours: share of the margin's changes over a radius of half a grey level per pixel that the gradient leaves
# unexplained, median over images. Locally linear networks stay under 0.1; a missing gradient gives 1.
FIDELITY_RADIUS = 0.5 / 255
UNEXPLAINED = 0.5

# float32 rounds 1 - p to 1 where the gap of the logits exceeds log(2^24) (IEEE 754, 24 bits of significand).
SATURATED_GAP = 16.6

# Ours: accuracy that a standard attack leaves above one that is immune to saturation, same engine and budget.
# Adversarially trained networks lose up to 6 points from PGD to AutoAttack on CIFAR-10 (RobustBench).
OVERSTATED = 0.10

# Ours: where the gradients provably do not describe the function, this gap to the worst case is one too many.
VISIBLE = 0.02

# Croce and Hein 2020 flag .2 points by which Square beats the gradient attacks, Carlini et al. 2019 any image;
# ours: 2 points and at least 2 images, after the gradient attacks had a second, longer try at those images.
BLACK_BOX_POINTS = 0.02
BLACK_BOX_IMAGES = 2

# Carlini et al. 2019: more steps or restarts change nothing; ours: at most 2 points.
CONVERGED_POINTS = 0.02

# Carlini et al. 2019: unbounded attacks reach 100 %; ours: at least 99 %, for images that are black and white.
UNBOUNDED_SUCCESS = 0.99

# Pintor et al. 2022, indicators of attack failure: relative change of the loss over random points of radius
# 8/255, and the drop of the rescaled loss in the last 10 steps.
PINTOR_DRAWS = 100
PINTOR_RADIUS = 8 / 255
PINTOR_UNSTABLE = 0.10
PINTOR_INCOMPLETE = 0.05
PINTOR_LAST_STEPS = 10
# Ours: an indicator is raised when it holds for more than this share of the images.
PINTOR_SHARE = 0.10

# Zimmermann et al. 2022, binarization test: eta, and a success rate "near 1" that a sound attack reaches.
BINARIZATION_ETA = 0.95
BINARIZATION_SUCCESS = 0.95

# Ours: fewer correctly classified images than this cannot support a verdict of soundness.
LEAST_CORRECT = 10
