"""Comparisons with other libraries and with published results; `make bench` rewrites their pages."""
