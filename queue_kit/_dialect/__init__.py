"""The few places where PostgreSQL and SQLite differ, as column types and SQL constructs that compile to either.

`_statements` is written once on top of these. Each construct stands beside its two forms.
"""
