"""The table that handlers write to, where a workload has them write."""

from sqlalchemy import Column, Integer, MetaData, Table

EFFECTS = Table("bench_effect", MetaData(), Column("number", Integer, nullable=False))
