"""The optional native decoder of windows: C on libjpeg-turbo, built by the user, found again in their cache directory.

It leaves out columns beside a crop and rows above it, which no Python interface to a decoder offers. What it decodes is
what the decoders in Python give, bit for bit; what it is not sure of it leaves to them. So it changes how fast images
are read, and nothing else.

    library   where it is, whether it may be loaded, and calling it
    build     compiling, checking and removing it
    check     comparing it with the decoders in Python
"""
