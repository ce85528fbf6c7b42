//! The Hugging Face hub: files of repositories, by way of the cache that all of Hugging Face's tools share.
//!
//! Addresses, names and the layout of the cache are those of hf-hub. Its own download is not used: as of 0.5 it hands
//! the token to every host that it is redirected to, appends a whole file to the first part of it where a server
//! ignores ranges, and never compares a hash.

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::{Cache, Repo, RepoType};
use sha1::{Digest, Sha1};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use crate::error::{HubProblem, TaskError};
use crate::fetch::{hex, sha256_of_file};

const PUBLIC: &str = "https://huggingface.co";

/// How to reach the hub, and where its files are kept.
pub struct Hub {
    endpoint: String,
    cache: Cache,
    token: Option<String>,
    offline: bool,
    agent: Agent,
    progress: Box<dyn Fn(Progress)>,
}

/// How far a download is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file's path in its repository.
    pub file: &'a str,
    /// Bytes that are there.
    pub done: u64,
    /// Bytes of the whole file.
    pub size: u64,
}

impl Hub {
    /// As the environment says, in Hugging Face's words: `HF_ENDPOINT`, `HF_HUB_CACHE` or else `HF_HOME`, `HF_TOKEN` or
    /// else the file that `hf auth login` writes, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_variables(|name| env::var(name).ok())
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Self {
        let get =
            |name: &str| get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let path = |name: &str| get(name).map(PathBuf::from);
        let home = path("HF_HOME").unwrap_or_else(|| {
            let caches = path("XDG_CACHE_HOME");
            caches.unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".cache")).join("huggingface")
        });
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let in_file = || {
            let token = fs::read_to_string(token_file).ok()?.trim().to_owned();
            (!token.is_empty()).then_some(token)
        };
        let offline = get("HF_HUB_OFFLINE").unwrap_or_default().to_lowercase();
        Self {
            token: get("HF_TOKEN").or_else(in_file),
            offline: ["1", "true", "yes", "on"].contains(&offline.as_str()),
            ..Self::at(
                &get("HF_ENDPOINT").unwrap_or_else(|| PUBLIC.into()),
                &path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            )
        }
    }

    /// The hub at this address with this folder as its cache, whatever the environment says. No token is sent.
    pub fn at(endpoint: &str, cache: &Path) -> Self {
        let config = Agent::config_builder()
            // Redirects are followed here, since the token must not.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            // The size of what comes must be the file's.
            .accept_encoding("identity")
            .user_agent(concat!("adalora/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            // Links lead there from other folders.
            cache: Cache::new(std::path::absolute(cache).unwrap_or_else(|_| cache.into())),
            token: None,
            offline: false,
            agent: config.build().into(),
            progress: Box::new(|_| {}),
        }
    }

    /// Sends this token, to the hub's own host alone.
    pub fn with_token(self, token: &str) -> Self {
        Self { token: Some(token.into()), ..self }
    }

    /// Uses what is in the cache and opens no connection.
    pub fn offline(self) -> Self {
        Self { offline: true, ..self }
    }

    /// Tells `progress` at the start of each download, and while it goes on.
    pub fn on_progress(self, progress: impl Fn(Progress) + 'static) -> Self {
        Self { progress: Box::new(progress), ..self }
    }

    /// The repository `OWNER/NAME` at one commit, to which a branch or tag is resolved. `by_hand` ends the errors of
    /// those who are not connected: where to put which files instead.
    pub(crate) fn repository(
        &self,
        kind: RepoType,
        id: &str,
        revision: &str,
        by_hand: String,
    ) -> Result<Repository<'_>, TaskError> {
        let repo = Repo::with_revision(id.into(), kind, revision.into());
        let mut repository = Repository { hub: self, id: id.into(), repo, by_hand, info: None };
        if !is_commit(revision) {
            let commit = repository.commit_of(revision)?;
            repository.repo = Repo::with_revision(id.into(), kind, commit);
        }
        Ok(repository)
    }

    /// Sends a request that may be redirected; the token goes to the hub's own host alone.
    fn get(&self, url: &Uri, from: u64) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        if let Some(authorization) = self.authorization(url) {
            request = request.header("authorization", authorization);
        }
        request.call()
    }

    fn head(&self, url: &Uri) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.head(url);
        if let Some(authorization) = self.authorization(url) {
            request = request.header("authorization", authorization);
        }
        request.call()
    }

    fn authorization(&self, url: &Uri) -> Option<String> {
        let endpoint: Uri = self.endpoint.parse().ok()?;
        let ours = (url.scheme(), url.authority()) == (endpoint.scheme(), endpoint.authority());
        self.token.as_ref().filter(|_| ours).map(|token| format!("Bearer {token}"))
    }
}

