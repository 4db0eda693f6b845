"""Every table and every SQL statement, split by noun; each function says what it does.

Functions take an open connection, so that a caller decides what is one transaction:
`with database.write() as connection: ...`. Rows come back as frozen dataclasses.
"""
