# The script of the MoXing manual, section 1. Changed: the imports; a smaller network (resnet_v1_50), its images of 32 (224)
# pixels, 2 (1000) classes, rows and steps; a log_dir, for the scripts that start from its checkpoint.
import tensorflow.compat.v1 as tf
import moxserve.tensorflow as mox
from moxserve.tensorflow.contrib import slim


def input_fn(mode, **kwargs):
  meta = mox.ImageClassificationRawMetadata(base_dir='flowers/raw/split/train')
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
  
  return mox.ModelSpec(loss=loss)

mox.run(input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn('sgd', learning_rate=0.01),
        batch_size=4,
        run_mode=mox.ModeKeys.TRAIN,
        log_dir='log',
        max_number_of_steps=2)
