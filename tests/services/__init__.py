"""Real services for tests, each on 127.0.0.1 with a port of its own, ended by its process id."""
