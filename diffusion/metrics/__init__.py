"""Metrics of sample quality: a file each, found by name, pure functions of features.

    from diffusion import lookup, metrics
    from diffusion.metrics.metric import Metric
    metric = lookup.make(metrics, Metric, {"name": "precision_recall", "k": 3}, block="metric", progress=True)
    metric.compute(generated, reference)                                 # {"precision": 0.71, "recall": 0.63}

| name | reads | keeps | reference |
|---|---|---|---|
| frechet (FID; of spatial features sFID) | pool or spatial | statistics | yes |
| inception_score | logits | features | no |
| kernel_distance (KID) | pool | features | yes |
| precision_recall, density_coverage | pool | features | yes |

`Metric` says what these columns mean. `moments` gathers statistics in one pass and keeps them in files. Points in
the plane, which are features as they are, are compared by `sliced_wasserstein`, a plain function.
Every number depends on how many samples it was made of: none is worth quoting without.
"""
