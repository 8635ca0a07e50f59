"""What a report says of one trained model: its audits, cost, settings, figures and adversarial images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar

from envs.errors import InputError
from eval.report.audits import Audit, read_audits
from eval.report.gallery import Example, read_gallery
from eval.report.pictures import Picture, read_figure
from eval.report.safe_folder import Folder
from eval.report.schema import Fields, finite, flatten
from eval.report.study_file import Cell, Figure

# What a reader who does not see a figure should know of it, by the name of its file.
_FIGURES = {
    "robustness": ("Robust accuracy by attack", "Bars: the share of images that survives each attack"),
    "security": ("Accuracy against the radius", "Curve: robust accuracy falls as eps grows"),
    "landscape": (
        "Loss landscape of one image",
        "Surface of the loss in the plane of the adversarial and a random direction",
    ),
    "landscape-average": (
        "Loss landscape, averaged over images",
        "Surface of the mean loss in the plane of the adversarial and a random direction",
    ),
    "gradients": (
        "Input gradients",
        "Distributions of gradient norm, stability and local linearity over images",
    ),
    "path": (
        "Along the path of PGD",
        "Gradient norm, equal signs, and cosine and dispersion by the true and the published definition, per step",
    ),
    "path-published": (
        "Along the published path (pgd-paper)",
        "The same indicators along the path of the paper's own attack, which may leave [0, 1]",
    ),
    "entropy": ("Entropy of the predictions", "Distributions of entropy in bits, clean and attacked"),
    "trajectory": (
        "Robustness through training",
        "Clean, reported and remaining accuracy over the images seen in training",
    ),
    "adversarial": ("Adversarial images", "Rows: original, magnified perturbation, attacked image"),
}
_FIGURE_FOLDERS = ("results", "results/mechanism", "results/trajectory")
_MOST_FIGURES = 40
P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Budget:
    """How many characters of pictures the page may still take."""

    left: int

    def take(self, *pictures: Picture) -> bool:
        """Take room for all of the pictures, or for none."""
        size = sum(len(picture.uri) for picture in pictures)
        if size > self.left:
            return False
        self.left -= size
        return True


@dataclass(frozen=True)
class Shown:
    """A figure in the page."""

    title: str
    alt: str
    picture: Picture


@dataclass(frozen=True)
class Cost:
    """What a model took: training images and seconds, seconds and image passes of attacks and audits, the device."""

    images: float | None = None
    training: float | None = None
    attacks: float = 0.0
    audits: float = 0.0
    passes: float = 0.0
    device: str = ""


@dataclass
class Model:
    """One cell of the study with all that its directory holds; ``problems`` are files that could not be read."""

    cell: Cell
    audits: tuple[Audit, ...] = ()
    cost: Cost = Cost()
    clean: float | None = None
    settings: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    figures: list[Shown] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def attempt(self, read: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | None:
        """Return what ``read`` returns; None, and a line among the problems, where its file is no good."""
        try:
            return read(*arguments, **options)
        except InputError as error:
            self.problems.append(str(error))
            return None


def inside(run: str, name: str) -> str:
    """Return the path of ``name`` in the run directory ``run``, "" for the folder itself."""
    return f"{run}/{name}" if run else name


def read_model(folder: Folder, cell: Cell) -> Model:
    """Read everything but pictures of a cell's run directory; what is missing or damaged becomes a problem."""
    model = Model(cell)
    model.attempt(_take_config, model, folder)
    if inside(cell.run, "summary.json") in folder.names(cell.run):
        model.attempt(_take_summary, model, folder)
    results = inside(cell.run, "results")
    audits, problems = read_audits(folder, results)
    model.audits = tuple(audits)
    model.problems += problems
    attacks, passes = _attack_cost(folder, results)
    seconds = sum(audit.seconds for audit in audits)
    model.cost = replace(model.cost, attacks=attacks, audits=seconds, passes=passes)
    return model


def _take_config(model: Model, folder: Folder) -> None:
    file = inside(model.cell.run, "config.json")
    config = Fields(folder.json(file), file)
    model.settings = flatten(config.mapping("config"))
    model.versions = flatten(config.mapping("versions"))
    dataset = Fields(config.mapping("dataset"), f"{file}: dataset")
    model.classes = tuple(str(name)[:200] for name in dataset.items("classes", 10**5))


def _take_summary(model: Model, folder: Folder) -> None:
    file = inside(model.cell.run, "summary.json")
    summary = Fields(folder.json(file), file)
    model.clean = summary.share("test_accuracy")
    model.cost = Cost(summary.number("images"), summary.number("seconds"), device=summary.text("device"))


def _attack_cost(folder: Folder, results: str) -> tuple[float, float]:
    """Return seconds and image passes over all files of the folder that record a cost; others do not matter here."""
    seconds = passes = 0.0
    for name in folder.names(results, ".json"):
        try:
            content: Any = folder.json(name)
        except InputError:
            continue
        cost = content.get("cost") if isinstance(content, dict) else None
        if isinstance(cost, dict):
            if not name.rpartition("/")[2].startswith("audit-"):
                seconds += finite(cost.get("seconds")) or 0.0
            passes += (finite(cost.get("forwards")) or 0.0) + (finite(cost.get("backwards")) or 0.0)
    return seconds, passes


def add_gallery(folder: Folder, model: Model, budget: Budget, most: int) -> None:
    """Read the model's adversarial images, if it has such, as far as the page has room."""
    parent, _, file = model.cell.gallery.rpartition("/")
    if most < 1 or model.cell.gallery not in folder.names(parent, file):
        return
    found = model.attempt(read_gallery, folder, model.cell.gallery, model.classes, most) or []
    for example in found:
        if budget.take(example.clean, example.attacked, example.change):
            model.examples.append(example)
        elif not model.left_out or model.left_out[-1] != model.cell.gallery:
            model.left_out.append(model.cell.gallery)


def add_figures(folder: Folder, model: Model, budget: Budget) -> None:
    """Read the figures of the model's run directory, as far as the page has room."""
    files = [file for part in _FIGURE_FOLDERS for file in folder.names(inside(model.cell.run, part), ".png")]
    for file in files[:_MOST_FIGURES]:
        stem = file.rpartition("/")[2].removesuffix(".png")
        title, alt = _FIGURES.get(stem, (stem.replace("-", " ").capitalize(), stem))
        shown = model.attempt(_shown, folder, file, title, f"{alt}, {model.cell.name}.")
        if shown is None:
            continue
        if budget.take(shown.picture):
            model.figures.append(shown)
        else:
            model.left_out.append(file)


def _shown(folder: Folder, file: str, title: str, alt: str) -> Shown:
    return Shown(title, alt, read_figure(folder, file))


def study_figures(folder: Folder, figures: Iterable[Figure], budget: Budget) -> tuple[list[Shown], list[str]]:
    """Return the figures that the study names, and one line for each that is not there or does not fit."""
    shown, problems = [], []
    for figure in figures:
        try:
            found = _shown(folder, figure.file, figure.title, figure.alt)
        except InputError as error:
            problems.append(str(error))
            continue
        if budget.take(found.picture):
            shown.append(found)
        else:
            problems.append(f"{figure.file} is left out: the page would grow too large")
    return shown, problems