impl fmt::Debug for Hub {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, cache, offline, .. } = self;
        f.debug_struct("Hub")
            .field("endpoint", endpoint)
            .field("cache", cache.path())
            .field("offline", offline)
            .finish_non_exhaustive()
    }
}

/// A repository of the hub at one commit.
pub(crate) struct Repository<'a> {
    hub: &'a Hub,
    id: String,
    /// Its revision is a commit.
    repo: Repo,
    by_hand: String,
    /// What the hub said of it, if it was asked.
    info: Option<RepoInfo>,
}

/// What the hub says of a file.
struct Remote {
    /// Sha256, or for small files git's sha1, in lower-case hexadecimal.
    hash: String,
    size: u64,
}

impl Repository<'_> {
    pub(crate) fn commit(&self) -> &str {
        self.repo.revision()
    }

    /// All its files, or those in the cache if the hub must not be asked.
    pub(crate) fn files(&mut self) -> Result<Vec<String>, TaskError> {
        if self.hub.offline {
            let snapshot = self.cached("");
            return match fs::read_dir(&snapshot) {
                Err(_) => Err(self.error(HubProblem::Offline { missing: "this repository".into() })),
                Ok(entries) => entries
                    .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                    .collect::<io::Result<_>>()
                    .map_err(TaskError::io(&snapshot)),
            };
        }
        if self.info.is_none() {
            self.info = Some(self.ask()?);
        }
        let info = self.info.as_ref().expect("asked for above");
        Ok(info.siblings.iter().map(|sibling| sibling.rfilename.clone()).collect())
    }

    /// The path of a file in the cache, where it is put if it is not there. Its hash is the one that the hub names, and
    /// `sha256` if that is given.
    pub(crate) fn fetch(&self, file: &str, sha256: Option<&str>) -> Result<PathBuf, TaskError> {
        let cached = self.cached(file);
        if !self.is_whole(&cached)? {
            if self.hub.offline {
                return Err(self.error(HubProblem::Offline { missing: format!("`{file}`") }));
            }
            self.download(file, &cached)?;
        }
        if let Some(expected) = sha256 {
            let found = match blob_of(&cached) {
                Some((_, hash)) if hash.len() == 64 => hash,
                _ => sha256_of_file(&cached)?,
            };
            if found != expected {
                let (file, expected) = (file.into(), expected.into());
                return Err(self.error(HubProblem::OtherFile { file, expected, found }));
            }
        }
        Ok(cached)
    }

    /// Where a file of this commit is in the cache.
    fn cached(&self, file: &str) -> PathBuf {
        self.hub.cache.repo(self.repo.clone()).pointer_path(self.commit()).join(file)
    }

    /// Whether a link of the cache leads to a file that has the hash in its name.
    fn is_whole(&self, cached: &Path) -> Result<bool, TaskError> {
        blob_of(cached).map_or(Ok(false), |(blob, hash)| has_hash(&blob, &hash))
    }

    fn download(&self, file: &str, cached: &Path) -> Result<(), TaskError> {
        let url =
            format!("{}/{}/resolve/{}/{file}", self.hub.endpoint, self.repo.url(), self.repo.url_revision());
        let url = self.parse(&url)?;
        let remote = self.look_up(file, &url)?;
        let blob = self.hub.cache.repo(self.repo.clone()).blob_path(&remote.hash);
        let blobs = blob.parent().expect("a blob lies in a folder");
        fs::create_dir_all(blobs).map_err(TaskError::io(blobs))?;
        // hf-hub's own names for both, so that its users and we do not write into one file.
        let (lock, part) = (blob.with_extension("lock"), blob.with_extension("part"));
        let locked = File::create(&lock).map_err(TaskError::io(&lock))?;
        locked.lock().map_err(TaskError::io(&lock))?;
        if !(blob.exists() && has_hash(&blob, &remote.hash)?) {
            self.transfer(file, &url, &part, remote.size)?;
            if !has_hash(&part, &remote.hash)? {
                fs::remove_file(&part).map_err(TaskError::io(&part))?;
                return Err(self.error(HubProblem::Corrupted { file: file.into(), expected: remote.hash }));
            }
            fs::rename(&part, &blob).map_err(TaskError::io(&blob))?;
        }
        link(&blob, cached)
    }

    /// Asks for a file's hash and size.
    fn look_up(&self, file: &str, url: &Uri) -> Result<Remote, TaskError> {
        let mut url = url.clone();
        let (mut hash, mut size) = (None, None);
        for _ in 0..REDIRECTS {
            let response = self.hub.head(&url).map_err(|error| self.unreachable(&error))?;
            let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
            // Behind the redirect of a large file is another server, with tags of its own.
            let redirected = response.status().is_redirection();
            let tag = header("x-linked-etag").or_else(|| header("etag").filter(|_| !redirected));
            hash = hash.or(tag.map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned()));
            let length = header("x-linked-size").or_else(|| header("content-length").filter(|_| !redirected));
            size = size.or(length.and_then(|length| length.parse().ok()));
            match redirect(&url, &response) {
                Some(next) if hash.is_none() || size.is_none() => url = next,
                _ if redirected => break,
                _ => {
                    self.check_status(&response, Some(file))?;
                    break;
                }
            }
        }
        match (hash.filter(|hash| is_hash(hash)), size) {
            (Some(hash), Some(size)) => Ok(Remote { hash, size }),
            _ => Err(self.error(HubProblem::NotAHub { url: url.to_string() })),
        }
    }

    /// Brings `part` to its full size, from where it was left. While something comes, a lost connection is opened again.
    fn transfer(&self, file: &str, url: &Uri, part: &Path, size: u64) -> Result<(), TaskError> {
        let open = File::options().create(true).read(true).write(true).truncate(false).open(part);
        let mut out = open.map_err(TaskError::io(part))?;
        let mut done = out.metadata().map_err(TaskError::io(part))?.len();
        for _ in 0..ATTEMPTS {
            if done == size {
                return Ok(());
            }
            let from = if done < size { done } else { 0 };
            let (reached, lost) = self.attempt(file, url, &mut out, part, from, size)?;
            done = reached;
            match lost {
                // If too much came, the hash will show it.
                None if done >= size => return Ok(()),
                lost if done <= from => {
                    let reason = lost.unwrap_or_else(|| "the server ended it".into());
                    return Err(self.error(HubProblem::BrokenOff { file: file.into(), done, size, reason }));
                }
                _ => {}
            }
        }
        let reason = format!("{ATTEMPTS} times");
        Err(self.error(HubProblem::BrokenOff { file: file.into(), done, size, reason }))
    }

    /// Writes what comes of a file, from byte `from` on if the server can do that. Returns how far it came, and why it
    /// did not come further if the connection was lost.
    fn attempt(
        &self,
        file: &str,
        url: &Uri,
        out: &mut File,
        part: &Path,
        from: u64,
        size: u64,
    ) -> Result<(u64, Option<String>), TaskError> {
        let mut url = url.clone();
        let mut response = None;
        for _ in 0..REDIRECTS {
            let answer = match self.hub.get(&url, from) {
                Ok(answer) => answer,
                Err(error) if from > 0 => return Ok((from, Some(error.to_string()))),
                Err(error) => return Err(self.unreachable(&error)),
            };
            match redirect(&url, &answer) {
                Some(next) => url = next,
                None => {
                    response = Some(answer);
                    break;
                }
            }
        }
        let response = response.ok_or_else(|| self.error(HubProblem::NotAHub { url: url.to_string() }))?;
        self.check_status(&response, Some(file))?;
        let resumed = response.status() == 206 && starts_at(response.headers(), from);
        let mut done = if resumed { from } else { 0 };
        out.set_len(done).and_then(|()| out.seek(SeekFrom::Start(done))).map_err(TaskError::io(part))?;
        let mut body = response.into_body().into_reader();
        let mut block = vec![0; 1 << 16];
        loop {
            (self.hub.progress)(Progress { file, done, size });
            match body.read(&mut block) {
                Ok(0) => return Ok((done, None)),
                Ok(read) => {
                    out.write_all(&block[..read]).map_err(TaskError::io(part))?;
                    done += read as u64;
                }
                Err(error) => return Ok((done, Some(error.to_string()))),
            }
        }
    }

    /// The commit that a branch or tag stands for.
    fn commit_of(&mut self, revision: &str) -> Result<String, TaskError> {
        let cache = self.hub.cache.repo(self.repo.clone());
        if self.hub.offline {
            let path = self.hub.cache.path().join(self.repo.folder_name()).join("refs").join(revision);
            let commit = fs::read_to_string(path).ok().filter(|commit| is_commit(commit));
            let missing = || HubProblem::Offline { missing: format!("revision `{revision}`") };
            return commit.ok_or_else(|| self.error(missing()));
        }
        let info = self.ask()?;
        let commit = info.sha.clone();
        cache.create_ref(&commit).map_err(TaskError::io(self.hub.cache.path()))?;
        self.info = Some(info);
        Ok(commit)
    }

    /// What the hub says of the repository at its revision.
    fn ask(&self) -> Result<RepoInfo, TaskError> {
        let mut url = self.parse(&format!("{}/api/{}", self.hub.endpoint, self.repo.api_url()))?;
        for _ in 0..REDIRECTS {
            let mut response = self.hub.get(&url, 0).map_err(|error| self.unreachable(&error))?;
            // Of a repository that has moved.
            if let Some(next) = redirect(&url, &response) {
                url = next;
                continue;
            }
            self.check_status(&response, None)?;
            let text = response.body_mut().read_to_string().map_err(|error| self.unreachable(&error))?;
            let info = serde_json::from_str(&text).ok().filter(|info: &RepoInfo| is_commit(&info.sha));
            return info.ok_or_else(|| self.error(HubProblem::NotAHub { url: url.to_string() }));
        }
        Err(self.error(HubProblem::NotAHub { url: url.to_string() }))
    }

    fn check_status(&self, response: &Response<Body>, file: Option<&str>) -> Result<(), TaskError> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let code =
            response.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
        let page = format!("{}/{}", self.hub.endpoint, self.repo.url());
        Err(self.error(match (status.as_u16(), code) {
            (404, "RevisionNotFound") => HubProblem::NoRevision { revision: self.repo.revision().into() },
            (404, "EntryNotFound") => {
                HubProblem::NoFile { file: file.unwrap_or_default().into(), revision: self.commit().into() }
            }
            (403, _) | (_, "GatedRepo") => HubProblem::Gated { page },
            (401 | 404, _) if self.hub.token.is_some() => HubProblem::NotFoundWithToken { page },
            (401 | 404, _) => HubProblem::NotFound { page },
            (status, _) => HubProblem::Status { status },
        }))
    }

    fn parse(&self, url: &str) -> Result<Uri, TaskError> {
        let parsed = url.parse().ok().filter(|url: &Uri| url.authority().is_some());
        parsed.ok_or_else(|| self.error(HubProblem::BadAddress { url: url.into() }))
    }

    fn unreachable(&self, error: &ureq::Error) -> TaskError {
        let (endpoint, reason) = (self.hub.endpoint.clone(), error.to_string());
        self.error(HubProblem::Unreachable { endpoint, reason })
    }

    pub(crate) fn error(&self, problem: HubProblem) -> TaskError {
        TaskError::Hub { repository: self.id.clone(), problem, by_hand: self.by_hand.clone() }
    }
}

