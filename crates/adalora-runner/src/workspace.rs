//! Where experiments, manifests and runs lie.

use std::path::{Path, PathBuf};

use adalora_tasks::Catalogue;
use anyhow::{Context, Result, bail};

/// A folder with `experiments` and `datasets` in it.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The workspace that the current folder is in.
    ///
    /// # Errors
    ///
    /// If neither this folder nor one above it is a workspace.
    pub fn find() -> Result<Self> {
        let here = std::env::current_dir().context("the current folder cannot be read")?;
        match here.ancestors().find(|folder| folder.join("datasets").is_dir()) {
            // Relative where that is shorter to read: paths are shown to the user.
            Some(root) if root == here => Ok(Self { root: PathBuf::from(".") }),
            Some(root) => Ok(Self { root: root.to_owned() }),
            None => bail!(
                "{} is not in an adalora workspace: neither it nor a folder above it has a `datasets` folder",
                here.display()
            ),
        }
    }

    /// Experiment files.
    pub fn experiments(&self) -> PathBuf {
        self.join("experiments")
    }

    /// Run folders of an experiment.
    pub fn runs(&self, experiment: &str) -> PathBuf {
        self.join("runs").join(experiment)
    }

    /// Data sets and checkpoints.
    ///
    /// # Errors
    ///
    /// A manifest that is malformed.
    pub fn catalogue(&self) -> Result<Catalogue> {
        Ok(Catalogue::of_workspace(&self.root)?)
    }

    fn join(&self, name: &str) -> PathBuf {
        if self.root == Path::new(".") { PathBuf::from(name) } else { self.root.join(name) }
    }
}
