# The script of the MoXing manual, section 4.5.3. Changed: the imports; a smaller network (resnet_v1_50), its images of 32
# (224) pixels, 2 (1000) classes; rows and samples. An optimizer that cannot make it better, so that it stops early.
import tensorflow.compat.v1 as tf
import moxserve.tensorflow as mox
from moxserve.tensorflow.contrib import slim


def input_fn(mode, **kwargs):
  if mode == mox.ModeKeys.TRAIN:
    meta = mox.ImageClassificationRawMetadata(base_dir='flowers/raw/split/train')
  else:
    meta = mox.ImageClassificationRawMetadata(base_dir='flowers/raw/split/eval')
  
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
    num_classes=2)(images)
  
  labels_one_hot = slim.one_hot_encoding(labels, 2)
  loss = tf.losses.softmax_cross_entropy(logits=logits, onehot_labels=labels_one_hot)
  
  accuracy = tf.reduce_mean(tf.cast(tf.nn.in_top_k(logits, labels, 1), tf.float32))
  
  early_stop_hook = mox.EarlyStoppingHook(
    monitor_info={'accuracy': accuracy},
    monitor='accuracy',
    batch_size=4,
    samples_in_train=16,
    samples_in_eval=8,
    evaluate_every_n_epochs=1,
    min_delta=0.01,
    patience=3,
    prefix='[EarlyStopping]'
  )
  
  return mox.ModelSpec(loss=loss,
                       log_info={'loss': loss, 'accuracy': accuracy},
                       hooks=[early_stop_hook])


mox.run(input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn('sgd', learning_rate=0.0),
        batch_size=4,
        run_mode=mox.ModeKeys.TRAIN,
        inter_mode=mox.ModeKeys.EVAL,
        max_number_of_steps=10000)
