//! The kernels on the host: what runs here is their source, compiled as C++ behind `emulated.cpp`, launched by the
//! functions that launch them on a GPU.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::os::unix::Library;
use tch::{Device, Kind, Tensor};

use super::compare::{self, Flat, Random, layout};
use super::{Argument, CONSTANTS, KERNELS, Launch, Number, Read, Value, Write, nvrtc};
use crate::orthogonality::Join;

type Emulate = unsafe extern "C" fn(
    *const c_char,
    *const c_char,
    u32,
    u32,
    *mut *mut c_void,
    u64,
    *mut c_char,
    usize,
) -> bool;

/// Runs kernels in an order of blocks and threads that follows from the seed.
struct Emulator {
    seed: u64,
    launches: Cell<usize>,
    scratch: RefCell<Vec<Flat>>,
}

impl Emulator {
    fn new(seed: u64) -> Self {
        Self { seed, launches: Cell::new(0), scratch: RefCell::default() }
    }
}

impl Launch for Emulator {
    fn launch(&self, kernel: &'static str, blocks: usize, threads: usize, arguments: &[Argument]) {
        if blocks == 0 {
            return;
        }
        self.launches.set(self.launches.get() + 1);
        let emulate = emulate();
        let name = CString::new(kernel).unwrap();
        let what = CString::new(arguments.iter().map(letter).collect::<String>()).unwrap();
        let mut why = [0 as c_char; 200];
        // SAFETY: the arguments are of the kinds that `what` tells, which is compared with the kernel's declaration,
        // and their tensors lie on the CPU. One launch at a time.
        let done = Argument::with_addresses(arguments, |addresses| unsafe {
            let (seed, room) = (self.seed + self.launches.get() as u64, why.len());
            let (blocks, threads) = (blocks as u32, threads as u32);
            emulate(
                name.as_ptr(),
                what.as_ptr(),
                blocks,
                threads,
                addresses.as_mut_ptr(),
                seed,
                why.as_mut_ptr(),
                room,
            )
        });
        // SAFETY: it is written with its end in any case.
        assert!(done, "{}", unsafe { CStr::from_ptr(why.as_ptr()) }.to_string_lossy());
    }

    /// Filled with what makes wrong results if it is read, and surrounded by it too, if it is f32.
    fn scratch(&self, shape: &[i64], kind: Kind) -> Tensor {
        if kind != Kind::Float {
            return Tensor::full(shape, -1, (kind, Device::Cpu));
        }
        let flat =
            Flat::new(&Tensor::full(shape, f64::NAN, (kind, Device::Cpu)).flatten(0, -1), Device::Cpu, 0);
        let own = flat.own.view(shape);
        self.scratch.borrow_mut().push(flat);
        own
    }
}

/// How `emulated.cpp` names the kind of an argument.
fn letter(argument: &Argument) -> char {
    match argument {
        Read(tensor) | Write(tensor) => {
            let letter = match tensor.kind() {
                Kind::Float => 'f',
                Kind::Int64 => 'l',
                Kind::Bool => 'b',
                kind => panic!("no kernel takes {kind:?}"),
            };
            if matches!(argument, Write(_)) { letter.to_ascii_uppercase() } else { letter }
        }
        Number(_) => 'n',
        Value(_) => 'v',
        Argument::Decay(_) => 's',
    }
}

/// The function `emulate` of `emulated.cpp`, compiled with the kernels; one caller at a time.
fn emulate() -> impl std::ops::Deref<Target = Emulate> {
    static COMPILED: OnceLock<Mutex<Emulate>> = OnceLock::new();
    COMPILED.get_or_init(|| Mutex::new(build())).lock().unwrap_or_else(PoisonError::into_inner)
}

