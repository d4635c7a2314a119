"""The cohort engine: many nodes of one task trained as one batched computation, each exactly as it would be alone."""
