//! A workspace of its own for each test, in which the program is run as a user runs it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A temporary folder with `datasets` and `experiments`.
pub(crate) struct Workspace(tempfile::TempDir);

impl Workspace {
    /// A workspace with one experiment.
    pub(crate) fn new(name: &str, experiment: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("datasets")).unwrap();
        fs::create_dir(folder.path().join("experiments")).unwrap();
        let workspace = Self(folder);
        workspace.write(name, experiment);
        workspace
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(&format!("experiments/{name}.toml")), text).unwrap();
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adalora"));
        command.current_dir(self.0.path()).args(arguments).env_remove("ADALORA_MATERIALS");
        command
    }

    pub(crate) fn adalora(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn assert_code(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout:\n{}\nstderr:\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}
