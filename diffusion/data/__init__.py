"""Data sets, and the pipelines that turn them into batches.

One data set is one file, and its function has the file's name: `digits`, `cifar10`, `mnist`,
`fashion_mnist`, `tfds` (any prepared TensorFlow Datasets folder) and `image_folder`; with captions,
`captioned_digits` and `captioned_folder`. Each takes `split` and returns a `dataset.Dataset`: random
access to uint8 images, labels where there are any, and captions as tokens (`captions.py`). From there
on everything is shared:

    pipeline.batches(digits("train"), batch_size=128, seed=0)[step]  ->  {"image": float32 in [-1, 1], "label": int32}

A batch is a pure function of (seed, step). So a run that stops and continues needs no saved
iterator, and any number of hosts together read the stream that one host would read.

Nothing here imports jax or TensorFlow, and heavy packages are imported by the function that needs
them.
"""
