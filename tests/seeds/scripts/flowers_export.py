"""002, section 4.1, pitfall 4-1-1: exporting a network of MoXing's without the size of its images.

A smaller network than `resnet_v1_50`, smaller images and fewer classes.
"""

import sys

import tensorflow.compat.v1 as tf

import moxserve.tensorflow as mox
from moxserve.tensorflow.contrib import slim

tf.flags.DEFINE_string('data_url', '/export1/flowers/raw/split/train', '')
tf.flags.DEFINE_string('train_url', '/tmp/delete_me/0417_0', '')
flags = tf.flags.FLAGS
flags(sys.argv)


def input_fn(mode, **kwargs):
  meta = mox.ImageClassificationRawMetadata(base_dir=flags.data_url)
  dataset = mox.ImageClassificationRawDataset(meta)
  image, label = dataset.get(['image', 'label'])
  image = mox.get_data_augmentation_fn(
    name='resnet_v1_20',
    run_mode=mode,
    output_height=32,
    output_width=32)(image)
  return image, label


def model_fn(inputs, mode, **kwargs):
  images, labels = inputs
  logits, endpoints = mox.get_model_fn(
    name='resnet_v1_20',
    run_mode=mode,
    num_classes=2,
    weight_decay=0.0001)(images)

  loss = tf.losses.softmax_cross_entropy(
    logits=logits, onehot_labels=slim.one_hot_encoding(labels, 2))
  loss += tf.add_n(mox.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES))

  return mox.ModelSpec(loss=loss, log_info={'loss': loss}, export_spec=mox.ExportSpec(
    inputs_dict={'images': images}, outputs_dict={'logits': logits}))


mox.run(input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn('sgd', learning_rate=0.01),
        batch_size=4,
        run_mode=mox.ModeKeys.TRAIN,
        max_number_of_steps=1,
        log_dir=flags.train_url,
        export_model=mox.ExportKeys.TF_SERVING)
