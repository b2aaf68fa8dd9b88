"""Dagster sensors, one file a sensor."""
