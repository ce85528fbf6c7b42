//! Experiment files, the trainer, the run folder, and the program adalora
