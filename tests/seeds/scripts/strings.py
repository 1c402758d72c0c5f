# The fragment of the MoXing manual, section 4.7, made whole: a network stands for its dots. Changed: the imports; the
# parameter `iterating` of a bytes object gives numbers in Python 3, so the `ord` of `bytes_to_sequence` is left out; and
# batches need sequences of one length, so names are padded with zeros, which `sequence_to_bytes` leaves out.
import numpy as np
import tensorflow.compat.v1 as tf
import moxserve.tensorflow as mox


def bytes_to_sequence(bts):
  return np.array([b for b in bts.ljust(64, b'\0')])

def sequence_to_bytes(seq):
  return ''.join([chr(i) for i in seq if i > 0])

def input_fn(mode):
  meta = mox.ImageClassificationRawMetadata(base_dir='flowers/raw/split/eval')
  dataset = mox.ImageClassificationRawDataset(meta, num_epochs=1, shuffle=False)
  image, label, image_name = dataset.get(['image', 'label', 'image_name'])
  image = mox.get_data_augmentation_fn(
    name='resnet_v1_20', run_mode=mode, output_height=32, output_width=32)(image)
  image_name_seq = tf.py_func(bytes_to_sequence, inp=[image_name], Tout=tf.int64)
  image_name_seq.set_shape([None])
  return image, label, image_name_seq

def model_fn(inputs, mode):
  images, labels, image_name_seqs = inputs
  logits, _ = mox.get_model_fn(name='resnet_v1_20', run_mode=mode, num_classes=2)(images)
  return mox.ModelSpec(
                       output_info={'image_name_seqs': image_name_seqs,
                                    'logits': logits})

def output_fn(outputs):
  batch_seqs = outputs[0]['image_name_seqs']
  batch_logits = outputs[0]['logits']
  for seq, pd in zip(batch_seqs, batch_logits):
    print('%s: %s' % (sequence_to_bytes(seq), pd))

mox.run(input_fn=input_fn,
        model_fn=model_fn,
        output_fn=output_fn,
        output_every_n_steps=1,
        run_mode=mox.ModeKeys.PREDICT,
        batch_size=4,
        checkpoint_path='log')
