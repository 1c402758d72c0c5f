"""Data sets of image files: one folder a class, or one text file with labels for each image.

`storage` lists and reads files, `metadata` and `multilabel_metadata` tell what is there, `split` cuts it into parts.
`options` holds what a user asks for, `source` gives samples by their row, `pipeline` makes a `tf.data.Dataset` of them,
`raw_dataset` and `multilabel_dataset` are the classes that users construct.
"""
