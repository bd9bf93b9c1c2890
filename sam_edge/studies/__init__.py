"""Choices and claims measured: tables of many runs, several seeds each, that go on where they were killed."""