/// Redirects after which an address leads nowhere.
const REDIRECTS: usize = 10;
/// Connections for one file, if each brings something.
const ATTEMPTS: usize = 5;

/// Where an answer sends us.
fn redirect(from: &Uri, response: &Response<Body>) -> Option<Uri> {
    if !response.status().is_redirection() {
        return None;
    }
    let location = response.headers().get("location")?.to_str().ok()?;
    let here = format!("{}://{}", from.scheme()?, from.authority()?);
    let absolute = if location.starts_with('/') { here + location } else { location.into() };
    absolute.parse().ok().filter(|uri: &Uri| uri.authority().is_some())
}

/// Whether `Content-Range` says that a body begins at this byte.
fn starts_at(headers: &HeaderMap, byte: u64) -> bool {
    let range = headers.get("content-range").and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {byte}-")))
}

fn is_hex(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && is_hex(revision)
}

/// Of the kinds that the hub names files by.
fn is_hash(text: &str) -> bool {
    [40, 64].contains(&text.len()) && is_hex(text)
}

/// The file that a link of the cache leads to, and the hash that is its name.
fn blob_of(link: &Path) -> Option<(PathBuf, String)> {
    let blob = fs::canonicalize(link).ok()?;
    let hash = blob.file_name()?.to_str().filter(|name| is_hash(name))?.to_owned();
    Some((blob, hash))
}

