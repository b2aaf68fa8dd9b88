"""Where events arrive: what is new, and its bytes."""
