"""Changing the mirror's weights as planned."""
