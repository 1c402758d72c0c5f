"""The command line: one file a command, every import of weight inside the command's function.

`main` holds the entry point and the lazy group, `render` what is printed to people and to scripts.
"""
