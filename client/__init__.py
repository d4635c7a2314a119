"""What runs inside an institution."""
