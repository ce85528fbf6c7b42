//! Importance metrics, one file each
