"""Progress bars in a notebook, run by a real kernel."""

import pytest

CELLS = (
    """
from eval.attack.autosave import Progress
from eval.core.progress import progress_bar

with progress_bar("pgd", 4, True) as report:
    report(Progress(done=3, total=4, robust=0.5, images_per_second=10.0))
""",
    """
from pathlib import Path

from agents.config import TrainConfig
from agents.training import summary
from agents.training.run import train

summary.ATTACKED_IMAGES = 4
run = train(TrainConfig(algo="supervised", network="mlp", total_images=200, run_dir=Path("run")))
""",
)


@pytest.mark.slow
def test_progress_bars_are_shown_in_a_notebook(tmp_path):
    pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    client = pytest.importorskip("nbclient")
    notebook = pytest.importorskip("nbformat.v4")
    for again in (True, False):  # a lost reply of the kernel costs the whole timeout
        page = notebook.new_notebook(cells=[notebook.new_code_cell(text) for text in CELLS])
        folder = tmp_path / str(again)
        folder.mkdir()
        try:
            client.NotebookClient(page, timeout=90, resources={"metadata": {"path": str(folder)}}).execute()
            break
        except client.exceptions.CellTimeoutError:
            if not again:
                raise
    for cell in page.cells:
        text = str(cell.outputs)
        assert "application/vnd.jupyter.widget-view+json" in text  # the bar
        assert "ipywidgets" not in text  # Rich's complaint where it is missing
