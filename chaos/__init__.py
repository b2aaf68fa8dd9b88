"""Kills and pauses every part of ingest while events flow, then counts what became of each event.

`make chaos KILLS=n SEED=s`; docs/chaos.md says what is done and how it is counted.
"""
