"""Pages that explain themselves: one file of HTML, nothing fetched, no script, everything escaped."""
