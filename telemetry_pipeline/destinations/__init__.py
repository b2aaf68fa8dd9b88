"""Where allowlisted events go: one outbox, one module a vendor."""
