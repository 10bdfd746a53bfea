"""From metrics to a report: the table, the paper's claims, the figures, the page."""
