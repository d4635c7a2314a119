"""Budgets: what was done (events), what it costs (epsilon), and the ledger that remembers."""
