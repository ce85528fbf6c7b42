//! Manifests by name, and the folders that their files live in.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::TaskError;
use crate::fetch::marker;
use crate::manifest::{DataFormat, Manifest, Source, is_repository};

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

    /// What is known about `name`, which may also be the repository on the hub that a checkpoint comes from. The error
    /// lists names that look like it.
    pub fn manifest(&self, name: &str) -> Result<&Manifest, TaskError> {
        self.key(name).map(|key| &self.manifests[key]).ok_or_else(|| self.unknown(name))
    }

    /// Whether [`fetch`](Self::fetch) can bring `name` onto the disk by itself.
    pub fn can_fetch(&self, name: &str) -> bool {
        let fetched = |source| !matches!(source, Source::Folder(_));
        self.manifest(name).is_ok_and(|manifest| manifest.sources.iter().any(fetched))
    }

    /// How the data set `name` is read, with its target and evaluation. Nothing needs to be fetched for this.
    pub fn data(&self, name: &str) -> Result<DataFormat, TaskError> {
        self.manifest(name)?.data().ok_or_else(|| TaskError::NotData(name.into()))
    }

    /// The folder of the checkpoint `name`, in Hugging Face's layout: a manifest's, or a repository's on the hub
    /// (`OWNER/NAME`). An error if it is not fetched.
    pub fn checkpoint(&self, name: &str) -> Result<PathBuf, TaskError> {
        if self.key(name).is_none() && is_repository(name) {
            let folder = self.materials.join(name);
            return if folder.join("config.json").is_file() {
                Ok(folder)
            } else {
                Err(self.not_fetched(name))
            };
        }
        match self.manifest(name)?.data() {
            None => Ok(self.locate(name)?.folder),
            Some(_) => Err(TaskError::NotCheckpoint(name.into())),
        }
    }

    /// Where the files of `name` are: in the first of its sources that has them. An error if none has.
    pub(crate) fn locate(&self, name: &str) -> Result<Located<'_>, TaskError> {
        let manifest = self.manifest(name)?;
        let mut missing = None;
        for source in manifest.sources.iter() {
            let folder = match source {
                Source::Folder(provided) => self.materials.join(&provided.path),
                Source::Wheel(_) | Source::Hub(_) => self.fetched_folder(name),
            };
            let lacks = || manifest.lacks(source, &folder);
            let marker = marker(&folder);
            let (found, provided) = match source {
                Source::Wheel(wheel) => (marker.is_some_and(|marker| marker == wheel.sha256), false),
                // What has no marker was put there by hand.
                Source::Hub(hub) => (
                    marker.as_ref().is_none_or(|marker| *marker == hub.marker()) && lacks().is_empty(),
                    marker.is_none(),
                ),
                Source::Folder(_) => (lacks().is_empty(), true),
            };
            if found {
                return Ok(Located { source, folder, provided });
            }
            if let Source::Folder(provided) = source {
                missing = Some((lacks(), folder, provided.how.clone()));
            }
        }
        Err(match missing {
            None => self.not_fetched(name),
            Some((files, folder, how)) if self.can_fetch(name) => {
                TaskError::NotThere { name: name.into(), files, folder, how }
            }
            Some((files, folder, how)) => TaskError::NotProvided { name: name.into(), files, folder, how },
        })
    }

    /// Data sets that are read from a repository of the hub.
    pub(crate) fn data_from(&self, repository: &str) -> impl Iterator<Item = &str> {
        let reads = move |manifest: &Manifest| manifest.data().is_some() && is_from(manifest, repository);
        self.manifests.iter().filter(move |(_, manifest)| reads(manifest)).map(|(name, _)| name.as_str())
    }

    /// The manifest that `name` means: its own name, or a checkpoint's repository on the hub.
    pub(crate) fn key(&self, name: &str) -> Option<&str> {
        let (key, _) = self.manifests.get_key_value(name).or_else(|| {
            let is_meant = |manifest: &Manifest| manifest.data().is_none() && is_from(manifest, name);
            self.manifests.iter().find(|(_, manifest)| is_meant(manifest))
        })?;
        Some(key)
    }

    /// Where what is fetched for a manifest is put.
    pub(crate) fn fetched_folder(&self, name: &str) -> PathBuf {
        self.materials.join(self.key(name).unwrap_or(name))
    }

    pub(crate) fn unknown(&self, name: &str) -> TaskError {
        TaskError::UnknownName { name: name.into(), near: self.names_near(name) }
    }

    fn not_fetched(&self, name: &str) -> TaskError {
        TaskError::NotFetched { name: name.into(), folder: self.materials.clone() }
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

/// Whether a manifest names this repository of the hub.
fn is_from(manifest: &Manifest, repository: &str) -> bool {
    manifest.sources.iter().any(|source| matches!(source, Source::Hub(hub) if hub.repository == repository))
}

/// Files of a manifest that are there.
#[derive(Debug)]
pub(crate) struct Located<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) folder: PathBuf,
    /// Whether the user put them there.
    pub(crate) provided: bool,
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
            catalogue.data("nyu-mll/glue").expect_err("no name of a data set"),
            catalogue.checkpoint("deberta-v3-small").expect_err("not fetched"),
            catalogue.checkpoint("microsoft/deberta-v3-small").expect_err("not fetched"),
            catalogue.checkpoint("somebody/something").expect_err("not fetched"),
            catalogue.locate("mrpc").expect_err("neither fetched nor provided"),
            catalogue.locate("mnli").expect_err("not fetched"),
            Catalogue::open(Path::new("no-such-folder"), Path::new("MATERIALS")).expect_err("no folder"),
        ];
        insta::assert_snapshot!(errors.map(|error| error.to_string()).join("\n"));
    }
}
