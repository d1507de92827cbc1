"""What breaks things with real drivers: each form has a short run in tests/ and a long one by `scripts/torture`."""
