//! Everything that adalora reads and that may come from somebody else, as targets for a fuzzer: a function each, that takes
//! any bytes and may neither panic, nor take memory that the bytes do not account for, nor write anywhere but where it is
//! told to.
//!
//! `just fuzz TARGET` gives them inputs of libFuzzer's for as long as one likes; `tests/corpus.rs` the committed ones of
//! `corpus/TARGET`, and a fixed number of changes to each. What was found is in `docs/fuzzing.md`.

mod targets;

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use targets::TARGETS;

/// What inputs may take together, in bytes: much more than files of their size need, and less than a length field can
/// ask for.
const ROOM: u64 = 1 << 30;

/// Limits the address space of this process to what it has now and a gibibyte. Whoever asks for more is refused, and dies
/// of it: an allocation that fails aborts in Rust, and is an exception in libtorch.
///
/// # Panics
///
/// Where the system has no `/proc`.
pub fn limit_memory() {
    let status = fs::read_to_string("/proc/self/status").expect("the system tells of processes in /proc");
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB"));
    let size: u64 = size.and_then(|size| size.trim().parse().ok()).expect("VmSize is a number of kB");
    let maximum = getrlimit(Resource::As).maximum;
    setrlimit(Resource::As, Rlimit { current: Some((size << 10) + ROOM), maximum })
        .expect("a limit can be lowered");
}
