"""The Task protocol and the tasks that ship."""
