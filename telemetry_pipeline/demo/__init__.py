"""The demo's population and its Amplitude-shaped server."""
