"""Every fault point in the code is struck by a test, and no test strikes one that is not there."""

from __future__ import annotations

from tests.faults import api_operations, test_child_points, worker_stories
from tests.faults.call_sites import OF_A_FILE, REPOSITORY, points_in_the_code

#: Struck in tests of their own; the test must name the point, or the file's first stage.
ELSEWHERE = {
    "tests/acceptance/test_auto.py": (
        "candidate.after_commit",
        "candidate.before_tx",
        "candidate.in_tx",
        "train.after_candidate",
    ),
    "tests/acceptance/test_batch_predict.py": ("predictions.before_fsync",),
    "tests/acceptance/test_evaluate.py": ("evaluation.before_rename",),
    "tests/integration/test_backup.py": (
        "backup.after_rows",
        "backup.begin.after_rename",
        "backup.snapshot.before_rename",
        "copy.before_rename",
        "restore.mark.after_rename",
        "restore_end.after_commit",
        "restore_end.before_tx",
        "restore_end.in_tx",
        "restore_rows.after_commit",
        "restore_rows.before_tx",
        "restore_rows.in_tx",
    ),
    "tests/integration/test_exports.py": ("export.after_graph",),
    "tests/integration/test_garbage.py": (
        "collect.after_folder",
        "collect.after_unlink",
        "collect.before_folder",
        "collect.before_unlink",
        "collect_figures.after_commit",
        "collect_figures.before_tx",
        "collect_figures.in_tx",
    ),
    "tests/integration/test_ingest.py": (
        "decoder.image",
        "ingest.after_blobs",
        "ingest.after_decode",
        "ingest.after_unpack",
        "ingest.before_result",
    ),
    "tests/integration/test_race.py": ("race.after_features", "race.after_probe"),
    "tests/integration/test_resume.py": ("train.after_head", "train.images"),
    "tests/integration/test_webhooks.py": (
        "webhook.after_send",
        "webhook_claim.after_commit",
        "webhook_claim.before_tx",
        "webhook_claim.in_tx",
        "webhook_note.after_commit",
        "webhook_note.before_tx",
        "webhook_note.in_tx",
    ),
    "tests/integration/test_weights_vault.py": (
        "weights.learned.before_rename",
        "weights.record.before_rename",
    ),
    "tests/unit/test_feature_cache.py": (
        "features_merge.after_rename",
        "features_merge.before_fsync",
        "features_merge.before_rename",
        "features_merge.before_unlink",
    ),
}

#: Not struck under these names. They are written by the two functions whose stages are struck under
#: the other names; what a kill undoes is asked for again by the next request, job or prediction.
NOT_BY_NAME = frozenset(
    {
        "apply_feedback",
        "engine",
        "engine_record",
        "engine_wish",
        "missing_weights",
        "feedback",
        "feedback_delete",
        "gate",
        "import",
        "key_create",
        "key_revoke",
        "key_rotate",
        "key_used",
        "neighbours",
        "predictions_table",
        "shadow",
        "webhook_redeliver",
        "weights.bundle",
    }
)
_STAGES_OF_A_FILE = frozenset(OF_A_FILE)


def _struck() -> set[str]:
    groups = [
        *api_operations.OPERATIONS.values(),
        *worker_stories.STORIES.values(),
        test_child_points.POINTS,
        *ELSEWHERE.values(),
    ]
    return {point.partition(":")[0] for group in groups for point in group}


def test_every_point_is_struck_and_every_struck_point_exists() -> None:
    in_the_code, struck = points_in_the_code(), _struck()
    assert struck - in_the_code == set()
    # One stage of a file is enough: `test_flush_order` strikes all three of the one writer.
    files = {name for name, stage in map(_split, struck) if stage in _STAGES_OF_A_FILE}
    left = {
        name
        for name, stage in map(_split, in_the_code - struck)
        if name not in files or stage not in _STAGES_OF_A_FILE
    }
    assert left == NOT_BY_NAME
    assert len(struck) >= 40


def _split(point: str) -> tuple[str, str]:
    name, _, stage = point.rpartition(".")
    return name, stage


def test_points_that_are_struck_elsewhere_are_named_there() -> None:
    for path, points in ELSEWHERE.items():
        text = (REPOSITORY / path).read_text()
        for point in points:
            assert point in text, f"{path} does not name {point}"
