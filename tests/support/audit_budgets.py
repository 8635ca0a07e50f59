"""Budgets of audits for tests."""

from eval.audit.settings import Budget

TINY = Budget(
    steps=4,
    restarts=1,
    targets=2,
    square_queries=6,
    spsa_queries=34 * 2,
    label_queries=20,
    difference_steps=2,
    directions=8,
    random_points=3,
    passes=2,
    votes=3,
    distillation_steps=4,
    binarization_images=2,
    inner_points=19,
)
