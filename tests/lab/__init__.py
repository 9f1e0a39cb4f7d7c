"""The lab: real servers for the tests. ``lab.py`` is the command."""
