"""What an audit may spend: a quick one for work in progress, a full one for papers."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Budget:
    """Sizes of the audit's attacks and checks.

    Attributes:
        steps: of every PGD and APGD run.
        restarts: of the second, longer try.
        targets: classes that the targeted attacks aim at.
        square_queries: of the Square attack.
        spsa_queries: of SPSA.
        label_queries: of the hard-label attack.
        difference_steps: of PGD on finite differences.
        directions: of a finite-difference gradient; a quarter where gradients exist and it only checks them.
        random_points: uniform draws from the ball, per image.
        passes: over which random outputs are averaged in attacks.
        votes: passes whose majority is a random model's decision.
        distillation_steps: of training the stand-in.
        binarization_images: on which the binarization test is made.
        inner_points: per image in that test.
    """

    steps: int = 40
    restarts: int = 2
    targets: int = 9
    square_queries: int = 1000
    spsa_queries: int = 1000
    label_queries: int = 800
    difference_steps: int = 15
    directions: int = 64
    random_points: int = 100
    passes: int = 8
    votes: int = 15
    distillation_steps: int = 250
    binarization_images: int = 16
    inner_points: int = 199

    def thrifty(self) -> "Budget":
        """Return a smaller budget, for models that need many passes where others need one."""
        return replace(
            self,
            steps=min(self.steps, max(20, self.steps // 2)),
            restarts=1,
            targets=3,
            square_queries=self.square_queries // 4,
            spsa_queries=self.spsa_queries // 4,
            label_queries=self.label_queries // 4,
            directions=self.directions // 4,
            random_points=self.random_points // 4,
        )


QUICK = Budget()
# Random points: Carlini et al. 2019; inner points: Zimmermann et al. 2022; queries and steps: AutoAttack.
FULL = Budget(
    steps=100,
    restarts=5,
    square_queries=5000,
    spsa_queries=5000,
    label_queries=5000,
    difference_steps=100,
    directions=128,
    random_points=10_000,
    passes=20,
    votes=51,
    distillation_steps=2000,
    binarization_images=512,
    inner_points=999,
)
