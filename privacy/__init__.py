"""The ground: the terms on which data may be used, and what protects them. No torch, no server, no client."""
