"""Audit: what a stranger can verify with nothing but a ledger's file, a public key and a witness."""
