"""Sections of the page that report.py writes: words -> folders -> models -> headline, table, curves, gallery."""
