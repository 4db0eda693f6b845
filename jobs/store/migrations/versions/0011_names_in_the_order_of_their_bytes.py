"""Names of models and aliases are ordered by their bytes, as on SQLite

Revision: 0011, after 0009
"""

from alembic import op

revision = "0011"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _order_by("C")


def downgrade() -> None:
    _order_by("default")


def _order_by(collation: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table, column in (("models", "name"), ("model_aliases", "alias")):
            change = f'ALTER COLUMN {column} TYPE VARCHAR(63) COLLATE "{collation}"'
            op.execute(f"ALTER TABLE {table} {change}")
