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
    "tests/integration/test_backup.py": (
        "backup.after_rows",
        "backup.begin.after_rename",
        "backup.snapshot.after_rename",
        "backup.snapshot.before_rename",
        "restore.before_end",
        "restore.before_files",
        "restore.before_migration",
        "restore.before_rows",
        "restore.in_tx",
    ),
    "tests/integration/test_exports.py": ("export.after_graph",),
    "tests/integration/test_ingest.py": (
        "decoder.image",
        "ingest.after_blobs",
        "ingest.after_decode",
        "ingest.after_unpack",
        "ingest.before_result",
    ),
    "tests/integration/test_race.py": ("race.after_features", "race.after_probe"),
    "tests/integration/test_resume.py": ("train.after_head", "train.images"),
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
        "collect",
        "engine",
        "engine_record",
        "engine_wish",
        "feedback",
        "feedback_delete",
        "gate",
        "import",
        "key_create",
        "key_revoke",
        "key_rotate",
        "key_used",
        "mark_broken",
        "restore",
        "restore.mark",
        "restore_queue",
        "neighbours",
        "predictions_table",
        "shadow",
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
