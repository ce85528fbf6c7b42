//! What the program is built from, for the provenance of its runs: a hash of the sources, and git's commit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // Whole folders: a file that is added changes the program as well.
    let mut watched = vec![root.join("Cargo.toml"), root.join("Cargo.lock")];
    for entry in fs::read_dir(root.join("crates")).expect("the workspace has crates").flatten() {
        watched.extend([entry.path().join("Cargo.toml"), entry.path().join("src")]);
    }
    let mut files = Vec::new();
    for path in &watched {
        println!("cargo:rerun-if-changed={}", path.display());
        collect(path, &mut files);
    }
    files.sort();
    let mut hash = Sha256::new();
    for path in files {
        let name = path.strip_prefix(&root).expect("it was found below the root").to_string_lossy();
        let bytes = fs::read(&path).expect("a source can be read");
        hash.update(format!("{name}\0{}\0", bytes.len()));
        hash.update(bytes);
    }
    let source: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo:rustc-env=ADALORA_SOURCE={source}");

    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(&root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    if let Some(commit) = git(&["rev-parse", "HEAD"]) {
        println!("cargo:rustc-env=ADALORA_COMMIT={commit}");
        let changes = git(&["status", "--porcelain", "--", "crates", "Cargo.toml", "Cargo.lock"]);
        println!("cargo:rustc-env=ADALORA_MODIFIED={}", changes.is_none_or(|changes| !changes.is_empty()));
    }
    // It grows with each commit, checkout and reset.
    let log = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]);
    if let Some(log) = log.filter(|log| Path::new(log).is_file()) {
        println!("cargo:rerun-if-changed={log}");
    }

    let lock = fs::read_to_string(root.join("Cargo.lock")).expect("the workspace has a lock file");
    let tch = lock.split("[[package]]").find(|package| package.contains("\nname = \"tch\"\n"));
    let version = tch.and_then(|package| package.split("version = \"").nth(1)?.split('"').next());
    println!("cargo:rustc-env=ADALORA_TCH={}", version.expect("the lock file names tch"));
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a source folder can be read").flatten() {
            collect(&entry.path(), files);
        }
    } else {
        files.push(path.to_owned());
    }
}
