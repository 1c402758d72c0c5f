# The script of the MoXing manual, section 4.3. Changed: the imports; a smaller network (resnet_v1_50), its images of 32 (224)
# pixels, 2 (1000) classes; the paths.
import pandas as pd
import numpy as np
import tensorflow.compat.v1 as tf
import moxserve.tensorflow as mox
from moxserve.tensorflow.contrib import slim


def input_fn(mode, **kwargs):
  meta = mox.ImageClassificationRawMetadata(base_dir='flowers/raw/split/eval')
  dataset = mox.ImageClassificationRawDataset(meta)
  image = dataset.get(['image'])[0]
  image.set_shape([None, None, 3])
  image = tf.expand_dims(image, 0)
  image = tf.image.resize_images(image, size=[32, 32])
  image = tf.squeeze(image, 0)
  return image


def model_fn(inputs, run_mode, **kwargs):
  images = inputs[0]
  
  logits, endpoints = mox.get_model_fn(
    name='resnet_v1_20',
    run_mode=run_mode,
    num_classes=2,
    weight_decay=0.0001)(images)
  prediction = tf.argmax(logits, axis=1)
  
  return mox.ModelSpec(output_info={'prediction': prediction})


def output_fn(outputs):
  df = pd.DataFrame(np.array(outputs))
  with mox.file.File('outputs.txt', 'w') as f:
    df.to_csv(f)


mox.run(input_fn=input_fn,
        model_fn=model_fn,
        output_fn=output_fn,
        output_every_n_steps=10,
        batch_size=4,
        run_mode=mox.ModeKeys.PREDICT,
        max_number_of_steps=10,
        checkpoint_path='log')
