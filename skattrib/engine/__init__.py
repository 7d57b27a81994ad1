"""Pure torch: training, gradients, kernels and solvers, without estimators."""
