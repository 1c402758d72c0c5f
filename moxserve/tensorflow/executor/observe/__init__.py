"""Seeing what a run does: `timeline` traces single steps, `profile` a range of them for TensorBoard, `progress` tells
how far it is, `utilisation` what it used, `logs` chooses the form of what is printed. `setup` reads the flags and puts
these into a run; none of them costs anything at a step at which it has nothing to do.
"""
