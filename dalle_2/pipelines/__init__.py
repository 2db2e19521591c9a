"""Pipelines: a name, a folder or a hub id <-> a whole `DALLe2`."""
