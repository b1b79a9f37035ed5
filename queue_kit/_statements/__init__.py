"""Every SQL statement of the queue, once, as a function that returns an executable. None knows a connection.

Parameters are named in each docstring; a batch is one JSON text (`as_batch`), so a statement's text never depends on
how many rows it moves. The functions are cached: a statement is built once and then only bound. A parameter never has
the name of a column: SQLAlchemy would take it for a value to set.
"""
