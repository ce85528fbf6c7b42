//! The kernels on a GPU: `just test-cuda`. Not run by default, and a failure where there is no GPU.
