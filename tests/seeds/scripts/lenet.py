"""000, section 4, `mox.run`, example 1: LeNet on a data set of MoXing's, with what its model tells of itself."""

import sys

import tensorflow.compat.v1 as tf

import moxserve.tensorflow as mox
from moxserve.tensorflow.contrib import slim

tf.flags.DEFINE_string('data_url', '/export1/mnist', '')
flags = tf.flags.FLAGS
flags(sys.argv)

batch_size = 50
dataset_meta = mox.get_dataset_meta('mnist')
model_meta = mox.get_model_meta('lenet')
split_name_train, split_name_eval = dataset_meta.splits_to_sizes.keys()
image_size = model_meta.default_image_size
labels_offset = model_meta.default_labels_offset
num_classes = dataset_meta.num_classes - labels_offset


def input_fn(run_mode, **kwargs):
  dataset = mox.get_dataset(name='mnist', split_name=split_name_train,
                            dataset_dir=flags.data_url, capacity=4000)
  image, label = dataset.get(['image', 'label'])
  data_augmentation_fn = mox.get_data_augmentation_fn(
    name='lenet', run_mode=mox.ModeKeys.TRAIN,
    output_height=image_size, output_width=image_size)
  image = data_augmentation_fn(image)
  label -= labels_offset
  return image, label


def model_fn(inputs, run_mode, **kwargs):
  images, labels = inputs
  mox.mdoel_fn = mox.get_model_fn(
    name='lenet',
    run_mode=mox.ModeKeys.TRAIN,
    num_classes=num_classes,
    weight_decay=0.0001,
    data_format='NHWC',
    batch_norm_fused=True,
    batch_renorm=False,
    image_height=image_size,
    image_width=image_size)
  logits, end_points = mox.mdoel_fn(images)
  labels_one_hot = slim.one_hot_encoding(labels, num_classes)
  loss = tf.losses.softmax_cross_entropy(
    logits=logits, onehot_labels=labels_one_hot,
    label_smoothing=0.0, weights=1.0)
  accuracy_top_1 = tf.reduce_mean(tf.cast(tf.nn.in_top_k(logits, labels, 1), tf.float32))
  log_info = {'loss': loss,
              'top1': accuracy_top_1}
  top_1_confidence, top_1_label = tf.nn.top_k(tf.nn.softmax(logits), k=1)
  top_1_label += labels_offset
  export_spec = mox.ExportSpec(inputs_dict={'images': images},
                               outputs_dict={'labels': top_1_label,
                                             'confidences': top_1_confidence},
                               version=1)
  return mox.ModelSpec(loss=loss, log_info=log_info, export_spec=export_spec)


mox.run(input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn('sgd', learning_rate=0.01),
        run_mode=mox.ModeKeys.TRAIN,
        batch_size=batch_size,
        max_number_of_steps=100)
