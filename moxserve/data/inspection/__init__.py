"""What is in a data set, and what is broken in it, told without TensorFlow.

`detect` tells kinds apart and finds the parts of a folder, `describe` makes a report of each; a module each knows
images, TFRecords, tables and arrays.
"""
