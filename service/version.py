"""The version of this program, as CHANGELOG.md heads it (a test keeps them equal)."""

VERSION = "0.1.0"
