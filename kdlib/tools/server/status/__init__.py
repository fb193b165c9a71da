"""Run folders in, what is done, at work, failed and waiting in them out: as a table, a page, or JSON."""
