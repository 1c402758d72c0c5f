# The script of the MoXing manual, section 4.4. Changed: the imports; a smaller network (resnet_v1_50), its images of 32 (224)
# pixels, 2 (1000) classes, rows and steps; and an export needs the size of images, as pitfall 4-1-1 says.
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
    weight_decay=0.0001,
    data_format='NCHW',
    batch_norm_fused=True,
    image_height=32,
    image_width=32)(images)
  
  labels_one_hot = slim.one_hot_encoding(labels, 2)
  loss = tf.losses.softmax_cross_entropy(logits=logits, onehot_labels=labels_one_hot)

  export_spec = mox.ExportSpec(inputs_dict={'images': images}, outputs_dict={'logits': logits})
  
  return mox.ModelSpec(loss=loss, export_spec=export_spec)


mox.run(input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn('sgd', learning_rate=0.01),
        batch_size=4,
        run_mode=mox.ModeKeys.TRAIN,
        max_number_of_steps=2,
        log_dir='log_0409',
        export_model=mox.ExportKeys.TF_SERVING)
