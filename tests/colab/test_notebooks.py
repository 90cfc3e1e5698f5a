"""Every notebook runs from top to bottom in its smoke form: the tiny model, two steps."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
# overrides of the smoke form, and an evaluation that must be shown
SMOKE = {
    "grpo": (
        [
            "--config.train.steps=2",
            "--config.warm_start.steps=2",
            "--config.rollout.prompts_per_step=4",
            "--config.evaluation.max_questions=4",
        ],
        "held-out solve rate",
    ),
    "contrastive": (
        [
            "--config.train.steps=20",
            "--config.data.source=drawn_digits?split=train&size=200",
            "--config.data.held_out=drawn_digits?split=held_out&size=60",
        ],
        "held-out map@r",
    ),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("matplotlib")
    notebook = nbformat.read(path, as_version=4)
    overrides, shown = SMOKE[path.stem]
    settings = next(cell for cell in notebook.cells if cell.cell_type == "code" and "OVERRIDES = []" in cell.source)
    settings.source += f"\nOVERRIDES = {overrides!r}\nWORKDIR = {str(tmp_path / 'run')!r}"
    assert not any(cell.get("outputs") for cell in notebook.cells), "notebooks are committed without outputs"
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(ROOT)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    )
    assert shown in printed
    assert (tmp_path / "run" / "report.html").is_file()
