//! Where a run comes from: program, libraries, machine, files; and what must not change while it is away.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use adalora_models::Settled;
use adalora_report::SETTINGS_FILE;
use adalora_tasks::{Dataset, FileHash};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::experiment::RunSpec;
use crate::plan::Plan;

/// The program, as it was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Version of adalora.
    #[serde(rename = "adalora")]
    pub version: String,
    /// Git's commit, where it was built from a repository.
    pub commit: Option<String>,
    /// Whether the sources differed from that commit.
    pub modified: Option<bool>,
    /// SHA-256 over the sources and the lock file.
    pub source: String,
    /// `debug` or `release`, which may round differently.
    pub profile: String,
}

impl Program {
    /// This one.
    pub fn own() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("ADALORA_COMMIT").map(Into::into),
            modified: option_env!("ADALORA_MODIFIED").map(|modified| modified == "true"),
            source: env!("ADALORA_SOURCE").into(),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
        }
    }

    /// Whether both compute the same.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.source, &self.profile) == (&other.source, &other.profile)
    }

    /// In a few words.
    pub fn describe(&self) -> String {
        let commit = self.commit.as_deref().map_or("unknown", short);
        let modified = if self.modified == Some(true) { ", modified" } else { "" };
        let source = short(&self.source);
        format!("{} of commit {commit}{modified} ({} build, sources {source})", self.version, self.profile)
    }
}

/// The start of a hash, or of what a checkpoint has in the place of one.
fn short(hash: &str) -> &str {
    hash.char_indices().nth(10).map_or(hash, |(end, _)| &hash[..end])
}

/// What a process that goes on with a run must have in common with the one that began it, for the result to be the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// `resolved.toml`.
    pub settings: String,
    /// The program.
    pub program: Program,
    /// `cpu` or `cuda`.
    pub device: String,
    /// The encoder's dtype, which `precision = "auto"` leaves to the machine.
    pub precision: Settled,
    /// Everything that was read.
    pub files: Vec<FileHash>,
}

impl Origin {
    /// What has changed since, each in a few words.
    pub fn changes(&self, now: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        if let Some((then, now)) = changed_setting(&self.settings, &now.settings) {
            changes.push(format!("a setting was `{then}` and is now `{now}`"));
        }
        if !self.program.is_same(&now.program) {
            let (then, now) = (self.program.describe(), now.program.describe());
            changes.push(format!("it was begun by adalora {then}, this is {now}"));
        }
        if self.device != now.device {
            changes.push(format!("it was begun on {}, this is {}", self.device, now.device));
        }
        // Folders may differ from one machine to another, and files of several folders share a name.
        let by_name = |files: &[FileHash]| {
            let mut hashes = BTreeMap::<String, Vec<String>>::new();
            for FileHash { file, sha256 } in files {
                let name = file.rsplit('/').next().unwrap_or(file).to_owned();
                hashes.entry(name).or_default().push(sha256.clone());
            }
            hashes
        };
        let (then, now) = (by_name(&self.files), by_name(&now.files));
        for name in then.keys().chain(now.keys().filter(|name| !then.contains_key(*name))) {
            let shown = |hashes: Option<&Vec<String>>| {
                let hashes: Vec<_> = hashes.into_iter().flatten().map(|hash| short(hash)).collect();
                if hashes.is_empty() { "none".to_owned() } else { hashes.join(" and ") }
            };
            if then.get(name) != now.get(name) {
                let (then, now) = (shown(then.get(name)), shown(now.get(name)));
                changes.push(format!("{name} had the hash {then} and now has {now}"));
            }
        }
        changes
    }
}

/// A line of settings that differs, as it was and as it is.
pub fn changed_setting(then: &str, now: &str) -> Option<(String, String)> {
    let changed = |text: &str, other: &str| {
        let line = text.lines().find(|line| !other.lines().any(|own| own == *line));
        line.unwrap_or("(absent)").to_owned()
    };
    (then != now).then(|| (changed(then, now), changed(now, then)))
}

/// A process that has worked on a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Finished optimizer steps when it began.
    pub from_step: usize,
    /// Name of the machine.
    pub host: String,
    /// Its processor: another one may round differently.
    pub cpu: String,
    /// `cpu`, `cuda:0` and so on.
    pub device: String,
    /// What had changed since the run was begun, where `--force` overrode it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub forced: Vec<String>,
}

impl Attempt {
    /// One by this process.
    pub fn new(from_step: usize, device: &str, forced: Vec<String>) -> Self {
        Self { from_step, host: host(), cpu: cpu(), device: device.into(), forced }
    }
}

