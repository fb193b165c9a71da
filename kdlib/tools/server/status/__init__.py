"""What is done, at work, failed and waiting in run folders, as a table, a page, or JSON."""
