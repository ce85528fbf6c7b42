//! The parameter arena, and the SVD and LoRA adapters whose parameters live in it
