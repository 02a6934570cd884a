"""The lab that all browser tests stand on."""

from tests.ui.lab import LabPage


def test_a_notebook_runs_in_the_browser(lab_page: LabPage) -> None:
    path = lab_page.server.write_notebook("sum.ipynb", ["a = 6 * 7", "print('answer', a)"])
    lab_page.open_notebook(path)
    lab_page.run_all_cells()
    first, second = lab_page.cells()
    assert (first["execution_count"], second["execution_count"]) == (1, 2)
    assert second["outputs"][0]["text"] == "answer 42\n"
    assert lab_page.faults == []
