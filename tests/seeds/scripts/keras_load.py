# The second script of the MoXing manual, section 4.6. Changed: the imports; rows and steps; the path.
import tensorflow.compat.v1 as tf
import moxserve.tensorflow as mox

from tf_keras.losses import binary_crossentropy
from tf_keras.models import model_from_json


def input_fn(mode, **kwargs):
  main_input = tf.random_uniform(shape=(100,), minval=1, maxval=10000, dtype=tf.int32, name='main_input')
  auxiliary_input = tf.random_normal(shape=(5,), name='aux_input')
  main_labels = tf.random_uniform(shape=(1,))
  auxiliary_labels = tf.random_uniform(shape=(1,))
  return main_input, auxiliary_input, main_labels, auxiliary_labels


def model_fn(inputs, mode, **kwargs):
  main_input, auxiliary_input, main_labels, auxiliary_labels = inputs

  with tf.gfile.Open('keras_model.json', 'r') as f:
    keras_model_json = f.read()
    
  model_croe = model_from_json(keras_model_json)
  main_output, auxiliary_output = model_croe([main_input, auxiliary_input])

  loss = 1.0 * binary_crossentropy(main_output, main_labels) + \
         0.2 * binary_crossentropy(auxiliary_output, auxiliary_labels)
  loss = tf.reduce_mean(loss)

  return mox.ModelSpec(loss=loss, log_info={'loss': loss})

if __name__ == '__main__':
  mox.run(input_fn=input_fn,
          model_fn=model_fn,
          optimizer_fn=mox.get_optimizer_fn('rmsprop', learning_rate=0.01),
          run_mode=mox.ModeKeys.TRAIN,
          batch_size=8,
          auto_batch=True,
          log_dir=None,
          max_number_of_steps=11,
          log_every_n_steps=10)
