# The second snippet of the MoXing manual, section 4.8. Changed: the imports, and the brackets of another script in the last
# line.
import tensorflow.compat.v1 as tf
import moxserve.tensorflow as mox

with mox.var_scope(force_dtype=tf.float32):
  a = tf.get_variable('a', shape=[], dtype=tf.float16)

print(a)
print(tf.global_variables()[0])
