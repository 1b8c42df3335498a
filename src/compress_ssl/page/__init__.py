"""Sections of the page of `compress_ssl.report`: words -> folders -> models -> headline, table, curves, gallery -> page.html."""
