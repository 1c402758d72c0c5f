"""The plugins that moxserve ships, one folder each: config.py (parameters, no TensorFlow), build.py, README.md.

`PLUGINS` is read without importing anything: `slot.name` -> `module:class`. `inputs.py` and `classifier.py` hold what
several of them share.
"""

PLUGINS = {
    "input.image_folder": "moxserve_plugins.image_folder.config:ImageFolder",
    "input.mnist_idx": "moxserve_plugins.mnist_idx.config:MnistIdx",
    "input.numpy": "moxserve_plugins.numpy_arrays.config:NumpyArrays",
    "input.table": "moxserve_plugins.table.config:Table",
    "model.function": "moxserve_plugins.function.config:Function",
    "model.lenet": "moxserve_plugins.lenet.config:LeNet",
    "model.mnist_softmax": "moxserve_plugins.mnist_softmax.config:MnistSoftmax",
    "model.network": "moxserve_plugins.network.config:Network",
    "model.resnet_v1_20": "moxserve_plugins.resnet_v1_20.config:ResNetV120",
    "model.wide_and_deep": "moxserve_plugins.wide_and_deep.config:WideAndDeep",
    "optimizer.adadelta": "moxserve_plugins.optimizers.config:Adadelta",
    "optimizer.adagrad": "moxserve_plugins.optimizers.config:Adagrad",
    "optimizer.adam": "moxserve_plugins.optimizers.config:Adam",
    "optimizer.ftrl": "moxserve_plugins.optimizers.config:Ftrl",
    "optimizer.momentum": "moxserve_plugins.optimizers.config:Momentum",
    "optimizer.per_loss": "moxserve_plugins.optimizers.config:PerLoss",
    "optimizer.rmsprop": "moxserve_plugins.optimizers.config:RmsProp",
    "optimizer.sgd": "moxserve_plugins.optimizers.config:Sgd",
    "run.evaluate": "moxserve_plugins.run.config:Evaluate",
    "run.predict": "moxserve_plugins.run.config:Predict",
    "run.retrain": "moxserve_plugins.retrain.config:Retrain",
    "run.train": "moxserve_plugins.run.config:Train",
    "run.train_and_evaluate": "moxserve_plugins.run.config:TrainAndEvaluate",
}
