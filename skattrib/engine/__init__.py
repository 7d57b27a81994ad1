"""Pure torch: training, gradients, kernels and solvers; knows no estimator."""
