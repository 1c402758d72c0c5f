# The first snippet of the MoXing manual, section 4.8, with the imports that it takes for granted; a smaller network
# (resnet_v1_50), its images of 32 (224) pixels, 10 (1000) classes.
import tensorflow.compat.v1 as tf
import moxserve.tensorflow as mox

mode = mox.ModeKeys.TRAIN

images = tf.random_normal(shape=[1, 32, 32, 3], dtype=tf.float32)
# Cast the input of neural network to fp16
images = tf.cast(images, tf.float16)
# fp16 model only supports with `batch_norm_fused=True`
resnet50 = mox.get_model_fn(name=mox.NetworkKeys.RESNET_V1_20, run_mode=mode, 
                            num_classes=10, data_format='NCHW', batch_norm_fused=True)
# fp32 store and fp16 computation
with mox.var_scope(force_dtype=tf.float32):
  logits, _ = resnet50(images)

# logits should have dtype of tf.float16 but all variables have dtype of tf.float32
print(logits.dtype.name, {v.dtype.base_dtype.name for v in tf.global_variables()})
