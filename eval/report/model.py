"""What a report says of one trained model: its audits, cost, settings, plots and adversarial images."""

import contextlib
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Annotated, Any, NamedTuple, ParamSpec, TypeVar

import msgspec

from envs.errors import InputError
from eval.audit.findings import AuditFile, Cost
from eval.core.records import Share, Text
from eval.report.cell_format import flatten
from eval.report.gallery import Example, Picture, read_gallery, read_png
from eval.report.safe_folder import Folder
from eval.study.results.record import CellRecord, PlotRecord

_PLOT_FOLDERS = ("results", "results/mechanism", "results/trajectory")
_MOST_PLOTS = 40
P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Budget:
    """How many characters of pictures the page may still take."""

    left: int

    def take(self, *pictures: Picture) -> bool:
        """Take room for all of the pictures, or for none."""
        size = sum(len(picture.uri) for picture in pictures)
        fits = size <= self.left
        self.left -= size * fits
        return fits


class Plot(NamedTuple):
    """A plot in the page."""

    title: str
    alt: str
    picture: Picture


class _Dataset(msgspec.Struct, frozen=True):
    name: Text = ""
    classes: Annotated[tuple[str | int, ...], msgspec.Meta(max_length=100_000)] | None = None


class RunConfig(msgspec.Struct, frozen=True):
    """What the page shows of a run's ``config.json``."""

    algo: Text = ""
    network: Text = ""
    seed: int | None = None
    dataset: _Dataset = _Dataset()
    config: dict[str, Any] = {}
    versions: dict[str, Any] = {}


class Summary(msgspec.Struct, frozen=True):
    """What the page shows of a run's ``summary.json``: training images and seconds, device, clean accuracy."""

    images: float | None = None
    seconds: float | None = None
    device: Text | None = None
    test_accuracy: Share | None = None


class _WithCost(msgspec.Struct, frozen=True):
    cost: Cost = Cost()


@dataclass
class Model:
    """One cell of the study with all that its directory holds.

    Attributes:
        config, summary: of the run; empty where they could not be read.
        audits: by the names of their files.
        attacks: seconds of all attacks; passes: forward and backward passes of attacks and audits, per image.
        settings: of the training, flat.
        left_out: pictures that did not fit; problems: one line per file that could not be read.
    """

    cell: CellRecord
    config: RunConfig = field(default_factory=RunConfig)
    summary: Summary = field(default_factory=Summary)
    audits: list[AuditFile] = field(default_factory=list)
    attacks: float = 0.0
    passes: float = 0.0
    settings: dict[str, str] = field(default_factory=dict)
    plots: list[Plot] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def gallery(self) -> str:
        """The file of adversarial images: beside a study's run, within a run of its own."""
        run = self.cell.run.rstrip("/")
        return f"{run.rpartition('/')[0]}/gallery.npz".lstrip("/") if run else "results/mechanism/gallery.npz"

    def inside(self, name: str) -> str:
        """Return the path of ``name`` in the run directory."""
        return f"{self.cell.run}/{name}" if self.cell.run else name

    def attempt(self, read: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | None:
        """Return what ``read`` returns; None, and a line among the problems, where its file is no good."""
        try:
            return read(*arguments, **options)
        except InputError as error:
            self.problems.append(str(error))
            return None


def read_model(folder: Folder, cell: CellRecord) -> Model:
    """Read everything but pictures of a cell's run directory; what is missing or damaged becomes a problem."""
    model = Model(cell)
    summary = model.inside("summary.json")
    model.config = model.attempt(folder.record, model.inside("config.json"), RunConfig) or model.config
    model.settings = flatten(model.config.config)
    if summary in folder.names(cell.run):
        model.summary = model.attempt(folder.record, summary, Summary) or model.summary
    for name in folder.names(model.inside("results"), ".json"):
        cost = None
        if name.rpartition("/")[2].startswith("audit-"):
            found = model.attempt(folder.record, name, AuditFile)
            if found is not None:
                model.audits.append(found)
                cost = found.cost
        else:
            with contextlib.suppress(InputError):  # files that record no cost of attacks do not matter here
                cost = folder.record(name, _WithCost).cost
                model.attacks += cost.seconds
        model.passes += cost.forwards + cost.backwards if cost else 0
    return model


def add_gallery(folder: Folder, model: Model, budget: Budget, most: int) -> None:
    """Read the model's adversarial images, if it has such, as far as the page has room."""
    parent, _, file = model.gallery.rpartition("/")
    if most < 1 or model.gallery not in folder.names(parent, file):
        return
    classes = tuple(str(name)[:200] for name in model.config.dataset.classes or ())
    for example in model.attempt(read_gallery, folder, model.gallery, classes, most) or []:
        if budget.take(example.clean, example.attacked, example.change):
            model.examples.append(example)
        elif model.gallery not in model.left_out:
            model.left_out.append(model.gallery)


def add_plots(folder: Folder, model: Model, budget: Budget) -> None:
    """Read the plots of the model's run directory, as far as the page has room."""
    known = tomllib.loads((files("eval.report") / "templates" / "plots.toml").read_text(encoding="utf-8"))
    names = [file for part in _PLOT_FOLDERS for file in folder.names(model.inside(part), ".png")]
    for file in names[:_MOST_PLOTS]:
        stem = file.rpartition("/")[2].removesuffix(".png")
        title, alt = known.get(stem, (stem.replace("-", " ").capitalize(), stem))
        picture = model.attempt(read_png, folder, file)
        if picture is not None and budget.take(picture):
            model.plots.append(Plot(title, f"{alt}, {model.cell.name}.", picture))
        elif picture is not None:
            model.left_out.append(file)


def study_plots(folder: Folder, plots: Iterable[PlotRecord], budget: Budget) -> tuple[list[Plot], list[str]]:
    """Return the plots that the study names, and one line for each that is not there or does not fit."""
    shown, problems = [], []
    for plot in plots:
        try:
            picture = read_png(folder, plot.file)
        except InputError as error:
            problems.append(str(error))
            continue
        title = plot.title or plot.id or "plot"
        if budget.take(picture):
            shown.append(Plot(title, plot.alt or title, picture))
        else:
            problems.append(f"{plot.file} is left out: the page would grow too large")
    return shown, problems
