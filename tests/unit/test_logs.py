"""Lines of the log: what they say, as text and as JSON, and what they never say."""

from __future__ import annotations

import contextvars
import json
import logging
import threading

from models_cache import logs


def record(
    message: str,
    *arguments: object,
    error: Exception | None = None,
    facts: dict[str, object] | None = None,
) -> logging.LogRecord:
    logger = logging.getLogger("tests.logs")
    raised = None if error is None else (type(error), error, error.__traceback__)
    extra = {"facts": facts or {}}
    return logger.makeRecord(
        logger.name, logging.WARNING, __file__, 1, message, arguments, raised, extra=extra
    )


def as_json(line: logging.LogRecord) -> dict[str, object]:
    text = logs.JsonLines().format(line)
    assert "\n" not in text
    value: dict[str, object] = json.loads(text)
    return value


def test_a_json_line_says_when_how_bad_who_and_what_it_is_about() -> None:
    with logs.about(request_id="r1"), logs.about(job_id="job_1", attempt=2):
        line = as_json(record("%d images", 3, facts={"status": 200}))
    assert str(line.pop("time")).endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "tests.logs",
        "message": "3 images",
        "request_id": "r1",
        "job_id": "job_1",
        "attempt": 2,
        "status": 200,
    }
    assert "job_id" not in as_json(record("afterwards"))


def test_a_traceback_stays_in_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        line = as_json(record("broken", error=error))
    assert str(line["error"]).endswith("ValueError: two\nlines")
    assert line["message"] == "broken"


def test_passwords_in_addresses_are_masked_in_both_forms() -> None:
    secret = record("no answer from postgresql+psycopg://graft:s3c:r@t@host/name?x=1")
    for text in (logs.JsonLines().format(secret), logs.TextLines().format(secret)):
        assert "s3c" not in text
        assert "r@t" not in text
        assert "postgresql+psycopg://graft:***@host/name?x=1" in text
    untouched = "https://host:8000/a@b and a@b:c"
    assert logs.without_passwords(untouched) == untouched


def test_facts_go_with_a_copied_context_into_a_thread() -> None:
    found = []
    with logs.about(request_id="r1"):
        context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: context.run(lambda: found.append(logs.facts())))
    thread.start()
    thread.join(10)
    assert found == [{"request_id": "r1"}]
    assert logs.facts() == {}
