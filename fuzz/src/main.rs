//! A target under libFuzzer: `FUZZ_TARGET` in the environment names it, arguments are libFuzzer's.

#![no_main]

use std::sync::LazyLock;
use std::{env, panic};

use adalora_fuzz::{TARGETS, limit_memory};

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = env::var("FUZZ_TARGET").unwrap_or_default();
    let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
    let found = TARGETS.iter().find(|(own, _)| *own == name);
    found.unwrap_or_else(|| panic!("there is no target `{name}`; there are {}", names.join(", "))).1
});

libfuzzer_sys::fuzz_target!(
    init: {
        // libFuzzer's ends the process before a target can catch what a library panics with. What a target lets through
        // does so all the same.
        drop(panic::take_hook());
        limit_memory();
        LazyLock::force(&TARGET);
    },
    |data: &[u8]| TARGET(data)
);
