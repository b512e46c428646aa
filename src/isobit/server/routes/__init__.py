"""A file for each family of routes; each has ``routes(serving)``, and a line in the table of ``isobit.server.app``."""
