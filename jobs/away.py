"""Which errors say that something went away and comes back: the database, the disk."""

from __future__ import annotations

from jobs.store.database import DATABASE_AWAY

AWAY = (*DATABASE_AWAY, OSError)
