//! The adapter of a finished run in the formats that others load.

use std::path::Path;

use adalora_adapter::{Increment, PeftAdapter};
use anyhow::{Context, Result, ensure};

use crate::finished::FinishedRun;
use crate::merge::new_folder;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// PEFT's AdaLoRA: only live triplets, and a pattern that says which ones.
    AdaLora,
    /// LoRA with the rank and scale of each module, for whoever knows nothing of AdaLoRA.
    Lora {
        /// Whether all have one rank, filled with zeros.
        padded: bool,
    },
}

/// Writes the adapter into `out`, which is created, and returns the ranks of its modules.
///
/// # Errors
///
/// A method that PEFT has no type for; a format that does not fit; a file that cannot be read or written.
pub fn export(run: &FinishedRun, out: &Path, format: Format) -> Result<Vec<usize>> {
    let adapter = &run.spec().adapter;
    ensure!(
        adapter.form().is_some(),
        "PEFT has no type for [adapter.{}]: `adalora merge` writes full and bitfit as a checkpoint",
        adapter.name()
    );
    let folder = run.adapter();
    let own = PeftAdapter::open(&folder)?;
    let exported = match format {
        Format::AdaLora => own.into_adalora(),
        Format::Lora { padded } => own.into_lora(padded),
    };
    let exported = exported.with_context(|| folder.display().to_string())?;
    new_folder(out)?;
    exported.save(out)?;
    Ok(exported.increments().values().map(Increment::rank).collect())
}
