"""Quantise an OpenVINO model to int8: `python nncf_quantize.py MODEL.xml SAMPLES.npy OUT.xml`, where nncf is."""

import sys

import nncf
import numpy as np
import openvino


def main(model_file: str, samples_file: str, target: str) -> None:
    model = openvino.Core().read_model(model_file)
    samples = np.load(samples_file)[:, None]
    preset = nncf.QuantizationPreset.MIXED
    quantized = nncf.quantize(model, nncf.Dataset(list(samples)), preset=preset, subset_size=len(samples))
    # What stays in floating point is computed in float32; in bfloat16 it is no faster.
    quantized.set_rt_info("f32", ["runtime_options", "INFERENCE_PRECISION_HINT"])
    openvino.save_model(quantized, target, compress_to_fp16=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
