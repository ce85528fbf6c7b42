//! Shared shapes of the benches.
