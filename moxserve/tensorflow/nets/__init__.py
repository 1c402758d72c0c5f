"""The model zoo: 44 networks by name, with slim's variables.

`keys` has the names, `catalog` what is known of each before it is built, `base` what builders are called with, a module
each has a family.
"""
