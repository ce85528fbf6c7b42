//! Backbones, heads and losses, and the strict loading of checkpoints
