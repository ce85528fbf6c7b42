//! AdaLoRA as a library: adaptive rank for a training loop of your own
