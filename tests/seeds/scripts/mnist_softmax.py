# The script of the MoXing guide, section 1.1.1. Changed: the imports, and the indentation that the document lost in `gen`.
from moxserve.tensorflow.datasets import mnist as input_data
import tensorflow.compat.v1 as tf
tf.flags.DEFINE_string('data_url', '/tmp/tensorflow/mnist/input_data','Directory for storing input data')
flags = tf.flags.FLAGS
mnist = input_data.read_data_sets(flags.data_url, one_hot=True)
import moxserve.tensorflow as mox
def input_fn(run_mode, **kwargs):
  def gen():
      while True:
        yield mnist.train.next_batch(100)
  ds = tf.data.Dataset.from_generator(gen, output_types=(tf.float32, tf.int64),
      output_shapes=(tf.TensorShape([None, 784]), tf.TensorShape([None, 10])))
  return ds.make_one_shot_iterator().get_next()
def model_fn(inputs, run_mode, **kwargs):
  x, y_ = inputs
  W = tf.get_variable(name='W', initializer=tf.zeros([784, 10]))
  b = tf.get_variable(name='b', initializer=tf.zeros([10]))
  y = tf.matmul(x, W) + b
  cross_entropy = tf.reduce_mean(
      tf.nn.softmax_cross_entropy_with_logits(labels=y_, logits=y))
  return mox.ModelSpec(loss=cross_entropy, log_info={'loss': cross_entropy})
def optimizer_fn():
  return tf.train.GradientDescentOptimizer(0.5)
mox.run(input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=optimizer_fn,
        run_mode=mox.ModeKeys.TRAIN,
        batch_size=100,
        auto_batch=False,
        log_dir=flags.train_url,
        max_number_of_steps=1000)
