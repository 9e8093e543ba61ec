"""Tests, from single functions to whole crawls with kills."""
