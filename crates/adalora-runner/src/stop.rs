//! The wish that a run should end at its next step, from the user or from the queue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

/// Ctrl-C, SIGTERM (which a machine that goes down sends) or SIGUSR1 (which Slurm is asked to send ahead of the time
/// limit), once it has come.
#[derive(Debug, Clone)]
pub struct Stop(Arc<AtomicUsize>);

impl Stop {
    /// The exit code of a program that Ctrl-C ended.
    pub const INTERRUPTED: u8 = 130;
    /// `EX_TEMPFAIL` of sysexits.h: nothing is wrong, start the same command again.
    pub const REQUEUE: u8 = 75;

    /// Takes the signals over for the rest of the process.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn on_signals() -> io::Result<Self> {
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGINT, SIGTERM, SIGUSR1] {
            signal_hook::flag::register_usize(number, Arc::clone(&signal), number as usize)?;
        }
        Ok(Self(signal))
    }

    /// Whether to end.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// Whether it was asked by SIGUSR1, which Slurm sends ahead of the time limit.
    pub fn is_out_of_time(&self) -> bool {
        self.0.load(Ordering::Relaxed) == SIGUSR1 as usize
    }

    /// As if SIGTERM had come.
    pub fn ask(&self) {
        self.0.store(SIGTERM as usize, Ordering::Relaxed);
    }

    /// The exit code of a process that was stopped, or whose workers were.
    pub fn exit_code(&self) -> u8 {
        if self.0.load(Ordering::Relaxed) == SIGINT as usize { Self::INTERRUPTED } else { Self::REQUEUE }
    }
}
