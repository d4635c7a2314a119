"""What the coordinator runs; it holds no model code and never imports torch."""
