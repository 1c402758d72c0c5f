# The fragments of the MoXing manual, sections 2.1, 3.3 and 5, and of the API document, section 3, put into one script: a
# training of a linear model for each way of making an optimizer. Changed: the imports; a data set stands for `my_dataset`,
# a number for `config_lr`, and the flags of a larger script are written out.
import sys

import numpy as np
import tensorflow.compat.v1 as tf
import moxserve.tensorflow as mox
from moxserve.tensorflow.optimizer import learning_rate_scheduler

tf.flags.DEFINE_string(name='data_url', default='./', help='Data directory.')
tf.flags.DEFINE_string(name='int_list', default='0,1,2', help=None)
tf.flags.DEFINE_string('optimizer', None, '')
tf.flags.DEFINE_float('momentum', 0.9, '')
flags = tf.flags.FLAGS
flags(sys.argv)
print(flags.data_url)
int_list = [int(int_item) for int_item in flags.int_list.split(',')]
print(int_list)


class my_dataset:
  @staticmethod
  def next():
    x = np.random.normal(size=4).astype('float32')
    return x, x.sum(keepdims=True)


def input_fn(run_mode, **kwargs):

  def gen():
    while True:
      yield my_dataset.next()

  ds = tf.data.Dataset.from_generator(
      gen, 
      output_types=(tf.float32, tf.float32),
      output_shapes=(tf.TensorShape([4]), tf.TensorShape([1])))

  return ds.make_one_shot_iterator().get_next()


def model_fn(inputs, mode, **kwargs):
  x, y = inputs
  loss = tf.reduce_mean(tf.square(tf.layers.dense(x, 1) - y))
  return mox.ModelSpec(loss=loss, log_info={'loss': loss})


lr = 0.05


class my_optimizer(tf.train.GradientDescentOptimizer):
  def __init__(self):
    super().__init__(lr)


def optimizer_fn_own():
  return my_optimizer()


def optimizer_fn_batch():
  opt = mox.get_optimizer_fn('momentum', learning_rate=lr, momentum=0.9)()
  opt = mox.get_optimizer_wrapper_fn('batch_gradients', opt, num_batches=8, sync_on_apply=True)()
  return opt


def optimizer_fn_lars():
  opt = mox.get_optimizer_fn('momentum', learning_rate=lr, momentum=0.9)()
  opt = mox.get_optimizer_wrapper_fn('lars', opt, ratio=0.001, weight_decay=0.0001)()
  opt = mox.get_optimizer_wrapper_fn('batch_gradients', opt, num_batches=8, sync_on_apply=True)()
  return opt


lr_stg = "5:0.01->0.04,10:0.04=>0.08,15:0.08,20:0.008"

def optimizer_fn_schedule():
  lr = learning_rate_scheduler.piecewise_lr(lr_stg,
                                            num_samples=64,
                                            global_batch_size=16)
  if flags.optimizer is None or flags.optimizer == 'sgd':
    opt = mox.get_optimizer_fn('sgd', learning_rate=lr)()
  elif flags.optimizer == 'momentum':
    opt = mox.get_optimizer_fn('momentum', learning_rate=lr, momentum=flags.momentum)()
  elif flags.optimizer == 'adam':
    opt = mox.get_optimizer_fn('adam', learning_rate=lr)()
  else:
    raise ValueError('Unsupported optimizer name: %s' % flags.optimizer)
  return opt


for name, optimizer_fn in [
    ('builtin', mox.get_optimizer_fn('momentum', learning_rate=0.01, momentum=0.9)),
    ('tensorflow', lambda: tf.train.MomentumOptimizer(learning_rate=0.01, momentum=0.9)),
    ('own', optimizer_fn_own),
    ('batch_gradients', optimizer_fn_batch),
    ('lars', optimizer_fn_lars),
    ('schedule', optimizer_fn_schedule)]:
  result = mox.run(input_fn=input_fn,
                   model_fn=model_fn,
                   optimizer_fn=optimizer_fn,
                   batch_size=16,
                   auto_batch=True,
                   run_mode=mox.ModeKeys.TRAIN,
                   max_number_of_steps=25,
                   log_every_n_steps=24)
  print(name, result.global_step)