fn build() -> Emulate {
    let folder = tempfile::tempdir().unwrap();
    let kernels = folder.path().join("kernels.cpp");
    std::fs::write(&kernels, nvrtc::source()).unwrap();
    let mut flags: Vec<_> = CONSTANTS.iter().map(|(name, value)| format!("-D{name}={value}")).collect();
    flags.push(format!("-DKERNELS={kernels:?}"));
    flags.push(format!("-DNAMES={}", KERNELS.map(|name| format!("ENTRY({name})")).concat()));
    flags.extend(["-fsanitize=undefined", "-fno-sanitize-recover=undefined"].map(String::from));
    let library = compile_cpp(include_str!("emulated.cpp"), &flags);
    // SAFETY: the function has this type. The library stays open.
    unsafe {
        let function = *library.get::<Emulate>(b"emulate\0").unwrap();
        std::mem::forget(library);
        function
    }
}

/// Compiles a source with the machine's C++ compiler, which building torch-sys needs too, and opens the result.
pub(super) fn compile_cpp(source: &str, flags: &[impl AsRef<OsStr>]) -> Library {
    let folder = tempfile::tempdir().unwrap();
    let [path, library] = ["source.cpp", "library.so"].map(|name| folder.path().join(name));
    std::fs::write(&path, source).unwrap();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut words = compiler.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("c++"));
    command.args(words).args(["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off"]);
    command.args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]).args(flags);
    let said = command.arg(&path).arg("-o").arg(&library).output();
    let said = said.unwrap_or_else(|error| panic!("the C++ compiler `{compiler}` cannot be run: {error}"));
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    // SAFETY: the sources have no initialisers but those of C++'s library.
    unsafe { Library::new(&library).unwrap() }
}

/// Holds for several orders of threads and blocks, with the same bits.
fn in_any_order(compare: impl Fn(&Emulator) -> Vec<Tensor>) {
    let compare = |seed| {
        let on = Emulator::new(seed);
        let written = compare(&on);
        // Which looks at what lies around.
        on.scratch.borrow().iter().for_each(|flat| drop(flat.values()));
        written
    };
    let once = compare(0);
    for seed in [1000, 2000] {
        let again = compare(seed);
        assert!(
            once.iter().map(compare::bits).eq(again.iter().map(compare::bits)),
            "the result depends on the order of threads"
        );
    }
}

#[test]
fn smooth() {
    in_any_order(|on| compare::smooth(on, Device::Cpu));
}

#[test]
fn smooth_and_score() {
    in_any_order(|on| compare::smooth_and_score(on, Device::Cpu));
}

#[test]
fn triplet_mean() {
    in_any_order(|on| compare::triplet_mean(on, Device::Cpu));
}

#[test]
fn keep_top() {
    in_any_order(|on| compare::keep_top(on, Device::Cpu, 3000));
}

#[test]
fn orthogonality() {
    in_any_order(|on| compare::orthogonality(on, Device::Cpu, 70));
}

#[test]
fn norm_and_clip() {
    in_any_order(|on| compare::norm_and_clip(on, Device::Cpu));
}

#[test]
fn adamw() {
    in_any_order(|on| compare::adamw(on, Device::Cpu));
}

#[test]
fn a_step_takes_few_launches() {
    let rows = layout(&[(8, 8, 2), (8, 12, 3)], true);
    let mut random = Random::new(8);
    let [mut s, mut u, param, grad] = [(); 4].map(|()| random.normal(rows.entries()));
    let mut score = random.normal(rows.triplets());
    let mut masked = Tensor::zeros([5], (Kind::Bool, Device::Cpu));
    let on = Emulator::new(0);
    let _ = super::orthogonality::add_gradient(&on, &param, &grad, &rows, Join::MeanOfNorms, 0.1);
    super::smoothing::smooth_and_score(&on, &mut s, &mut u, &mut score, &param, &grad, 0.85, 0.85, &rows);
    super::selection::keep_top(&on, &score, &rows, 3, 1, &mut masked);
    // And one of libtorch's for the mask.
    assert_eq!(on.launches.get(), 5);
}
