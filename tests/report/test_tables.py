from compress.report import tables
from tests.report.sample_run import measurement, sample_run


def test_a_task_without_an_accuracy_is_shown_by_its_share_and_nats_are_never_a_percentage():
    labels = {"task": "pairs"}
    told = [measurement("likelihood_diff", 3.273, "", labels=labels)]
    run = sample_run(tasks=("pairs",))

    def cells_with(*measurements):
        step = run.steps[0].model_copy(update={"measurements": measurements})
        table = tables.tasks(run.model_copy(update={"steps": (step,)}), None)
        return str(table.rows[-1].cells)

    assert "3.27" in cells_with(*told) and "%" not in cells_with(*told)
    both = cells_with(*told, measurement("pct_stereotype", 0.61, "share", labels=labels))
    assert "61.0" in both and "pct_stereotype" in both and "3.27" not in both