/// `provenance.json`
#[derive(Debug, Serialize)]
pub struct Provenance<'a> {
    /// SHA-256 of `resolved.toml`.
    pub identity: String,
    /// The program.
    #[serde(flatten)]
    pub program: &'a Program,
    /// Version of the crate that binds libtorch.
    pub tch: &'static str,
    /// Version of the libtorch that was loaded.
    pub libtorch: Option<String>,
    /// CPU threads of the run.
    pub threads: usize,
    /// The encoder's dtype.
    pub precision: Settled,
    /// Everything that was read.
    pub files: &'a [FileHash],
    /// Parameters of the head that the checkpoint lacks.
    pub drawn: &'a [String],
    /// The processes that have worked on the run.
    pub attempts: &'a [Attempt],
    /// Wall time of training so far, in seconds.
    pub wall_seconds: f64,
    /// Largest resident memory so far, in bytes.
    pub peak_rss_bytes: u64,
}

/// Version of the crate that binds libtorch.
pub const TCH: &str = env!("ADALORA_TCH");

/// Version of the libtorch that this process has loaded, from what lies beside it: the record of a Python package, or the
/// file `build-version` of PyTorch's archives.
pub fn libtorch() -> Option<String> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let library = maps.lines().find_map(|line| {
        let path = &line[line.find('/')?..];
        path.ends_with("/libtorch_cpu.so").then_some(path)
    })?;
    let root = Path::new(library).parent()?.parent()?;
    let package = fs::read_dir(root.parent()?).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_prefix("torch-")?.strip_suffix(".dist-info")?.to_owned())
    });
    package.or_else(|| Some(fs::read_to_string(root.join("build-version")).ok()?.trim().to_owned()))
}

/// Name of this machine.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("unknown", |(_, model)| model).to_owned()
}

/// Hashes of everything that was read.
///
/// # Errors
///
/// A file of the checkpoint, the rank pattern or the run to start from that cannot be read.
pub fn hashes(spec: &RunSpec, plan: &Plan, dataset: &Dataset) -> Result<Vec<FileHash>> {
    let mut files = dataset.files.clone();
    let mut paths: Vec<PathBuf> = spec.adapter.ranks().map(PathBuf::from).into_iter().collect();
    if let Some(warm_start) = &spec.warm_start {
        let run = Path::new(&warm_start.run);
        let files = [SETTINGS_FILE, "adapter/adapter_config.json", "adapter/adapter_model.safetensors"];
        paths.extend(files.map(|name| run.join(name)));
    }
    if let Some(checkpoint) = &plan.checkpoint {
        paths.extend([checkpoint.join("config.json"), adalora_models::tensors_file(checkpoint)?]);
    }
    for path in paths {
        files.push(hash(&path)?);
    }
    Ok(files)
}

/// A file with its hash.
pub(crate) fn hash(path: &Path) -> Result<FileHash> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let sha256 = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(FileHash { file: path.display().to_string(), sha256 })
}

/// Largest resident memory of this process so far, in bytes.
///
/// # Errors
///
/// If the system does not tell.
pub fn peak_rss() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM in /proc/self/status")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmHWM")?;
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        let file = |file: &str, sha256: &str| FileHash { file: file.into(), sha256: sha256.into() };
        Origin {
            settings: "seed = 1\nlr = 0.1\n".into(),
            program: Program::own(),
            device: "cpu".into(),
            precision: Settled::F32,
            files: vec![
                file("data/train.tsv", "aa"),
                file("/here/config.json", "bb"),
                file("/warm/config.json", "dd"),
            ],
        }
    }

    #[test]
    fn what_has_changed_is_named() {
        let mut now = origin();
        now.files[1].file = "/there/config.json".into();
        assert_eq!(origin().changes(&now), Vec::<String>::new());
        now.settings = now.settings.replace("0.1", "0.2");
        now.device = "cuda".into();
        now.files[0].sha256 = "cc".into();
        now.files.remove(2);
        assert_eq!(
            origin().changes(&now),
            [
                "a setting was `lr = 0.1` and is now `lr = 0.2`",
                "it was begun on cpu, this is cuda",
                "config.json had the hash bb and dd and now has bb",
                "train.tsv had the hash aa and now has cc",
            ]
        );
        let mut other = origin();
        other.program.source = "0123456789abcdef".into();
        let changes = other.changes(&origin());
        assert!(changes.len() == 1 && changes[0].contains("sources 0123456789)"), "{changes:?}");
    }

    #[test]
    fn this_program_and_its_libtorch_have_versions() {
        // Some call into libtorch, so that it is loaded.
        assert_eq!(tch::Tensor::from(1.0).numel(), 1);
        assert!(libtorch().is_some_and(|version| version.starts_with("2.11")), "{:?}", libtorch());
        assert_eq!((Program::own().source.len(), TCH), (64, "0.24.0"));
    }
}