/// Whether a file has this sha256, or, if it is shorter, this sha1 as git computes it.
fn has_hash(path: &Path, hash: &str) -> Result<bool, TaskError> {
    if hash.len() == 64 {
        return Ok(sha256_of_file(path)? == hash);
    }
    // Only small files have it.
    let content = fs::read(path).map_err(TaskError::io(path))?;
    let git = Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(&content);
    Ok(hex(&git.finalize()) == hash)
}

/// Makes `link` lead to `blob`, both in the cache, by a path that stays valid when the cache is moved.
fn link(blob: &Path, link: &Path) -> Result<(), TaskError> {
    let folder = link.parent().expect("a link lies in a folder");
    fs::create_dir_all(folder).map_err(TaskError::io(folder))?;
    let shared = folder.components().zip(blob.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    let target: PathBuf = up.chain(blob.components().skip(shared)).collect();
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(TaskError::io(link)(error)),
        _ => std::os::unix::fs::symlink(target, link).map_err(TaskError::io(link)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tempfile::TempDir;

    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Hub {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Hub::from_variables(|name| variables.get(name).map(|value| String::from(*value)))
    }

    fn cache(variables: &[(&str, &str)]) -> String {
        hub(variables).cache.path().display().to_string()
    }

    #[test]
    fn the_environment_is_read_as_hugging_face_does() {
        let plain = hub(&[("HF_HOME", "/no/such/folder")]);
        assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), (PUBLIC, None, false));
        assert_eq!(hub(&[("HF_ENDPOINT", "https://mirror/path/")]).endpoint, "https://mirror/path");
        assert_eq!(hub(&[("HF_ENDPOINT", "")]).endpoint, PUBLIC);

        assert_eq!(cache(&[("HF_HOME", "/a"), ("XDG_CACHE_HOME", "/b")]), "/a/hub");
        assert_eq!(cache(&[("HF_HOME", "/a"), ("HF_HUB_CACHE", "/c")]), "/c");
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/b")]), "/b/huggingface/hub");
        assert!(cache(&[]).ends_with("/.cache/huggingface/hub"));
        let here = env::current_dir().expect("a folder");
        assert_eq!(cache(&[("HF_HOME", "a")]), here.join("a/hub").display().to_string());

        assert!(["1", "TRUE", "yes", "On"].iter().all(|on| hub(&[("HF_HUB_OFFLINE", on)]).offline));
        assert!(!["0", "false", ""].iter().any(|off| hub(&[("HF_HUB_OFFLINE", off)]).offline));
    }

    #[test]
    fn the_token_is_a_variable_or_in_the_file_of_the_login() {
        let home = TempDir::new().expect("a temporary folder");
        let path = home.path().display().to_string();
        fs::write(home.path().join("token"), " of-the-file\n").expect("a file");
        fs::write(home.path().join("other"), "of-the-other").expect("a file");
        fs::write(home.path().join("empty"), "\n").expect("a file");
        let token = |more: &[(&str, &str)]| hub(&[&[("HF_HOME", path.as_str())], more].concat()).token;
        assert_eq!(token(&[]).as_deref(), Some("of-the-file"));
        assert_eq!(token(&[("HF_TOKEN", " of-the-variable ")]).as_deref(), Some("of-the-variable"));
        assert_eq!(token(&[("HF_TOKEN", "")]).as_deref(), Some("of-the-file"));
        assert_eq!(token(&[("HF_TOKEN_PATH", &format!("{path}/other"))]).as_deref(), Some("of-the-other"));
        assert_eq!(token(&[("HF_TOKEN_PATH", &format!("{path}/empty"))]), None);
        // Another cache has no login of its own.
        assert_eq!(token(&[("HF_HUB_CACHE", "/c")]).as_deref(), Some("of-the-file"));
    }
}
