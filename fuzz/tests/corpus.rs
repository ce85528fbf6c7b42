//! Every target on its corpus and on a fixed number of changed copies of it, the same ones each time.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Once;

use adalora_fuzz::{TARGETS, limit_memory};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Changed copies for each target, over all files of its corpus.
const CHANGED: usize = 1000;

/// Numbers at which something often ends.
const NUMBERS: [u64; 9] =
    [0, 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, u64::MAX];

/// Changes bytes as a fuzzer does, without looking at what they do.
fn change(data: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut ChaCha8Rng) {
    let at = random.random_range(0..=data.len());
    let end = random.random_range(at..=data.len().min(at + 32));
    let number = *NUMBERS.choose(random).expect("there are some");
    match random.random_range(0..8) {
        0 if at < data.len() => data[at] ^= 1 << random.random_range(0..8),
        1 => drop(data.drain(at..end)),
        2 => data.truncate(at),
        3 => drop(data.splice(at..end, number.to_le_bytes())),
        // Where the text of a number is, another number.
        4 => {
            let digits = |data: &[u8]| data.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let start = at + data[at..].iter().take_while(|byte| !byte.is_ascii_digit()).count();
            let end = start + digits(&data[start..]);
            data.splice(start..end, number.to_string().into_bytes());
        }
        5 => {
            let copied = data[at..end].repeat(random.random_range(1..4));
            let to = random.random_range(0..=data.len());
            data.splice(to..to, copied);
        }
        6 => {
            let other = corpus.choose(random).expect("a corpus has files");
            let from = random.random_range(0..=other.len());
            data.splice(at..end, other[from..].iter().copied());
        }
        _ => {
            let mut bytes = [0; 4];
            random.fill_bytes(&mut bytes);
            data.splice(at..end, bytes);
        }
    }
}

fn drive(name: &str) {
    // libtorch and the thread pools take their own room first.
    static LIMIT: Once = Once::new();
    let target = TARGETS.iter().find(|(own, _)| *own == name).expect("a target").1;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    LIMIT.call_once(limit_memory);
    let tried = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
    let attempt = |data: &[u8]| {
        // Before and not after it: what takes too much memory or stack takes the process with it.
        fs::write(&tried, data).unwrap();
        let ended = catch_unwind(|| target(data));
        assert!(ended.is_ok(), "{name} fails on {}: mend it, and put that into its corpus", tried.display());
    };
    corpus.iter().for_each(|data| attempt(data));
    let mut random = ChaCha8Rng::seed_from_u64(7);
    for number in 0..CHANGED {
        let mut data = corpus[number % corpus.len()].clone();
        for _ in 0..random.random_range(1..4) {
            change(&mut data, &corpus, &mut random);
        }
        attempt(&data);
    }
}

macro_rules! tests {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                drive(stringify!($name));
            }
        )*

        #[test]
        fn no_target_is_left_out() {
            assert_eq!(TARGETS.map(|(name, _)| name), [$(stringify!($name)),*]);
        }
    };
}

tests!(experiment manifest delimited parquet squad summaries model_config safetensors torch_file pickle adapter checkpoint records);
